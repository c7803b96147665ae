"""Opening: one bundle in, its files out, verified to the last byte before any of them stands under its name."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from blake3 import blake3

from attestation.signing import VerifyKey
from sandbox.errors import BundleTamperedError, InputError
from sandbox.sealing.entries import Entry, Kind
from sandbox.sealing.format import Header
from sandbox.sealing.hashing import Progress
from sandbox.sealing.keys import DataKey, Identity
from sandbox.sealing.output import disk_error
from sandbox.sealing.pipeline import Batch, Step, run
from sandbox.sealing.reader import BundleReader, Limits
from sandbox.sealing.source import FileSource
from sandbox.sealing.tar import END, padding, tar_header

_HOLE = 64 * 1024
_ZEROS = bytes(_HOLE)


@dataclass(frozen=True)
class OpenResult:
    """What was opened; ``size`` is the sum of the files' sizes and ``header.signer`` who sealed it."""

    files: int
    size: int
    header: Header

    @property
    def labels(self) -> Mapping[str, str]:
        """The bundle's public labels."""
        return self.header.labels


def open_bundle(
    path: Path,
    dest: Path,
    *,
    key: DataKey | Identity,
    limits: Limits | None = None,
    signers: Collection[VerifyKey] | None = None,
    progress: Progress | None = None,
) -> OpenResult:
    """Unpack a bundle into ``dest``, a new or empty folder, byte for byte with modes, times and links.

    Everything is written to a private folder first and moved when all of it is verified; on any error ``dest`` is as before.
    Raises ``BundleError`` and its kinds, ``LimitError``, ``InputError`` (``dest`` is not empty, no such file, a full disk).
    """
    try:
        source = FileSource(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", rule="bundle-file", seen=error.strerror or "an error",
                         wanted="a readable file", fix="check the name and its permissions") from error  # fmt: skip
    try:
        return _open(source, dest, key, limits, signers, progress)
    except OSError as error:
        raise disk_error(str(dest), error) from error


def _open(  # noqa: PLR0917  (the arguments of ``open_bundle``, in its order)
    source: FileSource,
    dest: Path,
    key: DataKey | Identity,
    limits: Limits | None,
    signers: Collection[VerifyKey] | None,
    progress: Progress | None,
) -> OpenResult:
    with source:
        reader = BundleReader(source, key, signers=signers, limits=limits)
        entries = list(reader.entries().values())
        with _Staging(dest) as staging:
            room = os.fstatvfs(staging.fd)
            needed = sum(entry.size for entry in entries if not entry.sparse)
            if room.f_bavail * room.f_frsize < needed:
                raise InputError(f"{dest} has no room for the bundle", rule="open-room", seen=f"{room.f_bavail * room.f_frsize} bytes free",
                                 wanted=f"{needed} bytes", fix="free space or choose another folder")  # fmt: skip
            for entry in entries:
                if entry.kind is Kind.DIR:
                    os.mkdir(entry.path, 0o700, dir_fd=staging.fd)
            _unpack(source, reader, entries, staging.fd, progress)
            _link_and_date(entries, staging.fd)
            staging.publish()
    files = sum(entry.kind is Kind.FILE for entry in entries)
    return OpenResult(files, sum(entry.size for entry in entries), reader.header)


def _unpack(source: FileSource, reader: BundleReader, entries: Sequence[Entry], folder: int, progress: Progress | None) -> None:
    stream, offset = reader.payload, reader.header.payload_offset
    checker = _Checker(entries)
    writer = _Writer(entries, folder)

    def fetch(batch: Batch) -> None:
        source.read_into(offset + batch.start, batch.block)
        if batch.index == 0 and batch.block[: len(stream.header)] != stream.header:
            raise _other("another stream header", "the one that was read first")
        stream.open_segment(batch.index, batch.sealed, batch.plain)

    def tell(batch: Batch) -> None:
        if progress is not None:
            progress(batch.start + len(batch.block), stream.sealed_size)

    steps = [
        Step(fetch, ordered=False),
        Step(checker.check, ordered=True),
        Step(writer.begin, ordered=True),
        Step(writer.write, ordered=False),
        Step(writer.end, ordered=True),
        Step(tell, ordered=True),
    ]
    try:
        run(stream, steps)
    finally:
        writer.close()
    checker.finish()


