r"""Live logs, sealed on the node and opened by the customer: chunks in one order, with an end that cannot be faked or cut off.

Chunk 0 is the header: ``b"sealrig.log/1\n"`` and a fresh 32-byte key, HPKE-wrapped to the customer with the lease bound in.
Chunk i ≥ 1 is ``flag | AES-256-GCM(key, nonce = 000000 | flag | u64be i, aad = 32-byte binding of the lease)``; flag is 1 for the last
chunk and 0 before. A chunk therefore opens at its own place, in its own lease, and nowhere else; a log whose last opened chunk
lacks the flag is unfinished. Who wrote the log is settled elsewhere: the node signs the digest of all chunks in its run record.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestation.canonical import bind
from sandbox.errors import BundleError, BundleTamperedError, LimitError, StateError
from sandbox.sealing.algorithms import DATA_KEY_BYTES, TAG_BYTES, WRAPPED_KEY_BYTES
from sandbox.sealing.keys import Identity
from sandbox.sealing.public import IdentityPublic

LOG_MAGIC = b"sealrig.log/1\n"
MAX_CHUNK_BYTES = 256 * 1024
"""The largest sealed chunk; its text is 17 bytes shorter."""
MAX_TEXT_BYTES = MAX_CHUNK_BYTES - TAG_BYTES - 1
_HEADER_BYTES = len(LOG_MAGIC) + WRAPPED_KEY_BYTES


class LogSealer:
    """Seals one log. Not for use from several threads at once."""

    def __init__(self, lease: str, recipient: IdentityPublic) -> None:
        """Make a fresh key and wrap it to ``recipient``, bound to ``lease``."""
        key = os.urandom(DATA_KEY_BYTES)
        self.header = LOG_MAGIC + recipient.wrap(key, _info(lease))
        """Chunk 0."""
        self._cipher = AESGCM(key)
        self._aad = bind("sealrig/log-chunk/v1", lease.encode())
        self._next = 1
        self._ended = False

    def seal(self, data: bytes, *, final: bool = False) -> bytes:
        """Return the next chunk. Raises ``LimitError`` above ``MAX_TEXT_BYTES`` and ``StateError`` after the final one."""
        if self._ended:
            raise StateError(
                "the log has ended", rule="log-order", seen="another chunk", wanted="nothing after the final chunk", fix="start a new log"
            )
        if len(data) > MAX_TEXT_BYTES:
            raise LimitError("the log chunk is too large", rule="log-chunk", seen=f"{len(data)} bytes", wanted=f"≤ {MAX_TEXT_BYTES} bytes",
                             fix="seal it in pieces")  # fmt: skip
        sealed = self._cipher.encrypt(_nonce(self._next, final=final), data, self._aad)
        self._next += 1
        self._ended = final
        return bytes([final]) + sealed


class LogOpener:
    """Opens one log, chunk by chunk from 0. ``finished`` says whether the final chunk was seen."""

    def __init__(self, lease: str, identity: Identity) -> None:
        """Open the log of ``lease`` with the identity that it is sealed to."""
        self._lease = lease
        self._identity = identity
        self._aad = bind("sealrig/log-chunk/v1", lease.encode())
        self._cipher: AESGCM | None = None
        self._next = 0
        self.finished = False

    def open(self, seq: int, chunk: bytes) -> bytes:
        """Return the text of chunk ``seq`` (empty for 0).

        Raises ``BundleTamperedError`` for a chunk out of order, after the end, or that does not verify; ``WrongKeyError`` when the
        log is sealed to somebody else. A failed call changes nothing: the right chunk can still be opened.
        """
        if seq != self._next or self.finished:
            wanted = "nothing after the final chunk" if self.finished else f"chunk {self._next}"
            raise BundleTamperedError(
                "a log chunk is missing, repeated or out of order",
                rule="log-order",
                seen=f"chunk {seq}",
                wanted=wanted,
                fix="read the log again from its beginning",
            )
        text = b""
        if self._cipher is None:
            if len(chunk) != _HEADER_BYTES or not chunk.startswith(LOG_MAGIC):
                raise BundleError(
                    "not a sealed log",
                    rule="log-header",
                    seen=f"{len(chunk)} bytes",
                    wanted=f"a header of {_HEADER_BYTES} bytes",
                    fix="read the log again from its beginning",
                )
            self._cipher = AESGCM(self._identity.unwrap(chunk[len(LOG_MAGIC) :], _info(self._lease)))
        else:
            text = self._open(self._cipher, seq, chunk)
            self.finished = chunk[0] == 1
        self._next += 1
        return text

    def _open(self, cipher: AESGCM, seq: int, chunk: bytes) -> bytes:
        damaged = BundleTamperedError(
            f"log chunk {seq} does not verify",
            rule="log-chunk",
            seen=f"{len(chunk)} bytes that nobody with the key sealed",
            wanted="the chunk as the node sealed it",
            fix="ask for the chunk again",
        )
        if not 1 + TAG_BYTES <= len(chunk) <= MAX_CHUNK_BYTES or chunk[0] > 1:
            raise damaged
        try:
            return cipher.decrypt(_nonce(seq, final=chunk[0] == 1), chunk[1:], self._aad)
        except InvalidTag as error:
            raise damaged from error


def _info(lease: str) -> bytes:
    return bind("sealrig/log/v1", lease.encode())


def _nonce(seq: int, *, final: bool) -> bytes:
    # One key seals one log, each number is used once, and the flag is part of the nonce: no nonce repeats under a key.
    return bytes([0, 0, 0, final]) + seq.to_bytes(8, "big")
