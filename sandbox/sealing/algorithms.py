"""Every cryptographic choice of the sealing package, in one place: start an audit here.

===================== ============================================================================================
key wrap              HPKE base mode (RFC 9180), KEM MLKEM768_X25519 (0x647a: safe while either half holds),
                      KDF HKDF-SHA256, AEAD AES-256-GCM; a fresh encapsulation each time; ``info`` binds the context
bundle payload, index Tink streaming AEAD ``AES256_GCM_HKDF_1MB``: a random 32-byte salt gives every stream its own
                      AES key (HKDF-SHA256 of the data key; the associated data is HKDF's ``info``), so that one data
                      key may serve the payload and the index without a nonce ever meeting its key twice
temporary files       the same streams, under a random key that never leaves the process that writes and reads them
log chunks            AES-256-GCM under a fresh key for each log; nonce = chunk number and last flag
signatures            Ed25519 in DSSE envelopes (``attestation.signing``)
digests               BLAKE3 for bundles and files, SHA-256 for short documents and for binding
passphrases           scrypt (RFC 7914), N = 2^17, r = 8, p = 1, then AES-256-GCM with a random nonce
===================== ============================================================================================

All primitives come from the ``cryptography`` and ``blake3`` packages; nothing is implemented here.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM

HPKE = (KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
SUITE_NAME = "HPKE-MLKEM768_X25519-HKDF_SHA256-AES_256_GCM+AES256_GCM_HKDF_1MB"
"""Named in every bundle's header; a reader refuses any other, so there is nothing to negotiate down."""

MLKEM_SEED_BYTES = 64
MLKEM_PUBLIC_BYTES = 1184
X25519_BYTES = 32
ED25519_BYTES = 32
KEM_PUBLIC_BYTES = MLKEM_PUBLIC_BYTES + X25519_BYTES
"""An HPKE public key on the wire: the ML-KEM-768 encapsulation key, then the X25519 key."""

TAG_BYTES = 16
DATA_KEY_BYTES = 32
ENCAPSULATION_BYTES = 1088 + X25519_BYTES
WRAPPED_KEY_BYTES = ENCAPSULATION_BYTES + DATA_KEY_BYTES + TAG_BYTES
"""A wrapped 32-byte key: encapsulation, then AES-256-GCM ciphertext and tag."""

SCRYPT_N = 2**17
SCRYPT_R = 8
SCRYPT_P = 1
SCRYPT_SALT_BYTES = 16
GCM_NONCE_BYTES = 12

# Tink AES256_GCM_HKDF_1MB, https://developers.google.com/tink/streaming-aead/aes_gcm_hkdf_streaming
SEGMENT_BYTES = 1024 * 1024
"""One ciphertext segment, tag included; the first one also carries the stream's header."""
SEGMENT_PLAIN_BYTES = SEGMENT_BYTES - TAG_BYTES
STREAM_SALT_BYTES = 32
STREAM_PREFIX_BYTES = 7
STREAM_HEADER_BYTES = 1 + STREAM_SALT_BYTES + STREAM_PREFIX_BYTES
"""``0x28 | salt | nonce prefix``."""
