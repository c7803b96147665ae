"""Ed25519 signatures in DSSE envelopes (https://github.com/secure-systems-lab/dsse, protocol v1.0.2).

A verifier checks the received bytes, then parses them; nothing is re-serialised before it is verified.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from attestation.canonical import canonical_json, parse_json, sha256_digest
from attestation.errors import FormatError, SignatureError
from attestation.shape import shape

MAX_PAYLOAD_BYTES = 4 * 1024 * 1024
MAX_SIGNATURES = 16


def b64encode(data: bytes) -> str:
    """Return standard base64 with padding."""
    return base64.b64encode(data).decode("ascii")


def b64decode(text: object) -> bytes:
    """Decode standard base64; only the one canonical spelling is accepted. Raises ``FormatError``."""
    if not isinstance(text, str):
        raise FormatError("base64 text is wanted", seen=shape(text), wanted="base64 text")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError("not base64", seen=shape(text), wanted="canonical base64") from error
    if b64encode(data) != text:
        raise FormatError("base64 with stray bits or padding", seen=shape(text), wanted="canonical base64")
    return data


@dataclass(frozen=True)
class VerifyKey:
    """An Ed25519 public key, 32 bytes. Its text is ``ed25519:`` and base64; its id the first 16 hex digits of its SHA-256."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise FormatError("an Ed25519 public key has 32 bytes", seen=f"{len(self.raw)} bytes", wanted="32 bytes")

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse ``ed25519:BASE64``. Raises ``FormatError``."""
        kind, _, body = text.partition(":")
        if kind != "ed25519":
            raise FormatError("not a public key", seen=shape(text), wanted="ed25519:BASE64")
        return cls(b64decode(body))

    @property
    def text(self) -> str:
        """The key as text."""
        return f"ed25519:{b64encode(self.raw)}"

    @property
    def key_id(self) -> str:
        """A short name for people and for ``keyid``; never a basis for trust."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def verify(self, signature: bytes, message: bytes) -> None:
        """Raise ``SignatureError`` unless ``signature`` (64 bytes) over ``message`` was made with this key."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError) as error:
            raise SignatureError("the signature does not verify", seen="a signature by another key, or other bytes",
                                 wanted=f"a signature by {self.key_id}") from error  # fmt: skip


class SigningKey:
    """An Ed25519 private key. Never printed; files are written with mode 0600."""

    def __init__(self, raw: bytes) -> None:
        """Take the 32-byte private key (RFC 8032 seed)."""
        self._key = Ed25519PrivateKey.from_private_bytes(raw)
        self.public = VerifyKey(self._key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"SigningKey({self.public.key_id})"

    @classmethod
    def generate(cls) -> Self:
        """Return a fresh key from the operating system's randomness."""
        return cls(os.urandom(32))

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature over ``message`` (RFC 8032, pure Ed25519)."""
        return self._key.sign(message)

    def private_bytes(self) -> bytes:
        """Return the 32-byte private key, for storing it and nothing else."""
        return self._key.private_bytes_raw()

    def save(self, path: Path) -> None:
        """Write the key to a new file of mode 0600, durably. Raises ``FileExistsError`` rather than overwrite."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, self.private_bytes())
            os.fsync(fd)
        finally:
            os.close(fd)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key written by ``save``. Raises ``FormatError`` if it has another size or others can read it."""
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise FormatError(f"{path} can be read by others", seen=f"{mode:04o}", wanted="0600", fix=f"chmod 600 {path}")
        raw = path.read_bytes()
        if len(raw) != 32:
            raise FormatError(f"{path} is not a key file", seen=f"{len(raw)} bytes", wanted="32 bytes")
        return cls(raw)


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding: unambiguous because each part carries its byte length."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True)
class Envelope:
    """A DSSE envelope: payload bytes, their type, and (key id, signature) pairs."""

    payload: bytes
    payload_type: str
    signatures: tuple[tuple[str, bytes], ...]

    @classmethod
    def from_json(cls, tree: object) -> Self:
        """Read the JSON form. Raises ``FormatError`` for anything but exactly the DSSE fields."""
        if not isinstance(tree, dict) or set(tree) != {"payload", "payloadType", "signatures"}:
            raise FormatError("not a DSSE envelope", seen=shape(tree), wanted="payload, payloadType, signatures")
        kind, signatures = tree["payloadType"], tree["signatures"]
        if not isinstance(kind, str) or not isinstance(signatures, list) or not 1 <= len(signatures) <= MAX_SIGNATURES:
            raise FormatError("not a DSSE envelope", seen="wrong field types", wanted=f"1 to {MAX_SIGNATURES} signatures")
        pairs = []
        for item in signatures:
            if not isinstance(item, dict) or set(item) != {"keyid", "sig"} or not isinstance(item["keyid"], str):
                raise FormatError("not a DSSE signature", seen=shape(item), wanted="keyid, sig")
            pairs.append((item["keyid"], b64decode(item["sig"])))
        payload = b64decode(tree["payload"])
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise FormatError("the payload is too large", seen=f"{len(payload)} bytes", wanted=f"≤ {MAX_PAYLOAD_BYTES} bytes")
        return cls(payload, kind, tuple(pairs))

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read the JSON form from bytes. Raises ``FormatError`` or ``LimitError``."""
        return cls.from_json(parse_json(raw))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "payload": b64encode(self.payload),
            "payloadType": self.payload_type,
            "signatures": [{"keyid": name, "sig": b64encode(sig)} for name, sig in self.signatures],
        }

    def to_bytes(self) -> bytes:
        """Return the canonical JSON form; its digest names the envelope."""
        return canonical_json(self.to_json())

    @property
    def digest(self) -> str:
        """``sha256:…`` over ``to_bytes()``."""
        return sha256_digest(self.to_bytes())

    def verify(self, payload_type: str, keys: Iterable[VerifyKey]) -> bytes:
        """Return the payload once one of ``keys`` is proven to have signed it as ``payload_type``.

        Raises ``SignatureError``. Key ids are hints for people; every signature is tried with every key.
        """
        if self.payload_type != payload_type:
            raise SignatureError("the envelope holds another kind of document", seen=self.payload_type, wanted=payload_type)
        accepted = tuple(keys)
        message = pae(self.payload_type, self.payload)
        for key in accepted:
            for _, signature in self.signatures:
                try:
                    key.verify(signature, message)
                except SignatureError:
                    continue
                return self.payload
        raise SignatureError(
            "none of the accepted keys signed this",
            seen=", ".join(name[:16] for name, _ in self.signatures),
            wanted=", ".join(key.key_id for key in accepted) or "at least one accepted key",
        )


def sign_envelope(payload: bytes, payload_type: str, key: SigningKey) -> Envelope:
    """Sign exact payload bytes as ``payload_type``."""
    return Envelope(payload, payload_type, ((key.public.key_id, key.sign(pae(payload_type, payload))),))
