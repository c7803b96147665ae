"""Unpacking: a payload's segments in, files out, each compared with what the index says of it before it is written."""

from __future__ import annotations

import contextlib
import os

from blake3 import blake3

from sandbox.errors import BundleTamperedError
from sandbox.sealing.entries import Entry, Kind
from sandbox.sealing.hashing import Progress
from sandbox.sealing.pipeline import Batch, Piece, Step, run
from sandbox.sealing.reader import BundleReader
from sandbox.sealing.source import FileSource
from sandbox.sealing.spool import Spool
from sandbox.sealing.staging import Staging
from sandbox.sealing.table import Listing
from sandbox.sealing.tar import END, padding, tar_header

_HOLE = 64 * 1024
_ZEROS = bytes(_HOLE)
_NOTHING = blake3().digest()


def unpack(source: FileSource, reader: BundleReader, entries: Listing, staging: Staging, progress: Progress | None) -> None:
    """Write everything in a bundle, whose index is ``entries``, into an empty folder that nobody else uses.

    What stands there is verified only when this returns. Raises ``BundleTamperedError``, ``BundleError``, ``InputError``, ``OSError``.
    """
    with Spool(staging.path) as later, contextlib.closing(_Writer(Listing(later), staging.fd)) as writer:
        _run(source, reader, _Checker(entries), writer, progress)


def _run(source: FileSource, reader: BundleReader, checker: _Checker, writer: _Writer, progress: Progress | None) -> None:
    stream, offset = reader.payload, reader.header.payload_offset

    def fetch(batch: Batch) -> None:
        source.read_into(offset + batch.start, batch.block)
        if batch.index == 0 and batch.block[: len(stream.header)] != stream.header:
            raise _other("another stream header", "the one that was read first")
        stream.open_segment(batch.index, batch.sealed, batch.plain)

    def write(batch: Batch) -> None:
        writer.write(batch)
        if progress is not None:
            progress(batch.start + len(batch.block), stream.sealed_size)

    # Writing is in order, too: a file system lets one write into a file at a time, and threads would only spin for it.
    run(stream, [Step(fetch, ordered=False), Step(checker.check, ordered=True), Step(write, ordered=True)])
    checker.finish()
    writer.finish()


class _Checker:
    """Compares the tar with what the index makes of it, and every file with its digest; marks the pieces of each entry."""

    def __init__(self, entries: Listing) -> None:
        self._entries = entries.values()
        self._state = blake3()
        self._expected = memoryview(b"")
        """Exact bytes that come next; then ``_left`` bytes of the file ``_entry``."""
        self._left = 0
        self._ended = False

    def check(self, batch: Batch) -> None:
        plain, position = batch.plain, 0
        while position < len(plain):
            if self._expected:
                count = min(len(self._expected), len(plain) - position)
                if plain[position : position + count] != self._expected[:count]:
                    raise _other("a tar that differs from the index", "the tar that the index describes")
                self._expected = self._expected[count:]
                position += count
            elif self._left:
                position = self._file(batch, position)
            else:
                self._advance(batch, position)

    def _advance(self, batch: Batch, position: int) -> None:
        entry = next(self._entries, None)
        if entry is None:
            if self._ended:
                raise _other("bytes after the end of the tar", "nothing")
            self._ended, self._expected = True, memoryview(END)
            return
        self._entry = entry
        self._expected = memoryview(tar_header(entry))
        self._left = entry.size
        if not self._left:
            if entry.kind is Kind.FILE and entry.digest != _NOTHING:
                raise _other(f"another digest for {entry.name}", "the digest of no bytes")
            batch.pieces.append(Piece(entry, position, position, first=True, last=True))

    def _file(self, batch: Batch, position: int) -> int:
        entry = self._entry
        view = batch.plain[position : position + self._left]
        first = self._left == entry.size
        if first:
            self._state = blake3()
        self._state.update(view)
        self._left -= len(view)
        if not self._left:
            if self._state.digest() != entry.digest:
                raise _other(f"other bytes in {entry.name}", "the bytes that its sealer signed")
            self._expected = memoryview(bytes(padding(entry.size)))
        batch.pieces.append(Piece(entry, position, position + len(view), first, not self._left))
        return position + len(view)

    def finish(self) -> None:
        """Raise ``BundleTamperedError`` unless everything came."""
        if self._expected or self._left or not self._ended:
            raise _other("a tar that ends early", "the tar that the index describes")


class _Writer:
    """Makes folders and files below a folder that only this process uses, in order; symlinks and the dates of folders at the end."""

    def __init__(self, later: Listing, folder: int) -> None:
        self._later = later
        """Folders and symlinks, in order."""
        self._folder = folder
        self._fd = -1

    def write(self, batch: Batch) -> None:
        """Take the pieces of one segment."""
        for piece in batch.pieces:
            entry = piece.entry
            if entry.kind is Kind.FILE:
                self._file(piece, batch)
            elif entry.kind is Kind.DIR:
                os.mkdir(entry.path, 0o700, dir_fd=self._folder)
                self._later.append(entry)
            elif entry.kind is Kind.LINK:
                os.link(entry.target, entry.path, src_dir_fd=self._folder, dst_dir_fd=self._folder, follow_symlinks=False)
            else:
                self._later.append(entry)

    def _file(self, piece: Piece, batch: Batch) -> None:
        entry = piece.entry
        if piece.first:
            self._fd = os.open(entry.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=self._folder)
            if entry.sparse:
                os.ftruncate(self._fd, entry.size)
        if entry.size:
            place = batch.plain_start + piece.start - entry.offset
            _write_piece(self._fd, batch.plain[piece.start : piece.end], place, sparse=entry.sparse)
        if piece.last:
            _date(self._fd, entry)
            self.close()

    def finish(self) -> None:
        """Make what had to wait: symlinks, since while files are written there must be none to follow, and the folders' modes and times."""
        within: list[Entry] = []
        """The folders that the next entry is in, or that were left by it: a folder gets its mode and time when all in it have theirs."""
        for entry in self._later.values():
            while within and not entry.path.startswith(within[-1].path + b"/"):
                self._finish_folder(within.pop())
            if entry.kind is Kind.DIR:
                within.append(entry)
            else:
                os.symlink(entry.target, entry.path, dir_fd=self._folder)
                os.utime(entry.path, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=self._folder, follow_symlinks=False)
        for entry in reversed(within):
            self._finish_folder(entry)

    def _finish_folder(self, entry: Entry) -> None:
        self._fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        _date(self._fd, entry)
        self.close()

    def close(self) -> None:
        """Close the file that is being written, if any."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def _write_piece(fd: int, view: memoryview, place: int, *, sparse: bool) -> None:
    if not sparse:
        _write_all(fd, view, place)
        return
    for start in range(0, len(view), _HOLE):
        piece = view[start : start + _HOLE]
        if piece != _ZEROS[: len(piece)]:
            _write_all(fd, piece, place + start)


def _write_all(fd: int, view: memoryview, place: int) -> None:
    while view:
        count = os.pwrite(fd, view, place)
        view = view[count:]
        place += count


def _date(fd: int, entry: Entry) -> None:
    os.fchmod(fd, entry.mode)
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


def _other(seen: str, wanted: str) -> BundleTamperedError:
    return BundleTamperedError("the bundle's contents are not what its sealer signed", rule="bundle-contents", seen=seen, wanted=wanted,
                               fix="get the bundle again from its source")  # fmt: skip
