"""Where an audit command reads its log, and which key it trusts: what ``--log``, ``--key`` and ``--trust`` mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import httpx
import typer

from attestation.log.errors import LogFetchError
from attestation.log.note import NoteVerifier
from attestation.log.reader import LogReader
from attestation.trust import Trust
from policies.strictyaml import load_yaml
from sandbox.cli.console import console
from sandbox.config import load_settings
from sandbox.errors import UsageError

TRUST_MAX_BYTES = 1024 * 1024

LogPlace = Annotated[
    str | None, typer.Option("--log", metavar="URL|DIR", help="A running server, a log's URL prefix, or a copy of its folder.")
]
LogKey = Annotated[str | None, typer.Option("--key", metavar="VKEY", help="The log's public key (C2SP vkey), or a file that holds it.")]
TrustFile = Annotated[Path | None, typer.Option("--trust", metavar="TRUST.yaml", help="A trust file that names the log's key.")]


@dataclass(frozen=True)
class TrustedKey:
    """The key that a log is checked with. ``trusted``: it came from the person, not from the log itself."""

    verifier: NoteVerifier
    trusted: bool


def open_log(place: str | None) -> LogReader:
    """Return a reader for ``--log``; without it the configured server's log. Raises ``UsageError`` or ``LogFetchError``."""
    server = load_settings().server if place is None else None
    if place is None and server is None:
        raise UsageError(
            "which log?",
            rule="audit-log",
            seen="neither --log nor a server",
            wanted="--log URL|DIR",
            fix="name a server or a log's folder: --log URL|DIR",
        )
    place = place or f"{server}"
    if not place.startswith(("http://", "https://")):
        if not Path(place).is_dir():
            raise LogFetchError(
                "there is no such folder", rule="log-missing", seen=place[:200], wanted="a log's folder, or a data folder that holds one",
                fix="a copy of a server's log is the folder 'log' of its data folder",
            )  # fmt: skip
        return LogReader.from_dir(Path(place))
    url = place.rstrip("/")
    client = httpx.Client(timeout=20.0)
    console().ends.callback(client.close)
    # A server has its log below /log; any other log is named by its own prefix.
    for prefix in (url,) if url.endswith("/log") else (f"{url}/log", url):
        reader = LogReader.from_url(prefix, client)
        try:
            reader.checkpoint()
        except LogFetchError as error:
            if error.details.get("rule") != "log-missing":
                raise
            continue
        return reader
    raise LogFetchError(
        "there is no log here", rule="log-missing", seen=f"no checkpoint below {url}", wanted="a server or a log's URL prefix"
    )


def log_key(reader: LogReader, key: str | None, trust: Path | None) -> TrustedKey:
    """Return the key to check with: ``--key``, ``--trust``, the configured trust file, or, with a warning, the log's own word."""
    if key is not None:
        return TrustedKey(NoteVerifier.from_text(_vkey_text(key)), trusted=True)
    path = trust or load_settings().trust
    if path is not None:
        return TrustedKey(_from_trust(path), trusted=True)
    console().warn(
        "no key was given, so the log is checked with the key that it names itself: this shows that it is sound, not whose it is"
    )
    return TrustedKey(NoteVerifier.from_text(reader.vkey()), trusted=False)


def _vkey_text(given: str) -> str:
    if "+" in given:
        return given
    path = Path(given)
    if not path.is_file():
        raise UsageError("not a key", rule="audit-key", seen=given, wanted="a C2SP vkey (name+id+base64) or a file that holds one")
    return path.read_text(encoding="utf-8").strip()


def _from_trust(path: Path) -> NoteVerifier:
    raw = path.read_bytes()
    if len(raw) > TRUST_MAX_BYTES:
        raise UsageError(f"{path} is too large", rule="trust-size", seen=f"{len(raw)} bytes", wanted=f"≤ {TRUST_MAX_BYTES} bytes")
    return NoteVerifier.from_text(Trust.from_tree(load_yaml(raw, max_bytes=TRUST_MAX_BYTES)).spec.log.key)
