"""TPM 2.0 public areas (Part 2: Structures, section 12.2) and the credentials that are made for them (Part 1, section 24). Pure Python."""

from __future__ import annotations

import hashlib
import hmac
import os
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.errors import FormatError
from attestation.verify.binary import BinaryReader

MAX_PUBLIC_BYTES = 2048
ALG_RSA, ALG_ECC, ALG_AES, ALG_CFB, ALG_NULL = 0x0001, 0x0023, 0x0006, 0x0043, 0x0010
SIGNING_SCHEMES = frozenset({0x0014, 0x0016, 0x0018})  # RSASSA, RSAPSS, ECDSA
MIN_RSA_BITS = 2048
_DEFAULT_EXPONENT = 65537
_HASHES: dict[int, hashes.HashAlgorithm] = {0x000B: hashes.SHA256(), 0x000C: hashes.SHA384()}
_CURVES: dict[int, ec.EllipticCurve] = {0x0003: ec.SECP256R1(), 0x0004: ec.SECP384R1()}
# TPMA_OBJECT: what the TPM itself enforces for a key.
FIXED_TPM, FIXED_PARENT, ORIGIN_TPM, RESTRICTED, DECRYPT, SIGN = 1 << 1, 1 << 4, 1 << 5, 1 << 16, 1 << 17, 1 << 18
_BORN_HERE = FIXED_TPM | FIXED_PARENT | ORIGIN_TPM
_CREDENTIAL_HEADER = bytes.fromhex("badcc0de00000001")  # tpm2-tools' file format: magic and version


@dataclass(frozen=True)
class PublicArea:
    """A parsed TPMT_PUBLIC. ``symmetric_bits`` is 0 on keys that protect nothing; ``scheme`` is ``ALG_NULL`` where none is fixed."""

    raw: bytes
    name_hash: hashes.HashAlgorithm
    name_alg: int
    attributes: int
    symmetric_bits: int
    scheme: int
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey

    @property
    def name(self) -> bytes:
        """The object's Name: its hash algorithm and the hash over the whole public area, attributes included."""
        return self.name_alg.to_bytes(2, "big") + hashlib.new(self.name_hash.name, self.raw).digest()

    @property
    def der(self) -> bytes:
        """The key as DER SubjectPublicKeyInfo."""
        return self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def is_attestation_key(self) -> bool:
        """Whether the TPM made the key, never lets it out, and signs with it nothing but what the TPM itself made."""
        wanted = _BORN_HERE | RESTRICTED | SIGN
        return self.attributes & (wanted | DECRYPT) == wanted and self.scheme in SIGNING_SCHEMES

    @property
    def is_storage_key(self) -> bool:
        """Whether it is as endorsement keys are: made in the TPM, for decryption of the TPM's own structures only."""
        wanted = _BORN_HERE | RESTRICTED | DECRYPT
        return self.attributes & (wanted | SIGN) == wanted and self.symmetric_bits in {128, 256}


def parse_public(raw: bytes) -> PublicArea:
    """Parse a TPM2B_PUBLIC. Raises ``FormatError`` or ``LimitError``."""
    outer = BinaryReader(raw, "the TPM2B_PUBLIC", "big")
    area = outer.sized(limit=MAX_PUBLIC_BYTES)
    outer.end()
    reader = BinaryReader(area, "the public area", "big")
    kind, name_alg, attributes = reader.number(2), reader.number(2), reader.number(4)
    if kind not in {ALG_RSA, ALG_ECC} or name_alg not in _HASHES:
        raise FormatError(
            "an unknown kind of key", seen=f"{kind:04x}, named with {name_alg:04x}", wanted="RSA or ECC with SHA-256 or SHA-384"
        )
    reader.sized(limit=64)  # authPolicy
    bits = _symmetric(reader)
    scheme = reader.number(2)
    if scheme != ALG_NULL:
        reader.number(2)
    key = _rsa(reader) if kind == ALG_RSA else _ecc(reader)
    reader.end()
    return PublicArea(area, _HASHES[name_alg], name_alg, attributes, bits, scheme, key)


