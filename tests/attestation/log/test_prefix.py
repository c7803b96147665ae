"""A log's proven part, kept between runs: only what is new is read, and nothing goes back behind it."""

from __future__ import annotations

import sqlite3
import threading

import pytest

from attestation.log.errors import ForkError, HistoryError, LogStoreError, NoteSignatureError
from attestation.log.note import NoteVerifier
from attestation.log.places import LogPlaces
from attestation.log.prefix import Fact, KeptPrefix
from attestation.log.reader import LogReader
from attestation.log.rotation import rotate_key
from attestation.log.source import FolderSource
from attestation.log.tiles import rotation_path
from attestation.log.writer import LogWriter
from attestation.signing import SigningKey
from tests.attestation.leases import AT

ORIGIN = "log.example/prefix"
KEY = SigningKey(b"\x51" * 32)
VERIFIER = NoteVerifier(ORIGIN, KEY.public)


class Counted(FolderSource):
    """Counts what is read."""

    def __init__(self, root):
        super().__init__(root)
        self.paths = []

    def read(self, path, limit):
        self.paths.append(path)
        return super().read(path, limit)


def grow(folder, start, count, key=KEY, text="x"):
    from tests.attestation.test_history import leaf

    with LogWriter.open(LogPlaces(folder), origin=ORIGIN, key=key) as writer:
        writer.append([leaf("lease.closed", start + number, outcome=text).to_bytes() for number in range(count)])


def noted(index, raw):
    return Fact(index, "even" if index % 2 == 0 else "odd", "seen", str(len(raw)))


def source(folder):
    return Counted(folder / "log")


def test_reading_goes_on_where_it_ended_across_restarts(tmp_path):
    log, file = tmp_path / "log", tmp_path / "state" / "kept.db"
    grow(log, 0, 700)
    kept = KeptPrefix(file, [VERIFIER], origin=ORIGIN)
    assert kept.follow(LogReader(source(log)), noted)[0].size == 700
    kept.close()
    assert file.stat().st_mode & 0o077 == 0
    grow(log, 700, 5)
    again, asked = KeptPrefix(file, [VERIFIER], origin=ORIGIN), []
    files = source(log)
    head, note = again.follow(LogReader(files), lambda index, raw: asked.append(index) or noted(index, raw))
    assert (head.size, asked) == (705, list(range(700, 705)))
    assert len([path for path in files.paths if "entries" in path]) == 1
    assert [fact.position for fact in again.facts("even")] == list(range(0, 705, 2))
    assert note.startswith(ORIGIN)
    quiet = source(log)
    assert again.follow(LogReader(quiet), noted)[0].size == 705
    assert sorted(quiet.paths) == ["checkpoint", rotation_path(1)]  # and no entry


@pytest.mark.parametrize("size", [3, 256, 512, 513])
def test_every_boundary_of_a_tile_is_held_right(tmp_path, size):
    log = tmp_path / "log"
    kept = KeptPrefix(tmp_path / "kept.db", [VERIFIER], origin=ORIGIN)
    grow(log, 0, size)
    kept.follow(LogReader(source(log)), noted)
    grow(log, size, 2)
    assert kept.follow(LogReader(source(log)), noted)[0].size == size + 2


def test_a_log_that_went_back_or_forked_is_refused_and_the_held_part_stays(tmp_path):
    honest, older, other = tmp_path / "honest", tmp_path / "older", tmp_path / "other"
    grow(honest, 0, 300)
    grow(older, 0, 20)
    grow(other, 0, 310, text="y")
    file = tmp_path / "kept.db"
    kept = KeptPrefix(file, [VERIFIER], origin=ORIGIN)
    kept.follow(LogReader(source(honest)), noted)
    with pytest.raises(HistoryError) as caught:
        kept.follow(LogReader(source(older)), noted)
    assert (caught.value.details["seen"], caught.value.details["wanted"]) == ("20 entries", "≥ 300 entries")
    with pytest.raises(ForkError) as forked:
        kept.follow(LogReader(source(other)), noted)
    assert forked.value.details["evidence"]
    same_size = tmp_path / "same"
    grow(same_size, 0, 300, text="z")
    with pytest.raises(ForkError):
        kept.follow(LogReader(source(same_size)), noted)
    kept.close()
    restarted = KeptPrefix(file, [VERIFIER], origin=ORIGIN)
    assert len(list(restarted.facts("odd"))) == 150
    assert restarted.follow(LogReader(source(honest)), noted)[0].size == 300


def test_another_key_is_refused(tmp_path):
    grow(tmp_path / "log", 0, 3, key=SigningKey(b"\x52" * 32))
    with pytest.raises(NoteSignatureError):
        KeptPrefix(None, [VERIFIER], origin=ORIGIN).follow(LogReader(source(tmp_path / "log")), noted)


def test_a_damaged_or_newer_file_is_a_clear_error(tmp_path):
    file = tmp_path / "kept.db"
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(LogStoreError) as caught:
        KeptPrefix(file, [VERIFIER], origin=ORIGIN)
    assert str(file) in caught.value.details["fix"]
    newer = tmp_path / "newer.db"
    base = sqlite3.connect(newer)
    base.execute("pragma user_version = 99")
    base.close()
    with pytest.raises(LogStoreError, match="another version"):
        KeptPrefix(newer, [VERIFIER], origin=ORIGIN)


def test_two_readers_of_one_file_agree(tmp_path):
    log, file = tmp_path / "log", tmp_path / "kept.db"
    grow(log, 0, 600)
    readers = [KeptPrefix(file, [VERIFIER], origin=ORIGIN) for _ in range(3)]
    sizes = []
    threads = [
        threading.Thread(target=lambda kept=kept: sizes.append(kept.follow(LogReader(source(log)), noted)[0].size)) for kept in readers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sizes == [600] * 3
    assert len(list(readers[0].facts("even"))) == 300


def test_a_key_that_the_trusted_one_handed_over_to_is_followed(tmp_path):
    log, new = tmp_path / "log", SigningKey(b"\x53" * 32)
    grow(log, 0, 10)
    kept = KeptPrefix(tmp_path / "kept.db", [VERIFIER], origin=ORIGIN)
    kept.follow(LogReader(source(log)), noted)
    rotate_key(LogPlaces(log), origin=ORIGIN, old=KEY, new=new, at=AT)
    grow(log, 10, 5, key=new)
    assert kept.follow(LogReader(source(log)), noted)[0].size == 16  # the handover is an entry too
    with pytest.raises(NoteSignatureError):  # a key that nobody handed over to
        KeptPrefix(None, [NoteVerifier(ORIGIN, SigningKey(b"\x54" * 32).public)], origin=ORIGIN).follow(LogReader(source(log)), noted)
