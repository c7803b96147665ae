"""Linux IMA's log of the files that were run or read, replayed (``binary_runtime_measurements`` or ``ascii_runtime_measurements``).

Templates ``ima-ng``, ``ima-sig`` and ``ima-buf`` of Linux 5.8 or later, which extends each bank with its own hash of the template data
(Documentation/security/IMA-templates). A quote may be older than the end of the log: the log is replayed until it gives the quoted value.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from attestation.errors import FormatError, LimitError
from attestation.shape import shape
from attestation.verify.binary import BinaryReader
from attestation.verify.eventlog import extend

IMA_PCR = 10
MAX_LOG_BYTES = 2 * 1024 * 1024
MAX_ENTRIES = 100_000
TEMPLATES = frozenset({"ima-ng", "ima-sig", "ima-buf"})
_MAX_DATA_BYTES = 64 * 1024
_VIOLATION = b"\xff" * 32
"""What is extended where a file was changed while it was measured; its entry's digest is zero."""
_LINE = re.compile(
    rb"(\d{1,2}) ([0-9a-f]{40}|[0-9a-f]{64}) (ima-ng|ima-sig|ima-buf) ([a-z0-9_-]{1,32}):((?:[0-9a-f]{2}){16,64}) (.{1,8192})"
)


@dataclass(frozen=True)
class Measured:
    """One entry: the file's name and its digest (``sha256:…``), and what was extended. ``violation``: its content is not known."""

    name: str
    digest: str
    extended: bytes
    violation: bool


def parse_ima(raw: bytes) -> tuple[Measured, ...]:
    """Parse a log in either form; entries of other PCRs than IMA's are refused. Raises ``FormatError`` or ``LimitError``."""
    if len(raw) > MAX_LOG_BYTES:
        raise LimitError("the IMA log is too large", seen=f"{len(raw)} bytes", wanted=f"≤ {MAX_LOG_BYTES} bytes")
    found = _binary(raw) if raw[:4] == IMA_PCR.to_bytes(4, "little") else tuple(_line(line) for line in raw.splitlines())
    if not 0 < len(found) <= MAX_ENTRIES:
        raise LimitError("the IMA log has no entry or too many", seen=str(len(found)), wanted=f"1 to {MAX_ENTRIES}")
    return found


def replay_ima(entries: Sequence[Measured], quoted: bytes) -> tuple[Measured, ...] | None:
    """Return the entries that lead to the ``quoted`` value of IMA's PCR; None where none do."""
    value = bytes(32)
    for place, entry in enumerate(entries, 1):
        value = extend(value, entry.extended)
        if value == quoted:
            return tuple(entries[:place])
    return None


def _binary(raw: bytes) -> tuple[Measured, ...]:
    reader = BinaryReader(raw, "the IMA log", "little")
    # The header's digest is SHA-1, or SHA-256 in the file of that bank; where the template's name stands tells which.
    size = 20 if raw[28:32] == b"ima-" else 32
    found = []
    while reader.left:
        pcr, digest = reader.number(4), reader.take(size)
        name = reader.sized(limit=32, size=4).decode("ascii", errors="replace")
        data = reader.sized(limit=_MAX_DATA_BYTES, size=4)
        _require(pcr, name)
        found.append(_measured(digest, data))
        if len(found) > MAX_ENTRIES:
            break
    return tuple(found)


def _line(line: bytes) -> Measured:
    match = _LINE.fullmatch(line)
    if match is None:
        raise FormatError("not a line of an IMA log", seen=shape(line), wanted="PCR, digest, template, file")
    pcr, shown, template, algorithm, file_digest, rest = match.groups()
    _require(int(pcr), template.decode())
    digest = bytes.fromhex(shown.decode())
    for data in _spellings(algorithm, bytes.fromhex(file_digest.decode("ascii")), template.decode(), rest):
        if not any(digest) or _hash(digest, data) == digest:
            return _measured(digest, data)
    raise FormatError("a line's digest is not that of its fields", seen=shown.decode(), wanted="the digest of the template data")


def _spellings(algorithm: bytes, digest: bytes, template: str, rest: bytes) -> list[bytes]:
    """Return the template data that a line may stand for: a name may hold spaces, and what follows it may be left out."""
    first = _field(algorithm + b":\0" + digest)
    found = []
    if template != "ima-buf":
        found.append(first + _field(rest.rstrip(b" ") + b"\0") + (_field(b"") if template == "ima-sig" else b""))
    name, space, tail = rest.rpartition(b" ")
    if space and template != "ima-ng" and re.fullmatch(rb"(?:[0-9a-f]{2})+", tail):
        found.append(first + _field(name + b"\0") + _field(bytes.fromhex(tail.decode())))
    return found


def _measured(digest: bytes, data: bytes) -> Measured:
    violation = not any(digest)
    if not violation and _hash(digest, data) != digest:
        raise FormatError("an entry's digest is not that of its data", seen=digest.hex(), wanted=_hash(digest, data).hex())
    reader = BinaryReader(data, "the IMA entry", "little")
    algorithm, zero, value = reader.sized(limit=256, size=4).partition(b":\0")
    name = reader.sized(limit=8192, size=4)
    if not zero or not name.endswith(b"\0"):
        raise FormatError("not an entry with file digest and name", seen=data[:40].hex(), wanted="the fields d-ng and n-ng")
    extended = _VIOLATION if violation else hashlib.sha256(data).digest()
    text = name[:-1].decode("utf-8", errors="replace")
    return Measured(text, f"{algorithm.decode('ascii', errors='replace')}:{value.hex()}", extended, violation)


def _require(pcr: int, template: str) -> None:
    if pcr != IMA_PCR or template not in TEMPLATES:
        raise FormatError(
            "another PCR or template", seen=f"PCR {pcr}, {template}", wanted=f"PCR {IMA_PCR}, {' or '.join(sorted(TEMPLATES))}"
        )


def _hash(like: bytes, data: bytes) -> bytes:
    """Return the digest that the log itself shows; what counts is the SHA-256 of the data, which the TPM vouches for."""
    return hashlib.sha1(data, usedforsecurity=False).digest() if len(like) == 20 else hashlib.sha256(data).digest()


def _field(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data
