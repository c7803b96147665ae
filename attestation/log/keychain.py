"""A log's keys over time: each hands over to the next in a note that both signed, and the handover is itself an entry.

Whoever trusts one key follows the notes to the newest. A retired key's old checkpoints still verify; what it signs beyond its
last size does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
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
NONE_RETIRED: Mapping[NoteVerifier, int] = MappingProxyType({})


@dataclass(frozen=True)
class KeyLink:
    """A key: the size it signs from, the size of the last tree it may have signed (None: it is the newest), the note it came by."""

    verifier: NoteVerifier
    start: int = 0
    end: int | None = None
    note: Note | None = None


@dataclass(frozen=True)
class KeyChain:
    """A log's keys from a trusted one to the newest."""

    links: tuple[KeyLink, ...]

    @classmethod
    def follow(cls, reader: LogReader, trusted: Sequence[NoteVerifier], retired: Mapping[NoteVerifier, int] = NONE_RETIRED) -> Self:
        """Return the keys that follow from the trusted ones. Raises ``NoteError`` or ``NoteSignatureError`` for a broken handover.

        ``retired``: keys that the log had before, each with the size of the last tree that it may have signed.
        """
        return cls.from_handovers(read_handovers(reader), trusted, retired)

    @classmethod
    def from_handovers(
        cls, handovers: Iterable[str], trusted: Sequence[NoteVerifier], retired: Mapping[NoteVerifier, int] = NONE_RETIRED
    ) -> Self:
        """Return the keys that follow from the trusted ones by these notes, in their order. Raises as ``follow`` does.

        Whoever shows the notes may leave some out, so a retired key ends where the caller says, whatever they tell.
        """
        links = [KeyLink(verifier) for verifier in trusted]
        links += [KeyLink(verifier, end=size) for verifier, size in retired.items()]
        for raw in handovers:
            note = Note.parse(raw)
            if signers := [link.verifier for link in links if _signed(note, link.verifier)]:
                links = _hand_over(links, note, signers)
            # Otherwise it is a handover between keys before the trusted one.
        return cls(tuple(links))

    @property
    def keys(self) -> tuple[NoteVerifier, ...]:
        """All keys."""
        return tuple(link.verifier for link in self.links)

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


def _hand_over(links: list[KeyLink], note: Note, signers: list[NoteVerifier]) -> list[KeyLink]:
    """Return the links after a handover. The new key signs it too, so the old ones are the signers that it does not name as new."""
    note.verify(signers)
    size, new = _read(note, signers[0].name)
    note.verify([*signers, new])
    if not _signed(note, new):
        raise NoteSignatureError("the new key did not sign its handover", rule="rotation-new-key", seen="one signature", wanted=new.text)
    known = next((link for link in links if link.verifier == new), None)
    old = [link for link in links if link.verifier in signers and link.verifier != new]
    if known is None and all(link.end is not None for link in old):
        return links  # a retired key leads nowhere any more
    ended = [
        replace(link, end=size if link.end is None else min(link.end, size)) if link in old else link for link in links if link is not known
    ]
    return [*ended, KeyLink(new, size, known.end if known is not None else None, note)]


def _read(note: Note, name: str) -> tuple[int, NoteVerifier]:
    """Return the size and the new key of a handover within the log ``name``; its caller proves who signed."""
    lines = note.text.split("\n")
    if len(lines) != 5 or lines[0] != HEADER or lines[1] != name:
        raise NoteError("not a handover of this log's key", rule="rotation-form", seen=" | ".join(lines)[:120], wanted=f"{HEADER}, {name}")
    new = NoteVerifier.from_text(lines[3])
    if new.name != name or new.kind == COSIGNATURE:
        raise NoteError("a handover to a key of another log", rule="rotation-key", seen=new.text, wanted=name)
    size = parse_number(lines[2], "rotation-size")
    if size == 0:
        raise NoteError("a handover before any entry", rule="rotation-size", seen="0 entries", wanted="the handover's own entry")
    return size, new
