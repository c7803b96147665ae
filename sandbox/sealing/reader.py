"""Reading a bundle without unpacking it: its entries, and any range of any file, decrypting only the segments that hold it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from blake3 import blake3

from attestation.signing import VerifyKey
from sandbox.errors import BundleTamperedError, InputError, LimitError, NotFoundError, WrongKeyError
from sandbox.sealing.algorithms import SEGMENT_BYTES, STREAM_HEADER_BYTES
from sandbox.sealing.cache import CachedSource
from sandbox.sealing.entries import MAX_ENTRIES, Entry, Kind, shown
from sandbox.sealing.format import MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES, Header, read_header
from sandbox.sealing.index import read_index
from sandbox.sealing.keys import DataKey, Identity
from sandbox.sealing.segments import SegmentCache
from sandbox.sealing.source import Piece, Source, Span, read_spans
from sandbox.sealing.stream import Stream, iterate_stream, plain_size, segment_at
from sandbox.sealing.table import Table


@dataclass(frozen=True)
class Limits:
    """How much a bundle may hold when it is opened; nothing is written when it holds more. ``bytes`` counts the files' sizes.

    What can be sealed can be opened: without further limits these are the bounds of sealing.
    """

    files: int = MAX_ENTRIES
    """Folders and links count, too."""
    bytes: int = MAX_PAYLOAD_BYTES

    def check(self, files: int, size: int) -> None:
        """Raise ``LimitError`` when either number is above its bound."""
        if files > self.files:
            raise LimitError("the bundle holds too many files", rule="open-files", seen=f"{files} or more", wanted=f"≤ {self.files}",
                             fix="have it sealed in parts")  # fmt: skip
        if size > self.bytes:
            raise LimitError("the bundle holds too much", rule="open-bytes", seen=f"{size} bytes or more", wanted=f"≤ {self.bytes} bytes",
                             fix="have it sealed in parts, or opened where there is more room")  # fmt: skip


def data_key(header: Header, identity: Identity) -> DataKey:
    """Unwrap a bundle's data key from its header. Raises ``WrongKeyError`` if ``identity`` is not among the recipients."""
    name = identity.public.fingerprint
    for recipient in header.recipients:
        if recipient.to == name:
            return DataKey(identity.unwrap(recipient.wrapped, header.core.wrap_info))
    raise WrongKeyError(
        "the bundle is not sealed to this identity",
        rule="recipient",
        seen=f"identity {name}",
        wanted=", ".join(recipient.to for recipient in header.recipients),
        fix="use an identity it was sealed to",
    )


