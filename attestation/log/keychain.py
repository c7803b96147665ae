"""A log's keys over time: each hands over to the next in a note that both signed, and the handover is itself an entry.

Whoever trusts one key follows the notes to the newest. A retired key's old checkpoints still verify; what it signs beyond its
last size does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from attestation.canonical import sha256_digest
from attestation.log.errors import LeafError, NoteError, NoteSignatureError
from attestation.log.leaf import Leaf
from attestation.log.note import COSIGNATURE, Checkpoint, Note, NoteVerifier, open_checkpoint, parse_number
from attestation.log.reader import LogReader
from attestation.log.tiles import TILE_WIDTH

HEADER = "sealrig.dev/log-key/v1"
LEAF_TYPE = "log.key-rotated"
MAX_ROTATIONS = 1000


@dataclass(frozen=True)
class KeyLink:
    """A key: the size it signs from, the size of the last tree it may have signed (None: it is the newest), the note it came by."""

    verifier: NoteVerifier
    start: int = 0
    end: int | None = None
    note: Note | None = None


@dataclass(frozen=True)
class KeyChain:
    """A log's keys from a trusted one to the newest, and the witnesses that are trusted beside them."""

    links: tuple[KeyLink, ...]
    witnesses: tuple[NoteVerifier, ...] = ()

    @classmethod
    def follow(cls, reader: LogReader, trusted: Sequence[NoteVerifier]) -> Self:
        """Return the keys that follow from the trusted ones. Raises ``NoteError`` or ``NoteSignatureError`` for a broken handover."""
        return cls.from_handovers(read_handovers(reader), trusted)

    @classmethod
    def from_handovers(cls, handovers: Iterable[str], trusted: Sequence[NoteVerifier]) -> Self:
        """Return the keys that follow from the trusted ones by these notes, in their order. Raises as ``follow`` does."""
        logs = [verifier for verifier in trusted if verifier.kind != COSIGNATURE]
        links = [KeyLink(verifier) for verifier in logs]
        for raw in handovers:
            note = Note.parse(raw)
            old = next((at for at, link in enumerate(links) if _signed(note, link.verifier)), None)
            if old is None:
                continue  # a handover between keys before the trusted one
            size, new = _read(note, links[old].verifier)
            note.verify([links[old].verifier, new])
            if not _signed(note, new):
                raise NoteSignatureError(
                    "the new key did not sign its handover", rule="rotation-new-key", seen="one signature", wanted=new.text
                )
            links[old] = replace(links[old], end=size)
            links = [link for link in links if link.verifier != new] + [KeyLink(new, size, None, note)]
        return cls(tuple(links), tuple(verifier for verifier in trusted if verifier.kind == COSIGNATURE))

    @property
    def keys(self) -> tuple[NoteVerifier, ...]:
        """All keys, the witnesses' among them."""
        return (*(link.verifier for link in self.links), *self.witnesses)

    def open(self, raw: str) -> tuple[Checkpoint, Note]:
        """Open a checkpoint. Raises ``NoteSignatureError`` where only a key signed that was retired by then."""
        checkpoint, note = open_checkpoint(raw, self.keys)
        proven = note.verify(self.keys)
        signers = [link for link in self.links if link.verifier in proven]
        if not any(link.end is None or checkpoint.size <= link.end for link in signers):
            raise NoteSignatureError(
                "a retired key signed this checkpoint",
                rule="key-retired",
                seen=f"{checkpoint.size} entries, signed by {', '.join(link.verifier.text for link in signers)}",
                wanted=f"≤ {max((link.end or 0) for link in signers)} entries, or the newest key",
                fix="trust the log's newest key; if this checkpoint is new, the old key is in wrong hands",
            )
        return checkpoint, note

    def require_logged(self, reader: LogReader, size: int) -> None:
        """Raise ``LeafError`` unless each handover is an entry of the log (whose tree the caller has proven)."""
        for link in self.links:
            if link.note is None or link.start > size:
                continue
            index = link.start - 1
            leaf = Leaf.from_bytes(reader.bundle(index // TILE_WIDTH, size)[index % TILE_WIDTH])
            digest = sha256_digest(link.note.text.encode())
            if leaf.type != LEAF_TYPE or leaf.evidence is None or leaf.evidence.digest != digest:
                raise LeafError(
                    "a key's handover is not in the log", rule="rotation-logged", seen=f"entry {index}: {leaf.type}", wanted=digest
                )


def read_handovers(reader: LogReader) -> Iterator[str]:
    """Yield the notes by which a log's key was exchanged, in order. Nothing in them is proven yet."""
    for number in range(1, MAX_ROTATIONS + 1):
        raw = reader.rotation(number)
        if raw is None:
            return
        yield raw


def _signed(note: Note, verifier: NoteVerifier) -> bool:
    return any((each.name, each.key_id) == (verifier.name, verifier.key_id) for each in note.signatures)


def _read(note: Note, old: NoteVerifier) -> tuple[int, NoteVerifier]:
    """Return the size and the new key of a handover that ``old`` is proven to have signed."""
    note.verify([old])
    lines = note.text.split("\n")
    if len(lines) != 5 or lines[0] != HEADER or lines[1] != old.name:
        raise NoteError(
            "not a handover of this log's key", rule="rotation-form", seen=" | ".join(lines)[:120], wanted=f"{HEADER}, {old.name}"
        )
    new = NoteVerifier.from_text(lines[3])
    if new.name != old.name or new.kind == COSIGNATURE:
        raise NoteError("a handover to a key of another log", rule="rotation-key", seen=new.text, wanted=old.name)
    return parse_number(lines[2], "rotation-size"), new
