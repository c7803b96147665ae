"""The log on a database and a bucket that fail: killed in mid-commit, cut off, restored from an old dump, refusing puts or keeping
what they said had failed. After each: everything that was acknowledged is there and the tree verifies, or the start is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import GenericError

from attestation.log.bucket import Bucket, PublicBucket
from attestation.log.errors import LogStoreError
from attestation.log.places import LogPlaces
from attestation.log.postgres import PostgresEntries, PostgresLock
from attestation.log.reader import LogReader
from attestation.log.verify import verify_log
from attestation.log.writer import LogWriter
from tests.attestation.log.logs import VERIFIER, leaf, open_log
from tests.patience import eventually
from tests.postgres import PostgresServer

pytestmark = pytest.mark.slow
STEPS = 12
"""More than an append takes of any one kind of step."""


def kept(places: LogPlaces, acknowledged: list[bytes]) -> int:
    """Open the log again; everything acknowledged must be there. Return how many entries there are."""
    with open_log(places) as writer:
        writer.append([leaf()])
    reader = LogReader(places.source())
    size = verify_log(reader, VERIFIER).checkpoint.size
    entries = [raw for _, raw in reader.entries(0, size)]
    assert [raw for raw in entries if raw in set(acknowledged)] == acknowledged
    return size


def append_again(writer: LogWriter, batch: list[bytes]) -> list[int]:
    """Append as the server does: once more after a failure."""

    def once() -> list[int] | None:
        try:
            return writer.append(batch)
        except LogStoreError as error:
            if error.details["rule"] not in {"store-io", "log-locked"}:
                raise
            return None

    return eventually(once, "the log to take entries again")


@pytest.fixture
def database(postgres: PostgresServer, tmp_path: Path) -> tuple[PostgresServer, str, LogPlaces]:
    name = postgres.create()
    return postgres, name, LogPlaces(tmp_path, postgres.url(name), postgres.url(name))


def _at_statement(store: type, method: str, strike: Callable[[], None], when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strike once, before or after a method of the store has done its work."""
    real, struck = getattr(store, method), []

    def faulty(self: object, *args: object, **options: object) -> object:
        if when == "before" and not struck:
            struck.append(True)
            strike()
        result = real(self, *args, **options)
        if when == "after" and not struck:
            struck.append(True)
            strike()
            msg = "the answer was lost"
            raise LogStoreError(msg, rule="store-io", seen="lost", wanted="an answer")
        return result

    monkeypatch.setattr(store, method, faulty)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("store", "method"), [(PostgresEntries, "commit"), (PostgresLock, "swap"), (PostgresLock, "while_owner")])
