"""Offline proofs: the C2SP tlog-proof text (c2sp.org/tlog-proof) that one entry stands in a signed tree."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from attestation.errors import FormatError
from attestation.log.note import MAX_NOTE_BYTES, Checkpoint, NoteVerifier, open_checkpoint, parse_number
from attestation.merkle import HASH_BYTES, MAX_PROOF_HASHES, ProofError, leaf_hash, verify_inclusion
from attestation.shape import shape
from attestation.signing import b64decode, b64encode

HEADER = "c2sp.org/tlog-proof@v1"
MAX_PROOF_BYTES = MAX_NOTE_BYTES + 8192


@dataclass(frozen=True)
class TlogProof:
    """Where an entry stands, its inclusion proof, and the checkpoint it leads to (a signed note as received)."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: str

    @property
    def text(self) -> str:
        """The proof as text."""
        return "".join(f"{line}\n" for line in (HEADER, f"index {self.index}", *map(b64encode, self.hashes), "")) + self.checkpoint

    @classmethod
    def from_text(cls, raw: str) -> Self:
        """Read a proof. Raises ``ProofError`` or ``NoteError``; trusts nothing yet."""
        if len(raw) > MAX_PROOF_BYTES:
            raise ProofError("a proof is too large", rule="tlog-proof-size", seen=f"{len(raw)} characters", wanted=f"≤ {MAX_PROOF_BYTES}")
        head, blank, checkpoint = raw.partition("\n\n")
        first, *lines = head.split("\n")
        if first != HEADER or not blank:
            raise ProofError("not a proof", rule="tlog-proof-header", seen=shape(raw), wanted=HEADER)
        if lines and lines[0].startswith("extra "):
            raise ProofError(
                "a proof with extra data", rule="tlog-proof-extra", seen=shape(lines[0]), wanted="no extra line: nothing here uses one"
            )
        if not lines or not lines[0].startswith("index "):
            raise ProofError(
                "a proof names no index", rule="tlog-proof-index", seen=shape(lines[0]) if lines else "nothing", wanted="index N"
            )
        if len(lines) - 1 > MAX_PROOF_HASHES:
            raise ProofError(
                "a proof is too long", rule="tlog-proof-length", seen=f"{len(lines) - 1} hashes", wanted=f"≤ {MAX_PROOF_HASHES}"
            )
        return cls(parse_number(lines[0].removeprefix("index "), "tlog-proof-index"), tuple(_hash(line) for line in lines[1:]), checkpoint)

    def verify(self, leaf: bytes, verifiers: Iterable[NoteVerifier], *, origin: str | None = None) -> Checkpoint:
        """Return the checkpoint once it is signed by a trusted log key and holds exactly these bytes at ``index``.

        Raises ``NoteError``, ``NoteSignatureError``, ``CheckpointError`` or ``ProofError``.
        """
        checkpoint, _ = open_checkpoint(self.checkpoint, verifiers, origin=origin)
        verify_inclusion(self.index, checkpoint.size, leaf_hash(leaf), self.hashes, checkpoint.root)
        return checkpoint


def _hash(line: str) -> bytes:
    try:
        digest = b64decode(line)
    except FormatError as error:
        raise ProofError("a proof line is not base64", rule="tlog-proof-base64", seen=shape(line), wanted="canonical base64") from error
    if len(digest) != HASH_BYTES:
        raise ProofError("a proof line is no hash", rule="tlog-proof-hash", seen=f"{len(digest)} bytes", wanted=f"{HASH_BYTES} bytes")
    return digest
