"""Signatures over an image's digest, verified offline. Pure.

Two forms, both text so that they fit a job file:

* ``ed25519:<base64 of 64 bytes>``: Ed25519 (RFC 8032) over ``sealrig/image/v1`` LF digest LF.
* ``cosign:<base64 payload>:<base64 signature>``: what ``cosign sign --key`` stores: ECDSA P-256 with SHA-256 (or Ed25519) over the
  "simple signing" payload, whose ``critical.image.docker-manifest-digest`` must be this digest.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key

SIGNATURE_MAX_CHARS = 8192
MAX_SIGNATURES = 16
_COSIGN_TYPE = "cosign container image signature"


def image_message(digest: str) -> bytes:
    """Return the bytes that an ``ed25519:`` image signature covers; ``digest`` is ``sha256:…``."""
    return f"sealrig/image/v1\n{digest}\n".encode()


def check_public_key(text: str) -> str:
    """Return ``text`` if it is a usable public key. Raises ``ValueError`` naming the two accepted forms."""
    _load_key(text)
    return text


def signed_by_any(digest: str, signatures: Iterable[str], keys: Iterable[str]) -> bool:
    """Say whether one of ``signatures`` over ``digest`` verifies under one of ``keys``.

    A signature that is damaged, foreign or over another digest counts as none.
    """
    loaded = [_load_key(text) for text in keys]
    return any(_verifies(digest, text, key) for text in tuple(signatures)[:MAX_SIGNATURES] for key in loaded)


def _load_key(text: str) -> Ed25519PublicKey | EllipticCurvePublicKey:
    msg = "a public key is 'ed25519:<base64 of 32 bytes>' or the PEM of a P-256 or Ed25519 key (cosign.pub)"
    try:
        if text.startswith("ed25519:"):
            return Ed25519PublicKey.from_public_bytes(base64.b64decode(text.removeprefix("ed25519:"), validate=True))
        key = load_pem_public_key(text.encode())
    except (ValueError, TypeError) as error:
        raise ValueError(msg) from error
    if isinstance(key, Ed25519PublicKey) or (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)):
        return key
    raise ValueError(msg)


def _verifies(digest: str, text: str, key: Ed25519PublicKey | EllipticCurvePublicKey) -> bool:
    form, _, rest = text.partition(":")
    try:
        if len(text) > SIGNATURE_MAX_CHARS:
            return False
        if form == "ed25519":
            return _valid(key, base64.b64decode(rest, validate=True), image_message(digest))
        if form == "cosign":
            payload_text, _, signature_text = rest.partition(":")
            payload = base64.b64decode(payload_text, validate=True)
            # The signature is checked before the payload is read: bytes first, meaning after.
            return _valid(key, base64.b64decode(signature_text, validate=True), payload) and _names(payload, digest)
    except (binascii.Error, ValueError, RecursionError):
        return False
    return False


def _valid(key: Ed25519PublicKey | EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, message)
        else:
            key.verify(signature, message, ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True


def _names(payload: bytes, digest: str) -> bool:
    tree = json.loads(payload)
    critical = tree.get("critical") if isinstance(tree, dict) else None
    image = critical.get("image") if isinstance(critical, dict) else None
    return (
        isinstance(critical, dict)
        and critical.get("type") == _COSIGN_TYPE
        and isinstance(image, dict)
        and image.get("docker-manifest-digest") == digest
    )
