"""``sealrig audit erase`` and ``rotate-key``: what the keeper of a log's data folder does to it, while the server is stopped."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from attestation.log.commitments import Sidecar
from attestation.log.errors import LogStoreError
from attestation.log.files import sync_folder
from attestation.log.leaf import Leaf
from attestation.log.note import Checkpoint, Note, NoteVerifier
from attestation.log.reader import LogReader
from attestation.log.rotation import rotate_key
from attestation.log.writer import LogWriter
from attestation.signing import SigningKey
from sandbox.cli.console import console
from sandbox.errors import InputError

SIDECAR = "log-private"
_Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="The control plane's data folder; the server must be stopped.")]


def erase(
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="The random id of the person or tenant, such as tenant-0190….")],
    data: _Data,
) -> None:
    """Erase what the log committed to about a subject. The log stays valid; the erasure is logged; it cannot be undone."""
    key, origin = SigningKey.load(data / "log.key"), _origin(data)
    # The log is opened first: an erasure that could not be logged is not begun.
    with LogWriter.open(data, origin=origin, key=key) as writer, Sidecar(data / SIDECAR) as sidecar:
        count = sidecar.erase(subject)
        now = datetime.now(UTC)
        (index,) = writer.append([Leaf("subject.erased", now, now, "server", subject, "erase", "done").to_bytes()])
        sidecar.forget(subject)
    console().emit(
        {"subject": subject, "values": count, "index": index}, f"{count} values of {subject} are gone for good; logged as entry {index}"
    )


def rotate(data: _Data) -> None:
    """Exchange the log's key. The old key hands over in the log, and cannot sign for it any more."""
    current, fresh = data / "log.key", data / "log.key.next"
    origin = _origin(data)
    if not fresh.exists():
        SigningKey.generate().save(fresh)
    old, new = SigningKey.load(current), SigningKey.load(fresh)
    if not _belongs(data, origin, new):
        rotate_key(data, origin=origin, old=old, new=new, at=datetime.now(UTC))
    fresh.replace(current)
    sync_folder(data)
    vkey = NoteVerifier(origin, new.public).text
    console().emit({"origin": origin, "vkey": vkey}, f"{vkey}\ntell everybody who checks this log; the old key leads them to this one")


def _origin(data: Path) -> str:
    if not (data / "log" / "checkpoint").is_file():
        raise InputError(f"{data} holds no log", rule="log-data", seen="no log/checkpoint", wanted="a control plane's data folder")
    return Checkpoint.parse(Note.parse(LogReader.from_dir(data).checkpoint()).text).origin


def _belongs(data: Path, origin: str, key: SigningKey) -> bool:
    """Say whether the log belongs to ``key`` already: so it is after a crash between the handover and the rename."""
    try:
        LogWriter.open(data, origin=origin, key=key).close()
    except LogStoreError as error:
        if error.details.get("rule") != "store-key":
            raise
        return False
    return True
