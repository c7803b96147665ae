"""Tink's streaming AEAD ``AES256_GCM_HKDF_1MB``: segments of 1 MiB, each authenticated at its place, the last one marked.

https://developers.google.com/tink/streaming-aead/aes_gcm_hkdf_streaming: ``0x28 | salt32 | prefix7``, then segments; the stream's AES
key is HKDF-SHA256(data key, salt, info = associated data), the nonce of segment i is ``prefix | u32be i | last``. The header counts into
the first segment, so ciphertext segment i starts at exactly i MiB.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from sandbox.errors import BundleError, BundleTamperedError
from sandbox.sealing.algorithms import (
    DATA_KEY_BYTES,
    SEGMENT_BYTES,
    SEGMENT_PLAIN_BYTES,
    STREAM_HEADER_BYTES,
    STREAM_PREFIX_BYTES,
    STREAM_SALT_BYTES,
    TAG_BYTES,
)
from sandbox.sealing.keys import DataKey

FIRST_PLAIN_BYTES = SEGMENT_PLAIN_BYTES - STREAM_HEADER_BYTES
"""Plaintext in segment 0, which also carries the stream's header."""


def segment_count(plain_size: int) -> int:
    """Return how many segments hold ``plain_size`` bytes; an empty stream has one."""
    return max(1, -(-(plain_size + STREAM_HEADER_BYTES) // SEGMENT_PLAIN_BYTES))


def sealed_size(plain_size: int) -> int:
    """Return the length of the stream of ``plain_size`` bytes, header and tags included."""
    return STREAM_HEADER_BYTES + plain_size + TAG_BYTES * segment_count(plain_size)


def plain_size(size: int) -> int:
    """Return how many bytes a stream of ``size`` bytes holds. Raises ``BundleError`` where no stream has that length."""
    count = max(1, -(-size // SEGMENT_BYTES))
    plain = size - STREAM_HEADER_BYTES - TAG_BYTES * count
    if plain < 0 or sealed_size(plain) != size:
        raise BundleError("no stream has this length", rule="stream-size", seen=f"{size} bytes", wanted="whole segments",
                          fix="get the bundle again from its source")  # fmt: skip
    return plain


def segment_at(position: int) -> tuple[int, int]:
    """Return the segment that holds plaintext byte ``position``, and the byte's place in that segment's plaintext."""
    index, place = divmod(position + STREAM_HEADER_BYTES, SEGMENT_PLAIN_BYTES)
    return index, place - (STREAM_HEADER_BYTES if index == 0 else 0)


class Stream:
    """One stream's key and place-keeping; seals and opens single segments in buffers of the caller. Safe for use by many threads."""

    def __init__(self, key: DataKey, header: bytes, aad: bytes, size: int) -> None:
        """Take the stream's header and its plaintext size. Raises ``BundleTamperedError`` for a foreign header."""
        if len(header) != STREAM_HEADER_BYTES or header[0] != STREAM_HEADER_BYTES:
            raise _damaged(0)
        salt = header[1 : 1 + STREAM_SALT_BYTES]
        self.header = bytes(header)
        self.plain_size = size
        self.sealed_size = sealed_size(size)
        self.segments = segment_count(size)
        self._prefix = bytes(header[1 + STREAM_SALT_BYTES :])
        self._cipher = AESGCM(HKDF(SHA256(), DATA_KEY_BYTES, salt, aad).derive(key.raw))

    @classmethod
    def fresh(cls, key: DataKey, aad: bytes, size: int) -> Self:
        """Start a stream of ``size`` plaintext bytes with a random salt and nonce prefix."""
        return cls(key, bytes([STREAM_HEADER_BYTES]) + os.urandom(STREAM_SALT_BYTES + STREAM_PREFIX_BYTES), aad, size)

    def plain_span(self, index: int) -> tuple[int, int]:
        """Return where segment ``index``'s plaintext starts and ends in the stream's plaintext."""
        start = max(0, index * SEGMENT_PLAIN_BYTES - STREAM_HEADER_BYTES)
        return start, min(self.plain_size, (index + 1) * SEGMENT_PLAIN_BYTES - STREAM_HEADER_BYTES)

    def sealed_span(self, index: int) -> tuple[int, int]:
        """Return where segment ``index`` starts and ends in the stream, without the stream's header."""
        start = index * SEGMENT_BYTES
        return (start or STREAM_HEADER_BYTES), min(self.sealed_size, start + SEGMENT_BYTES)

    def seal_segment(self, index: int, plain: memoryview, out: memoryview) -> None:
        """Encrypt segment ``index`` from ``plain`` into ``out``, which is ``TAG_BYTES`` longer."""
        self._cipher.encrypt_into(self._nonce(index), plain, None, out)

    def open_segment(self, index: int, sealed: memoryview | bytes, out: memoryview) -> None:
        """Decrypt segment ``index`` into ``out``, ``TAG_BYTES`` shorter. Raises ``BundleTamperedError``; ``out`` is then of no use."""
        try:
            self._cipher.decrypt_into(self._nonce(index), sealed, None, out)
        except (InvalidTag, ValueError) as error:
            raise _damaged(index) from error

    def _nonce(self, index: int) -> bytes:
        # Each segment number is used once under this stream's own key, and the last one is marked: no reordering, no cutting short.
        return self._prefix + index.to_bytes(4, "big") + bytes([index == self.segments - 1])


class StreamWriter:
    """Seals a stream of known length from pieces of any size, handing segments to ``sink`` in order."""

    def __init__(self, stream: Stream, sink: Callable[[memoryview], None]) -> None:
        """``sink`` must use each piece before it returns."""
        self._stream = stream
        self._sink = sink
        self._plain = bytearray(SEGMENT_PLAIN_BYTES)
        self._sealed = bytearray(SEGMENT_BYTES)
        self._filled = 0
        self._index = 0
        sink(memoryview(stream.header))

    def write(self, data: bytes) -> None:
        """Add bytes; the last byte of the stream closes it."""
        view = memoryview(data)
        while view:
            start, end = self._stream.plain_span(self._index)
            count = min(len(view), end - start - self._filled)
            self._plain[self._filled : self._filled + count] = view[:count]
            self._filled += count
            view = view[count:]
            if self._filled == end - start:
                self._flush()

    def _flush(self) -> None:
        out = memoryview(self._sealed)[: self._filled + TAG_BYTES]
        self._stream.seal_segment(self._index, memoryview(self._plain)[: self._filled], out)
        self._sink(out)
        self._index += 1
        self._filled = 0


def iterate_stream(stream: Stream, read_at: Callable[[int, int], bytes]) -> Iterator[memoryview]:
    """Yield a stream's plaintext, a segment at a time, in one reused buffer. ``read_at(offset, length)`` reads within the stream."""
    buffer = memoryview(bytearray(SEGMENT_PLAIN_BYTES))
    for index in range(stream.segments):
        start, end = stream.sealed_span(index)
        plain = buffer[: end - start - TAG_BYTES]
        stream.open_segment(index, read_at(start, end - start), plain)
        yield plain


def _damaged(index: int) -> BundleTamperedError:
    return BundleTamperedError(f"segment {index} does not verify", rule="segment", seen="bytes that nobody with the key sealed here",
                               wanted="the segment as it was sealed", fix="get the bundle again from its source")  # fmt: skip
