"""Sealing: files and folders in, one bundle out, whole and durable or not there at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from attestation.signing import SigningKey
from sandbox.errors import InputError
from sandbox.sealing.algorithms import STREAM_HEADER_BYTES
from sandbox.sealing.entries import Entry, Kind
from sandbox.sealing.format import Header, new_core, write_header
from sandbox.sealing.hashing import Progress, digest_text
from sandbox.sealing.index import index_size, write_index
from sandbox.sealing.keys import DataKey, IdentityPublic
from sandbox.sealing.output import Output, disk_error
from sandbox.sealing.pipeline import Batch, Step, run
from sandbox.sealing.scan import Found, Scan, changed, check_unchanged, scan, state_of
from sandbox.sealing.stream import Stream, StreamWriter, plain_size, sealed_size
from sandbox.sealing.tar import END, padding, tar_header, with_offset

_EMPTY = blake3().digest()
_DIGEST = len(_EMPTY)


@dataclass(frozen=True)
class SealResult:
    """A finished bundle. ``size`` is the file's, ``plaintext_size`` the sum of its files'; ``skipped`` is empty unless ``lenient``."""

    path: Path
    digest: str
    size: int
    files: int
    plaintext_size: int
    bundle_id: str
    skipped: tuple[str, ...] = ()


def seal(
    sources: Sequence[Path],
    out: Path,
    *,
    recipients: Sequence[IdentityPublic],
    signer: SigningKey,
    labels: Mapping[str, str] | None = None,
    progress: Progress | None = None,
    lenient: bool = False,
) -> SealResult:
    """Seal files and folders into a new bundle at ``out``, durable when this returns; nothing is at ``out`` before that.

    One folder: its contents become the bundle's root. Anything else: each source stands under its own name. ``lenient`` leaves out what
    no bundle can hold (devices, sockets, pipes, links that leave the tree) instead of refusing, and names it in the result.
    Raises ``InputError`` (unusable or changing sources, an existing ``out``, a full disk), ``LimitError`` or ``UnsafePathError``.
    """
    _check_places(sources, out)
    seen = scan(sources, lenient=lenient)
    entries, plain = _lay_out(seen)
    core = new_core(
        bundle_id=secrets.token_hex(16),
        labels=labels or {},
        payload_size=sealed_size(plain),
        index_size=sealed_size(index_size(entries, len(entries))),
        signer=signer.public,
        to=tuple(recipient.fingerprint for recipient in recipients),
    )
    key = DataKey.generate()
    raw, header = write_header(core, tuple(recipient.wrap(key.raw, core.wrap_info) for recipient in recipients), signer)
    try:
        digest = _write(out, header, raw, seen, entries, key, signer, progress)
    except OSError as error:
        raise disk_error(str(out), error) from error
    files = sum(entry.kind is Kind.FILE for entry in entries)
    size = sum(entry.size for entry in entries)
    return SealResult(out, digest, header.total_size, files, size, core.id, tuple(seen.skipped))


def _write(  # noqa: PLR0917  (what ``seal`` prepared)
    out: Path, header: Header, raw: bytes, seen: Scan, entries: Sequence[Entry], key: DataKey, signer: SigningKey, progress: Progress | None
) -> str:
    with Output(out, header.total_size) as output:
        output.write(raw)
        payload = Stream.fresh(key, header.payload_aad, plain_size(header.payload_size))
        digests = _write_payload(payload, seen, entries, output, progress)
        _write_index(_with_digests(entries, digests), header, key, signer, output)
        check_unchanged(seen)
        output.commit()
        return digest_text(output.state)


def _check_places(sources: Sequence[Path], out: Path) -> None:
    if out.is_symlink() or out.exists():
        raise InputError(
            f"{out} exists already", rule="output", seen="an existing file", wanted="a new name", fix="choose another name or remove it"
        )
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a folder", rule="output", seen="no folder", wanted="an existing folder", fix="make it first")
    folder = out.parent.resolve()
    for source in sources:
        if source.is_dir() and folder.is_relative_to(source.resolve()):
            raise InputError(f"{out} would lie inside {source}, which is to be sealed", rule="output", seen=str(folder),
                             wanted="a place outside", fix="write the bundle elsewhere")  # fmt: skip


def _lay_out(seen: Scan) -> tuple[list[Entry], int]:
    cursor = 0
    entries = []
    for number, item in enumerate(seen.found):
        entry, cursor = with_offset(item.entry, cursor)
        seen.found[number] = Found(entry, item.base, item.seen)
        entries.append(entry)
    return entries, cursor + len(END)


def _with_digests(entries: Sequence[Entry], digests: memoryview) -> Iterator[Entry]:
    for number, entry in enumerate(entries):
        if entry.kind is Kind.FILE:
            digest = bytes(digests[number * _DIGEST : (number + 1) * _DIGEST]) if entry.size else _EMPTY
            yield Entry(entry.path, entry.kind, entry.mode, entry.mtime_ns, entry.size, entry.offset, b"", digest, entry.sparse)
        else:
            yield entry


def _write_payload(stream: Stream, seen: Scan, entries: Sequence[Entry], output: Output, progress: Progress | None) -> memoryview:
    reader = _TarReader(seen.found, stream.plain_size, progress)
    hasher = _FileHasher(entries)

    def encrypt(batch: Batch) -> None:
        stream.seal_segment(batch.index, batch.plain, batch.sealed)
        if batch.index == 0:
            batch.block[:STREAM_HEADER_BYTES] = stream.header

    start = output.size
    steps = [
        Step(reader.fill, ordered=True),
        Step(hasher.update, ordered=True),
        Step(encrypt, ordered=False),
        Step(lambda batch: output.hash(batch.block), ordered=True),
        Step(lambda batch: output.write_aligned(start + batch.start, batch.block), ordered=False),
    ]
    try:
        run(stream, steps)
    finally:
        reader.close()
    output.size = start + stream.sealed_size
    return hasher.digests


def _write_index(final: Iterator[Entry], header: Header, key: DataKey, signer: SigningKey, output: Output) -> None:
    stream = Stream.fresh(key, header.index_aad, plain_size(header.index_size))
    writer = StreamWriter(stream, output.write)
    for line in write_index(final, header, signer):
        writer.write(line)


class _FileHasher:
    """BLAKE3 of every file, from the pieces of each batch in order; one flat buffer, since there may be millions."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries
        self._state: blake3 | None = None
        self._left = 0
        self.digests = memoryview(bytearray(_DIGEST * len(entries)))

    def update(self, batch: Batch) -> None:
        for number, start, end in batch.pieces:
            view = batch.plain[start:end]
            size = self._entries[number].size
            if end - start == size:
                self._set(number, blake3(view))
                continue
            if self._state is None:
                self._state, self._left = blake3(), size
            self._state.update(view)
            self._left -= end - start
            if self._left == 0:
                self._set(number, self._state)
                self._state = None

    def _set(self, number: int, state: blake3) -> None:
        self.digests[number * _DIGEST : (number + 1) * _DIGEST] = state.digest()


