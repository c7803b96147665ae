"""The public half of an identity: what others seal to, and what they verify with. Nothing in here can unwrap or decrypt."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Self

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PublicKey, Suite

from attestation.errors import FormatError
from attestation.shape import secret_kind, shape
from attestation.signing import VerifyKey, b64decode, b64encode
from sandbox.errors import InputError
from sandbox.sealing.algorithms import ED25519_BYTES, HPKE, KEM_PUBLIC_BYTES, MLKEM_PUBLIC_BYTES

PUBLIC_PREFIX = "sealrig1:"
PUBLIC_MAX_CHARS = 8192


def wrap_to_kem_key(public: bytes, secret: bytes, info: bytes) -> bytes:
    """Wrap a short secret to an HPKE public key (``KEM_PUBLIC_BYTES``); only its holder, with the same ``info``, gets it back.

    Raises ``InputError`` for bytes that are no such key.
    """
    if len(public) != KEM_PUBLIC_BYTES:
        raise InputError("not an HPKE public key", rule="kem-key", seen=f"{len(public)} bytes", wanted=f"{KEM_PUBLIC_BYTES} bytes",
                         fix="use the key as it was published")  # fmt: skip
    try:
        key = MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:MLKEM_PUBLIC_BYTES]),
            X25519PublicKey.from_public_bytes(public[MLKEM_PUBLIC_BYTES:]),
        )
        return Suite(*HPKE).encrypt(secret, key, info)
    except ValueError as error:  # e.g. an X25519 point of low order, or ML-KEM coefficients out of range
        raise InputError(
            "not an HPKE public key",
            rule="kem-key",
            seen="bytes that encode no key",
            wanted="an ML-KEM-768 + X25519 public key",
            fix="use the key as it was published",
        ) from error


@dataclass(frozen=True)
class IdentityPublic:
    """A person's public keys: one to seal to (``kem``, ``KEM_PUBLIC_BYTES``) and one to verify signatures with."""

    kem: bytes
    verify_key: VerifyKey

    def __post_init__(self) -> None:
        if len(self.kem) != KEM_PUBLIC_BYTES:
            raise InputError("not a public identity", rule="identity", seen=f"{len(self.kem)} bytes", wanted=f"{KEM_PUBLIC_BYTES} bytes",
                             fix="copy identity.pub whole")  # fmt: skip

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``sealrig1:BASE64``, one line; a trailing newline is allowed. Raises ``InputError``."""
        line = text[: PUBLIC_MAX_CHARS + 1].removesuffix("\n")
        wanted = f"{PUBLIC_PREFIX}BASE64 of {KEM_PUBLIC_BYTES + ED25519_BYTES} bytes"
        if len(line) > PUBLIC_MAX_CHARS or not line.startswith(PUBLIC_PREFIX):
            fix = "name identity.pub, the public part beside it" if secret_kind(line) else "copy identity.pub whole"
            raise InputError("not a public identity", rule="identity", seen=shape(line), wanted=wanted, fix=fix)
        try:
            raw = b64decode(line.removeprefix(PUBLIC_PREFIX))
        except FormatError as error:
            raise InputError("not a public identity", rule="identity", seen=str(error.message), wanted=wanted,
                             fix="copy identity.pub whole") from error  # fmt: skip
        if len(raw) != KEM_PUBLIC_BYTES + ED25519_BYTES:
            raise InputError(
                "not a public identity", rule="identity", seen=f"{len(raw)} bytes", wanted=wanted, fix="copy identity.pub whole"
            )
        return cls(raw[:KEM_PUBLIC_BYTES], VerifyKey(raw[KEM_PUBLIC_BYTES:]))

    @property
    def raw(self) -> bytes:
        """Both keys, one after the other."""
        return self.kem + self.verify_key.raw

    @property
    def text(self) -> str:
        """The identity as one line of text, without a newline."""
        return PUBLIC_PREFIX + b64encode(self.raw)

    @property
    def fingerprint(self) -> str:
        """A name for people and headers: the first 32 hex digits of the SHA-256 of both keys."""
        return hashlib.sha256(self.raw).hexdigest()[:32]

    def wrap(self, secret: bytes, info: bytes) -> bytes:
        """Wrap a short secret so that only this identity, with the same ``info``, gets it back."""
        return wrap_to_kem_key(self.kem, secret, info)
