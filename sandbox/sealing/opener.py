"""Opening: one bundle in, its files out, verified to the last byte before any of them stands under its name."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from attestation.signing import VerifyKey
from sandbox.errors import InputError
from sandbox.sealing.entries import Kind
from sandbox.sealing.format import Header
from sandbox.sealing.hashing import Progress
from sandbox.sealing.keys import DataKey, Identity
from sandbox.sealing.output import disk_error
from sandbox.sealing.reader import BundleReader, Limits
from sandbox.sealing.source import FileSource
from sandbox.sealing.spool import Spool
from sandbox.sealing.staging import Staging
from sandbox.sealing.table import Listing
from sandbox.sealing.unpack import unpack


@dataclass(frozen=True)
class OpenResult:
    """What was opened; ``size`` is the sum of the files' sizes and ``header.signer`` who sealed it."""

    files: int
    size: int
    header: Header

    @property
    def labels(self) -> Mapping[str, str]:
        """The bundle's public labels."""
        return self.header.labels


def open_bundle(
    path: Path,
    dest: Path,
    *,
    key: DataKey | Identity,
    limits: Limits | None = None,
    signers: Collection[VerifyKey] | None = None,
    progress: Progress | None = None,
    durable: bool = True,
) -> OpenResult:
    """Unpack a bundle into ``dest``, a new or empty folder, byte for byte with modes, times and links.

    Everything is written to a private folder first and moved when all of it is verified; on any error ``dest`` is as before. It is durable
    before it is moved, so that even after a power cut nothing but verified bytes stands in ``dest``; ``durable`` False leaves that out, for
    a ``dest`` that goes with the power anyway.

    Raises ``BundleError`` and its kinds, ``LimitError``, ``InputError`` (``dest`` is not empty, an unreadable file, a full disk).
    """
    with FileSource(path) as source:
        reader = BundleReader(source, key, signers=signers, limits=limits)
        try:
            with Staging(dest) as staging:
                result = _unpack(source, reader, dest, staging, progress)
                staging.publish(durable=durable)
        except OSError as error:
            raise disk_error(str(dest), error) from error
    return result


def _unpack(source: FileSource, reader: BundleReader, dest: Path, staging: Staging, progress: Progress | None) -> OpenResult:
    # The index is kept as it was verified, not read twice from a file that others may change meanwhile.
    with Spool(staging.path) as spool:
        entries = Listing(spool)
        files = size = needed = 0
        for entry in reader.read_index(entries.values):
            entries.append(entry)
            files += entry.kind is Kind.FILE
            size += entry.size
            needed += 0 if entry.sparse else entry.size
        room = os.fstatvfs(staging.fd)
        if room.f_bavail * room.f_frsize < needed:
            raise InputError(f"{dest} has no room for the bundle", rule="open-room", seen=f"{room.f_bavail * room.f_frsize} bytes free",
                             wanted=f"{needed} bytes", fix="free space or choose another folder")  # fmt: skip
        unpack(source, reader, entries, staging, progress)
    return OpenResult(files, size, reader.header)
