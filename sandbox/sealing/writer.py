"""Sealing: files and folders in, one bundle out, whole and durable or not there at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from attestation.signing import SigningKey
from sandbox.errors import InputError
from sandbox.sealing.algorithms import STREAM_HEADER_BYTES
from sandbox.sealing.entries import Entry, Kind, encode_line
from sandbox.sealing.format import Header, new_core, write_header
from sandbox.sealing.hashing import Progress, digest_text
from sandbox.sealing.index import end_line, write_index
from sandbox.sealing.keys import DataKey, IdentityPublic
from sandbox.sealing.output import Output, disk_error
from sandbox.sealing.pipeline import Batch, Piece, Step, run
from sandbox.sealing.scan import Scan, changed, check_unchanged, scan, settle, state_of, unreadable
from sandbox.sealing.spool import Spool
from sandbox.sealing.stream import Stream, StreamWriter, plain_size, sealed_size
from sandbox.sealing.tar import END, padding, tar_header, with_offset

_EMPTY = blake3().digest()
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO}
"""How the file system says that a name leads to no file any more: nothing, a folder turned file, a symlink, a socket."""


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
    with Spool(out.parent) as spool, Spool(out.parent) as digests:
        seen = scan(sources, spool, lenient=lenient)
        return _seal(seen, digests, out, recipients, signer, labels or {}, progress)


def _seal(  # noqa: PLR0917  (what ``seal`` was asked, and spools)
    seen: Scan,
    digests: Spool,
    out: Path,
    recipients: Sequence[IdentityPublic],
    signer: SigningKey,
    labels: Mapping[str, str],
    progress: Progress | None,
) -> SealResult:
    plan = _plan(seen)
    core = new_core(
        bundle_id=secrets.token_hex(16),
        labels=labels,
        payload_size=sealed_size(plan.tar_size),
        index_size=sealed_size(plan.index_size),
        signer=signer.public,
        to=tuple(recipient.fingerprint for recipient in recipients),
    )
    key = DataKey.generate()
    raw, header = write_header(core, tuple(recipient.wrap(key.raw, core.wrap_info) for recipient in recipients), signer)
    settle(seen)
    try:
        digest = _write(out, header, raw, seen, digests, key, signer, progress)
    except OSError as error:
        raise disk_error(str(out), error) from error
    return SealResult(out, digest, header.total_size, plan.files, plan.files_size, core.id, tuple(seen.skipped))


def _write(  # noqa: PLR0917  (what ``seal`` prepared)
    out: Path, header: Header, raw: bytes, seen: Scan, digests: Spool, key: DataKey, signer: SigningKey, progress: Progress | None
) -> str:
    with Output(out, header.total_size) as output:
        output.write(raw)
        payload = Stream.fresh(key, header.payload_aad, plain_size(header.payload_size))
        _write_payload(payload, seen, digests, output, progress)
        _write_index(_finished(seen, digests), header, key, signer, output)
        check_unchanged(seen)
        output.commit()
        return digest_text(output.state)


def _check_places(sources: Sequence[Path], out: Path) -> None:
    if not out.parent.is_dir():
        raise InputError(f"{out.parent} is not a folder", rule="output", seen="no folder", wanted="an existing folder", fix="make it first")
    try:
        out.lstat()
    except FileNotFoundError:
        pass
    except OSError as error:  # such as a name that is too long: told now, not when all is sealed
        raise disk_error(str(out), error) from error
    else:
        raise InputError(
            f"{out} exists already", rule="output", seen="an existing file", wanted="a new name", fix="choose another name or remove it"
        )
    folder = out.parent.resolve()
    for source in sources:
        if source.is_dir() and folder.is_relative_to(source.resolve()):
            raise InputError(f"{out} would lie inside {source}, which is to be sealed", rule="output", seen=str(folder),
                             wanted="a place outside", fix="write the bundle elsewhere")  # fmt: skip


@dataclass(frozen=True)
class _Plan:
    """What is going to be written: sizes in plaintext bytes, known before anything is read."""

    tar_size: int
    index_size: int
    files: int
    files_size: int


def _plan(seen: Scan) -> _Plan:
    cursor = index = files = size = 0
    for entry in seen.entries():
        placed, cursor = with_offset(entry, cursor)
        index += len(encode_line(placed))
        if placed.kind is Kind.FILE:
            index += len(_EMPTY.hex())
            files += 1
            size += placed.size
    return _Plan(cursor + len(END), index + len(end_line(len(seen), bytes(64))), files, size)


def _finished(seen: Scan, digests: Spool) -> Iterator[Entry]:
    cursor = 0
    each = iter(digests)
    for entry in seen.entries():
        placed, cursor = with_offset(entry, cursor)
        if placed.kind is Kind.FILE:
            placed = placed._replace(digest=next(each) if placed.size else _EMPTY)
        yield placed


def _write_payload(stream: Stream, seen: Scan, digests: Spool, output: Output, progress: Progress | None) -> None:
    """Write the payload, and add the digest of every file that has bytes to ``digests``."""
    reader = _TarReader(seen)
    hasher = _FileHasher(digests)
    start = output.size

    def read(batch: Batch) -> None:
        reader.fill(batch)
        hasher.update(batch)
        if progress is not None:
            progress(batch.plain_start + len(batch.plain), stream.plain_size)

    def encrypt(batch: Batch) -> None:
        stream.seal_segment(batch.index, batch.plain, batch.sealed)
        if batch.index == 0:
            batch.block[:STREAM_HEADER_BYTES] = stream.header

    steps = [
        Step(read, ordered=True),
        Step(encrypt, ordered=False),
        Step(lambda batch: output.hash(batch.block), ordered=True),
        # In order, too: a file system lets one write into a file at a time, and threads would only spin for it.
        Step(lambda batch: output.write_behind(start + batch.start, batch.block), ordered=True),
    ]
    try:
        run(stream, steps)
    finally:
        reader.close()
    output.size = start + stream.sealed_size


def _write_index(final: Iterator[Entry], header: Header, key: DataKey, signer: SigningKey, output: Output) -> None:
    stream = Stream.fresh(key, header.index_aad, plain_size(header.index_size))
    writer = StreamWriter(stream, output.write)
    for line in write_index(final, header, signer):
        writer.write(line)


class _FileHasher:
    """BLAKE3 of every file that has bytes, from the pieces of each batch in order."""

    def __init__(self, digests: Spool) -> None:
        self._state = blake3()
        self._digests = digests

    def update(self, batch: Batch) -> None:
        for _, start, end, first, last in batch.pieces:
            if first:
                self._state = blake3()
            self._state.update(batch.plain[start:end])
            if last:
                self._digests.append(self._state.digest())


class _TarReader:
    """Fills batches with the tar of what was found, noticing any change. Raises ``InputError``, which names what cannot be read."""

    def __init__(self, seen: Scan) -> None:
        self._found = seen.found()
        self._pending = memoryview(b"")
        self._fd = -1
        self._left = 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fill(self, batch: Batch) -> None:
        plain, position = batch.plain, 0
        while position < len(plain):
            if self._pending:
                count = min(len(plain) - position, len(self._pending))
                plain[position : position + count] = self._pending[:count]
                self._pending = self._pending[count:]
                position += count
            elif self._left:
                position = self._read(batch, position)
            else:
                self._advance()

    def _read(self, batch: Batch, position: int) -> int:
        try:
            count = os.readv(self._fd, [batch.plain[position : position + self._left]])
        except OSError as error:
            raise unreadable(self._place, error) from error
        if count == 0:
            raise changed(self._place)
        first = self._left == self._entry.size
        self._left -= count
        batch.pieces.append(Piece(self._entry, position, position + count, first, not self._left))
        if not self._left:
            if not first:  # large enough for a change while it was read; at the end everything is looked at once more
                self._check()
            self.close()
            self._pending = memoryview(bytes(padding(self._entry.size)))
        return position + count

    def _advance(self) -> None:
        item = next(self._found, None)
        if item is None:
            self._pending = memoryview(END)
            return
        self._entry, self._place, self._seen = item
        self._pending = memoryview(tar_header(self._entry))
        if self._entry.size:
            try:
                # Never through a symlink that was put there since, and never waiting for a pipe that was.
                self._fd = os.open(self._place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            except OSError as error:
                raise changed(self._place) if error.errno in _GONE else unreadable(self._place, error) from error
            self._check()
            self._left = self._entry.size

    def _check(self) -> None:
        try:
            status = os.fstat(self._fd)
        except OSError as error:
            raise unreadable(self._place, error) from error
        if state_of(status) != self._seen:
            raise changed(self._place)
