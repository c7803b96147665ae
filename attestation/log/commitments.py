"""Values that must not stand in a public log, committed to in it: salted, sealed per subject, and erasable.

A leaf holds HMAC-SHA-256(salt, domain | field | value) with 32 random bytes of salt, so that nobody can guess a value from it.
Salt and value stand in a sidecar, encrypted under a key of their subject that exists in one file. Erasing a subject is
destroying that file: the tree stays as it is and valid, and what the commitments stood for is gone, in every copy of the sidecar.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

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
_SCHEMA = """
CREATE TABLE IF NOT EXISTS value (
  leaf TEXT NOT NULL, field TEXT NOT NULL, subject TEXT NOT NULL, sealed BLOB NOT NULL, PRIMARY KEY (leaf, field));
CREATE INDEX IF NOT EXISTS value_subject ON value (subject);
"""


def commitment_mac(salt: bytes, field: str, value: str) -> str:
    """Return the commitment to a value, 64 hex digits. Lengths stand in front of the parts, so that no two inputs read the same."""
    parts = b"".join(len(part).to_bytes(8, "big") + part for part in (DOMAIN.encode(), field.encode(), value.encode()))
    return hmac.digest(salt, parts, "sha256").hex()


@dataclass(frozen=True)
class Opening:
    """What opens a commitment: whoever has it can check that the leaf meant this value."""

    leaf: str
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


class Sidecar:
    """Salts and values beside the log: ``values.db``, which may be copied and backed up, and ``keys/``, which must not be."""

    def __init__(self, folder: Path) -> None:
        """Open or create the folder (0700)."""
        self._keys = folder / "keys"
        self._keys.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        self._base = sqlite3.connect(folder / "values.db", isolation_level=None, check_same_thread=False, timeout=5.0)
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=FULL")
        self._base.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the store."""
        self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def commit(self, leaf: str, subject: str, values: Mapping[str, str]) -> tuple[Commitment, ...]:
        """Store values for the leaf with this id, durably; return the commitments that go into the leaf.

        ``subject`` is the random id of the person or tenant that the values are about. Called before the leaf is appended:
        values without a leaf are harmless, a leaf without its values could never be opened. Raises ``LogStoreError``.
        """
        key = self._subject_key(subject)
        made, rows = [], []
        for field, value in sorted(values.items()):
            if len(value.encode()) > MAX_VALUE_BYTES:
                raise LogStoreError(
                    "a value is too long", rule="commitment-size", seen=f"{len(value)} characters", wanted=f"≤ {MAX_VALUE_BYTES} bytes"
                )
            salt, nonce = os.urandom(SALT_BYTES), os.urandom(_NONCE_BYTES)
            rows.append((leaf, field, subject, nonce + AESGCM(key).encrypt(nonce, salt + value.encode(), _bound(leaf, field))))
            made.append(Commitment(field, commitment_mac(salt, field, value)))
        self._base.execute("BEGIN IMMEDIATE")
        try:
            self._base.executemany("INSERT INTO value VALUES (?, ?, ?, ?)", rows)
            self._base.execute("COMMIT")
        except sqlite3.Error as error:
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            raise LogStoreError(
                "the values could not be stored", rule="commitment-store", seen=str(error), wanted="a durable write"
            ) from error
        return tuple(made)

    def open(self, leaf: str) -> Iterator[Opening]:
        """Yield what opens a leaf's commitments; erased ones are left out. Raises ``LogStoreError`` for a damaged store."""
        for field, subject, sealed in self._base.execute("SELECT field, subject, sealed FROM value WHERE leaf = ? ORDER BY field", (leaf,)):
            try:
                key = self._key_path(subject).read_bytes()
            except FileNotFoundError:
                continue
            try:
                plain = AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _bound(leaf, field))
            except (InvalidTag, ValueError) as error:
                raise LogStoreError(
                    "a stored value is damaged", rule="commitment-damaged", seen=f"{leaf} {field}", wanted="what was stored"
                ) from error
            yield Opening(leaf, field, plain[:SALT_BYTES], plain[SALT_BYTES:].decode())

    def erase(self, subject: str) -> int:
        """Destroy a subject's key, durably; return how many values can never be opened again.

        May be repeated until ``forget``, so that a crash before the erasure is logged loses nothing. Raises ``LogStoreError`` for a
        subject of which nothing is stored.
        """
        path = self._key_path(subject)
        (count,) = self._base.execute("SELECT count(*) FROM value WHERE subject = ?", (subject,)).fetchone()
        if not path.exists() and not count:
            raise LogStoreError(
                "there is nothing of this subject", rule="erase-subject", seen=subject, wanted="a subject with stored values"
            )
        path.unlink(missing_ok=True)
        sync_folder(self._keys)
        return int(count)

    def forget(self, subject: str) -> None:
        """Drop what is left of an erased subject: sealed values that nothing can open."""
        if self._key_path(subject).exists():
            raise LogStoreError(
                "this subject was not erased", rule="forget-subject", seen=subject, wanted="an erased subject", fix="erase it first"
            )
        self._base.execute("DELETE FROM value WHERE subject = ?", (subject,))

    def _subject_key(self, subject: str) -> bytes:
        path = self._key_path(subject)
        if path.exists():
            return path.read_bytes()
        # Whole or not at all: a key file cut short by a crash would lock the subject out.
        temporary = self._keys / f".{os.urandom(8).hex()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, AESGCM.generate_key(_KEY_BYTES * 8))
            os.fsync(fd)
        finally:
            os.close(fd)
        with contextlib.suppress(FileExistsError):  # another thread made the key meanwhile: that one counts
            os.link(temporary, path)
        temporary.unlink()
        sync_folder(self._keys)
        return path.read_bytes()

    def _key_path(self, subject: str) -> Path:
        """Return where a subject's key is; the id becomes a file name, so it has one strict spelling."""
        if _SUBJECT.fullmatch(subject) is None:
            raise LogStoreError(
                "not a subject's id", rule="erase-subject", seen=subject[:80], wanted="such as tenant-<hex digits>: a random id"
            )
        return self._keys / f"{subject}.key"


def _bound(leaf: str, field: str) -> bytes:
    return f"{DOMAIN}|{leaf}|{field}".encode()
