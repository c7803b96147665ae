"""The index of a bundle: a line an entry, then a last line with the sealer's signature over header and lines.

The header's signature proves who started a bundle; the one here proves that nobody who was handed the data key (a node, another recipient)
replaced what is inside, because the lines carry the digest of every file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from blake3 import blake3

from attestation.canonical import bind, canonical_json, parse_json
from attestation.errors import AttestationError
from attestation.signing import SigningKey, b64decode, b64encode
from sandbox.errors import BundleError, BundleTamperedError
from sandbox.sealing.entries import MAX_LINE_BYTES, Entry, Kind, Order, decode_line, encode_line, lines, unsafe_links
from sandbox.sealing.format import Header
from sandbox.sealing.tar import END, place

_END_FIELDS = {"entries", "signature", "type"}


def end_line(count: int, signature: bytes) -> bytes:
    """Return the last line, newline included; its length depends on ``count`` only."""
    return canonical_json({"entries": count, "signature": b64encode(signature), "type": "end"}) + b"\n"


def write_index(entries: Iterable[Entry], header: Header, signer: SigningKey) -> Iterator[bytes]:
    """Yield the lines of the index, the signed last one included."""
    state = blake3()
    count = 0
    for entry in entries:
        line = encode_line(entry)
        state.update(line)
        count += 1
        yield line
    yield end_line(count, signer.sign(_message(header, state.digest())))


def read_index(
    pieces: Iterator[memoryview], header: Header, payload_plain_size: int, kept: Callable[[], Iterable[Entry]]
) -> Iterator[Entry]:
    """Yield the entries of an index, each checked as it comes; what ties them together is only proven when the iteration ends.

    ``kept`` returns what was yielded, as the caller keeps it: where there are hard links, it is gone through for the files that they name.

    Raises ``BundleError``, ``UnsafePathError`` or ``BundleTamperedError``: unsafe, out of order or in another spelling, not where the tar
    has them, or not what the sealer signed. A caller must not act on entries before the last one.
    """
    state = blake3()
    order = Order()
    cursor = 0
    count = 0
    held: bytes | None = None
    for line in lines(pieces):
        if held is not None:
            entry = decode_line(held)
            order.add(entry)
            start, cursor = place(entry, cursor)
            if entry.kind is Kind.FILE and start != entry.offset:
                raise _unsound(f"{entry.name} at {entry.offset}", f"at {start}")
            state.update(held + b"\n")
            count += 1
            yield entry
        held = line
    if cursor + len(END) != payload_plain_size:
        raise _unsound(f"entries of {cursor + len(END)} bytes", f"{payload_plain_size} bytes, as the header says")
    if unsafe_links(order.links):
        raise _unsound("a symlink that leaves the tree", "links inside the tree only")
    if order.targets:
        order.targets.difference_update(entry.path for entry in kept() if entry.kind is Kind.FILE)
        if order.targets:
            raise _unsound("a link to no file", "hard links to files in the bundle only")
    _check_end(held or b"", count, header, state.digest())


def _check_end(line: bytes, count: int, header: Header, digest: bytes) -> None:
    try:
        tree: Any = parse_json(line, max_bytes=MAX_LINE_BYTES)
        if not isinstance(tree, dict) or set(tree) != _END_FIELDS or canonical_json(tree) != line:
            raise _unsound("another last line", "the signed end of the index")
        signature = b64decode(tree["signature"])
    except AttestationError as error:
        raise _unsound("another last line", "the signed end of the index") from error
    if tree["type"] != "end" or tree["entries"] != count or isinstance(tree["entries"], bool):
        raise _unsound(f"{count} entries", f"{tree['entries']!r:.20}")
    try:
        header.signer.verify(signature, _message(header, digest))
    except AttestationError as error:
        raise BundleTamperedError(
            "the bundle's contents are not what its sealer signed",
            rule="index-signature",
            seen="other contents",
            wanted=f"contents signed by {header.signer.key_id}",
            fix="get the bundle again from its source",
        ) from error


def _message(header: Header, digest: bytes) -> bytes:
    return bind("sealrig/bundle-contents/v1", header.document, digest)


def _unsound(seen: str, wanted: str) -> BundleError:
    return BundleError(
        "the bundle's index is not sound", rule="bundle-index", seen=seen, wanted=wanted, fix="get the bundle again from its source"
    )
