"""A sealer gone mad: bundles that are wrong in one layer and right above it, so that a reader gets to what it has to refuse.

One of entries, lines, tar, last line, document or envelope is altered *before* it is signed and encrypted. Nothing is random but the dice.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TypeVar

from blake3 import blake3

from attestation.canonical import bind, canonical_json
from attestation.signing import Envelope, SigningKey, pae
from bench.fuzz.twist import alter, twist
from sandbox.sealing.entries import Entry, Kind, encode_line, order
from sandbox.sealing.format import ALIGNMENT, HEADER_PAYLOAD_TYPE, MAGIC, Core
from sandbox.sealing.index import end_line
from sandbox.sealing.keys import DataKey
from sandbox.sealing.stream import Stream, sealed_size
from sandbox.sealing.tar import END, padding, tar_header, with_offset

_Item = TypeVar("_Item", bytes, Entry)
LAYERS = ("none", "entries", "entries", "line", "lines", "tar", "end", "document", "envelope")
_NAMES = (b"a", b"b", b"folder", b"x" * 100, b"y" * 101, "ü".encode(), b"\xff", b"a b", b'"\\\x7f', b"n" * 255, b"\t")
_BAD_NAMES = (b"", b".", b"..", b"a/../b", b"/a", b"a/", b"a//b", b"\0", b"n" * 256, b"a/" * 1900 + b"a", b"a/" * 1899 + b"aa")
_TARGETS = (b"a", b"folder/a", b"..", b"../..", b"/etc", b".", b"a/../../b", b"folder/../a", b"./a//", b"z" * 3800, b"z" * 3801, b"",
            b"../" * 40, b"\0", b"x/" * 1800 + b"x")  # fmt: skip
_TIMES = (0, 1, -1, -1_500_000_000, 10**9 - 1, (8**11 - 1) * 10**9, 8**11 * 10**9, 10**21 - 1, -(10**21) + 1, 10**21)
_NUMBERS = (0, 1, -1, 511, 512, 8**11, 2**50, 2**50 + 1, 2**64)


@dataclass(frozen=True)
class Signed:
    """What stands above one layer: a bundle's document and how to sign it."""

    document: bytes
    signer: SigningKey

    def header(self, dice: random.Random, *, twisted: bool) -> bytes:
        """Return everything before the payload; the envelope altered if ``twisted``."""
        signature = self.signer.sign(pae(HEADER_PAYLOAD_TYPE, self.document))
        envelope = Envelope(self.document, HEADER_PAYLOAD_TYPE, ((self.signer.public.key_id, signature),)).to_bytes()
        if twisted:
            envelope = twist(dice, envelope)
        raw = MAGIC + len(envelope).to_bytes(4, "big") + envelope
        return raw + bytes(-len(raw) % ALIGNMENT)


def mad_bundle(dice: random.Random) -> tuple[str, bytes, DataKey]:
    """Return the layer that is wrong (``none``: all is well), a bundle, and its data key."""
    layer = dice.choice(LAYERS)
    signer, key = SigningKey(dice.randbytes(32)), DataKey(dice.randbytes(32))
    entries, contents = _tree(dice)
    if layer == "entries":
        entries = _placed(_bent(dice, entries))
    tar = b"".join(tar_header(entry) + (contents.get(entry.path, b"") + bytes(padding(entry.size))) for entry in entries) + END
    if layer == "tar":
        tar = alter(dice, tar)
    body = [encode_line(entry) for entry in entries]
    if layer == "line" and body:
        at = dice.randrange(len(body))
        body[at] = twist(dice, body[at][:-1]) + b"\n"
    if layer == "lines" and body:
        _shuffle(dice, body)
    lines = b"".join(body)
    end_size = len(end_line(len(body), bytes(64)))
    core = Core(
        id=dice.randbytes(16).hex(), created_at="2026-01-02T03:04:05.678Z", labels={"fuzz": layer}, payload_size=sealed_size(len(tar)),
        index_size=sealed_size(len(lines) + end_size), signer=signer.public, to=(dice.randbytes(16).hex(),),
    )  # fmt: skip
    document = canonical_json(core.tree((dice.randbytes(1168),)))
    if layer == "document":
        document = twist(dice, document)
    signature = signer.sign(bind("sealrig/bundle-contents/v1", document, blake3(lines).digest()))
    end = end_line(len(body), signature)
    if layer == "end":
        end = dice.choice((twist(dice, end[:-1]) + b"\n", alter(dice, end), end * 2, end[:-1], b""))
    return (
        layer,
        b"".join(
            (
                Signed(document, signer).header(dice, twisted=layer == "envelope"),
                _stream(dice, key, bind("sealrig/bundle-payload/v1", document), tar),
                _stream(dice, key, bind("sealrig/bundle-index/v1", document), lines + end),
            )
        ),
        key,
    )


