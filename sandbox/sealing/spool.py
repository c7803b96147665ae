"""Records in order, as many as there may be, in bounded memory: what does not fit goes to an encrypted file that has no name.

The file holds names of what is sealed, on a disk that may be for ciphertext only. Hence it is encrypted as a bundle's streams are, under a
key that is in this process alone and never leaves it; nobody can read it afterwards, and nobody can change it unnoticed meanwhile.
"""

from __future__ import annotations

import itertools
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from sandbox.errors import BundleTamperedError, InputError
from sandbox.sealing.algorithms import TAG_BYTES
from sandbox.sealing.keys import DataKey
from sandbox.sealing.output import disk_error
from sandbox.sealing.stream import Stream

BLOCK_BYTES = 64 * 1024
"""Of records that are encrypted at once, and the most that is kept in memory; a record may be longer."""
_AAD = b"sealrig/spool/v1"
_LENGTH_BYTES = 4
_UNENDED = 2**50
"""A stream's length, in bytes, that no spool reaches: it has no last segment, since how many there are is known to this process."""


class Spool:
    """Appended to until it is first iterated over, then read as often as need be. Close it, or use it in a ``with`` statement.

    For one thread at a time. Nothing is written while one block is enough.
    """

    def __init__(self, folder: Path) -> None:
        """Start empty; a file is made in ``folder`` when it is needed."""
        self.folder = folder
        self._stream = Stream.fresh(DataKey.generate(), _AAD, _UNENDED)
        self._held: list[bytes] = []
        """The records that are not in the file yet."""
        self._held_bytes = 0
        self._file: IO[bytes] | None = None
        self._blocks: list[int] = []
        """How long each block in the file is, its tag included."""
        self._size = 0
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file, and of its blocks on the disk with it; calling it twice does no harm."""
        if self._file is not None:
            self._file.close()

    def __len__(self) -> int:
        return self._count

    def append(self, record: bytes) -> None:
        """Add a record. Raises ``InputError`` where the disk does not take it."""
        self._held.append(record)
        self._held_bytes += len(record) + _LENGTH_BYTES
        self._count += 1
        if self._held_bytes >= BLOCK_BYTES:
            self._flush()

    def __iter__(self) -> Iterator[bytes]:
        """Yield the records. Raises ``InputError`` where the file cannot be read or is not as it was written."""
        offset = 0
        if self._file is not None:
            for number, length in enumerate(self._blocks):
                yield from _records(self._read(self._file.fileno(), number, offset, length))
                offset += length
        yield from self._held

    def _flush(self) -> None:
        count = len(self._held)
        plain = struct.pack(f"={count + 1}I", count, *map(len, self._held)) + b"".join(self._held)
        sealed = bytearray(len(plain) + TAG_BYTES)
        self._stream.seal_segment(len(self._blocks), memoryview(plain), memoryview(sealed))
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115  (closed by ``close``)
            view = memoryview(sealed)
            while view:
                view = view[os.pwrite(self._file.fileno(), view, self._size + len(sealed) - len(view)) :]
        except OSError as error:
            raise disk_error(f"a temporary file in {self.folder}", error) from error
        self._blocks.append(len(sealed))
        self._size += len(sealed)
        self._held.clear()
        self._held_bytes = 0

    def _read(self, fd: int, number: int, offset: int, length: int) -> bytes:
        plain = bytearray(length - TAG_BYTES)
        try:
            sealed = os.pread(fd, length, offset)
            # A file cut short does not verify either.
            self._stream.open_segment(number, sealed, memoryview(plain))
        except (OSError, BundleTamperedError) as error:
            raise InputError(
                f"a temporary file in {self.folder} is not as it was written",
                rule="spool",
                seen=error.strerror or "an error" if isinstance(error, OSError) else "other bytes",
                wanted="the bytes that this process wrote",
                fix="check the disk, and who else can write to this process's files; nothing was made of them",
            ) from error
        return bytes(plain)


def _records(plain: bytes) -> list[bytes]:
    (count,) = struct.unpack_from("=I", plain)
    ends = itertools.accumulate(struct.unpack_from(f"={count}I", plain, _LENGTH_BYTES), initial=(count + 1) * _LENGTH_BYTES)
    return [plain[start:end] for start, end in itertools.pairwise(ends)]
