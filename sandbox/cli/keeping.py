"""``sealrig audit erase`` and ``rotate-key``: what the keeper of a log does to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from attestation.log.cosigning import Cosign
from attestation.log.errors import LogStoreError, QuorumError
from attestation.log.files import sync_folder
from attestation.log.note import MAX_NOTE_BYTES, Checkpoint, Note, NoteVerifier
from attestation.log.places import LogPlaces
from attestation.log.policy import MAX_POLICY_BYTES, WitnessPolicy
from attestation.log.reader import CHECKPOINT
from attestation.log.rotation import rotate_key
from attestation.log.writer import LogWriter
from attestation.signing import SigningKey
from sandbox.cli.console import console, counted
from sandbox.cli.context import ServerOption, client
from sandbox.errors import InputError, UsageError

LogState = Annotated[
    str,
    typer.Option(
        "--log-state", metavar="URL", help="PostgreSQL for the audit log's entries; SQLite below --data if not given.", show_default=False
    ),
]
LogLock = Annotated[
    str,
    typer.Option(
        "--log-lock", metavar="URL|DIR", help="PostgreSQL, or a folder on another disk, for the log's lock store.", show_default=False
    ),
]
LogTiles = Annotated[
    str,
    typer.Option(
        "--log-tiles", metavar="URL", help="S3 for the log's public files; a folder below --data if not given.", show_default=False
    ),
]
_Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="The control plane's data folder; the server must be stopped.")]


def erase(
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="A tenant's random id as it stands in the log: tenant-0190….")],
    server: ServerOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask: it cannot be undone.")] = False,
) -> None:
    """Erase a tenant on the server (operator): its name, identities and documents go, and what the log committed to opens no more.

    The log itself stays as it is and valid, and the erasure becomes an entry of it.
    """
    here = console()
    if not yes:
        if not here.interactive:
            raise UsageError(
                "erasing cannot be undone", rule="erase-confirm", seen="no --yes", wanted="a person who agrees, or --yes", fix="add --yes"
            )
        typer.confirm(f"Erase {subject} for good?", abort=True, err=True)
    with client(server) as opened:
        done = opened.erase(subject)
    here.emit(
        done,
        f"{subject} is erased: {counted(done.values, 'committed value')}, {counted(done.leases, 'lease')}; logged as entry {done.index}",
    )


def rotate(
    data: _Data,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="Only make the next key and name it, so that witnesses can be told of it first.")
    ] = False,
    log_state: LogState = "",
    log_lock: LogLock = "",
    log_tiles: LogTiles = "",
) -> None:
    """Exchange the log's key. The old key hands over in the log, and cannot sign for it any more."""
    current, fresh = data / "log.key", data / "log.key.next"
    places = _places(data, log_state, log_lock, log_tiles)
    published = _published(places)
    origin = published.origin
    if not fresh.exists():
        SigningKey.generate().save(fresh)
    old, new = SigningKey.load(current), SigningKey.load(fresh)
    vkey = NoteVerifier(origin, new.public).text
    if prepare:
        console().emit({"origin": origin, "next": vkey}, f"{vkey}\nthe next key: tell the log's witnesses, then run this without --prepare")
        return
    if not _belongs(places, published, new):
        rotate_key(places, origin=origin, old=old, new=new, at=datetime.now(UTC))
    fresh.replace(current)
    sync_folder(data)
    console().emit({"origin": origin, "vkey": vkey}, f"{vkey}\ntell everybody who checks this log; the old key leads them to this one")


def witnesses(path: Path | None) -> WitnessPolicy:
    """Read a policy file about witnesses; without one nobody is asked. Raises ``UsageError``, or ``PolicyError`` for its content."""
    if path is None:
        return WitnessPolicy()
    try:
        with path.open("rb") as file:
            return WitnessPolicy.from_bytes(file.read(MAX_POLICY_BYTES + 1))
    except OSError as error:
        raise UsageError(
            "the witness policy cannot be read", rule="witness-policy", seen=f"{path}: {error.strerror}", wanted="a file"
        ) from error


@dataclass(frozen=True)
class _Published:
    """What stands in public: the log's origin, and how it is published further."""

    origin: str
    cosign: Cosign | None


def _places(data: Path, state: str, lock: str, tiles: str) -> LogPlaces:
    from sandbox.control.log_places import log_places

    return log_places(data, state, lock, tiles)


def _published(places: LogPlaces) -> _Published:
    raw = places.source().read(CHECKPOINT, MAX_NOTE_BYTES)
    if raw is None:
        raise InputError(
            "there is no log here", rule="log-data", seen="no checkpoint", wanted="a control plane's data folder, and where its log is"
        )
    note = Note.parse(raw)
    return _Published(Checkpoint.parse(note.text).origin, _later if len(note.signatures) > 1 else None)


def _later(_note: str) -> Sequence[str]:
    raise QuorumError(
        "witnesses are asked by the server",
        rule="quorum-later",
        seen="a command",
        wanted="the server",
        fix="start the server: it publishes what waits",
    )


def _belongs(places: LogPlaces, published: _Published, key: SigningKey) -> bool:
    """Say whether the log belongs to ``key`` already: so it is after a crash between the handover and the rename."""
    try:
        LogWriter.open(places, origin=published.origin, key=key, cosign=published.cosign).close()
    except LogStoreError as error:
        if error.details.get("rule") != "store-key":
            raise
        return False
    return True
