"""Values that must not stand in a public log, committed to in it: salted, sealed per subject, and erasable.

A leaf holds HMAC-SHA-256(salt, domain | field | value) with 32 random bytes of salt, so that nobody can guess a value from it.
Salt and value are kept elsewhere (by the control plane: in its database), encrypted under a key of their subject that exists in one
file. Erasing a subject is destroying that file: the tree stays as it is and valid, and what the commitments stood for is gone, in every
copy and backup of the sealed values.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestation.errors import VerificationError
from attestation.log.errors import LogStoreError
from attestation.log.files import sync_folder
from attestation.log.leaf import Commitment

SALT_BYTES = 32
MAX_VALUE_BYTES = 4096
DOMAIN = "sealrig/log-commitment/v1"

_KEY_BYTES = 32
_NONCE_BYTES = 12
_SUBJECT = re.compile(r"[a-z0-9]{1,16}-[0-9a-f]{16,64}")


def commitment_mac(salt: bytes, field: str, value: str) -> str:
    """Return the commitment to a value, 64 hex digits. Lengths stand in front of the parts, so that no two inputs read the same."""
    parts = b"".join(len(part).to_bytes(8, "big") + part for part in (DOMAIN.encode(), field.encode(), value.encode()))
    return hmac.digest(salt, parts, "sha256").hex()


@dataclass(frozen=True)
class Opening:
    """What opens a commitment: whoever has it can check that the leaf meant this value."""

    field: str
    salt: bytes
    value: str

    def verify(self, commitment: Commitment) -> None:
        """Raise ``VerificationError`` unless this opens ``commitment``."""
        seen = commitment_mac(self.salt, self.field, self.value)
        if self.field != commitment.field or not hmac.compare_digest(seen, commitment.mac):
            raise VerificationError(
                "this does not open the commitment", rule="commitment", seen=f"{self.field}: {seen}", wanted=commitment.mac
            )


@dataclass(frozen=True)
class SealedValue:
    """A commitment for a leaf, and what opens it, sealed under its subject's key."""

    commitment: Commitment
    sealed: bytes


class SubjectKeys:
    """One key a subject, a file each, in a folder that no backup may copy (0700). Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Open or create the folder."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._folder = folder

    def commit(self, leaf: str, subject: str, values: Mapping[str, str]) -> tuple[SealedValue, ...]:
        """Commit to values for the leaf with this id, in the order of their fields.

        ``subject`` is the random id of the person or tenant that the values are about; a first value makes its key, durably. The
        caller stores what is sealed no later than the leaf. Raises ``LogStoreError`` for a value that is too long.
        """
        key = self._key(subject)
        made = []
        for field, value in sorted(values.items()):
            if len(value.encode()) > MAX_VALUE_BYTES:
                raise LogStoreError(
                    "a value is too long", rule="commitment-size", seen=f"{len(value)} characters", wanted=f"≤ {MAX_VALUE_BYTES} bytes"
                )
            salt, nonce = os.urandom(SALT_BYTES), os.urandom(_NONCE_BYTES)
            sealed = nonce + AESGCM(key).encrypt(nonce, salt + value.encode(), _bound(leaf, field))
            made.append(SealedValue(Commitment(field, commitment_mac(salt, field, value)), sealed))
        return tuple(made)

    def open(self, leaf: str, subject: str, field: str, sealed: bytes) -> Opening | None:
        """Return what opens a commitment; None where the subject was erased. Raises ``LogStoreError`` for damaged bytes."""
        try:
            key = self._path(subject).read_bytes()
        except FileNotFoundError:
            return None
        try:
            plain = AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _bound(leaf, field))
        except (InvalidTag, ValueError) as error:
            raise LogStoreError(
                "a stored value is damaged", rule="commitment-damaged", seen=f"{leaf} {field}", wanted="what was stored"
            ) from error
        return Opening(field, plain[:SALT_BYTES], plain[SALT_BYTES:].decode())

    def erase(self, subject: str) -> None:
        """Destroy a subject's key, durably. Erasing twice is the same as once."""
        self._path(subject).unlink(missing_ok=True)
        sync_folder(self._folder)

    def subjects(self) -> Iterator[str]:
        """Yield the subjects that have a key."""
        return (path.stem for path in self._folder.glob("*-*.key"))

    def _key(self, subject: str) -> bytes:
        path = self._path(subject)
        with contextlib.suppress(FileNotFoundError):
            return path.read_bytes()
        # Whole or not at all: a key file cut short by a crash would lock the subject out.
        temporary = self._folder / f".{os.urandom(8).hex()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, AESGCM.generate_key(_KEY_BYTES * 8))
            os.fsync(fd)
        finally:
            os.close(fd)
        with contextlib.suppress(FileExistsError):  # another thread made the key meanwhile: that one counts
            os.link(temporary, path)
        temporary.unlink()
        sync_folder(self._folder)
        return path.read_bytes()

    def _path(self, subject: str) -> Path:
        """Return where a subject's key is; the id becomes a file name, so it has one strict spelling."""
        if _SUBJECT.fullmatch(subject) is None:
            raise LogStoreError(
                "not a subject's id", rule="erase-subject", seen=subject[:80], wanted="such as tenant-<hex digits>: a random id"
            )
        return self._folder / f"{subject}.key"


def _bound(leaf: str, field: str) -> bytes:
    return f"{DOMAIN}|{leaf}|{field}".encode()
