"""``sealrig audit watch`` and ``sealrig audit witness``: the two programs that keep a log honest."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import httpx
import typer

from attestation.errors import LogError
from attestation.log.errors import HistoryError
from attestation.log.forks import keep_fork
from attestation.log.history import ForkEvidence
from attestation.log.note import COSIGNATURE, NoteVerifier, check_name
from attestation.log.reader import LogReader
from attestation.log.rules import LogRules
from attestation.log.watch import Alarm, Watch, WatchState
from attestation.log.witness import Witness
from attestation.log.witness_server import witness_server
from attestation.signing import SigningKey
from policies.units import parse_duration
from sandbox.cli.console import console, counted
from sandbox.cli.logs import LogKey, LogPlace, TrustFile, find_log, given_rules, own_key
from sandbox.errors import UsageError

WEBHOOK_SECONDS = 10.0


def watch(
    log: LogPlace = None,
    key: LogKey = None,
    trust: TrustFile = None,
    state: Annotated[Path, typer.Option("--state", metavar="FILE", help="What was seen is kept here; a first run makes it.")] = Path(
        "watch.json"
    ),
    every: Annotated[str, typer.Option("--every", metavar="TIME", help="How long between two looks.")] = "1m",
    stale: Annotated[str, typer.Option("--stale", metavar="TIME", help="No news for so long is an alarm; 0s: never.")] = "0s",
    witness: Annotated[
        list[str] | None, typer.Option("--witness", metavar="VKEY", help="A witness whose cosignature counts, beside those of --trust.")
    ] = None,
    quorum: Annotated[int, typer.Option("--quorum", min=0, help="How many witnesses must have cosigned, if more than --trust wants.")] = 0,
    webhook: Annotated[str | None, typer.Option("--webhook", metavar="URL", help="Each alarm is posted here as JSON.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Look once.")] = False,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Go on after an alarm.")] = False,
) -> None:
    """Follow a log: each checkpoint must extend the last and hold every new entry. The first alarm ends it with exit code 1."""
    here = console()
    look = _watch(given_rules(key, trust) or LogRules(()), witness or [], quorum, _seconds("--stale", stale))
    pause = _seconds("--every", every)
    seen = WatchState.load(state)
    reader: Callable[[], LogReader] | None = None
    while True:
        now = int(time.time())
        try:
            reader = reader or find_log(log)
            if not look.keys:
                look = replace(look, keys=(own_key(reader()),))
            seen, alarms = look.step(reader(), seen, now)
        except LogError as error:  # the log is not to be found yet; what is wrong with one that is found, is in the alarms of the step
            alarms = look.missed(error, seen, now)
        seen.save(state)
        for alarm in alarms:
            _tell(alarm, webhook)
        if alarms and (once or not keep_going):
            first = alarms[0]
            here.fail({"ok": False, "alarms": alarms, "size": seen.size}, HistoryError(first.message, alarm=first.kind, **first.details))
        if once:
            here.emit({"ok": True, "alarms": [], "size": seen.size}, f"{counted(seen.size, 'entry', 'entries')}, in order")
            return
        here.say(f"{counted(seen.size, 'entry', 'entries')}" + (f", {counted(len(alarms), 'alarm')}" if alarms else ", in order"))
        time.sleep(pause)


def witness(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Holds the witness's key and what it saw; made where missing.")],
    log: Annotated[
        list[str],
        typer.Option("--log", metavar="VKEY", help="A log that it cosigns for (its C2SP vkey); may be repeated, a log's next key last."),
    ],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Its name, such as witness.example.org/w1.")] = "witness.local/w1",
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT", help="Where it answers.")] = "127.0.0.1:8191",
) -> None:
    """Run a co-signing witness (C2SP tlog-witness). Logs post their checkpoints to its address; it signs what extends what it saw."""
    here = console()
    check_name(name)
    logs = [NoteVerifier.from_text(text) for text in log]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "witness.key"
    if not path.exists():
        SigningKey.generate().save(path)
    signer = SigningKey.load(path)
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError("not an address", rule="witness-listen", seen=listen, wanted="HOST:PORT")

    def catch(evidence: ForkEvidence) -> None:
        place = keep_fork(folder, evidence)
        if place is not None:
            here.warn(f"a log signed two histories; the evidence is in {place}")

    cosigner = Witness(folder / "witness.db", name, signer, logs, on_fork=catch)
    server = witness_server(cosigner, (host, int(port)), here.say)
    vkey = NoteVerifier(name, signer.public, COSIGNATURE).text
    address = f"http://{host}:{server.server_port}"
    here.emit({"vkey": vkey, "listen": address, "logs": [each.name for each in logs]}, f"{vkey}\nlistening on {address}")
    try:
        server.serve_forever()
    finally:
        server.server_close()
        cosigner.close()


def _watch(rules: LogRules, named: list[str], quorum: int, stale: int) -> Watch:
    """Return what watches for all that is accepted of the log: what the trust file says, and what the flags add."""
    witnesses = tuple(dict.fromkeys((*rules.witnesses, *map(NoteVerifier.from_text, named))))
    quorum = max(quorum, rules.quorum)
    if quorum > len(witnesses):
        raise UsageError(
            "more witnesses are wanted than named", rule="watch-quorum", seen=str(len(witnesses)), wanted=f"≥ {quorum} --witness"
        )
    return Watch(rules.keys, witnesses, quorum, stale, rules.retired)


def _seconds(flag: str, text: str) -> int:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{flag}: not a duration", rule="duration", seen=text, wanted="such as 30s or 5m") from error


def _tell(alarm: Alarm, webhook: str | None) -> None:
    """Say an alarm, and post it; a webhook that does not answer must not hide the alarm itself."""
    here = console()
    here.warn(f"{alarm.kind}: {alarm.message}")
    if webhook is None:
        return
    try:
        httpx.post(
            webhook, json={"alarm": alarm.kind, "message": alarm.message, "details": alarm.details}, timeout=WEBHOOK_SECONDS
        ).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        here.warn(f"the webhook did not take the alarm: {type(error).__name__}: {error}")
