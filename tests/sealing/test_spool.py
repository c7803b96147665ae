"""Spools: any number of records in bounded memory, nothing of them readable on the disk, nothing of them changed unnoticed."""

from __future__ import annotations

import errno
import os
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.errors import InputError
from sandbox.sealing import names as names_module
from sandbox.sealing import pipeline
from sandbox.sealing import spool as spool_module
from sandbox.sealing.bundle import open_bundle, seal
from sandbox.sealing.names import sorted_names
from sandbox.sealing.spool import BLOCK_BYTES, Spool
from tests.sealing.trees import describe, make_tree, names

RECORDS = [b"secret-name-%05d" % number * 10 for number in range(2000)]
"""Several blocks."""


@pytest.fixture
def files(monkeypatch):
    """Return every file that a spool made."""
    made = []
    true = tempfile.TemporaryFile

    def make(**named):
        made.append(true(**named))
        return made[-1]

    monkeypatch.setattr(spool_module.tempfile, "TemporaryFile", make)
    return made


@pytest.fixture
def small_blocks(monkeypatch):
    """Let a few records be more than is kept in memory."""
    monkeypatch.setattr(spool_module, "BLOCK_BYTES", 64)


def _filled(folder, records=RECORDS):
    spool = Spool(folder)
    for record in records:
        spool.append(record)
    return spool


@settings(max_examples=50)
@given(st.lists(st.binary(max_size=60)), st.integers(1, 200))
def test_records_come_back_as_often_as_need_be(tmp_path_factory, records, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "BLOCK_BYTES", block)
        with _filled(tmp_path_factory.getbasetemp(), records) as spool:
            assert len(spool) == len(records)
            assert list(spool) == list(spool) == records


def test_a_record_may_be_longer_than_a_block(tmp_path):
    records = [b"a", os.urandom(3 * BLOCK_BYTES), b"", b"b"]
    with _filled(tmp_path, records) as spool:
        assert list(spool) == records


def test_few_records_make_no_file(tmp_path, files):
    with _filled(tmp_path, RECORDS[:100]) as spool:
        assert list(spool) == RECORDS[:100]
    assert files == []


def test_the_file_has_no_name_and_holds_nothing_that_can_be_read_and_goes_when_it_is_closed(tmp_path, files):
    with _filled(tmp_path) as spool:
        assert list(spool) == RECORDS
        assert names(tmp_path) == []
        (file,) = files
        status = os.fstat(file.fileno())
        assert (status.st_nlink, status.st_dev, status.st_mode & 0o777) == (0, tmp_path.stat().st_dev, 0o600)
        raw = os.pread(file.fileno(), status.st_size, 0)
        assert len(raw) > len(b"".join(RECORDS)) - BLOCK_BYTES
        assert b"secret" not in raw
    assert file.closed


def test_the_same_records_are_never_written_as_the_same_bytes(tmp_path, files):
    with _filled(tmp_path), _filled(tmp_path):
        first, second = (os.pread(file.fileno(), 100, 0) for file in files)
    assert first != second


def _flip(fd):
    byte = os.pread(fd, 1, 70_000)
    os.pwrite(fd, bytes([byte[0] ^ 1]), 70_000)


