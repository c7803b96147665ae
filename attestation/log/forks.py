"""Keeps evidence of forks in a folder: a file for each, and few for each log, so that a log's owner cannot fill a witness's disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from attestation.log.files import sync_folder
from attestation.log.history import ForkEvidence
from attestation.log.note import Checkpoint, Note

MAX_FORKS = 16
"""For each log. One convicts it for ever; more only tell how often."""


def keep_fork(folder: Path, evidence: ForkEvidence) -> Path | None:
    """Write proven evidence to a file and return it; None where it is there already, or where enough of this log is.

    The file is named by what the log signed, so that other signatures beside do not make another fork. It is durable when this
    returns. Raises ``OSError``.
    """
    held, shown = Note.parse(evidence.held).text, Note.parse(evidence.shown).text
    log = _short(Checkpoint.parse(held).origin)
    place = folder / f"fork-{log}-{_short(held + shown)}.json"
    if place.exists() or len(list(folder.glob(f"fork-{log}-*.json"))) >= MAX_FORKS:
        return None
    temporary = folder / ".fork.tmp"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(evidence.to_text())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(place)
    sync_folder(folder)
    return place


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
