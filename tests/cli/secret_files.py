"""Secrets of every kind that the product meets, as the files they lie in, and how one would show in what a program prints.

All are made up from a fixed seed: none opens anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from attestation.canonical import canonical_json
from attestation.enrolment import Pending

WINDOW = 8


@dataclass(frozen=True)
class SecretFile:
    """What is in the file, and the parts of it that must never be seen."""

    raw: bytes
    bodies: tuple[bytes, ...]

    def seen_in(self, text: str) -> str | None:
        """Return the first spelling of eight bytes of the secret that stand in ``text``, or None."""
        return next((part for body in self.bodies for part in _spellings(body) if part in text), None)


def _seed(name: str, size: int) -> bytes:
    return hashlib.shake_256(name.encode()).digest(size)


def _spellings(body: bytes) -> Iterator[str]:
    """Yield each eight bytes as they are, escaped and in hex, and each run of base64 that only they can give."""
    for start in range(len(body) - WINDOW + 1):
        window = body[start : start + WINDOW]
        yield from {window.decode("latin-1"), repr(window)[2:-1], ascii(window.decode("latin-1"))[1:-1], window.hex()}
    for shift in range(3):
        text = base64.b64encode(body[shift:]).decode().rstrip("=")[:-1]
        yield from (text[start : start + 12] for start in range(max(0, len(text) - 11)))


def _text(raw: bytes, *bodies: str) -> SecretFile:
    return SecretFile(raw, tuple(body.encode() for body in bodies))


def _identity() -> SecretFile:
    secret = _seed("identity", 128)
    data = base64.b64encode(secret).decode()
    return SecretFile(
        canonical_json({"data": data, "protection": None, "type": "sealrig-identity", "v": 1}) + b"\n", (data.encode(), secret)
    )


def _pem(name: str, kind: PrivateFormat, password: bytes | None = None) -> SecretFile:
    key = Ed25519PrivateKey.from_private_bytes(_seed(name, 32))
    raw = key.private_bytes(Encoding.PEM, kind, BestAvailableEncryption(password) if password else NoEncryption())
    lines = raw.decode().splitlines()[1:-1]
    return _text(raw, *lines)


def _pending() -> SecretFile:
    secret = base64.b64encode(_seed("pending", 32)).decode()
    digest = "sha256:" + "1" * 64
    made = Pending(node="node-" + "2" * 32, offer=digest, ak=base64.b64encode(b"public").decode(), secret=secret, basis="approved")
    return _text(made.to_payload(), secret)


_TOKEN = "sealrig_" + base64.urlsafe_b64encode(_seed("token", 32)).decode().rstrip("=")
_STORE = {"access_key_id": "EXAMPLEACCESSKEYID00", "secret_access_key": _seed("s3", 20).hex()}
_AGE = "AGE-SECRET-KEY-1" + base64.b32encode(_seed("age", 36)).decode()[:58]
_PASSPHRASE = "&staple: {wombat horse, 'battery"
_LINES = "zebra-quantum-lantern: pocket-marble-thunder\nviolin-harbour-cactus: 7\n"

SECRETS: dict[str, SecretFile] = {
    "identity": _identity(),
    "signing-key": SecretFile(_seed("node.key", 32), (_seed("node.key", 32),)),
    "hex-key": _text(_seed("dm-crypt", 32).hex().encode() + b"\n", _seed("dm-crypt", 32).hex()),
    "numeric-key": _text(b"93810274665120984471\n", "93810274665120984471"),
    "token": _text(_TOKEN.encode() + b"\n", _TOKEN.removeprefix("sealrig_")),
    "config": _text(f"server: https://control.example\ntoken: {_TOKEN}\n".encode(), _TOKEN.removeprefix("sealrig_")),
    "store-credentials": _text(json.dumps(_STORE).encode(), *_STORE.values()),
    "passphrase": _text(_PASSPHRASE.encode() + b"\n", _PASSPHRASE),
    "passphrases": _text(_LINES.encode(), *_LINES.replace("\n", " ").replace(":", " ").split()),
    "pem": _pem("pem", PrivateFormat.PKCS8),
    "ssh": _pem("ssh", PrivateFormat.OpenSSH),
    "age": _text(f"# created: 2026-01-01T00:00:00Z\n{_AGE}\n".encode(), _AGE),
    "pending": _pending(),
}
