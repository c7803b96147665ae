"""What is to be sealed: a walk over files and folders that remembers what it saw, so that a later change is noticed."""

from __future__ import annotations

import os
import stat
import struct
import time
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from sandbox.errors import InputError, LimitError, UnsafePathError
from sandbox.sealing.entries import MAX_ENTRIES, MAX_MTIME_NS, MAX_PATH_BYTES, Entry, Kind, check_path, shown, unsafe_links
from sandbox.sealing.links import HardLinks
from sandbox.sealing.names import sorted_names
from sandbox.sealing.spool import Spool
from sandbox.sealing.table import pack, path_of, unpack

_BLOCK = 512
_SPARSE_FROM = 64 * 1024
_STATE = struct.Struct("=QQqQQ")
_WORD = 2**64 - 1
_BASE = struct.Struct("=I")
_HEAD = _STATE.size + _BASE.size
_SETTLED_NS = 20_000_000
"""Longer than the ticks by which the kernel dates changes: 4 ms, on some 10."""
_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a block device", stat.S_IFCHR: "a character device"}


class Scan:
    """Everything found, in bundle order, in a spool, for there may be millions; names left out; the folder itself where one is sealed."""

    def __init__(self, spool: Spool) -> None:
        """Keep what is found in ``spool``, which is empty and stays the caller's to close."""
        self.root: tuple[bytes, bytes] | None = None
        """The one folder that is sealed, if it is one, and its state."""
        self.skipped: list[str] = []
        self.newest_ns = 0
        """When the last change was that the file system told of, as it dates changes."""
        self._spool = spool
        self._bases: list[bytes] = []
        """What stands before paths to find them again: one for each source."""
        self._dropped: frozenset[bytes] = frozenset()

    def append(self, entry: Entry, base: bytes, seen: bytes) -> None:
        """Add an entry, what stands before its path to find it again, and what the file system said about it."""
        if not self._bases or self._bases[-1] != base:
            self._bases.append(base)
        self._spool.append(seen + _BASE.pack(len(self._bases) - 1) + pack(entry))

    def __len__(self) -> int:
        return len(self._spool) - len(self._dropped)

    def entries(self) -> Iterator[Entry]:
        """Yield the entries, digests and offsets still missing."""
        return (unpack(raw, _HEAD) for raw in self._raw())

    def found(self) -> Iterator[tuple[Entry, bytes, bytes]]:
        """Yield each entry, where it was found, and its state then."""
        for raw in self._raw():
            entry = unpack(raw, _HEAD)
            yield entry, self._base(raw) + entry.path, raw[: _STATE.size]

    def places(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield where each entry was found, and its state then."""
        return ((self._base(raw) + path_of(raw, _HEAD), raw[: _STATE.size]) for raw in self._raw())

    def drop(self, paths: Collection[bytes]) -> None:
        """Leave out the entries at ``paths`` after all."""
        self._dropped = frozenset(paths)
        self.skipped += [shown(path) for path in sorted(paths)]

    def _raw(self) -> Iterator[bytes]:
        return iter(self._spool) if not self._dropped else (raw for raw in self._spool if path_of(raw, _HEAD) not in self._dropped)

    def _base(self, raw: bytes) -> bytes:
        number: int = _BASE.unpack_from(raw, _STATE.size)[0]
        return self._bases[number]


def state_of(status: os.stat_result) -> bytes:
    """Return what changes when a file's bytes, names or attributes change."""
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    # Times before 1970 and after 2554 wrap around: they are only compared, and a change by just that many years is none to fear.
    return _STATE.pack(status.st_dev, status.st_ino, size, status.st_mtime_ns & _WORD, status.st_ctime_ns & _WORD)


def changed(place: bytes) -> InputError:
    """Return the error for something that was changed while it was sealed."""
    return InputError(
        f"{shown(place)} changed while it was sealed",
        rule="source-changed",
        seen="another size, time or file than at the start",
        wanted="files at rest",
        fix="wait until nothing writes there, or seal a copy",
    )


def scan(sources: Sequence[Path], spool: Spool, *, lenient: bool = False) -> Scan:
    """Find everything under ``sources``, kept in ``spool``.

    One folder: what is in it. Anything else: each source under its own name. Symlinks are kept as links. What cannot be kept (devices,
    sockets, pipes, links that leave the tree, overlong names and targets) is refused by name, or left out if ``lenient``.
    Raises ``InputError``, ``LimitError`` or ``UnsafePathError``.
    """
    place = os.fsencode(sources[0]) if len(sources) == 1 and sources[0].is_dir() else None
    seen = Scan(spool)
    if place is not None:
        status = os.stat(place)  # noqa: PTH116  (names are bytes here)
        seen.root, seen.newest_ns = (place, state_of(status)), status.st_ctime_ns
    walker = _Walker(seen, spool.folder, lenient=lenient)
    links: dict[bytes, bytes] = {}
    for entry, base, state in walker.folder(place) if place is not None else walker.several(sources):
        seen.append(entry, base, state)
        if entry.kind is Kind.SYMLINK:
            links[entry.path] = entry.target
        if len(seen) > MAX_ENTRIES:
            raise LimitError(
                "too many files for one bundle",
                rule="bundle-entries",
                seen=f"more than {MAX_ENTRIES}",
                wanted=f"≤ {MAX_ENTRIES}",
                fix="seal it in parts",
            )
    dropped: set[bytes] = set()
    # A link left out can change where another one leads, hence again until all that stay are safe.
    while problems := unsafe_links(links):
        path, problem = next(iter(problems.items()))
        if not lenient:
            raise UnsafePathError(
                f"the symlink {shown(path)} {problem}",
                rule="symlink",
                seen=f"-> {shown(links[path][:200])}",
                wanted="a target inside the sealed tree",
                fix="remove the link, or replace it by what it points to",
            )
        dropped.update(problems)
        links = {path: target for path, target in links.items() if path not in problems}
    if dropped:
        seen.drop(dropped)
    return seen


def settle(seen: Scan) -> None:
    """Wait, 20 ms at most, until a change of anything in ``seen`` is sure to be dated otherwise than what was seen.

    The kernel dates changes by a clock that stands still between its ticks. What was written just before the scan could be written again,
    in the same tick and size, while it is read, and nothing would tell.
    """
    age = time.time_ns() - seen.newest_ns
    if age < _SETTLED_NS:
        time.sleep(min(_SETTLED_NS - age, _SETTLED_NS) / 1e9)


def check_unchanged(seen: Scan) -> None:
    """Raise ``InputError`` if anything differs from what the scan saw."""
    if seen.root is not None:
        _compare(*seen.root, follow=True)
    for place, state in seen.places():
        _compare(place, state, follow=False)


def _compare(place: bytes, state: bytes, *, follow: bool) -> None:
    try:
        status = os.stat(place, follow_symlinks=follow)  # noqa: PTH116  (a name of bytes)
    except OSError as error:
        raise changed(place) from error
    if state_of(status) != state:
        raise changed(place)


_Found = tuple[Entry, bytes, bytes]


class _Walker:
    def __init__(self, seen: Scan, beside: Path, *, lenient: bool) -> None:
        self._lenient = lenient
        self._links = HardLinks()
        self._seen = seen
        self._beside = beside

    def several(self, sources: Sequence[Path]) -> Iterator[_Found]:
        if not sources:
            raise InputError("nothing to seal", rule="sources", seen="no file or folder", wanted="at least one", fix="name what to seal")
        # A source called "." or ".." has no name of its own until it is resolved.
        named = sorted(os.fsencode(source.resolve() if source.name in ("", "..") else source) for source in sources)
        named.sort(key=lambda place: place.rpartition(b"/")[2])
        for place, following in pairwise(named):
            name = place.rpartition(b"/")[2]
            if name == following.rpartition(b"/")[2]:
                raise InputError(f"two sources are called {shown(name)}", rule="sources", seen=shown(name), wanted="different names",
                                 fix="rename one, or seal the folder that holds both")  # fmt: skip
        for place in named:
            folder, slash, name = place.rpartition(b"/")
            yield from self._walk(folder + slash, iter([name]))

    def folder(self, place: bytes) -> Iterator[_Found]:
        yield from self._walk(place + b"/", self._names(place + b"/", b""))

    def _names(self, base: bytes, path: bytes) -> Iterator[bytes]:
        try:
            names = sorted_names(base + path, self._beside)
        except OSError as error:
            raise unreadable(base + path, error) from error
        front = path + b"/" if path else b""
        return (front + name for name in names)

    def _walk(self, base: bytes, paths: Iterator[bytes]) -> Iterator[_Found]:
        todo = [paths]
        """What is left of each folder from the first one down to where the walk is."""
        while todo:
            path = next(todo[-1], None)
            if path is None:
                todo.pop()
                continue
            place = base + path
            try:
                status = os.lstat(place)
                target = os.readlink(place) if stat.S_ISLNK(status.st_mode) else b""  # noqa: PTH115  (a name of bytes)
            except OSError as error:
                raise unreadable(place, error) from error
            try:
                entry = self._entry(check_path(path), status, target)
            except (InputError, UnsafePathError):
                if not self._lenient:
                    raise
                self._seen.skipped.append(shown(path))
                continue
            self._seen.newest_ns = max(self._seen.newest_ns, status.st_ctime_ns)
            yield entry, base, state_of(status)
            if entry.kind is Kind.DIR:
                todo.append(self._names(base, path))

    def _entry(self, path: bytes, status: os.stat_result, target: bytes) -> Entry:
        mode = status.st_mode & 0o777
        kind = stat.S_IFMT(status.st_mode)
        if abs(status.st_mtime_ns) > MAX_MTIME_NS:
            raise InputError(f"{shown(path)} has a time that no bundle can hold", rule="source-time",
                             seen=f"{status.st_mtime_ns // 10**9} seconds since 1970", wanted="at most 12 digits of seconds",
                             fix="give it another time, for example with touch")  # fmt: skip
        if kind == stat.S_IFDIR:
            return Entry(path, Kind.DIR, mode, status.st_mtime_ns)
        if kind == stat.S_IFLNK:
            if len(target) > MAX_PATH_BYTES:
                raise InputError(f"the target of the symlink {shown(path)} is too long", rule="symlink-target", seen=f"{len(target)} bytes",
                                 wanted=f"≤ {MAX_PATH_BYTES} bytes", fix="shorten the target, or remove the link")  # fmt: skip
            return Entry(path, Kind.SYMLINK, 0o777, status.st_mtime_ns, target=target)
        if kind != stat.S_IFREG:
            raise InputError(
                f"{shown(path)} is {_KINDS.get(kind, 'no plain file')}",
                rule="source-kind",
                seen=_KINDS.get(kind, "something else"),
                wanted="files, folders and links",
                fix="remove it, or seal a folder without it",
            )
        first = self._links.first(path, status)
        if first is not None:
            return Entry(path, Kind.LINK, mode, status.st_mtime_ns, target=first)
        sparse = status.st_size >= _SPARSE_FROM and status.st_blocks * _BLOCK < status.st_size
        return Entry(path, Kind.FILE, mode, status.st_mtime_ns, status.st_size, sparse=sparse)


def unreadable(place: bytes, error: OSError) -> InputError:
    """Return the error for something to be sealed that the system does not let us read."""
    return InputError(f"{shown(place)} cannot be read: {error.strerror}", rule="source", seen=error.strerror or "an error",
                      wanted="something readable", fix="check the name and its permissions")  # fmt: skip
