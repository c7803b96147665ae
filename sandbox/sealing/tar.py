"""The one tar spelling of an entry: POSIX pax (IEEE Std 1003.1), so that any ``tar`` unpacks a recovered payload.

Writing is a pure function of the entry. Reading needs no parser: an opener writes the header it expects and compares bytes, so the
index and the tar can never say different things.
"""

from __future__ import annotations

from functools import cache

from sandbox.sealing.entries import Entry, Kind, is_utf8, mtime_text

BLOCK = 512
END = bytes(2 * BLOCK)
"""Two zero blocks end a tar."""
_TYPES = {Kind.FILE: b"0", Kind.LINK: b"1", Kind.SYMLINK: b"2", Kind.DIR: b"5"}
_NAME_BYTES = 100
_SIZE_LIMIT = 8**11
_REST = b"ustar\x0000" + bytes(64) + b"0000000\x000000000\x00" + bytes(167)
"""From the magic to the end of a ustar header: no owner names, no device, no prefix."""
_REST_SUM = sum(_REST) + 8 * 0x20


def tar_header(entry: Entry) -> bytes:
    """Return everything that stands before an entry's bytes: a pax record block, then the ustar header."""
    path, kind, mode, mtime_ns, size, _, target, _, _ = entry
    if kind is Kind.DIR:
        path += b"/"
    pax = _record(b"mtime", mtime_text(mtime_ns).encode())
    if not (_plain(path) and _plain(target)):
        if not (is_utf8(path) and is_utf8(target)):
            pax += _record(b"hdrcharset", b"BINARY")
        pax += _record(b"path", path)
        if target:
            pax += _record(b"linkpath", target)
        path, target = _ascii(path), _ascii(target)
    if size >= _SIZE_LIMIT:
        pax += _record(b"size", b"%d" % size)
        size = 0
    seconds = min(max(mtime_ns // 10**9, 0), _SIZE_LIMIT - 1)
    return _pax_header(len(pax)) + pax + bytes(-len(pax) % BLOCK) + _ustar(path, mode, size, seconds, _TYPES[kind], target)


def _header_size(entry: Entry) -> int:
    # The ordinary case without building it: one pax block, which a single short record fills, between two headers.
    if entry.size < _SIZE_LIMIT and len(entry.path) < _NAME_BYTES and entry.path.isascii() and _plain(entry.target):
        return 3 * BLOCK
    return len(tar_header(entry))


def padding(size: int) -> int:
    """Return how many zero bytes follow a file of ``size`` bytes."""
    return -size % BLOCK


def place(entry: Entry, cursor: int) -> tuple[int, int]:
    """Return where an entry's bytes start and where what follows it starts, its header starting at ``cursor``."""
    start = cursor + _header_size(entry)
    return start, start + entry.size + padding(entry.size)


def with_offset(entry: Entry, cursor: int) -> tuple[Entry, int]:
    """Return a file with the place of its bytes, its header starting at ``cursor``, and the cursor behind it."""
    start, end = place(entry, cursor)
    if entry.kind is not Kind.FILE:
        return entry, start
    path, kind, mode, mtime_ns, size, _, target, digest, sparse = entry
    return Entry(path, kind, mode, mtime_ns, size, start, target, digest, sparse), end


@cache
def _pax_header(size: int) -> bytes:
    return _ustar(b"././@PaxHeader", 0o644, size, 0, b"x", b"")


def _ustar(name: bytes, mode: int, size: int, mtime: int, kind: bytes, target: bytes) -> bytes:  # noqa: PLR0917  (the order of the fields)
    numbers = b"%07o\x000000000\x000000000\x00%011o\x00%011o\x00" % (mode, size, mtime)
    # The checksum is the sum of all bytes with its own field read as spaces.
    checksum = sum(name) + sum(numbers) + sum(kind) + sum(target) + _REST_SUM
    return b"%b%b%06o\x00 %b%b%b" % (
        name.ljust(_NAME_BYTES, b"\0"), numbers, checksum, kind, target.ljust(_NAME_BYTES, b"\0"), _REST,
    )  # fmt: skip


def _plain(name: bytes) -> bool:
    return len(name) <= _NAME_BYTES and name.isascii()


def _ascii(name: bytes) -> bytes:
    # The whole name stands in the pax records; this is only what a tar from before 2001 would show.
    return bytes(char if 0x20 <= char < 0x7F else 0x5F for char in name[:_NAME_BYTES])


def _record(key: bytes, value: bytes) -> bytes:
    # The length counts its own digits (pax, "Extended Header").
    body = len(key) + len(value) + 3
    length = body + len(str(body))
    length = body + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)
