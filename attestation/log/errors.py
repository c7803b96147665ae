"""Errors of the transparency log. Each carries a ``rule``: the one check that failed.

::

    LogError                    log                    base (attestation.errors)
    ├── ProofError              log-proof              an inclusion or consistency proof does not hold (attestation.merkle)
    ├── LeafError               log-leaf               bytes are not a leaf of this log
    ├── NoteError               log-note               bytes are not a signed note
    │   └── CheckpointError     log-checkpoint         a note is not a checkpoint of the log that is meant
    ├── NoteSignatureError      log-signature          no trusted key signed this note
    ├── TileError               log-tile               a tile or entry bundle is missing or has other bytes than the tree
    ├── HistoryError            log-history            the log went back, stood still, or shows two histories
    │   └── ForkError           log-fork               two signed checkpoints contradict each other; ``evidence`` proves it
    ├── LogStoreError           log-store              the log's own storage refuses to go on
    │   ├── LogLockedError      log-locked             another process is the writer
    │   └── LogFencedError      log-fenced             another writer has taken over since
    ├── QuorumError             log-quorum             too few witnesses cosigned
    ├── PolicyError             log-policy             bytes are not a policy about witnesses
    └── LogFetchError           log-fetch              the log could not be read (network, file system)
"""

from __future__ import annotations

from attestation.errors import LogError


class LeafError(LogError):
    """Bytes are not a leaf of this log."""

    code = "log-leaf"


class NoteError(LogError):
    """Bytes are not a signed note."""

    code = "log-note"


class CheckpointError(NoteError):
    """A note is not a checkpoint of the log that is meant."""

    code = "log-checkpoint"


class NoteSignatureError(LogError):
    """No trusted key signed this note, or a trusted key's signature does not verify."""

    code = "log-signature"


class TileError(LogError):
    """A tile or entry bundle is missing, or has other bytes than the signed tree."""

    code = "log-tile"


class HistoryError(LogError):
    """The log went back behind what was seen, stood still too long, or contradicts itself."""

    code = "log-history"


class ForkError(HistoryError):
    """Two signed checkpoints of one log contradict each other. ``evidence`` is text that proves it to anybody."""

    code = "log-fork"

    def __init__(self, message: str, *, evidence: str, **details: object) -> None:
        super().__init__(message, evidence=evidence, **details)
        self.evidence = evidence


class LogStoreError(LogError):
    """The log's own storage refuses to go on; the details say why and what to do."""

    code = "log-store"


class LogLockedError(LogStoreError):
    """Another process is this log's writer."""

    code = "log-locked"


class LogFencedError(LogStoreError):
    """Another writer has taken over since this one started; this one must not write again."""

    code = "log-fenced"


class QuorumError(LogError):
    """Too few witnesses cosigned a checkpoint."""

    code = "log-quorum"


class PolicyError(LogError):
    """Bytes are not a policy about witnesses (c2sp.org/tlog-policy)."""

    code = "log-policy"


class LogFetchError(LogError):
    """The log could not be read: the file or server did not answer as it should."""

    code = "log-fetch"