def _symmetric(reader: BinaryReader) -> int:
    """Parse TPMT_SYM_DEF_OBJECT; return the key's bits, 0 for none."""
    algorithm = reader.number(2)
    if algorithm == ALG_NULL:
        return 0
    bits, mode = reader.number(2), reader.number(2)
    if (algorithm, mode) != (ALG_AES, ALG_CFB):
        raise FormatError("another cipher", seen=f"{algorithm:04x} in mode {mode:04x}", wanted="AES in CFB mode")
    return bits


def _rsa(reader: BinaryReader) -> rsa.RSAPublicKey:
    bits, exponent, modulus = reader.number(2), reader.number(4), int.from_bytes(reader.sized(limit=1024), "big")
    if bits < MIN_RSA_BITS or modulus.bit_length() != bits:
        raise FormatError("an RSA key of another size", seen=f"{modulus.bit_length()} bits", wanted=f"{max(bits, MIN_RSA_BITS)} bits")
    try:
        return rsa.RSAPublicNumbers(exponent or _DEFAULT_EXPONENT, modulus).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError("not an RSA key", seen=str(error)[:100], wanted="a modulus and an odd exponent") from error


def _ecc(reader: BinaryReader) -> ec.EllipticCurvePublicKey:
    curve = reader.number(2)
    if reader.number(2) != ALG_NULL:
        reader.number(2)
    x, y = (int.from_bytes(reader.sized(limit=66), "big") for _ in range(2))
    if curve not in _CURVES:
        raise FormatError("an unknown curve", seen=f"{curve:04x}", wanted="NIST P-256 or P-384")
    try:
        return ec.EllipticCurvePublicNumbers(x, y, _CURVES[curve]).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError("not a point of the curve", seen=str(error)[:100], wanted="a point of the curve") from error


def make_credential(ek: PublicArea, name: bytes, secret: bytes) -> bytes:
    """Return ``secret`` so that only the TPM with ``ek`` opens it, and only with the object of that ``name`` loaded (TPM2_MakeCredential).

    The result is a file for tpm2_activatecredential. Part 1, sections 24.4 to 24.5 and annexes B.10.4 and C.6.1.
    """
    seed, protected = _share_rsa(ek, ek.key) if isinstance(ek.key, rsa.RSAPublicKey) else _share_ecc(ek, ek.key)
    cipher_key = _kdfa(ek.name_hash, seed, b"STORAGE", name, ek.symmetric_bits // 8)
    # One key encrypts one credential, which is why the standard's zero vector is safe here.
    encryptor = Cipher(AES(cipher_key), CFB(bytes(16))).encryptor()
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    hmac_key = _kdfa(ek.name_hash, seed, b"INTEGRITY", b"", ek.name_hash.digest_size)
    integrity = hmac.new(hmac_key, identity + name, ek.name_hash.name).digest()
    return _CREDENTIAL_HEADER + _sized(_sized(integrity) + identity) + _sized(protected)


def _share_rsa(ek: PublicArea, key: rsa.RSAPublicKey) -> tuple[bytes, bytes]:
    seed = os.urandom(ek.name_hash.digest_size)
    pad = padding.OAEP(padding.MGF1(ek.name_hash), ek.name_hash, b"IDENTITY\0")
    return seed, key.encrypt(seed, pad)


def _share_ecc(ek: PublicArea, key: ec.EllipticCurvePublicKey) -> tuple[bytes, bytes]:
    size = (key.curve.key_size + 7) // 8
    once = ec.generate_private_key(key.curve)
    mine, theirs = once.public_key().public_numbers(), key.public_numbers()
    info = b"IDENTITY\0" + mine.x.to_bytes(size, "big") + theirs.x.to_bytes(size, "big")
    seed = ConcatKDFHash(ek.name_hash, ek.name_hash.digest_size, info).derive(once.exchange(ec.ECDH(), key))
    return seed, _sized(mine.x.to_bytes(size, "big")) + _sized(mine.y.to_bytes(size, "big"))


def _kdfa(algorithm: hashes.HashAlgorithm, key: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """Return ``size`` bytes of KDFa (Part 1, section 11.4.10.2): SP 800-108 in counter mode with HMAC."""
    return KBKDFHMAC(algorithm, Mode.CounterMode, size, 4, 4, CounterLocation.BeforeFixed, label, context, None).derive(key)


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
