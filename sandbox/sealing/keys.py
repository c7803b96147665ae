"""Private keys: a person's identity, a lease's key, a bundle's data key.

An identity is ML-KEM-768 + X25519 (to unwrap) and Ed25519 (to sign), stored as ``identity.key`` (mode 0600, optionally under a
passphrase) with ``identity.pub`` beside it. No class here prints its secret.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import MLKEM768X25519PrivateKey, Suite
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from attestation.canonical import canonical_json, parse_json
from attestation.errors import AttestationError
from attestation.signing import SigningKey, b64decode, b64encode
from sandbox.errors import InputError, KeyFileError, WrongKeyError
from sandbox.sealing.algorithms import (
    DATA_KEY_BYTES,
    ED25519_BYTES,
    GCM_NONCE_BYTES,
    HPKE,
    MLKEM_SEED_BYTES,
    SCRYPT_N,
    SCRYPT_P,
    SCRYPT_R,
    SCRYPT_SALT_BYTES,
    TAG_BYTES,
    X25519_BYTES,
)
from sandbox.sealing.public import IdentityPublic
from sandbox.sealing.public import wrap_to_kem_key as wrap_to_lease_key

__all__ = ["DataKey", "Identity", "IdentityPublic", "LeaseKey", "load_public", "wrap_to_lease_key"]

KEY_FILE = "identity.key"
PUBLIC_FILE = "identity.pub"
KEY_FILE_MAX_BYTES = 4096
_KEY_TYPE = "sealrig-identity"
_SECRET_BYTES = MLKEM_SEED_BYTES + X25519_BYTES + ED25519_BYTES


class DataKey:
    """A bundle's data key (DEK), 32 bytes. Never printed."""

    def __init__(self, raw: bytes) -> None:
        """Take the 32 bytes. Raises ``WrongKeyError`` for another length, which only an unwrap of foreign bytes can give."""
        if len(raw) != DATA_KEY_BYTES:
            raise WrongKeyError("not a data key", rule="data-key", seen=f"{len(raw)} bytes", wanted=f"{DATA_KEY_BYTES} bytes",
                                fix="unwrap the key that was made for this bundle")  # fmt: skip
        self.raw = bytes(raw)

    def __repr__(self) -> str:
        return "DataKey(…)"

    @classmethod
    def generate(cls) -> Self:
        """Return a fresh key from the operating system's randomness."""
        return cls(os.urandom(DATA_KEY_BYTES))


class _KemKey:
    """An HPKE private key, MLKEM768_X25519."""

    def __init__(self, seed: bytes, x25519: bytes) -> None:
        """Take the ML-KEM seed (64 bytes, FIPS 203 ``d | z``) and the X25519 key (32 bytes)."""
        mlkem = MLKEM768PrivateKey.from_seed_bytes(seed)
        curve = X25519PrivateKey.from_private_bytes(x25519)
        self._key = MLKEM768X25519PrivateKey(mlkem, curve)
        self.public = mlkem.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()

    def unwrap(self, wrapped: bytes, info: bytes) -> bytes:
        """Return the wrapped secret. Raises ``WrongKeyError`` when it was made for another key or another ``info``."""
        try:
            return Suite(*HPKE).decrypt(wrapped, self._key, info)
        except (InvalidTag, ValueError) as error:
            raise WrongKeyError(
                "this key does not open it",
                rule="unwrap",
                seen="a key wrapped for somebody else, for another context, or damaged",
                wanted="a key wrapped for this identity",
                fix="use the identity that it was sealed to",
            ) from error


class LeaseKey:
    """A node's key for one lease: made fresh, held in memory only, never stored."""

    def __init__(self, seed: bytes, x25519: bytes) -> None:
        """Take the two halves; ``generate`` is the usual way."""
        self._kem = _KemKey(seed, x25519)
        self.public = self._kem.public

    def __repr__(self) -> str:
        return "LeaseKey(…)"

    @classmethod
    def generate(cls) -> Self:
        """Return a fresh key from the operating system's randomness."""
        return cls(os.urandom(MLKEM_SEED_BYTES), os.urandom(X25519_BYTES))

    def unwrap(self, wrapped: bytes, info: bytes) -> bytes:
        """Return a secret that ``wrap_to_lease_key`` wrapped with the same ``info``. Raises ``WrongKeyError``."""
        return self._kem.unwrap(wrapped, info)