def test_a_connection_that_is_lost_at_each_step(
    database: tuple[PostgresServer, str, LogPlaces], monkeypatch: pytest.MonkeyPatch, store: type, method: str, when: str
) -> None:
    server, name, places = database
    first, second = [leaf() for _ in range(250)], [leaf() for _ in range(20)]
    with open_log(places) as writer:
        writer.append(first)
        _at_statement(store, method, lambda: server.drop_sessions(name), when, monkeypatch)
        assert append_again(writer, second) == list(range(250, 270))
        assert writer.append(second) == list(range(250, 270))
    assert kept(places, first + second) == 271


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_server_that_is_killed_at_its_commit(
    postgres_alone: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Not shut down: nothing is flushed, and the next start recovers from the journal."""
    server = postgres_alone
    name = server.create()
    places = LogPlaces(tmp_path, server.url(name), server.url(name))
    first, second = [leaf() for _ in range(10)], [leaf() for _ in range(500)]
    with open_log(places) as writer:
        writer.append(first)

        def strike() -> None:
            server.kill()
            server.start()

        _at_statement(PostgresEntries, "commit", strike, when, monkeypatch)
        assert append_again(writer, second) == list(range(10, 510))
        server.kill()
        with pytest.raises(LogStoreError):
            writer.append([leaf()])
        server.start()
        assert append_again(writer, second[:1]) == [10]
    assert kept(places, first + second) == 511


def test_a_server_that_is_killed_while_many_append(postgres_alone: PostgresServer, tmp_path: Path) -> None:
    server = postgres_alone
    name = server.create()
    places = LogPlaces(tmp_path, server.url(name), server.url(name))
    acknowledged: dict[int, bytes] = {}
    stop = threading.Event()

    with open_log(places) as writer:

        def work() -> None:
            while not stop.is_set():
                batch = [leaf() for _ in range(3)]
                acknowledged.update(zip(append_again(writer, batch), batch, strict=True))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            stop.wait(0.3)
            server.kill()
            server.start()
        stop.wait(0.3)
        stop.set()
        for thread in threads:
            thread.join()
    size = kept(places, [acknowledged[index] for index in sorted(acknowledged)])
    assert size > len(acknowledged) > 0


@pytest.mark.parametrize(("part", "rule"), [("state", "store-entries-behind"), ("lock", "store-lock-behind")])
def test_a_restored_dump(postgres: PostgresServer, tmp_path: Path, part: str, rule: str) -> None:
    state, lock = postgres.create(), postgres.create()
    places = LogPlaces(tmp_path, postgres.url(state), postgres.url(lock))
    with open_log(places) as writer:
        writer.append([leaf() for _ in range(5)])
    old = postgres.create(template=state if part == "state" else lock)
    with open_log(places) as writer:
        writer.append([leaf() for _ in range(3)])
        writer.append([leaf()])
    restored = LogPlaces(tmp_path, postgres.url(old if part == "state" else state), postgres.url(old if part == "lock" else lock))
    with pytest.raises(LogStoreError) as caught:
        open_log(restored)
    assert caught.value.details["rule"] == rule
    assert caught.value.details["fix"]
    with open_log(places) as writer:
        assert writer.append([leaf()]) == [9]


def test_a_writer_that_lost_its_session_is_fenced(database: tuple[PostgresServer, str, LogPlaces], tmp_path: Path) -> None:
    """The server lost sight of a paused writer elsewhere, another took over: the first one writes nothing any more."""
    server, name, places = database
    old = open_log(places)
    old.append([leaf()])
    (tmp_path / "log-state" / "writer.lock").unlink()
    server.drop_sessions(name)
    with open_log(places) as new:
        new.append([leaf()])
        with pytest.raises(LogStoreError) as caught:
            old.append([leaf()])
        assert caught.value.details["rule"] == "store-io"
        with pytest.raises(LogStoreError) as refused:
            old.append([leaf()])
        assert refused.value.details["rule"] == "log-locked"
        assert new.append([leaf()]) == [2]
    old.close()
    assert kept(places, []) == 4


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
@pytest.mark.parametrize("part", ["state", "lock"])
def test_a_server_that_does_not_keep_what_it_acknowledges_is_refused(
    postgres: PostgresServer, tmp_path: Path, setting: str, part: str
) -> None:
    url = postgres.url(postgres.create())
    postgres.set(setting, "off")
    try:
        with pytest.raises(LogStoreError) as caught:
            open_log(LogPlaces(tmp_path, **{part: url}))
    finally:
        postgres.set(setting, "on")
    assert (caught.value.details["rule"], caught.value.details["seen"]) == ("store-not-durable", f"{setting} = off")
    assert setting in str(caught.value.details["fix"])
    with open_log(LogPlaces(tmp_path, **{part: url})) as writer:
        assert writer.append([leaf()]) == [0]


# --- the bucket ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("persisted", [False, True], ids=["failed", "failed but persisted"])
def test_a_put_that_fails(tmp_path: Path, s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch, *, persisted: bool) -> None:
    """At each put of an append in turn: it fails, or it fails and yet was kept."""
    real = obstore.put
    places = LogPlaces(tmp_path, bucket=s3_bucket)
    acknowledged: list[bytes] = []
    guard, left = threading.Lock(), [-1]

    def faulty(*args: object, **options: object) -> object:
        with guard:
            strike, left[0] = left[0] == 0, left[0] - 1
        if strike and not persisted:
            raise GenericError("the store failed")
        result = real(*args, **options)
        if strike:
            raise GenericError("the answer was lost")
        return result

    monkeypatch.setattr(obstore, "put", faulty)
    struck = 0
    with open_log(places) as writer:
        for number in range(STEPS):
            batch = [leaf() for _ in range(50)]
            left[0] = number
            failed = False
            try:
                writer.append(batch)
            except LogStoreError as error:
                if error.details["rule"] != "store-io":
                    raise
                failed = True
            left[0] = -1
            assert writer.append(batch)[0] == 50 * number
            struck += failed
            acknowledged += batch
    assert struck >= 4
    monkeypatch.undo()
    assert kept(places, acknowledged) == 50 * STEPS + 1


def test_a_bucket_that_is_gone_and_comes_back(tmp_path: Path, s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    places = LogPlaces(tmp_path, bucket=s3_bucket)
    real = obstore.put
    down = [False]

    def faulty(*args: object, **options: object) -> object:
        if down[0]:
            raise GenericError("the store is gone")
        return real(*args, **options)

    monkeypatch.setattr(obstore, "put", faulty)
    batch = [leaf() for _ in range(5)]
    with open_log(places) as writer:
        writer.append(batch)
        down[0] = True
        for _ in range(3):
            with pytest.raises(LogStoreError):
                writer.append([leaf()])
        down[0] = False
        writer.append(batch)
    assert kept(places, batch) >= 6


def test_a_bucket_s_old_copy_is_refused(tmp_path: Path, s3_bucket: Bucket) -> None:
    places = LogPlaces(tmp_path, bucket=s3_bucket)
    with open_log(places) as writer:
        writer.append([leaf()])
    store = PublicBucket(s3_bucket)
    old = store.read("checkpoint", 10_000)
    assert old is not None
    with open_log(places) as writer:
        writer.append([leaf()])
        writer.append([leaf()])
    store.read("checkpoint", 10_000)
    store.replace("checkpoint", old)
    store.close()
    with pytest.raises(LogStoreError) as caught:
        open_log(places)
    assert caught.value.details["rule"] == "store-folder-behind"


@pytest.fixture
def postgres_alone(postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A server that may be killed: it is up again afterwards for the next test."""
    yield postgres
    if not postgres.running:
        postgres.start()
