"""A witness: cosigns a log's checkpoint only if it extends the one it cosigned before (c2sp.org/tlog-witness).

A log that wants to show two histories must find witnesses that forget; this one stores what it saw before it answers.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attestation.errors import FormatError, LogError
from attestation.log.errors import NoteError, NoteSignatureError
from attestation.log.history import ForkEvidence
from attestation.log.note import COSIGNATURE, MAX_NOTE_BYTES, Checkpoint, Note, NoteVerifier, cosign, parse_number
from attestation.merkle import ProofError, verify_consistency
from attestation.shape import shape
from attestation.signing import SigningKey, b64decode

MAX_PROOF_LINES = 63
MAX_BODY_BYTES = MAX_NOTE_BYTES + MAX_PROOF_LINES * 64 + 64
SIZE_TYPE = "text/x.tlog.size"
TEXT_TYPE = "text/plain; charset=utf-8"

_SCHEMA = "CREATE TABLE IF NOT EXISTS seen (origin TEXT PRIMARY KEY, size INTEGER NOT NULL, note TEXT NOT NULL)"


@dataclass(frozen=True)
class Answer:
    """What a witness answers: HTTP status, media type, body."""

    status: int
    body: str
    media_type: str = TEXT_TYPE


@dataclass(frozen=True)
class _Request:
    old: int
    proof: tuple[bytes, ...]
    raw: str
    note: Note
    checkpoint: Checkpoint


class Witness:
    """Cosigns for the logs whose keys it was given. Thread-safe; what it saw is durable before it answers.

    Of one log's keys the later one is the newer: once that has signed what was cosigned, an earlier one counts no more.
    ``on_fork`` is called with evidence when a log is caught with two histories.
    """

    def __init__(
        self,
        store: Path,
        name: str,
        key: SigningKey,
        logs: Sequence[NoteVerifier],
        *,
        on_fork: Callable[[ForkEvidence], None] | None = None,
    ) -> None:
        """Open or create the store."""
        self._name, self._key, self._on_fork = name, key, on_fork
        self._logs = tuple(logs)
        self._guard = threading.Lock()
        self._base = sqlite3.connect(store, isolation_level=None, check_same_thread=False, timeout=5.0)
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=FULL")
        self._base.execute(_SCHEMA)
        # Nothing is built on what an earlier witness committed while the disk failed it: that is synced first, or this raises.
        self._base.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the store."""
        with self._guard:
            self._base.close()

    @property
    def verifier(self) -> NoteVerifier:
        """The witness's public key, as logs and customers name it."""
        return NoteVerifier(self._name, self._key.public, COSIGNATURE)

    def add_checkpoint(self, body: bytes, at: int) -> Answer:
        """Answer an ``add-checkpoint`` request at POSIX time ``at``. Raises ``OSError`` or ``sqlite3.Error`` where it cannot be kept."""
        try:
            request = _parse(body)
        except (LogError, FormatError) as error:
            return Answer(400, f"{error.message}\n")
        keys = [verifier for verifier in self._logs if verifier.name == request.checkpoint.origin]
        if not keys:
            return Answer(404, "unknown log\n")
        try:
            request.note.verify(keys)
        except NoteSignatureError as error:
            return Answer(403, f"{error.message}\n")
        if request.old > request.checkpoint.size:
            return Answer(400, "the old size is larger than the checkpoint's\n")
        with self._guard:
            return self._compare(request, at)

    def _compare(self, request: _Request, at: int) -> Answer:
        """Check against what was cosigned before and store the new checkpoint, in one transaction."""
        new = request.checkpoint
        self._base.execute("BEGIN IMMEDIATE")
        try:
            row = self._base.execute("SELECT note FROM seen WHERE origin = ?", (new.origin,)).fetchone()
            held = Note.parse(row[0]) if row else None
            refusal = self._retired(request, held) or self._refusal(request, held)
            if refusal is None:
                self._base.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", (new.origin, new.size, request.raw))
            self._base.execute("COMMIT")
        except BaseException:
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            raise
        return refusal or Answer(200, cosign(request.note.text, self._name, self._key, at).line)

    def _retired(self, request: _Request, held: Note | None) -> Answer | None:
        if held is None or self._newest(request.note) >= self._newest(held):
            return None
        return Answer(403, "a newer key of this log has signed since\n")

    def _newest(self, note: Note) -> int:
        """Return the place in the list of the last key that signed, -1 for none: the key of what was held may be named no more."""
        return max((place for place, key in enumerate(self._logs) if _signed(note, key)), default=-1)

    def _refusal(self, request: _Request, held_note: Note | None) -> Answer | None:
        held = Checkpoint.parse(held_note.text) if held_note else None
        new, size = request.checkpoint, held.size if held else 0
        if request.old != size:
            return Answer(409, f"{size}\n", SIZE_TYPE)
        if held_note is None or held is None or size == 0:
            return Answer(422, "a first checkpoint needs no proof\n") if request.proof else None
        if new.size == size and new.root != held.root:
            self._catch(ForkEvidence(held_note.whole, request.raw))
            return Answer(409, f"{size}\n", SIZE_TYPE)
        try:
            verify_consistency(size, new.size, held.root, new.root, request.proof)
        except ProofError as error:
            # Where the proof leads to the signed root but past another old one, it proves the fork itself.
            self._catch(ForkEvidence(held_note.whole, request.raw, request.proof))
            return Answer(422, f"{error.message}\n")
        return None

    def _catch(self, evidence: ForkEvidence) -> None:
        if self._on_fork is None:
            return
        try:
            evidence.verify(self._logs)
        except LogError:
            return
        self._on_fork(evidence)


def _signed(note: Note, key: NoteVerifier) -> bool:
    """Say whether a key signed. A line with its id that does not verify may stand in what was cosigned before the key was named."""
    try:
        return bool(note.signed_by([key]))
    except NoteSignatureError:
        return False


def _parse(body: bytes) -> _Request:
    """Read a request. Raises ``LogError`` or ``FormatError``."""
    if len(body) > MAX_BODY_BYTES:
        raise NoteError("the request is too large", rule="witness-size", seen=f"{len(body)} bytes", wanted=f"≤ {MAX_BODY_BYTES} bytes")
    head, blank, raw = body.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise NoteError("the request is not text", rule="witness-text", seen=str(error)[:80], wanted="UTF-8") from error
    if not blank or not lines[0].startswith("old ") or len(lines) - 1 > MAX_PROOF_LINES:
        raise NoteError(
            "not an add-checkpoint request", rule="witness-form", seen=shape(body), wanted="old size, proof, blank line, checkpoint"
        )
    note = Note.parse(text)
    return _Request(
        parse_number(lines[0].removeprefix("old "), "witness-old"),
        tuple(b64decode(line) for line in lines[1:]),
        text,
        note,
        Checkpoint.parse(note.text),
    )