class BundleReader:
    """Random access to a bundle over any ranged source. Safe for use by many threads.

    Opening reads the header only; the index is read, whole and verified, when it is first needed.
    """

    def __init__(
        self,
        source: Source,
        key: DataKey | Identity,
        *,
        signers: Collection[VerifyKey] | None = None,
        header: str | None = None,
        limits: Limits | None = None,
        cached: int = 4,
        ahead: int = 0,
        run: int = 1,
        cache: CachedSource | None = None,
    ) -> None:
        """Read and check the header; ``signers`` of None accepts any signer, who can be read from ``header.signer``.

        ``header`` is the ``Header.digest`` to insist on: for a source whose whole digest nobody has checked. ``cache`` keeps the payload's
        ciphertext; it is over the same source. ``cached`` segments of 1 MiB are kept decrypted, and ``ahead`` are decrypted in the
        background on sequential reading, read ``run`` at a time.

        Raises ``BundleError`` (not a bundle, damaged), ``WrongKeyError``, and what the source raises.
        """
        self._source = source
        self._cache = cache
        self._limits = limits or Limits()
        first = source.read_at(0, min(MAX_HEADER_BYTES, source.size))
        self.header = read_header(first)
        if header is not None:
            self.header.require_digest(header)
        if signers is not None:
            self.header.require_signer(signers)
        self.header.require_size(source.size)
        self._key = data_key(self.header, key) if isinstance(key, Identity) else key
        offset = self.header.payload_offset
        beginning = first[offset : offset + STREAM_HEADER_BYTES]
        if len(beginning) < STREAM_HEADER_BYTES:
            beginning = source.read_at(offset, STREAM_HEADER_BYTES)
        self.payload = Stream(self._key, beginning, self.header.payload_aad, plain_size(self.header.payload_size))
        self._entries: Table | None = None
        self._segments = SegmentCache(
            self.payload, self._read_payload, capacity=cached, ahead=ahead, run=run,
            forget=None if cache is None else lambda at: cache.forget(offset + at),
        )  # fmt: skip
        self._lock = threading.Lock()

    def entries(self) -> Table:
        """Return every entry by its path, in bundle order. Raises ``BundleError``, ``UnsafePathError`` or ``LimitError``."""
        with self._lock:
            if self._entries is None:
                found = Table()
                for entry in self.read_index(found.values):
                    found.append(entry)
                self._entries = found
            return self._entries

    def entry(self, path: bytes | str) -> Entry:
        """Return the file at ``path``, hard links resolved. Raises ``NotFoundError``, or ``InputError`` if it is no file."""
        name = path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path
        entries = self.entries()
        found = entries.get(name.removeprefix(b"./"))
        if found is not None and found.kind is Kind.LINK:
            found = entries[found.target]
        if found is None:
            raise NotFoundError(f"the bundle holds no {shown(name)}", rule="bundle-path", seen=shown(name), wanted="a path in the bundle",
                                fix="list the files with 'inspect --key'")  # fmt: skip
        if found.kind is not Kind.FILE:
            raise InputError(f"{found.name} is no file", rule="bundle-path", seen=found.kind.value, wanted="a file", fix="name a file")
        return found

    def read(self, path: bytes | str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Return an iterator over the bytes ``start`` to ``end`` (not with it; None: the end) of a file, in pieces.

        Raises ``NotFoundError`` or ``InputError`` at once, and while iterating ``BundleTamperedError`` for a segment that does not verify.
        A whole file is compared with the digest that its sealer signed: bytes that do not fit it end with that error, too.
        """
        entry = self.entry(path)
        stop = entry.size if end is None else min(end, entry.size)
        if start < 0 or (end is not None and end < start):
            raise InputError("not a range", rule="range", seen=f"{start}-{end}", wanted="0 ≤ start ≤ end", fix="correct the range")
        pieces = self.pieces(entry.offset + start, entry.offset + stop)
        return pieces if (start, stop) != (0, entry.size) else _compared(pieces, entry)

    def segment(self, index: int) -> bytearray:
        """Return the plaintext of one segment, which is shared: look, do not touch. Raises ``BundleTamperedError``."""
        return self._segments.get(index)

    def segments(self, indices: range) -> Iterator[bytearray]:
        """Return the plaintext of segments that follow each other, as ``segment`` does, each with its own error."""
        return self._segments.get_all(indices)

    def close(self) -> None:
        """Forget decrypted segments; the source stays the caller's to close."""
        self._segments.close()

    def pieces(self, position: int, stop: int) -> Iterator[bytes]:
        """Yield the payload's plaintext from ``position`` up to ``stop``, both within it. Raises ``BundleTamperedError``."""
        while position < stop:
            index, place = segment_at(position)
            with memoryview(self.segment(index)) as plain:
                piece = bytes(plain[place : place + stop - position])
            position += len(piece)
            yield piece

    def _read_payload(self, spans: Sequence[Span]) -> list[Piece]:
        offset = self.header.payload_offset
        placed = [(offset + at, length) for at, length in spans]
        return read_spans(self._source, placed) if self._cache is None else self._cache.read_spans(placed)

    def read_index(self, kept: Callable[[], Iterable[Entry]]) -> Iterator[Entry]:
        """Yield the entries, in bundle order, none of which is verified before the iteration ends.

        ``kept`` returns what was yielded, as the caller keeps it. Raises ``BundleError``, ``UnsafePathError`` or ``LimitError``.
        """
        header = self.header
        offset = header.index_offset
        # One read for the stream's header and its first segment, which hold each other's place: a round trip less over a network.
        first = self._source.read_at(offset, min(SEGMENT_BYTES, header.index_size))
        stream = Stream(self._key, first[:STREAM_HEADER_BYTES], header.index_aad, plain_size(header.index_size))

        def read_at(start: int, length: int) -> bytes:
            return first[start : start + length] if start + length <= len(first) else self._source.read_at(offset + start, length)

        size = 0
        for count, entry in enumerate(read_index(iterate_stream(stream, read_at), header, self.payload.plain_size, kept), 1):
            size += entry.size
            self._limits.check(count, size)
            yield entry


def _compared(pieces: Iterator[bytes], entry: Entry) -> Iterator[bytes]:
    """Yield a file's bytes. Raises ``BundleTamperedError`` at the end unless they are the ones that its sealer signed."""
    state = blake3()
    for piece in pieces:
        state.update(piece)
        yield piece
    if state.digest() != entry.digest:
        raise BundleTamperedError("the bundle's contents are not what its sealer signed", rule="bundle-contents",
                                  seen=f"other bytes in {entry.name}", wanted="the bytes that its sealer signed",
                                  fix="get the bundle again from its source, and use nothing of this file")  # fmt: skip
