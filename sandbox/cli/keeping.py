"""``sealrig audit erase`` and ``rotate-key``: what the keeper of a log does to it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from attestation.log.errors import LogFetchError
from attestation.log.files import sync_folder
from attestation.log.keychain import KeyChain
from attestation.log.note import NoteVerifier
from attestation.log.places import LogPlaces
from attestation.log.policy import MAX_POLICY_BYTES, WitnessPolicy
from attestation.log.reader import LogReader
from attestation.log.rotation import is_key_of, rotate_key
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
    reader = LogReader(places.source())
    origin = _origin(reader)
    if not fresh.exists():
        SigningKey.generate().save(fresh)
    old, new = SigningKey.load(current), SigningKey.load(fresh)
    vkey = NoteVerifier(origin, new.public).text
    if prepare:
        console().emit({"origin": origin, "next": vkey}, f"{vkey}\nthe next key: tell the log's witnesses, then run this without --prepare")
        return
    # It belongs to the new key already after a crash between the handover and the rename.
    if not is_key_of(places, origin=origin, key=new):
        rotate_key(places, origin=origin, old=old, new=new, at=datetime.now(UTC))
    retired = KeyChain.follow(reader, (NoteVerifier(origin, old.public),)).links[0]
    fresh.replace(current)
    sync_folder(data)
    console().emit(
        {"origin": origin, "vkey": vkey, "retired": {"key": retired.verifier.text, "size": retired.end}},
        f"{vkey}\nstart the server, and tell everybody who checks this log; the old key leads them to this one\n"
        f"retired, up to {counted(retired.end or 0, 'entry', 'entries')}: {retired.verifier.text}",
    )


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


def _places(data: Path, state: str, lock: str, tiles: str) -> LogPlaces:
    from sandbox.control.log_places import log_places

    return log_places(data, state, lock, tiles)


def _origin(reader: LogReader) -> str:
    try:
        return NoteVerifier.from_text(reader.vkey()).name
    except LogFetchError as error:
        if error.details.get("rule") != "log-missing":
            raise
        raise InputError(
            "there is no log here", rule="log-data", seen="no log", wanted="a control plane's data folder, and where its log is"
        ) from error
