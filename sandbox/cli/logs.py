"""Where an audit command reads its log, and what it accepts of it: what ``--log``, ``--key`` and ``--trust`` mean."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import httpx
import typer

from attestation.log.errors import LogFetchError
from attestation.log.note import NoteVerifier
from attestation.log.reader import LogReader
from attestation.log.rules import LogRules
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
LogKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--key", metavar="VKEY", help="The log's public key (C2SP vkey), or a file that holds it; may be repeated for an offline check."
    ),
]
TrustFile = Annotated[
    Path | None, typer.Option("--trust", metavar="TRUST.yaml", help="A trust file: the log's keys, witnesses and their quorum.")
]


@dataclass(frozen=True)
class Accepted:
    """What a log is checked with. ``trusted``: its key came from the person, not from the log itself."""

    rules: LogRules
    trusted: bool


def open_log(place: str | None) -> LogReader:
    """Return a reader for ``--log``; without it of the configured server's log. Raises as ``find_log`` does."""
    return find_log(place)()


def find_log(place: str | None) -> Callable[[], LogReader]:
    """Return what makes readers of a log that remember nothing yet, all over one connection.

    Raises ``UsageError`` where none is named, ``LogError`` where there is none.
    """
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
    if place.startswith(("http://", "https://")):
        return _find_url(place.rstrip("/"))
    if not Path(place).is_dir():
        raise LogFetchError(
            "there is no such folder", rule="log-missing", seen=place[:200], wanted="a log's folder, or a data folder that holds one",
            fix="a copy of a server's log is the folder 'log' of its data folder",
        )  # fmt: skip
    return partial(LogReader.from_dir, Path(place))


def _find_url(url: str) -> Callable[[], LogReader]:
    with ExitStack() as opened:
        client = opened.enter_context(httpx.Client(timeout=20.0))
        # A server has its log below /log; any other log is named by its own prefix.
        for prefix in (url,) if url.endswith("/log") else (f"{url}/log", url):
            if _has_log(LogReader.from_url(prefix, client)):
                console().ends.push(opened.pop_all())
                return partial(LogReader.from_url, prefix, client)
    raise LogFetchError(
        "there is no log here", rule="log-missing", seen=f"no checkpoint below {url}", wanted="a server or a log's URL prefix"
    )


def _has_log(reader: LogReader) -> bool:
    try:
        reader.checkpoint()
    except LogFetchError as error:
        if error.details.get("rule") != "log-missing":
            raise
        return False
    return True


def accepted_log(reader: LogReader, key: str | None, trust: Path | None) -> Accepted:
    """Return what to check with: what was given, or, with a warning, the log's own word. Raises ``UsageError`` or an attestation error."""
    given = given_rules(key, trust)
    return Accepted(given or LogRules((own_key(reader),)), trusted=given is not None)


def given_rules(key: str | None, trust: Path | None) -> LogRules | None:
    """Return what ``--key``, ``--trust`` or the configured trust file says; None where there is none of them."""
    if key is not None:
        return LogRules((NoteVerifier.from_text(_vkey_text(key)),))
    path = trust or load_settings().trust
    return None if path is None else LogRules.from_trust(_trust_file(path))


def own_key(reader: LogReader) -> NoteVerifier:
    """Return the key that a log names itself, with a warning. Raises ``LogFetchError`` or ``NoteError``."""
    found = NoteVerifier.from_text(reader.vkey())
    console().warn(
        "no key was given, so the log is checked with the key that it names itself: this shows that it is sound, not whose it is"
    )
    return found


def accepted_offline(keys: list[str] | None, trust: Path | None) -> LogRules:
    """Return what to check with where there is no log to ask: each ``--key``, or ``--trust``. Raises ``UsageError`` without any."""
    if keys:
        return LogRules(tuple(NoteVerifier.from_text(_vkey_text(key)) for key in keys))
    if trust is None:
        raise UsageError(
            "an offline check needs the log's key", rule="audit-key", seen="neither --key nor --trust", wanted="--key VKEY or --trust FILE"
        )
    return LogRules.from_trust(_trust_file(trust))


def one_key(keys: list[str] | None) -> str | None:
    """Return the key that a whole log is checked with. Raises ``UsageError`` for several: their ends would be the log's word alone."""
    if keys is not None and len(keys) > 1:
        raise UsageError(
            "a log has one key at a time",
            rule="audit-keys",
            seen=f"{len(keys)} --key",
            wanted="one",
            fix="name the newest, or with --trust a file that says when the others were retired",
        )
    return keys[0] if keys else None


def _vkey_text(given: str) -> str:
    if "+" in given:
        return given
    path = Path(given)
    if not path.is_file():
        raise UsageError("not a key", rule="audit-key", seen=given, wanted="a C2SP vkey (name+id+base64) or a file that holds one")
    return path.read_text(encoding="utf-8").strip()


def _trust_file(path: Path) -> Trust:
    raw = path.read_bytes()
    if len(raw) > TRUST_MAX_BYTES:
        raise UsageError(f"{path} is too large", rule="trust-size", seen=f"{len(raw)} bytes", wanted=f"≤ {TRUST_MAX_BYTES} bytes")
    return Trust.from_tree(load_yaml(raw, max_bytes=TRUST_MAX_BYTES))
