"""DER, one element at a time: enough for what vendors put into their certificates' extensions (X.690, lengths of at most two bytes)."""

from __future__ import annotations

from attestation.errors import FormatError
from attestation.verify.binary import BinaryReader

INTEGER, OCTETS, OID, IA5, SEQUENCE = 0x02, 0x04, 0x06, 0x16, 0x30


def take(reader: BinaryReader) -> tuple[int, bytes]:
    """Take one element and return its tag and its value. Raises ``FormatError``."""
    tag, size = reader.number(1), reader.number(1)
    if size >= 0x80:
        size = reader.number(size & 0x7F) if size in {0x81, 0x82} else reader.left + 1
    return tag, reader.take(size)


def members(raw: bytes) -> list[tuple[int, bytes]]:
    """Return the elements that fill ``raw``, the value of a SEQUENCE for example. Raises ``FormatError``."""
    reader, found = BinaryReader(raw, "the extension", "big"), []
    while reader.left:
        found.append(take(reader))
    return found


def value(raw: bytes, tag: int | None = None) -> bytes:
    """Return the value of the one element that fills ``raw``, of this tag where one is named. Raises ``FormatError``."""
    reader = BinaryReader(raw, "the extension", "big")
    seen, found = take(reader)
    reader.end()
    if tag is not None and seen != tag:
        raise FormatError("an extension is not as its maker defines it", seen=f"tag {seen:02x}", wanted=f"tag {tag:02x}")
    return found
