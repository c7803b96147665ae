"""What is accepted of a log: its key, keys that it had before, and the witnesses that must have cosigned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from attestation.log.errors import QuorumError
from attestation.log.keychain import KeyChain
from attestation.log.note import COSIGNATURE, Checkpoint, Note, NoteVerifier
from attestation.log.proof import TlogProof
from attestation.log.reader import LogReader

if TYPE_CHECKING:  # the workers of a verification have no use for what a trust file's schema takes in memory
    from attestation.trust import Trust


@dataclass(frozen=True)
class LogRules:
    """Trusted keys, retired ones with the size of the last tree that each may have signed, and ``quorum`` of ``witnesses``."""

    keys: tuple[NoteVerifier, ...]
    retired: Mapping[NoteVerifier, int] = field(default_factory=dict)
    witnesses: tuple[NoteVerifier, ...] = ()
    quorum: int = 0

    @classmethod
    def from_trust(cls, trust: Trust) -> Self:
        """Return all that a trust file says of its log. Raises ``NoteError`` for a key that is none."""
        spec = trust.spec
        witnesses = map(NoteVerifier.from_text, spec.witnesses)
        return cls(
            (NoteVerifier.from_text(spec.log.key),),
            {NoteVerifier.from_text(each.key): each.size for each in spec.log.retired},
            tuple(witness for witness in witnesses if witness.kind == COSIGNATURE),
            spec.witness_quorum,
        )

    def follow(self, reader: LogReader) -> KeyChain:
        """Return the keys that follow from the accepted ones by the log's own notes. Raises as ``KeyChain.follow`` does."""
        return KeyChain.follow(reader, self.keys, self.retired)

    def from_handovers(self, handovers: Iterable[str]) -> KeyChain:
        """Return the keys that follow from the accepted ones by these notes. Raises as ``KeyChain.follow`` does."""
        return KeyChain.from_handovers(handovers, self.keys, self.retired)

    def require_cosigned(self, note: Note) -> int:
        """Return how many witnesses cosigned, 0 where none is wanted.

        Raises ``QuorumError`` for too few, ``NoteSignatureError`` where one's cosignature does not verify.
        """
        cosigned = len(note.signed_by(self.witnesses)) if self.quorum else 0
        if cosigned < self.quorum:
            raise QuorumError(
                "too few witnesses cosigned the log",
                rule="log-witnesses",
                seen=f"{cosigned} cosignatures",
                wanted=f"≥ {self.quorum} of {len(self.witnesses)} named",
                fix="ask the operator to bring the log's witnesses back",
            )
        return cosigned

    def check(self, proof: TlogProof, leaf: bytes, chain: KeyChain) -> Checkpoint:
        """Return the checkpoint that a proof leads to, once all of this holds of it. Raises ``LogError``."""
        _, note = chain.open(proof.checkpoint)
        self.require_cosigned(note)
        return proof.verify(leaf, chain.keys)
