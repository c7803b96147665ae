"""The firmware's log of what it measured during boot, replayed (TCG PC Client Platform Firmware Profile 1.06, section 10; SHA-256 bank).

Replaying gives the values that the PCRs must have if the log is true; a log that does not give the quoted values proves nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from attestation.errors import FormatError, LimitError
from attestation.verify.binary import BinaryReader

MAX_LOG_BYTES = 1024 * 1024
MAX_EVENTS = 8192
MAX_EVENT_BYTES = 512 * 1024
PCRS = 24
EV_NO_ACTION = 0x00000003
"""Informative events; they are not extended into any PCR."""
_SHA256, _SHA256_BYTES = 0x000B, 32
_MAX_BANKS = 8
_HEADER = b"Spec ID Event03\0"
_LOCALITY = b"StartupLocality\0"


@dataclass(frozen=True)
class Event:
    """One measurement: what was extended into ``pcr`` (32 bytes). ``data`` is what the firmware says of it; nothing vouches for that."""

    pcr: int
    type: int
    digest: bytes
    data: bytes


@dataclass(frozen=True)
class EventLog:
    """The extended events in their order, and the value of each PCR that they lead to."""

    events: tuple[Event, ...]
    pcrs: Mapping[int, bytes]

    def of(self, pcr: int) -> tuple[bytes, ...]:
        """Return the digests extended into one PCR."""
        return tuple(event.digest for event in self.events if event.pcr == pcr)


def extend(value: bytes, digest: bytes) -> bytes:
    """Return a PCR of the SHA-256 bank after one more measurement."""
    return hashlib.sha256(value + digest).digest()


def replay_event_log(raw: bytes) -> EventLog:
    """Parse and replay a crypto-agile log (``binary_bios_measurements``). Raises ``FormatError`` or ``LimitError``."""
    if len(raw) > MAX_LOG_BYTES:
        raise LimitError("the event log is too large", seen=f"{len(raw)} bytes", wanted=f"≤ {MAX_LOG_BYTES} bytes")
    reader = BinaryReader(raw, "the event log", "little")
    sizes = _banks(reader)
    pcrs: dict[int, bytes] = {}
    events: list[Event] = []
    while reader.left:
        event = _event(reader, sizes)
        if event.type == EV_NO_ACTION:
            if event.pcr == 0 and event.data.startswith(_LOCALITY) and not events:
                # The CPU's own start of the TPM (locality 3 or 4) leaves its number in PCR 0 before anything is measured.
                pcrs[0] = bytes(_SHA256_BYTES - 1) + event.data[len(_LOCALITY) :][:1].ljust(1, b"\0")
            continue
        events.append(event)
        if len(events) > MAX_EVENTS:
            raise LimitError("the event log has too many events", seen=f"more than {MAX_EVENTS}", wanted=f"≤ {MAX_EVENTS}")
        pcrs[event.pcr] = extend(pcrs.get(event.pcr, bytes(_SHA256_BYTES)), event.digest)
    return EventLog(tuple(events), pcrs)


def _banks(reader: BinaryReader) -> Mapping[int, int]:
    """Parse the first event, which says how long the digests of each algorithm are."""
    pcr, kind = reader.number(4), reader.number(4)
    reader.take(20)
    header = BinaryReader(reader.sized(limit=MAX_EVENT_BYTES, size=4), "the event log's header", "little")
    if (pcr, kind) != (0, EV_NO_ACTION) or header.left < len(_HEADER) or header.take(len(_HEADER)) != _HEADER:
        raise FormatError(
            "not a crypto-agile event log", seen=f"PCR {pcr}, type {kind:08x}", wanted="a log that begins with Spec ID Event03"
        )
    header.take(8)  # platform class, version, size of UINTN
    count = header.number(4)
    if count > _MAX_BANKS:
        raise FormatError("too many PCR banks", seen=str(count), wanted=f"≤ {_MAX_BANKS}")
    sizes = {header.number(2): header.number(2) for _ in range(count)}
    header.sized(limit=255, size=1)
    header.end()
    if sizes.get(_SHA256) != _SHA256_BYTES:
        raise FormatError("no SHA-256 bank in the event log", seen=", ".join(f"{bank:04x}" for bank in sizes), wanted=f"{_SHA256:04x}")
    return sizes


def _event(reader: BinaryReader, sizes: Mapping[int, int]) -> Event:
    pcr, kind, count = reader.number(4), reader.number(4), reader.number(4)
    # Informative events may name PCR 0xFFFFFFFF, which is none.
    if (pcr >= PCRS and kind != EV_NO_ACTION) or count > len(sizes):
        raise FormatError("not an event", seen=f"PCR {pcr}, {count} digests", wanted=f"a PCR below {PCRS}, ≤ {len(sizes)} digests")
    digests: dict[int, bytes] = {}
    for _ in range(count):
        bank = reader.number(2)
        if bank not in sizes or bank in digests:
            raise FormatError("a digest of a bank that is not in the header, or twice", seen=f"{bank:04x}", wanted="one digest a bank")
        digests[bank] = reader.take(sizes[bank])
    data = reader.sized(limit=MAX_EVENT_BYTES, size=4)
    if kind != EV_NO_ACTION and _SHA256 not in digests:
        raise FormatError("an event without a SHA-256 digest", seen=f"PCR {pcr}, type {kind:08x}", wanted="a digest of each bank")
    return Event(pcr, kind, digests.get(_SHA256, b""), data)
