"""Small logs for tests."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from attestation.log.leaf import Leaf
from attestation.log.note import NoteVerifier
from attestation.log.places import LogPlaces
from attestation.log.writer import LogWriter
from attestation.signing import SigningKey

ORIGIN = "log.example/rig"
KEY = SigningKey(b"\x07" * 32)
OTHER_KEY = SigningKey(b"\x08" * 32)
VERIFIER = NoteVerifier(ORIGIN, KEY.public)
NOW = datetime(2026, 11, 5, 12, tzinfo=UTC)


def leaf(number: int = 0, *, kind: str = "lease.running", outcome: str = "ok") -> bytes:
    """Return a fresh leaf; ``number`` names its lease."""
    thing = f"lease-{number:032x}"
    return Leaf(kind, NOW, NOW, "server", thing, "run", outcome, tenant_ref=f"tenant-{number % 3:032x}").to_bytes()


def open_log(data: Path | LogPlaces, **options: object) -> LogWriter:
    """Open the test log under ``data``."""
    return LogWriter.open(data if isinstance(data, LogPlaces) else LogPlaces(data), **{"origin": ORIGIN, "key": KEY, **options})  # type: ignore[arg-type]


def make_log(data: Path, count: int, batch: int = 300) -> list[bytes]:
    """Write ``count`` leaves in batches and close the log."""
    leaves = [leaf(number) for number in range(count)]
    with open_log(data) as writer:
        for start in range(0, count, batch):
            assert writer.append(leaves[start : start + batch]) == list(range(start, min(start + batch, count)))
    return leaves