def _stream(dice: random.Random, key: DataKey, context: bytes, plain: bytes) -> bytes:
    stream = Stream(key, b"\x28" + dice.randbytes(39), context, len(plain))
    out = memoryview(bytearray(stream.sealed_size))
    out[: len(stream.header)] = stream.header
    for index in range(stream.segments):
        (start, end), (low, high) = stream.plain_span(index), stream.sealed_span(index)
        stream.seal_segment(index, memoryview(plain)[start:end], out[low:high])
    return bytes(out)


def _tree(dice: random.Random) -> tuple[list[Entry], dict[bytes, bytes]]:
    """Return sound entries, and the contents of files."""
    found: dict[bytes, Entry] = {}
    contents: dict[bytes, bytes] = {}
    folders = [b""]
    for _ in range(dice.randrange(7)):
        path = dice.choice(folders) + dice.choice(_NAMES)
        mode, mtime = dice.choice((0o700, 0o755, 0o777)), dice.choice(_TIMES[:-1])
        files = [entry.path for entry in found.values() if entry.kind is Kind.FILE and order(entry.path) < order(path)]
        kind = dice.choice(list(Kind))
        if path in found or (kind is Kind.LINK and not files):
            continue
        if kind is Kind.FILE:
            contents[path] = dice.randbytes(dice.choice((0, 1, 511, 512, 513)))
            digest = blake3(contents[path]).digest()
            found[path] = Entry(path, kind, mode, mtime, len(contents[path]), digest=digest, sparse=dice.random() < 0.2)
        elif kind is Kind.DIR:
            found[path] = Entry(path, kind, mode, mtime)
            folders.append(path + b"/")
        else:
            found[path] = Entry(path, kind, 0o777, mtime, target=dice.choice(files if kind is Kind.LINK else _TARGETS[:1]))
    return _placed(sorted(found.values(), key=lambda entry: order(entry.path))), contents


def _placed(entries: list[Entry]) -> list[Entry]:
    """Return the entries with their places in the tar; one that was placed wrongly on purpose stays there."""
    placed, cursor = [], 0
    for entry in entries:
        right, cursor = with_offset(entry, cursor)
        placed.append(right if entry.offset in {0, right.offset} else entry)
    return placed


def _bent(dice: random.Random, entries: list[Entry]) -> list[Entry]:
    """Return the entries with one or two things wrong, or at least odd."""
    bent = [entry._replace(offset=0) for entry in entries]
    for _ in range(dice.choice((1, 1, 2))):
        if not bent or dice.random() < 0.2:
            bent += _links(dice)
            bent.sort(key=lambda entry: order(entry.path))
            continue
        at = dice.randrange(len(bent))
        bent[at] = dice.choice((_renamed, _renumbered, _retargeted))(dice, bent[at])
        if dice.random() < 0.1:
            _shuffle(dice, bent)
    return bent


def _renamed(dice: random.Random, entry: Entry) -> Entry:
    return entry._replace(path=dice.choice((*_NAMES, *_BAD_NAMES)))


def _renumbered(dice: random.Random, entry: Entry) -> Entry:
    change = dice.randrange(6)
    if change == 0:
        return entry._replace(mode=dice.choice((0o700, 0o777, 0o1000, 0o7777)))
    if change == 1:
        return entry._replace(mtime_ns=dice.choice(_TIMES))
    if change == 2 and entry.kind is Kind.FILE:
        return entry._replace(size=abs(dice.choice((*_NUMBERS, entry.size + 1, entry.size - 1))))
    if change == 3:
        return entry._replace(offset=dice.choice(_NUMBERS))
    if change == 4 and entry.kind is Kind.FILE:
        return entry._replace(digest=alter(dice, entry.digest))
    return entry._replace(sparse=not entry.sparse)


def _retargeted(dice: random.Random, entry: Entry) -> Entry:
    if entry.kind in {Kind.SYMLINK, Kind.LINK}:
        return entry._replace(target=dice.choice(_TARGETS))
    return entry._replace(kind=dice.choice((Kind.FILE, Kind.DIR)))


def _links(dice: random.Random) -> list[Entry]:
    """Return symlinks that lead to one another, perhaps too many, perhaps in circles, perhaps out of the tree, perhaps a long way."""
    count = dice.choice((1, 2, 39, 40, 41))
    tail = dice.choice((b"", b"/..", b"/../..", b"/x/../y", b"/x" * 300))
    ends = dice.choice((b"nowhere", b"l00", b"..", b"/", b"l00/../.."))
    targets = [b"l%02d" % (number + 1) + tail for number in range(count - 1)] + [ends]
    return [Entry(b"l%02d" % number, Kind.SYMLINK, 0o777, 0, target=target) for number, target in enumerate(targets)]


def _shuffle(dice: random.Random, items: list[_Item]) -> None:
    """Swap two, repeat one, or leave one out."""
    left, right = dice.randrange(len(items)), dice.randrange(len(items))
    change = dice.randrange(3)
    if change == 0:
        items[left], items[right] = items[right], items[left]
    elif change == 1:
        items.insert(left, items[right])
    else:
        del items[left]
