"""One conformance suite for everything that a log keeps its state and its files in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from attestation.log.bucket import Bucket, PublicBucket
from attestation.log.errors import LogError, LogFencedError, LogFetchError, LogLockedError, LogStoreError
from attestation.log.places import LogPlaces
from attestation.log.reader import LogReader
from attestation.log.store import EntryStore, Head, LockStore, PublicStore, TreeState
from attestation.log.verify import verify_log
from attestation.merkle import EMPTY_ROOT
from tests.attestation.log.logs import VERIFIER, leaf, open_log
from tests.postgres import PostgresServer

ROOT = b"\x01" * 32
STATE = TreeState("log.example", 1, 3, ROOT, 1, EMPTY_ROOT, b"upper")
HEAD = Head(1, "note\n", "key")
Make = Callable[[], LogPlaces]


@pytest.fixture(params=["local", "postgres"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> LogPlaces:
    """Places for the private state."""
    if request.param == "local":
        return LogPlaces(tmp_path)
    server: PostgresServer = request.getfixturevalue("postgres")
    name = server.create()
    return LogPlaces(tmp_path, state=server.url(name), lock=server.url(name).replace("postgresql:", "postgresql+psycopg:"))


@pytest.fixture
def entries(places: LogPlaces) -> Iterator[EntryStore]:
    store = places.open_entries()
    yield store
    store.close()


@pytest.fixture
def lock(places: LogPlaces) -> Iterator[LockStore]:
    store = places.open_lock()
    yield store
    store.close()


@pytest.fixture(params=["folder", "s3"])
def public(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PublicStore]:
    bucket = request.getfixturevalue("s3_bucket") if request.param == "s3" else None
    store = LogPlaces(tmp_path, bucket=bucket).open_public()
    yield store
    store.close()


# --- entries -------------------------------------------------------------------------------------------------------------


def test_what_was_committed_is_there_again(places: LogPlaces, entries: EntryStore) -> None:
    assert entries.state() is None
    entries.start(TreeState("log.example", 1))
    entries.commit(STATE, [(0, b"a"), (1, b"\x00" * 65535), (2, b"")], [(b"\x00" * 16, 0), (b"\xff" * 16, 2)], forget_below=0)
    entries.close()
    again = places.open_entries()
    try:
        assert again.state() == STATE
        assert again.leaves(0, 3) == [b"a", b"\x00" * 65535, b""]
        assert again.leaves(1, 1) == []
        assert again.find([b"\x00" * 16, b"\x01" * 16, b"\xff" * 16]) == {b"\x00" * 16: 0, b"\xff" * 16: 2}
        assert again.find([]) == {}
    finally:
        again.close()


def test_what_is_forgotten_is_missed_when_asked_for(entries: EntryStore) -> None:
    entries.start(TreeState("log.example", 1))
    entries.commit(STATE, [(0, b"a"), (1, b"b")], [], forget_below=0)
    entries.commit(STATE, [(2, b"c")], [], forget_below=2)
    assert entries.leaves(2, 3) == [b"c"]
    with pytest.raises(LogStoreError) as caught:
        entries.leaves(1, 3)
    assert caught.value.details["rule"] == "store-entries"


def test_many_ids_are_found(entries: EntryStore) -> None:
    entries.start(TreeState("log.example", 1))
    ids = {number.to_bytes(16, "big"): number for number in range(1200)}
    entries.commit(STATE, [], ids.items(), forget_below=0)
    assert entries.find([*ids, b"x" * 16]) == ids


def test_a_commit_is_whole_or_not_at_all(entries: EntryStore) -> None:
    entries.start(TreeState("log.example", 1))
    entries.commit(STATE, [(0, b"a")], [(b"\x01" * 16, 0)], forget_below=0)
    later = TreeState("log.example", 1, 9, ROOT)
    with pytest.raises(LogStoreError):
        entries.commit(later, [(1, b"b"), (0, b"again")], [], forget_below=0)
    with pytest.raises(LogStoreError):
        entries.commit(later, [(1, b"b")], [(b"\x01" * 16, 1)], forget_below=0)
    assert entries.state() == STATE
    assert entries.leaves(0, 1) == [b"a"]
    with pytest.raises(LogStoreError):
        entries.leaves(1, 2)


def test_a_writer_of_an_older_epoch_writes_nothing(entries: EntryStore) -> None:
    entries.start(TreeState("log.example", 1))
    entries.start(TreeState("log.example", 3))
    for older in (1, 2):
        with pytest.raises(LogFencedError):
            entries.commit(TreeState("log.example", older, 1, ROOT), [(0, b"a")], [], forget_below=0)
        with pytest.raises(LogFencedError):
            entries.start(TreeState("log.example", older))
    state = entries.state()
    assert state is not None
    assert (state.epoch, state.size) == (3, 0)


def test_a_takeover_sees_what_it_takes_over(entries: EntryStore) -> None:
    """Between reading the state and taking over another writer committed: the state that was read is not built upon."""
    entries.start(TreeState("log.example", 1))
    entries.commit(STATE, [(0, b"a")], [], forget_below=0)
    with pytest.raises(LogFencedError):
        entries.start(TreeState("log.example", 2))
    assert entries.state() == STATE


# --- lock ----------------------------------------------------------------------------------------------------------------


def test_compare_and_swap(places: LogPlaces, lock: LockStore) -> None:
    assert lock.head() is None
    lock.create(HEAD)
    with pytest.raises(LogStoreError):
        lock.create(HEAD)
    second = Head(2, "other\n", "key")
    lock.swap(HEAD, second)
    for wrong in (HEAD, Head(2, "note\n", "key"), Head(1, "other\n", "key"), Head(2, "other\n", "KEY")):
        with pytest.raises(LogFencedError):
            lock.swap(wrong, HEAD, rotation="never")
    lock.swap(second, Head(2, "third\n", "KEY"), rotation="one")
    lock.swap(Head(2, "third\n", "KEY"), second, rotation="two")
    lock.close()
    again = places.open_lock()
    try:
        assert again.head() == second
        assert again.rotations() == ["one", "two"]
    finally:
        again.close()


def test_only_the_owner_publishes(lock: LockStore) -> None:
    published: list[int] = []
    with pytest.raises(LogFencedError):
        lock.while_owner(1, lambda: published.append(0))
    lock.create(HEAD)
    lock.while_owner(1, lambda: published.append(1))
    with pytest.raises(LogFencedError):
        lock.while_owner(2, lambda: published.append(2))

    def fail() -> None:
        raise OSError(5, "broken")

    with pytest.raises(OSError):
        lock.while_owner(1, fail)
    lock.while_owner(1, lambda: published.append(3))
    assert published == [1, 3]


# --- public files --------------------------------------------------------------------------------------------------------


def test_files_are_read_as_written(public: PublicStore) -> None:
    files = {f"tile/0/x001/{number:03d}": b"%d" % number * 100 for number in range(40)} | {"empty": b""}
    public.write(files)
    public.write(files)
    for path, data in files.items():
        assert public.read(path, 1000) == data
    assert public.read("tile/0/x001/999", 1000) is None
    with pytest.raises(LogFetchError) as caught:
        public.read("tile/0/x001/000", 10)
    assert caught.value.details["rule"] == "log-limit"


def test_a_tile_is_never_changed(public: PublicStore) -> None:
    public.write({"tile/0/000": b"one"})
    with pytest.raises(LogStoreError) as caught:
        public.write({"tile/0/001": b"new", "tile/0/000": b"two"})
    assert caught.value.details["rule"] == "store-tile-differs"
    assert public.read("tile/0/000", 100) == b"one"


def test_the_checkpoint_is_replaced(public: PublicStore) -> None:
    for text in (b"one", b"two", b"two", b"three"):
        public.replace("checkpoint", text)
        assert public.read("checkpoint", 100) == text


def test_partial_tiles_go(public: PublicStore) -> None:
    public.write({"tile/0/000.p/1": b"1", "tile/0/000.p/255": b"2", "tile/0/000": b"full", "tile/0/0001.p/7": b"other"})
    public.drop_partials(["tile/0/000", "tile/0/777"])
    assert public.read("tile/0/000.p/1", 10) is None
    assert public.read("tile/0/000.p/255", 10) is None
    assert public.read("tile/0/000", 10) == b"full"
    assert public.read("tile/0/0001.p/7", 10) == b"other"


def test_a_bucket_s_checkpoint_is_not_replaced_by_a_writer_that_was_overtaken(s3_bucket: Bucket) -> None:
    old, new = PublicBucket(s3_bucket), PublicBucket(s3_bucket)
    old.replace("checkpoint", b"one")
    assert new.read("checkpoint", 100) == b"one"
    new.replace("checkpoint", b"two")
    with pytest.raises(LogFencedError):
        old.replace("checkpoint", b"old")
    assert new.read("checkpoint", 100) == b"two"
    old.close()
    new.close()


def test_a_bucket_that_does_not_answer(tmp_path: Path) -> None:
    bucket = Bucket("log", "", {"endpoint": "http://127.0.0.1:9", "region": "x", "access_key_id": "key", "secret_access_key": "secret",
                                "client_options": {"allow_http": True}, "retry_config": {"max_retries": 0}})  # fmt: skip
    assert "secret" not in repr(bucket)
    store = PublicBucket(bucket)
    for fails in (lambda: store.write({"a": b"b"}), lambda: store.replace("a", b"b"), lambda: store.read("a", 9)):
        with pytest.raises(LogError) as caught:
            fails()
        assert "secret" not in f"{caught.value} {caught.value.details}"
    store.drop_partials(["tile/0/000"])
    store.close()
    with pytest.raises(LogStoreError) as refused:
        open_log(LogPlaces(tmp_path, bucket=bucket))
    assert refused.value.details["rule"] == "store-io"


# --- whole logs ----------------------------------------------------------------------------------------------------------


def test_a_log_in_database_and_bucket(tmp_path: Path, postgres: PostgresServer, s3_bucket: Bucket) -> None:
    state, lock = postgres.create(), postgres.create()
    places = LogPlaces(tmp_path, postgres.url(state), postgres.url(lock), s3_bucket)
    leaves = [leaf(number) for number in range(700)]
    for start in range(0, 700, 350):
        with open_log(places) as writer:
            assert writer.append(leaves[start : start + 350])[0] == start
            assert writer.append(leaves[start : start + 2]) == [start, start + 1]
    reader = LogReader(places.source())
    assert [raw for _, raw in reader.entries(0, 700)] == leaves
    assert verify_log(reader, VERIFIER).checkpoint.size == 700
    assert not (tmp_path / "log").exists()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["writer.lock"]


def test_a_second_writer_elsewhere_is_told(tmp_path: Path, postgres: PostgresServer) -> None:
    """Two machines, so no file lock keeps them apart."""
    name = postgres.create()
    one, two = (LogPlaces(tmp_path / each, postgres.url(name), postgres.url(name)) for each in ("one", "two"))
    with open_log(one) as writer:
        with pytest.raises(LogLockedError) as caught:
            open_log(two)
        assert caught.value.details["fix"]
        writer.append([leaf()])
        writer.append([leaf()])
    with pytest.raises(LogStoreError) as refused:  # its own folder is not that of the log
        open_log(two)
    assert refused.value.details["rule"] == "store-folder-missing"


@pytest.mark.parametrize(
    ("url", "rule"),
    [
        ("postgresql://me:secret@127.0.0.1/x", "store-url"),
        ("mysql://x/y", "store-url"),
        ("postgresql://127.0.0.1:9/x?connect_timeout=2", "store-io"),
    ],
)
def test_a_state_that_cannot_be_used(tmp_path: Path, url: str, rule: str) -> None:
    for places in (LogPlaces(tmp_path, state=url), LogPlaces(tmp_path, lock=url)):
        with pytest.raises(LogStoreError) as caught:
            open_log(places)
        assert caught.value.details["rule"] == rule
        assert "secret" not in f"{caught.value} {caught.value.details}"


def test_a_lock_store_in_a_folder_of_its_own(tmp_path: Path) -> None:
    with open_log(LogPlaces(tmp_path / "data", lock=str(tmp_path / "elsewhere"))) as writer:
        writer.append([leaf()])
    assert (tmp_path / "elsewhere" / "lock.db").is_file()
    assert not (tmp_path / "data" / "log-lock").exists()
