"""One history: a checkpoint must extend every one seen before; where it does not, the proof of it convinces anybody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from attestation.canonical import canonical_json, parse_json
from attestation.errors import FormatError
from attestation.log.errors import ForkError, HistoryError, TileError
from attestation.log.note import MAX_NOTE_BYTES, Checkpoint, NoteVerifier, open_checkpoint
from attestation.log.reader import LogReader
from attestation.merkle import HASH_BYTES, MAX_PROOF_HASHES, ProofError, prefix_roots
from attestation.shape import shape
from attestation.signing import b64decode, b64encode

MAX_EVIDENCE_BYTES = 4 * MAX_NOTE_BYTES
_TYPE = "sealrig-log-fork"


@dataclass(frozen=True)
class ForkEvidence:
    """Two checkpoints that a log signed and that contradict each other (notes as received, the smaller tree first).

    ``proof`` (none for equal sizes) leads to the larger tree's root and shows which root its first leaves have: another than
    was signed. It stands alone: only the log's public key is needed to check it.
    """

    held: str
    shown: str
    proof: tuple[bytes, ...] = ()

    def to_text(self) -> str:
        """Return the evidence as one line of JSON."""
        tree = {"v": 1, "type": _TYPE, "held": self.held, "shown": self.shown, "proof": [b64encode(each) for each in self.proof]}
        return canonical_json(tree).decode()

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read the JSON form. Raises ``FormatError`` or ``LimitError``."""
        tree = parse_json(text.encode(), max_bytes=MAX_EVIDENCE_BYTES)
        if not isinstance(tree, dict) or set(tree) != {"v", "type", "held", "shown", "proof"} or tree["v"] != 1 or tree["type"] != _TYPE:
            raise FormatError("not evidence of a fork", rule="fork-form", seen=shape(tree), wanted=f"a {_TYPE} document")
        held, shown, proof = tree["held"], tree["shown"], tree["proof"]
        if not isinstance(held, str) or not isinstance(shown, str) or not isinstance(proof, list) or len(proof) > MAX_PROOF_HASHES:
            raise FormatError("not evidence of a fork", rule="fork-form", seen="other types", wanted="two notes and a proof")
        return cls(held, shown, tuple(b64decode(each) for each in proof))

    def verify(self, keys: Sequence[NoteVerifier]) -> tuple[Checkpoint, Checkpoint]:
        """Return both checkpoints once it is proven that the log forked. Raises ``LogError`` where it is not."""
        old, _ = open_checkpoint(self.held, keys)
        new, _ = open_checkpoint(self.shown, keys, origin=old.origin)
        if not 0 < old.size <= new.size or any(len(each) != HASH_BYTES for each in self.proof):
            raise ProofError("this is no evidence of a fork", rule="fork-sizes", seen=f"{old.size} and {new.size}", wanted="0 < old ≤ new")
        first, last = (new.root, new.root) if old.size == new.size else prefix_roots(old.size, new.size, self.proof)
        if last != new.root:
            raise ProofError("the proof does not lead to the newer checkpoint", rule="fork-root", seen=last.hex(), wanted=new.root.hex())
        if first == old.root:
            raise ProofError("the checkpoints agree: there is no fork", rule="fork-none", seen=first.hex(), wanted="another root")
        return old, new


def require_extends(reader: LogReader, held: str, shown: str, keys: Sequence[NoteVerifier]) -> None:
    """Raise unless the checkpoint ``shown`` extends ``held`` (both notes).

    ``ForkError`` with transferable evidence, ``HistoryError`` where the log shrank, ``TileError`` where its tiles do not lead
    to its own checkpoint, ``NoteError`` or ``NoteSignatureError``.
    """
    old, _ = open_checkpoint(held, keys)
    new, _ = open_checkpoint(shown, keys, origin=old.origin)
    if new.size < old.size:
        raise HistoryError(
            "the log shrank",
            rule="history-shrunk",
            seen=f"{new.size} entries",
            wanted=f"≥ {old.size} entries",
            fix="keep both checkpoints; ask the log for the newer one again",
            held=held,
            shown=shown,
        )
    if old.size == 0 or (old.size, old.root) == (new.size, new.root):
        return
    proof: list[bytes] = []
    first = new.root
    if old.size < new.size:
        proof = reader.prefix(old.size, new.size)
        first, last = prefix_roots(old.size, new.size, proof)
        if last != new.root:
            raise TileError("the tiles do not lead to the signed root", rule="tile-proof", seen=last.hex(), wanted=new.root.hex())
    if first != old.root:
        raise ForkError(
            "the log shows two histories",
            rule="fork-same-size" if old.size == new.size else "fork-prefix",
            seen=f"the first {old.size} entries have the root {first.hex()}",
            wanted=f"{old.root.hex()}, as signed before",
            fix="keep the evidence and show it to everybody who relies on this log",
            evidence=ForkEvidence(held, shown, tuple(proof)).to_text(),
        )