def _regions(entries: Sequence[Entry]) -> Iterator[tuple[int, bytes]]:
    """Yield what a tar of ``entries`` is made of: (-1, exact bytes) or (number of a file, nothing)."""
    for number, entry in enumerate(entries):
        yield -1, tar_header(entry)
        if entry.size:
            yield number, b""
            if padding(entry.size):
                yield -1, bytes(padding(entry.size))
    yield -1, END


class _Checker:
    """Compares the tar with what the index makes of it, and every file with its digest; marks the pieces that belong to files."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries
        self._regions = _regions(entries)
        self._number = -1
        self._expected = b""
        self._place = 0
        self._left = 0
        self._state = blake3()

    def check(self, batch: Batch) -> None:
        position = 0
        while position < len(batch.plain):
            if self._left == 0:
                self._number, self._expected = next(self._regions, (-1, b""))
                self._left = self._entries[self._number].size if self._number >= 0 else len(self._expected)
                self._place = 0
                if self._left == 0:
                    raise _other("bytes after the end of the tar", "nothing")
            count = min(self._left, len(batch.plain) - position)
            view = batch.plain[position : position + count]
            if self._number < 0:
                if view != self._expected[self._place : self._place + count]:
                    raise _other("a tar that differs from the index", "the tar that the index describes")
            else:
                self._hash(view)
                batch.pieces.append((self._number, position, position + count))
            self._left -= count
            self._place += count
            position += count

    def _hash(self, view: memoryview) -> None:
        entry = self._entries[self._number]
        if self._place == 0:
            self._state = blake3()
        self._state.update(view)
        if self._left == len(view) and self._state.digest() != entry.digest:
            raise _other(f"other bytes in {entry.name}", "the bytes that its sealer signed")

    def finish(self) -> None:
        """Raise ``BundleTamperedError`` unless everything came, and every empty file has the digest of nothing."""
        if self._left or next(self._regions, None) is not None:
            raise _other("a tar that ends early", "the tar that the index describes")
        nothing = blake3().digest()
        for entry in self._entries:
            if entry.kind is Kind.FILE and not entry.size and entry.digest != nothing:
                raise _other(f"another digest for {entry.name}", "the digest of no bytes")


class _Writer:
    """Writes checked pieces into new files below a folder that only this process uses; it holds no symlinks yet."""

    def __init__(self, entries: Sequence[Entry], folder: int) -> None:
        self._entries = entries
        self._folder = folder
        self._open: dict[int, int] = {}

    def begin(self, batch: Batch) -> None:
        """Make the file that begins in this segment and goes on in the next."""
        for number, start, end in batch.pieces:
            entry = self._entries[number]
            if end - start < entry.size and batch.plain_start + start == entry.offset:
                self._open[number] = _new_file(entry, self._folder)

    def write(self, batch: Batch) -> None:
        """Write the pieces of this segment, each at its place; files that lie in it whole are made and closed here."""
        for number, start, end in batch.pieces:
            entry = self._entries[number]
            view = batch.plain[start:end]
            if len(view) < entry.size:
                _write_piece(self._open[number], entry, view, batch.plain_start + start - entry.offset)
                continue
            fd = _new_file(entry, self._folder)
            try:
                _write_piece(fd, entry, view, 0)
                _finish_file(fd, entry)
            finally:
                os.close(fd)

    def end(self, batch: Batch) -> None:
        """Close the file that ends in this segment; all segments before it are written."""
        for number, start, end in batch.pieces:
            entry = self._entries[number]
            if end - start < entry.size and batch.plain_start + end == entry.offset + entry.size:
                _finish_file(self._open[number], entry)
                os.close(self._open.pop(number))

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


def _new_file(entry: Entry, folder: int) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(entry.path, flags, 0o600, dir_fd=folder)
    if entry.sparse:
        os.ftruncate(fd, entry.size)
    return fd


def _write_piece(fd: int, entry: Entry, view: memoryview, place: int) -> None:
    if not entry.sparse:
        _write_all(fd, view, place)
        return
    for start in range(0, len(view), _HOLE):
        piece = view[start : start + _HOLE]
        if piece != _ZEROS[: len(piece)]:
            _write_all(fd, piece, place + start)


def _finish_file(fd: int, entry: Entry) -> None:
    os.fchmod(fd, entry.mode)
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


def _write_all(fd: int, view: memoryview, place: int) -> None:
    while view:
        count = os.pwrite(fd, view, place)
        view = view[count:]
        place += count


def _link_and_date(entries: Sequence[Entry], folder: int) -> None:
    for entry in entries:
        if entry.kind is Kind.FILE and not entry.size:
            fd = _new_file(entry, folder)
            try:
                _finish_file(fd, entry)
            finally:
                os.close(fd)
    for entry in entries:
        if entry.kind is Kind.LINK:
            os.link(entry.target, entry.path, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    # Symlinks last: while files are written there is none to follow.
    for entry in entries:
        if entry.kind is Kind.SYMLINK:
            os.symlink(entry.target, entry.path, dir_fd=folder)
            os.utime(entry.path, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=folder, follow_symlinks=False)
    for entry in reversed(entries):
        if entry.kind is Kind.DIR:
            fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                _finish_file(fd, entry)
            finally:
                os.close(fd)


class _Staging:
    """A private folder beside, or inside, the destination, whose contents move there when all is verified."""

    def __init__(self, dest: Path) -> None:
        self._dest = dest
        self._inside = dest.is_symlink() or dest.exists()
        if self._inside and (not dest.is_dir() or any(dest.iterdir())):
            seen = "a folder with something in it" if dest.is_dir() else "something that is no folder"
            raise InputError(
                f"{dest} is not an empty folder", rule="open-dest", seen=seen, wanted="a new or empty folder", fix="choose another folder"
            )
        if not self._inside and not dest.parent.is_dir():
            raise InputError(
                f"{dest.parent} is not a folder", rule="open-dest", seen="no folder", wanted="an existing folder", fix="make it first"
            )
        # A destination that exists may be a mount point, onto which nothing can be renamed: then work inside it.
        name = f".sealrig-{secrets.token_hex(8)}.part"
        self._path = dest / name if self._inside else dest.parent / name
        self._path.mkdir(mode=0o700)
        try:
            self.fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            self._path.rmdir()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self.fd)
        if kind is not None:
            _remove(self._path)

    def publish(self) -> None:
        if not self._inside:
            self._path.chmod(0o777 & ~_umask())
            self._path.rename(self._dest)
            return
        moved: list[str] = []
        try:
            for name in sorted(path.name for path in self._path.iterdir()):
                os.rename(name, self._dest / name, src_dir_fd=self.fd)
                moved.append(name)
            self._path.rmdir()
        except BaseException:
            for name in moved:
                with contextlib.suppress(OSError):
                    os.rename(self._dest / name, name, dst_dir_fd=self.fd)
            raise


def _remove(path: Path) -> None:
    # Folders may have been given modes that forbid their owner to empty them.
    for place, folders, _ in os.walk(path):
        for name in folders:
            if not (Path(place) / name).is_symlink():
                (Path(place) / name).chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def _umask() -> int:
    # There is no way to read it without setting it; it is put back at once.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _other(seen: str, wanted: str) -> BundleTamperedError:
    return BundleTamperedError("the bundle's contents are not what its sealer signed", rule="bundle-contents", seen=seen, wanted=wanted,
                               fix="get the bundle again from its source")  # fmt: skip