class Identity:
    """A person's private keys. ``public`` may be shown to everybody; ``signing_key`` signs jobs, grants and bundles."""

    def __init__(self, secret: bytes) -> None:
        """Take the 128 secret bytes: ML-KEM seed (64), X25519 (32), Ed25519 (32)."""
        if len(secret) != _SECRET_BYTES:
            raise KeyFileError("not an identity", rule="identity", seen=f"{len(secret)} bytes", wanted=f"{_SECRET_BYTES} bytes",
                               fix="restore the key file from a copy")  # fmt: skip
        self._secret = secret
        curve_end = MLKEM_SEED_BYTES + X25519_BYTES
        self._kem = _KemKey(secret[:MLKEM_SEED_BYTES], secret[MLKEM_SEED_BYTES:curve_end])
        self.signing_key = SigningKey(secret[curve_end:])
        self.public = IdentityPublic(self._kem.public, self.signing_key.public)

    def __repr__(self) -> str:
        return f"Identity({self.public.fingerprint})"

    @classmethod
    def generate(cls) -> Self:
        """Return a fresh identity from the operating system's randomness."""
        return cls(os.urandom(_SECRET_BYTES))

    def unwrap(self, wrapped: bytes, info: bytes) -> bytes:
        """Return a secret that ``IdentityPublic.wrap`` wrapped with the same ``info``. Raises ``WrongKeyError``."""
        return self._kem.unwrap(wrapped, info)

    def save(self, folder: Path, passphrase: str | None = None) -> None:
        """Write ``identity.key`` (0600) and ``identity.pub`` durably into ``folder``, which is made (0700) if need be.

        Raises ``KeyFileError`` rather than overwrite either file.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in (KEY_FILE, PUBLIC_FILE):
            if (folder / name).is_symlink() or (folder / name).exists():
                raise _exists(folder / name)
        protection, data = _lock(self._secret, passphrase)
        document = canonical_json({"data": b64encode(data), "protection": protection, "type": _KEY_TYPE, "v": 1})
        _write_new(folder / KEY_FILE, document + b"\n", 0o600)
        _write_new(folder / PUBLIC_FILE, self.public.text.encode() + b"\n", 0o644)

    @classmethod
    def load(cls, folder: Path, passphrase: str | None = None) -> Self:
        """Read ``identity.key`` from ``folder`` (or the file itself).

        Raises ``KeyFileError`` if it is missing, damaged, readable by others, or the passphrase is missing or wrong.
        """
        path = folder / KEY_FILE if folder.is_dir() else folder
        return cls(_unlock(path, _read_private(path), passphrase))


def load_public(path: Path) -> IdentityPublic:
    """Read a public identity from a file, or from ``identity.pub`` in a folder. Raises ``KeyFileError`` or ``InputError``."""
    place = path / PUBLIC_FILE if path.is_dir() else path
    try:
        with place.open("rb") as file:
            raw = file.read(KEY_FILE_MAX_BYTES + 1)
        return IdentityPublic.parse(raw.decode("ascii"))
    except OSError as error:
        raise _unreadable(place, error) from error
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{place} is not a public identity", rule="identity", seen="bytes that are not ASCII", wanted="one line of text",
                           fix="name an identity.pub file") from error  # fmt: skip


def is_protected(folder: Path) -> bool:
    """Say whether the identity in ``folder`` needs a passphrase. Raises ``KeyFileError`` as ``Identity.load`` does."""
    path = folder / KEY_FILE if folder.is_dir() else folder
    return _parse(path, _read_private(path))[0] is not None


def _read_private(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > KEY_FILE_MAX_BYTES:
            raise KeyFileError(
                f"{path} is not a key file",
                rule="key-file",
                seen=f"{status.st_size} bytes",
                wanted=f"a plain file of at most {KEY_FILE_MAX_BYTES} bytes",
                fix="name the folder that 'key new' made",
            )
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o077:
            raise KeyFileError(f"{path} can be read by others", rule="key-mode", seen=f"{mode:04o}", wanted="0600", fix=f"chmod 600 {path}")
        return os.read(fd, KEY_FILE_MAX_BYTES + 1)
    finally:
        os.close(fd)


def _parse(path: Path, raw: bytes) -> tuple[dict[str, object] | None, bytes]:
    damaged = KeyFileError(f"{path} is damaged", rule="key-file", seen="not an identity key of this version",
                           wanted=f"a file that 'key new' wrote ({_KEY_TYPE}, v 1)", fix="restore the key file from a copy")  # fmt: skip
    try:
        tree = parse_json(raw, max_bytes=KEY_FILE_MAX_BYTES)
        if not isinstance(tree, dict) or set(tree) != {"data", "protection", "type", "v"} or tree["type"] != _KEY_TYPE or tree["v"] != 1:
            raise damaged
        data = b64decode(tree["data"])
    except AttestationError as error:
        raise damaged from error
    protection = tree["protection"]
    if protection is not None and (not isinstance(protection, dict) or set(protection) != {"kdf", "n", "nonce", "p", "r", "salt"}):
        raise damaged
    if len(data) != _SECRET_BYTES + (TAG_BYTES if protection else 0):
        raise damaged
    return protection, data


def _lock(secret: bytes, passphrase: str | None) -> tuple[dict[str, object] | None, bytes]:
    if passphrase is None:
        return None, secret
    if not passphrase:
        raise InputError("the passphrase is empty", rule="passphrase", seen="no characters", wanted="at least one",
                         fix="choose a passphrase, or leave --passphrase out")  # fmt: skip
    salt, nonce = os.urandom(SCRYPT_SALT_BYTES), os.urandom(GCM_NONCE_BYTES)
    protection: dict[str, object] = {
        "kdf": "scrypt", "n": SCRYPT_N, "r": SCRYPT_R, "p": SCRYPT_P, "salt": b64encode(salt), "nonce": b64encode(nonce),
    }  # fmt: skip
    # The parameters are bound in as associated data, so that a changed one fails as what it is.
    return protection, AESGCM(_stretch(passphrase, salt)).encrypt(nonce, secret, canonical_json(protection))


def _unlock(path: Path, raw: bytes, passphrase: str | None) -> bytes:
    protection, data = _parse(path, raw)
    if protection is None:
        return data
    if (protection["kdf"], protection["n"], protection["r"], protection["p"]) != ("scrypt", SCRYPT_N, SCRYPT_R, SCRYPT_P):
        raise KeyFileError(f"{path} uses another passphrase scheme", rule="key-file", seen=str(protection["kdf"])[:20],
                           wanted=f"scrypt, n {SCRYPT_N}, r {SCRYPT_R}, p {SCRYPT_P}", fix="restore the key file from a copy")  # fmt: skip
    if passphrase is None:
        raise KeyFileError(f"{path} needs its passphrase", rule="passphrase", seen="none given", wanted="the passphrase it was made with",
                           fix="give the passphrase when asked")  # fmt: skip
    try:
        salt, nonce = b64decode(protection["salt"]), b64decode(protection["nonce"])
        return AESGCM(_stretch(passphrase, salt)).decrypt(nonce, data, canonical_json(protection))
    except (InvalidTag, ValueError, AttestationError) as error:
        raise KeyFileError(
            f"{path}: wrong passphrase, or the file is damaged",
            rule="passphrase",
            seen="a key that does not open it",
            wanted="the passphrase it was made with",
            fix="try again, or restore the key file from a copy",
        ) from error


def _stretch(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P).derive(passphrase.encode("utf-8", "surrogateescape"))


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    except FileExistsError as error:
        raise _exists(path) from error
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _exists(path: Path) -> KeyFileError:
    return KeyFileError(f"{path} exists already; a key is never overwritten", rule="key-overwrite", seen="an existing file",
                        wanted="a folder without an identity", fix="choose another folder")  # fmt: skip


def _unreadable(path: Path, error: OSError) -> KeyFileError:
    return KeyFileError(f"{path} cannot be read: {error.strerror}", rule="key-file", seen=error.strerror, wanted="a readable key file",
                        fix="make one with 'sealrig key new DIR', or name the right folder")  # fmt: skip
