"""The one tar spelling of an entry: POSIX pax (IEEE Std 1003.1), so that any ``tar`` unpacks a recovered payload.

Writing is a pure function of the entry. Reading needs no parser: an opener writes the header it expects and compares bytes, so the
index and the tar can never say different things.
"""

from __future__ import annotations

from collections.abc import Iterable

from sandbox.sealing.entries import Entry, Kind, mtime_text

BLOCK = 512
END = bytes(2 * BLOCK)
"""Two zero blocks end a tar."""
_TYPES = {Kind.FILE: b"0", Kind.LINK: b"1", Kind.SYMLINK: b"2", Kind.DIR: b"5"}
_NAME_BYTES = 100
_SIZE_LIMIT = 8**11
_PAX_NAME = b"././@PaxHeader"


def tar_header(entry: Entry) -> bytes:
    """Return everything that stands before an entry's bytes: a pax record block, then the ustar header."""
    path = entry.path + b"/" if entry.kind is Kind.DIR else entry.path
    records = [_record(b"mtime", mtime_text(entry.mtime_ns).encode())]
    if not (_plain(path) and _plain(entry.target)):
        if not (_is_utf8(path) and _is_utf8(entry.target)):
            records.append(_record(b"hdrcharset", b"BINARY"))
        records.append(_record(b"path", path))
        if entry.target:
            records.append(_record(b"linkpath", entry.target))
    if entry.size >= _SIZE_LIMIT:
        records.append(_record(b"size", b"%d" % entry.size))
    pax = b"".join(records)
    seconds = min(max(entry.mtime_ns // 10**9, 0), _SIZE_LIMIT - 1)
    return (
        _ustar(_PAX_NAME, 0o644, len(pax), 0, b"x", b"")
        + pax
        + bytes(-len(pax) % BLOCK)
        + _ustar(path, entry.mode, entry.size if entry.size < _SIZE_LIMIT else 0, seconds, _TYPES[entry.kind], entry.target)
    )


def padding(size: int) -> int:
    """Return how many zero bytes follow a file of ``size`` bytes."""
    return -size % BLOCK


def tar_size(entries: Iterable[Entry]) -> int:
    """Return the length of the whole tar."""
    return sum(len(tar_header(entry)) + entry.size + padding(entry.size) for entry in entries) + len(END)


def with_offset(entry: Entry, cursor: int) -> tuple[Entry, int]:
    """Return a file with the place of its bytes, its header starting at ``cursor``, and the cursor behind it."""
    start = cursor + len(tar_header(entry))
    if entry.kind is not Kind.FILE:
        return entry, start
    placed = Entry(entry.path, entry.kind, entry.mode, entry.mtime_ns, entry.size, start, digest=entry.digest, sparse=entry.sparse)
    return placed, start + entry.size + padding(entry.size)


def _ustar(name: bytes, mode: int, size: int, mtime: int, kind: bytes, target: bytes) -> bytes:
    head = b"".join((
        _cut(name), b"%07o\0" % mode, b"0000000\0", b"0000000\0", b"%011o\0" % size, b"%011o\0" % mtime,
        b"        ", kind, _cut(target), b"ustar\x0000", bytes(64), b"0000000\0", b"0000000\0", bytes(167),
    ))  # fmt: skip
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def _cut(name: bytes) -> bytes:
    # What does not fit or is not ASCII stands in the pax records; this is only what a pre-2001 tar would show.
    short = name if _plain(name) else bytes(char if 0x20 <= char < 0x7F else 0x5F for char in name)
    return short[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")


def _plain(name: bytes) -> bool:
    return len(name) <= _NAME_BYTES and name.isascii()


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _record(key: bytes, value: bytes) -> bytes:
    # The length counts its own digits (pax, "Extended Header").
    body = len(key) + len(value) + 3
    length = body + len(str(body))
    length = body + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)
