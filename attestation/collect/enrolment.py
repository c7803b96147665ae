"""Node side of a TPM's enrolment, through tpm2-tools: make an attestation key beside the endorsement key, and open the challenge."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from attestation.canonical import sha256_digest
from attestation.collect.tpm import Tools
from attestation.enrolment import MAX_CERTIFICATE_CHARS, Answer, Challenge, Offer, proof_of
from attestation.errors import AttestationError, FormatError
from attestation.signing import b64decode, b64encode

DEFAULT_HANDLE = "0x81010002"
# TCG EK Credential Profile 2.5, section 2.2.1.4: where makers keep the certificates of the standard endorsement keys.
CERTIFICATE_INDEX = {"rsa": "0x01c00002", "ecc": "0x01c0000a"}
_ENDORSEMENT = "0x4000000b"
_SCHEMES = {"rsa": "rsassa", "ecc": "ecdsa"}


@dataclass(frozen=True)
class TpmEnrolment:
    """One TPM. ``handle`` is where the attestation key stays; ``algorithm`` says which of the standard EKs is used."""

    handle: str = DEFAULT_HANDLE
    algorithm: Literal["rsa", "ecc"] = "ecc"
    tools: Tools = field(default_factory=Tools)

    def offer(self, node: str) -> Offer:
        """Make a new attestation key, keep it at ``handle``, and return the offer. Raises ``AttestationError`` where the TPM refuses."""
        with tempfile.TemporaryDirectory(prefix="sealrig-tpm-") as place:
            folder = Path(place)
            ek = folder / "ek.ctx"
            self._make_ek(ek, folder / "ek.pub")
            self.tools.run("tpm2_createak", "-C", str(ek), "-c", str(folder / "ak.ctx"), "-G", self.algorithm, "-g", "sha256",
                           "-s", _SCHEMES[self.algorithm], "-u", str(folder / "ak.pub"), "-n", str(folder / "ak.name"))  # fmt: skip
            self._flush()
            self.tools.run("tpm2_evictcontrol", "-C", "o", "-c", str(folder / "ak.ctx"), self.handle)
            certificate = folder / "ek.der"
            # Many virtual TPMs and some firmware TPMs hold no certificate; the operator then approves the key by its digest.
            with contextlib.suppress(AttestationError):
                self.tools.run("tpm2_nvread", "-C", "o", CERTIFICATE_INDEX[self.algorithm], "-o", str(certificate))
            return Offer(
                node=node,
                ek=b64encode((folder / "ek.pub").read_bytes()),
                ek_certificate=b64encode(_unpadded(certificate.read_bytes())) if certificate.exists() else "",
                ak=b64encode((folder / "ak.pub").read_bytes()),
            )

    def answer(self, challenge: Challenge, offer: bytes) -> Answer:
        """Open a challenge with the TPM. Raises ``AttestationError``: for another TPM or another key the TPM itself refuses."""
        if challenge.offer != sha256_digest(offer):
            raise FormatError("the challenge is to another offer", rule="tpm-challenge", seen=challenge.offer, wanted=sha256_digest(offer),
                              fix="have this node's offer challenged again")  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="sealrig-tpm-") as place:
            folder = Path(place)
            ek, session, credential, opened = (folder / name for name in ("ek.ctx", "session.ctx", "credential", "opened"))
            credential.write_bytes(b64decode(challenge.credential))
            self._make_ek(ek, folder / "ek.pub")
            self.tools.run("tpm2_startauthsession", "--policy-session", "-S", str(session))
            try:
                self.tools.run("tpm2_policysecret", "-S", str(session), "-c", _ENDORSEMENT)
                self.tools.run("tpm2_activatecredential", "-c", self.handle, "-C", str(ek), "-i", str(credential), "-o", str(opened),
                               "-P", f"session:{session}")  # fmt: skip
            finally:
                with contextlib.suppress(AttestationError):
                    self.tools.run("tpm2_flushcontext", str(session))
            return Answer(node=challenge.node, offer=challenge.offer, proof=proof_of(opened.read_bytes(), challenge.node, challenge.offer))

    def _make_ek(self, context: Path, public: Path) -> None:
        """Make the endorsement key again: a primary key follows from the TPM's own seed, so that it is the same each time."""
        self.tools.run("tpm2_createek", "-c", str(context), "-G", self.algorithm, "-u", str(public))
        self._flush()

    def _flush(self) -> None:
        self.tools.run("tpm2_flushcontext", "-t")


def _unpadded(raw: bytes) -> bytes:
    """Return the DER element at the start: makers pad the certificate to the size of its place."""
    if len(raw) > MAX_CERTIFICATE_CHARS // 2 or len(raw) < 4 or raw[:2] != b"\x30\x82":
        raise AttestationError("the TPM's certificate is not DER", rule="tpm-ek-certificate", seen=raw[:4].hex(), wanted="a certificate",
                               fix="approve the endorsement key by its digest")  # fmt: skip
    return raw[: 4 + int.from_bytes(raw[2:4], "big")]