def _swap(fd):
    """Put the first block in the place of the second one."""
    os.pwrite(fd, os.pread(fd, os.fstat(fd).st_size // 2, 0), os.fstat(fd).st_size // 2)


def _cut(fd):
    os.ftruncate(fd, 100_000)


@pytest.mark.parametrize("change", [_flip, _swap, _cut])
def test_a_file_that_was_tampered_with_is_refused(tmp_path, files, change):
    with _filled(tmp_path) as spool:
        assert list(spool) == RECORDS
        change(files[0].fileno())
        with pytest.raises(InputError, match="is not as it was written") as caught:
            list(spool)
    assert caught.value.details["rule"] == "spool"


class Disk:
    """The module ``os`` on a disk that fails."""

    def __init__(self, call, number):
        self._call, self._number = call, number

    def __getattr__(self, name):
        return self._fail if name == self._call else getattr(os, name)

    def _fail(self, *_args):
        raise OSError(self._number, os.strerror(self._number))


def test_a_file_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    with _filled(tmp_path) as spool:
        monkeypatch.setattr(spool_module, "os", Disk("pread", errno.EIO))
        with pytest.raises(InputError, match="is not as it was written") as caught:
            list(spool)
    assert caught.value.details["seen"] == "Input/output error"


def test_a_file_that_cannot_be_made_is_told(tmp_path):
    with pytest.raises(InputError, match="No such file or directory") as caught:
        _filled(tmp_path / "missing")
    assert caught.value.details["rule"] == "disk"


def test_what_is_written_in_parts_is_whole(tmp_path, monkeypatch):
    class Slow:
        pwrite = staticmethod(lambda fd, view, offset: os.pwrite(fd, view[:1000], offset))

        def __getattr__(self, name):
            return getattr(os, name)

    with monkeypatch.context() as patch:
        patch.setattr(spool_module, "os", Slow())
        spool = _filled(tmp_path)
    with spool:
        assert list(spool) == RECORDS


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "src").mkdir()
    make_tree(tmp_path / "src")
    return tmp_path


def _seal(place, who, progress=None):
    return seal([place / "src"], place / "b", recipients=[who.public], signer=who.signing_key, progress=progress)


def _open(place, who, progress=None):
    return open_bundle(place / "b", place / "out", key=who, progress=progress)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("inside", [False, True])
def test_what_went_through_spools_is_sealed_and_opened_as_it_was(tree, files, alice, inside, monkeypatch):
    monkeypatch.setattr(names_module, "RUN_NAMES", 2)
    _seal(tree, alice)
    sealing = len(files)
    if inside:
        (tree / "out").mkdir()
    _open(tree, alice)
    assert describe(tree / "out") == describe(tree / "src")
    assert names(tree) == ["b", "out", "src"]
    assert sealing >= 2
    assert len(files) >= sealing + 2
    assert all(file.closed for file in files)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("verb", [_seal, _open])
def test_a_spool_that_cannot_be_written_is_told_and_leaves_nothing(tree, monkeypatch, alice, verb, number):
    monkeypatch.setattr(names_module, "RUN_NAMES", 3)
    if verb is _open:
        _seal(tree, alice)
    before = names(tree)
    for at in range(1, 400):
        with monkeypatch.context() as patch:
            calls = []

            def pwrite(fd, view, offset, calls=calls, at=at):
                calls.append(fd)
                if len(calls) == at:
                    raise OSError(number, os.strerror(number))
                return os.pwrite(fd, view, offset)

            disk = Disk("", 0)
            disk.pwrite = pwrite
            patch.setattr(spool_module, "os", disk)
            try:
                verb(tree, alice)
            except InputError as error:
                # All calls are walked until one is not reached.
                assert "a temporary file in" in error.message  # noqa: PT017
                assert os.strerror(number) in error.message  # noqa: PT017
            else:
                assert 3 < len(calls) < at
                break
        assert names(tree) == before, at


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("verb", [_seal, _open])
def test_a_spool_that_was_tampered_with_leaves_nothing(tree, files, alice, verb):
    """Whoever can write into this process's files must not choose what is sealed, or where it is opened to."""
    if verb is _open:
        _seal(tree, alice)
    before = names(tree)
    made = len(files)

    def tamper(_done, _total):
        fd = files[made].fileno()
        size = os.fstat(fd).st_size
        os.pwrite(fd, bytes(size), 0)

    with pytest.raises(InputError, match="is not as it was written"):
        verb(tree, alice, tamper)
    assert names(tree) == before


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 20, 57])
def test_names_come_sorted_however_many_there_are(tmp_path, monkeypatch, count):
    monkeypatch.setattr(names_module, "RUN_NAMES", 10)
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(count):
        (folder / os.fsdecode(b"%d-\xff" % (number * 7919 % 101))).touch()
    found = list(sorted_names(os.fsencode(folder), tmp_path))
    assert found == sorted(os.listdir(os.fsencode(folder)))  # noqa: PTH208  (names are bytes)
    assert len(found) == count


def test_names_of_a_folder_that_is_none_are_refused(tmp_path):
    with pytest.raises(NotADirectoryError):
        sorted_names(os.fsencode(Path(__file__)), tmp_path)


def _peaks(place, who, count):
    """Return the most memory that sealing and opening ``count`` files takes, in bytes.

    On opening, from when the index was read: its lines come a segment at a time, and these few do not fill one.
    """
    source, sealed, opened = place / f"src-{count}", place / f"b-{count}", place / f"out-{count}"
    source.mkdir()
    for number in range(count):
        (source / f"a-file-with-a-name-{number:05d}").touch()
    opened.mkdir()
    tracemalloc.start()
    try:
        seal([source], sealed, recipients=[who.public], signer=who.signing_key)
        sealing = tracemalloc.get_traced_memory()[1]
        first = iter([tracemalloc.reset_peak])
        open_bundle(sealed, opened, key=who, progress=lambda *_: next(first, lambda: None)())
        return sealing, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_more_files_take_no_more_memory(tmp_path, monkeypatch, alice):
    monkeypatch.setattr(names_module, "RUN_NAMES", 500)
    monkeypatch.setattr(spool_module, "BLOCK_BYTES", 1024)
    monkeypatch.setattr(pipeline, "WORKERS", 1)  # how many segments are on their way at once must not depend on chance
    _peaks(tmp_path, alice, 10)  # what is made once
    few = _peaks(tmp_path, alice, 800)
    more = _peaks(tmp_path, alice, 2000)
    assert max(most - least for least, most in zip(few, more, strict=True)) < 1200 * 100  # bytes; entries kept in memory took 160 and more