class _TarReader:
    """Fills batches with the tar of what was found, noticing any change."""

    def __init__(self, found: Sequence[Found], total: int, progress: Progress | None) -> None:
        self._found = found
        self._total = total
        self._progress = progress
        self._next = 0
        self._pending = memoryview(b"")
        self._fd = -1
        self._left = 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fill(self, batch: Batch) -> None:
        position = 0
        while position < len(batch.plain):
            room = len(batch.plain) - position
            if self._pending:
                count = min(room, len(self._pending))
                batch.plain[position : position + count] = self._pending[:count]
                self._pending = self._pending[count:]
            elif self._left:
                count = os.readv(self._fd, [batch.plain[position : position + min(room, self._left)]])
                if count == 0:
                    raise changed(self._found[self._next - 1].place)
                batch.pieces.append((self._next - 1, position, position + count))
                self._left -= count
                if self._left == 0:
                    self._finish()
            else:
                count = 0
                self._advance()
            position += count
        if self._progress is not None:
            self._progress(batch.plain_start + len(batch.plain), self._total)

    def _advance(self) -> None:
        if self._next == len(self._found):
            self._pending = memoryview(END)
            return
        item = self._found[self._next]
        self._next += 1
        self._pending = memoryview(tar_header(item.entry))
        if item.entry.size:
            try:
                # Never through a symlink that was put there since, and never waiting for a pipe that was.
                self._fd = os.open(item.place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError as error:
                raise changed(item.place) from error
            self._check(item)
            self._left = item.entry.size

    def _finish(self) -> None:
        item = self._found[self._next - 1]
        self._check(item)
        self.close()
        self._pending = memoryview(bytes(padding(item.entry.size)))

    def _check(self, item: Found) -> None:
        if state_of(os.fstat(self._fd)) != item.seen:
            raise changed(item.place)
