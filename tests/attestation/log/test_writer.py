"""The writer: durable before it answers, idempotent, one at a time, and it starts only on a history it can vouch for."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from pathlib import Path

import pytest

from attestation.log.errors import LeafError, LogFencedError, LogLockedError, LogStoreError
from attestation.log.note import Checkpoint, Note
from attestation.log.reader import LogReader
from attestation.log.state import Stores
from attestation.log.verify import verify_log
from tests.attestation.log.logs import OTHER_KEY, VERIFIER, leaf, make_log, open_log

PARTS = ("log", "log-state", "log-lock")


def _size(data: Path) -> int:
    return verify_log(LogReader.from_dir(data), VERIFIER).checkpoint.size


def _rule(data: Path, **options: object) -> object:
    with pytest.raises(LogStoreError) as caught:
        open_log(data, **options)
    assert caught.value.details["fix"]
    return caught.value.details["rule"]


def test_appended_leaves_are_in_the_published_log(tmp_path: Path) -> None:
    leaves = make_log(tmp_path, 700)
    reader = LogReader.from_dir(tmp_path)
    assert [raw for _, raw in reader.entries(0, 700)] == leaves
    assert _size(tmp_path) == 700


def test_a_new_log_is_an_empty_tree_that_verifies(tmp_path: Path) -> None:
    with open_log(tmp_path) as writer:
        assert Checkpoint.parse(Note.parse(writer.checkpoint()).text).size == 0
        assert writer.append([]) == []
    assert _size(tmp_path) == 0


def test_appending_again_gives_the_same_indexes(tmp_path: Path) -> None:
    leaves = make_log(tmp_path, 600, batch=100)
    with open_log(tmp_path) as writer:
        assert writer.append(leaves[3:5]) == [3, 4]
        assert writer.append([leaves[599], fresh := leaf(), fresh]) == [599, 600, 600]
    assert _size(tmp_path) == 601


def test_an_id_used_for_other_bytes_is_refused_alone(tmp_path: Path) -> None:
    leaves = make_log(tmp_path, 300)
    changed = [each.replace(b'"outcome":"ok"', b'"outcome":"no"') for each in (leaves[2], leaves[299])]
    with open_log(tmp_path) as writer:
        for each in changed:
            with pytest.raises(LeafError) as caught:
                writer.append([leaf(), each])
            assert caught.value.details["rule"] == "leaf-id-reused"
        first = leaf(1)
        with pytest.raises(LeafError):
            writer.append([first, first.replace(b'"ok"', b'"no"')])
        assert writer.append([leaf()]) == [300]
    assert _size(tmp_path) == 301


def test_bytes_that_are_no_leaf_are_refused(tmp_path: Path) -> None:
    with open_log(tmp_path) as writer, pytest.raises(LeafError):
        writer.append([b"{}"])


def test_many_threads_share_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[int] = []
    commits: list[int] = []
    real = Stores.commit

    def commit(stores: Stores, fresh: list[tuple[bytes, bytes]]) -> None:
        commits.append(len(fresh))
        real(stores, fresh)

    monkeypatch.setattr(Stores, "commit", commit)
    with open_log(tmp_path) as writer:

        def work() -> None:
            for _ in range(5):
                got.extend(writer.append([leaf(), leaf()]))

        threads = [threading.Thread(target=work) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(got) == list(range(200))
    assert sum(commits) == 200
    assert len(commits) < 100  # requests
    assert _size(tmp_path) == 200


def test_a_closed_log_refuses(tmp_path: Path) -> None:
    writer = open_log(tmp_path)
    writer.close()
    writer.close()
    with pytest.raises(LogStoreError) as caught:
        writer.append([leaf()])
    assert caught.value.details["rule"] == "log-closed"


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with open_log(tmp_path), pytest.raises(LogLockedError):
        open_log(tmp_path)
    open_log(tmp_path).close()


def test_a_paused_writer_that_was_overtaken_writes_nothing(tmp_path: Path) -> None:
    old = open_log(tmp_path)
    old.append([leaf(1)])
    (tmp_path / "log-state" / "writer.lock").unlink()
    with open_log(tmp_path) as new:
        new.append([leaf(2)])
        before = (tmp_path / "log" / "checkpoint").read_bytes()
        for _ in range(2):
            with pytest.raises(LogFencedError):
                old.append([leaf(3)])
        assert (tmp_path / "log" / "checkpoint").read_bytes() == before
        assert new.append([leaf(4)]) == [2]
    old.close()
    assert _size(tmp_path) == 3


def test_refuses_another_origin_or_key(tmp_path: Path) -> None:
    make_log(tmp_path, 3)
    assert _rule(tmp_path, origin="other.example") == "store-origin"
    assert _rule(tmp_path, key=OTHER_KEY) == "store-key"


@pytest.mark.parametrize(
    ("part", "rule"),
    [("log", "store-folder-missing"), ("log-state", "store-entries-missing"), ("log-lock", "store-lock-missing")],
)
def test_refuses_to_start_when_a_part_is_gone(tmp_path: Path, part: str, rule: str) -> None:
    make_log(tmp_path, 400)
    shutil.rmtree(tmp_path / part)
    assert _rule(tmp_path) == rule


@pytest.mark.parametrize(
    ("part", "rule"),
    [("log", "store-folder-behind"), ("log-state", "store-entries-behind"), ("log-lock", "store-lock-behind")],
)
def test_refuses_an_old_copy_of_a_part(tmp_path: Path, part: str, rule: str) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    make_log(data, 300)
    shutil.copytree(data / part, copy)
    with open_log(data) as writer:
        writer.append([leaf() for _ in range(300)])
        writer.append([leaf()])
    shutil.rmtree(data / part)
    shutil.copytree(copy, data / part)
    assert _rule(data) == rule


def test_refuses_an_entry_store_of_another_history(tmp_path: Path) -> None:
    make_log(tmp_path / "one", 10)
    make_log(tmp_path / "two", 10)
    shutil.rmtree(tmp_path / "one" / "log-state")
    shutil.copytree(tmp_path / "two" / "log-state", tmp_path / "one" / "log-state")
    assert _rule(tmp_path / "one") == "store-contradiction"


def test_refuses_a_damaged_entry_store(tmp_path: Path) -> None:
    leaves = make_log(tmp_path, 10)
    with sqlite3.connect(tmp_path / "log-state" / "entries.db") as base:
        base.execute("UPDATE entry SET leaf = ? WHERE idx = 9", (leaves[0],))
    assert _rule(tmp_path) == "store-damaged"
    with sqlite3.connect(tmp_path / "log-state" / "entries.db") as base:
        base.execute("DELETE FROM entry WHERE idx = 9")
    assert _rule(tmp_path) == "store-entries"


def test_a_tile_that_somebody_changed_is_not_overwritten(tmp_path: Path) -> None:
    make_log(tmp_path, 10)
    (tmp_path / "log" / "tile" / "0" / "000.p" / "10").write_bytes(b"\x00" * 320)
    assert _rule(tmp_path) == "store-tile-differs"


def test_lost_files_of_the_last_batch_come_back(tmp_path: Path) -> None:
    make_log(tmp_path, 10)
    shutil.rmtree(tmp_path / "log" / "tile")
    open_log(tmp_path).close()
    assert _size(tmp_path) == 10


def test_partial_tiles_go_when_the_full_tile_stands(tmp_path: Path) -> None:
    make_log(tmp_path, 256, batch=64)
    names = {str(path.relative_to(tmp_path / "log")) for path in (tmp_path / "log").rglob("*") if path.is_file()}
    assert names == {"checkpoint", "vkey", "tile/0/000", "tile/1/000.p/1", "tile/entries/000"}
