"""What stands in a bundle: one entry a file, folder or link, its line in the index, and the rules that keep it inside a folder.

An index line is canonical JSON (RFC 8785) and a newline. Names are bytes: text where they are UTF-8, else base64 (``pathB64``).
"""

from __future__ import annotations

import re
from binascii import unhexlify
from collections.abc import Iterator, Mapping
from enum import StrEnum
from json.encoder import encode_basestring
from typing import Any, NamedTuple

from attestation.canonical import parse_json
from attestation.errors import AttestationError
from attestation.signing import b64decode, b64encode
from sandbox.errors import BundleError, UnsafePathError

MAX_PATH_BYTES = 3800
"""Below the kernel's 4096, with room for the folder that a bundle is opened in."""
MAX_NAME_BYTES = 255
MAX_LINE_BYTES = 64 * 1024
MAX_LINK_STEPS = 40
"""The kernel's own limit on symlinks in one path."""
MAX_FOLLOWED = 10_000_000
"""Parts of targets gone through for all symlinks of a bundle: a few for each, but links through links can multiply to hours."""
MAX_SIZE = 2**50
MAX_ENTRIES = 4_000_000
"""In one bundle, for sealing and opening alike. Each takes about 200 bytes of memory while it is shown; sealing and opening use spools."""
_BILLION = 10**9
MAX_MTIME_NS = 10**12 * _BILLION - 1
"""Twelve digits of seconds, on either side of 1970."""
_MTIME = re.compile(r"-?(?:0|[1-9]\d{0,11})\.\d{9}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_UNSAFE = re.compile(rb"(?:\A|/)\.{0,2}(?:/|\Z)|\0|[^/]{%d}" % (MAX_NAME_BYTES + 1))
"""An empty part, ``.``, ``..``, NUL, or an overlong part."""
_PLAIN_FILE = re.compile(
    rb'\{"blake3":"([0-9a-f]{64})","mode":(0|[1-9]\d{0,2}),"mtime":"(0|[1-9]\d{0,11})\.(\d{9})","offset":(0|[1-9]\d{0,15}),'
    rb'"path":"([ !#-\[\]-~]+)","size":(0|[1-9]\d{0,15})(,"sparse":true)?,"type":"file"\}'
)
"""A file with a plain name and a time since 1970; only what ``encode_line`` would write matches."""


class Kind(StrEnum):
    """What an entry is. ``LINK`` is a further name of a file that stands earlier."""

    FILE = "file"
    DIR = "dir"
    SYMLINK = "symlink"
    LINK = "link"


class Entry(NamedTuple):
    """One entry. Sizes in bytes; ``offset`` is where a file's bytes start in the tar; ``digest`` is their BLAKE3."""

    path: bytes
    kind: Kind
    mode: int
    mtime_ns: int
    size: int = 0
    offset: int = 0
    target: bytes = b""
    digest: bytes = b""
    sparse: bool = False

    @property
    def name(self) -> str:
        """The path for people: what is not UTF-8 or not printable is escaped."""
        return shown(self.path)


def shown(path: bytes) -> str:
    """Return a path as text that is safe to print and to put into JSON."""
    text = path.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def mtime_text(mtime_ns: int) -> str:
    """Return a time as seconds with nine decimals, as pax records spell it."""
    seconds, rest = divmod(abs(mtime_ns), _BILLION)
    return f"{'-' if mtime_ns < 0 else ''}{seconds}.{rest:09d}"


def encode_line(entry: Entry) -> bytes:
    """Return an entry's line in the index, newline included."""
    # Written out in RFC 8785's order of keys: an index may have millions of lines, and a test compares them with a general encoder.
    head = f'"mode":{entry.mode},"mtime":"{mtime_text(entry.mtime_ns)}"'
    path = _named("path", entry.path)
    if entry.kind is Kind.FILE:
        sparse = ',"sparse":true' if entry.sparse else ""
        line = f'{{"blake3":"{entry.digest.hex()}",{head},"offset":{entry.offset},{path},"size":{entry.size}{sparse},"type":"file"}}\n'
    elif entry.kind is Kind.DIR:
        line = f'{{{head},{path},"type":"dir"}}\n'
    else:
        line = f'{{{head},{path},{_named("target", entry.target)},"type":"{entry.kind.value}"}}\n'
    return line.encode()


def decode_line(line: bytes) -> Entry:
    """Parse one line without its newline. Raises ``BundleError`` for anything but the one spelling, ``UnsafePathError`` for a bad path."""
    # Nearly every line of a large bundle is a file's with a plain name, which is read many times faster without a tree of objects.
    if plain := _PLAIN_FILE.fullmatch(line):
        return _plain_file(plain)
    try:
        entry = _entry(_object(line))
    except (AttestationError, KeyError, ValueError) as error:
        raise _bad_line(str(error)[:100]) from error
    if encode_line(entry)[:-1] != line:
        raise _bad_line("another spelling")
    return entry


def _plain_file(found: re.Match[bytes]) -> Entry:
    digest, mode_text, seconds, rest, offset_text, path, size_text, sparse = found.groups()
    mode, size, offset = int(mode_text), int(size_text), int(offset_text)
    if mode > 0o777 or size > MAX_SIZE or offset > 2 * MAX_SIZE:
        raise _bad_line(f"a number above its bound: mode {mode}, size {size}, offset {offset}")
    mtime_ns = int(seconds) * _BILLION + int(rest)
    return Entry(check_path(path), Kind.FILE, mode, mtime_ns, size, offset, b"", unhexlify(digest), sparse is not None)


def _object(line: bytes) -> dict[str, Any]:
    tree = parse_json(line, max_bytes=MAX_LINE_BYTES)
    if not isinstance(tree, dict):
        raise _bad_line("not an object")
    return tree


def _entry(tree: dict[str, Any]) -> Entry:
    kind = Kind(_typed(tree["type"], str))
    mtime = _typed(tree["mtime"], str)
    if not _MTIME.fullmatch(mtime):
        raise _bad_line("mtime")
    seconds, _, rest = mtime.lstrip("-").partition(".")
    mtime_ns = (int(seconds) * _BILLION + int(rest)) * (-1 if mtime.startswith("-") else 1)
    path = check_path(_get_name(tree, "path"))
    mode = _number(tree["mode"], 0o777)
    if kind is Kind.FILE:
        digest = _typed(tree["blake3"], str)
        if not _HEX64.fullmatch(digest):
            raise _bad_line("blake3")
        return Entry(path, kind, mode, mtime_ns, _number(tree["size"], MAX_SIZE), _number(tree["offset"], 2 * MAX_SIZE),
                     digest=bytes.fromhex(digest), sparse=tree.get("sparse") is True)  # fmt: skip
    if kind is Kind.DIR:
        return Entry(path, kind, mode, mtime_ns)
    target = _get_name(tree, "target")
    if not 0 < len(target) <= MAX_PATH_BYTES or b"\0" in target:
        raise _bad_line("target")
    return Entry(path, kind, mode, mtime_ns, target=target)


def check_path(path: bytes) -> bytes:
    """Return ``path`` once it can only mean a place inside. Raises ``UnsafePathError``."""
    if len(path) > MAX_PATH_BYTES or _UNSAFE.search(path):
        raise UnsafePathError(
            f"{shown(path[:200])!r} is not a path inside the bundle",
            rule="entry-path",
            seen=shown(path[:200]),
            wanted=f"a relative path without '.', '..' or empty parts, names ≤ {MAX_NAME_BYTES} bytes, in all ≤ {MAX_PATH_BYTES} bytes",
            fix="rename it, or do not trust this bundle",
        )
    return path


def order(path: bytes) -> bytes:
    """Return the key by which entries are ordered: a folder first, then what is in it.

    NUL is in no name and sorts before everything.
    """
    return path.replace(b"/", b"\0")


def unsafe_links(links: Mapping[bytes, bytes]) -> dict[bytes, str]:
    """Return what is wrong with each symlink (path -> target) that would lead outside, followed as the kernel does."""
    found: dict[bytes, str] = {}
    left = MAX_FOLLOWED
    for path, target in links.items():
        problem, left = _follow(path, target, links, left)
        if problem:
            found[path] = problem
    return found


def _follow(path: bytes, target: bytes, links: Mapping[bytes, bytes], left: int) -> tuple[str, int]:
    # A lexical check is not enough: with a symlink a -> ., the target a/../x is outside although it reads as inside.
    # ``here`` are the folders from the root to where we are, each as a path; where that is longer than any path, there is no link.
    here: list[bytes | None] = [b""]
    for part in path.split(b"/")[:-1]:
        here.append(_join(here[-1], part))
    todo = target.split(b"/")[::-1]
    steps = 1
    if target.startswith(b"/"):
        return "is absolute", left
    while todo and left:
        left -= 1
        part = todo.pop()
        if part in (b"", b"."):
            continue
        if part == b"..":
            here.pop()
            if not here:
                return "leaves the tree", left
            continue
        place = _join(here[-1], part)
        onward = None if place is None else links.get(place)
        if onward is None:
            here.append(place)
            continue
        steps += 1
        if onward.startswith(b"/"):
            return "leads to an absolute path", left
        if steps > MAX_LINK_STEPS:
            return "goes round in circles", left
        todo.extend(onward.split(b"/")[::-1])
    return "leads too far round, as other links do" if todo else "", left


def _join(folder: bytes | None, part: bytes) -> bytes | None:
    if folder is None or len(folder) + len(part) >= MAX_PATH_BYTES:
        return None
    return folder + b"/" + part if folder else part


class Order:
    """Checks entries as they come: in order, once each, inside folders that stand before, links to what stands before."""

    def __init__(self) -> None:
        """Start with an empty tree."""
        self._last = b""
        self._folders: list[bytes] = []
        self.links: dict[bytes, bytes] = {}
        """Symlinks and where they point to, for ``unsafe_links``."""
        self.targets: set[bytes] = set()
        """What hard links name: places before theirs, at each of which there has to be a file."""

    def add(self, entry: Entry) -> None:
        """Check the next entry. Raises ``BundleError``."""
        key = order(entry.path)
        if key <= self._last:
            raise _bad_line(f"{entry.name} out of order or twice")
        self._last = key
        parent = entry.path.rpartition(b"/")[0]
        while self._folders and self._folders[-1] != parent:
            self._folders.pop()
        if parent and not self._folders:
            raise _bad_line(f"{entry.name} in no folder")
        if entry.kind is Kind.DIR:
            self._folders.append(entry.path)
        elif entry.kind is Kind.SYMLINK:
            self.links[entry.path] = entry.target
        elif entry.kind is Kind.LINK:
            if order(entry.target) >= key:
                raise _bad_line(f"{entry.name}, a link to no earlier file")
            self.targets.add(entry.target)


def lines(pieces: Iterator[memoryview]) -> Iterator[bytes]:
    """Yield lines without their newline from pieces of any size. Raises ``BundleError`` for an overlong or unended line."""
    rest = b""
    for piece in pieces:
        parts = (rest + bytes(piece)).split(b"\n")
        rest = parts.pop()
        yield from parts
        if len(rest) > MAX_LINE_BYTES:
            raise _bad_line("an overlong line")
    if rest:
        raise _bad_line("a line without an end")


def is_utf8(name: bytes) -> bool:
    """Say whether ``name`` is text."""
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _named(key: str, name: bytes) -> str:
    try:
        return f'"{key}":{encode_basestring(name.decode("utf-8"))}'
    except UnicodeDecodeError:
        return f'"{key}B64":"{b64encode(name)}"'


def _get_name(tree: dict[str, Any], key: str) -> bytes:
    return b64decode(tree[key + "B64"]) if key + "B64" in tree else _typed(tree[key], str).encode()


def _typed(value: object, kind: type[str]) -> str:
    if not isinstance(value, kind):
        raise _bad_line(f"{type(value).__name__} instead of {kind.__name__}")
    return value


def _number(value: object, limit: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise _bad_line(f"a number of {value!r}"[:80])
    return value


def _bad_line(seen: str) -> BundleError:
    return BundleError("the bundle's index is malformed", rule="bundle-index", seen=seen, wanted="lines as docs/format.md describes them",
                       fix="get the bundle again from its source")  # fmt: skip
