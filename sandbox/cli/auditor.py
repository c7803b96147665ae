"""``sealrig audit``: read, search, export, verify and watch the audit log; prove entries; cosign it; erase a subject's values."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from attestation.log.errors import TileError
from attestation.log.export import FORMATS, export
from attestation.log.history import ForkEvidence
from attestation.log.note import Checkpoint, Note
from attestation.log.proof import TlogProof
from attestation.log.query import Found, Query, find_id
from attestation.log.reader import LogReader
from attestation.log.rules import LogRules
from attestation.log.verify import verify_log
from sandbox.cli.committed import committed_values
from sandbox.cli.console import console, counted
from sandbox.cli.keeping import erase, rotate
from sandbox.cli.logs import LogKeys, LogPlace, TrustFile, accepted_log, accepted_offline, one_key, open_log
from sandbox.cli.witnesses import watch, witness
from sandbox.errors import InputError, NotFoundError, UsageError

app = typer.Typer(no_args_is_help=True)
app.command()(watch)
app.command()(erase)
app.command("rotate-key")(rotate)
app.command()(witness)

_Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help="Not before this time (RFC 3339, or a date).")]
_Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before this time.")]
_Type = Annotated[str | None, typer.Option("--type", help="A kind of entry, such as lease.closed; lease.* for all of them.")]
_Actor = Annotated[str | None, typer.Option("--actor", help="Who did it: a token id, a node id, server.")]
_Tenant = Annotated[str | None, typer.Option("--tenant", metavar="REF", help="The tenant's random id.")]
_Node = Annotated[str | None, typer.Option("--node", metavar="NODE", help="What a node did, and what was done to it.")]
_Lease = Annotated[str | None, typer.Option("--lease", metavar="LEASE", help="One lease.")]
_Outcome = Annotated[str | None, typer.Option("--outcome", help="How it ended.")]
_Text = Annotated[str | None, typer.Option("--text", help="Any text in the entry: an id, a digest.")]
_UNPROVEN = "as the log shows it, not proven: 'sealrig audit verify' checks the whole log"
_Entry = Annotated[str, typer.Argument(metavar="ENTRY", help="An entry's index, or its id.")]


@app.command("list")
def list_(
    log: LogPlace = None,
    since: _Since = None,
    until: _Until = None,
    kind: _Type = None,
    actor: _Actor = None,
    tenant: _Tenant = None,
    node: _Node = None,
    lease: _Lease = None,
    outcome: _Outcome = None,
    text: _Text = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000_000, help="How many entries at most.")] = 50,
    oldest: Annotated[bool, typer.Option("--oldest-first", help="Begin with the oldest entry.")] = False,
) -> None:
    """List entries that match, newest first, as the log shows them: nothing is proven here, 'audit verify' checks the whole log."""
    reader = open_log(log)
    query = _query(since, until, kind, actor, tenant, node, lease, outcome, text)
    rows = [_row(found) for found in islice(query.run(reader, newest_first=not oldest), limit)]
    here = console()
    here.say(_UNPROVEN)
    here.emit(
        {"origin": _head(reader).origin, "entries": rows, "proven": False},
        lambda: here.table([_short(row) for row in rows], empty="no entry matches"),
    )


@app.command()
def show(
    entry: _Entry,
    log: LogPlace = None,
    open_: Annotated[
        bool, typer.Option("--open", help="Also ask the server, with your token, for the values that the entry only commits to.")
    ] = False,
) -> None:
    """Show one entry as it was logged, once it is proven to stand in the tree of the log's checkpoint (whose signature is not looked at).

    Values that it commits to are shown with --open, to those who may see them.
    """
    found, _ = _find(open_log(log), entry)
    said = json.loads(found.raw)
    opened = committed_values(found, log) if open_ else {}
    document = {"index": found.index, "entry": said, **({"committed": opened} if open_ else {})}
    shown = {name: value for name, value in said.items() if name != "commitments"}
    if found.leaf.evidence is not None:
        shown["evidence"] = f"{found.leaf.evidence.digest} ({found.leaf.evidence.media_type})"
    for each in found.leaf.commitments:
        shown[f"committed {each.field}"] = (opened[each.field] or "erased") if open_ else "not told"
    here = console()
    here.emit(document, lambda: here.fields({"index": found.index, **shown}))


@app.command("export")
def export_(
    log: LogPlace = None,
    form: Annotated[str, typer.Option("--format", metavar="jsonl|ocsf|cef", help="JSON lines, OCSF or CEF.")] = "jsonl",
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="A new file; standard output without it.")] = None,
    since: _Since = None,
    until: _Until = None,
    kind: _Type = None,
    actor: _Actor = None,
    tenant: _Tenant = None,
    node: _Node = None,
    lease: _Lease = None,
    outcome: _Outcome = None,
    text: _Text = None,
) -> None:
    """Write entries for other tools, oldest first. What is written is derived, and not proven; the log itself is the evidence."""
    if form not in FORMATS:
        raise UsageError("no such format", rule="export-format", seen=form, wanted=", ".join(FORMATS))
    reader = open_log(log)
    here = console()
    if out is None and here.json:
        raise UsageError(
            "--json needs --out", rule="export-out", seen="entries and one document on stdout", wanted="-o FILE", fix="add -o FILE"
        )
    query = _query(since, until, kind, actor, tenant, node, lease, outcome, text)
    here.say(_UNPROVEN)
    with here.progress("exporting", "entries") as progress:
        # No bar among the lines, where both go to one terminal.
        told = None if out is None and sys.stdout.isatty() else progress
        lines = export(_head(reader).origin, query.run(reader, progress=told), form)
        if out is None:
            for line in lines:
                typer.echo(line)
            return
        count = _write_new(out, lines)
    here.emit(
        {"file": out, "format": form, "entries": count, "derived": True, "proven": False},
        f"{counted(count, 'entry', 'entries')} written to {out} (derived from the log)",
    )


@app.command()
def prove(
    entry: _Entry,
    log: LogPlace = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="A new file (.tlog-proof); standard output without it.")
    ] = None,
    leaf: Annotated[
        Path | None, typer.Option("--leaf", metavar="FILE", help="Also write the entry's exact bytes, which the proof is about.")
    ] = None,
) -> None:
    """Give the C2SP tlog-proof of an entry: with the entry's bytes and the log's key, anybody can check it offline."""
    reader = open_log(log)
    found, proof = _find(reader, entry)
    if leaf is not None:
        _write_new(leaf, [found.raw.decode("ascii")], end="")
    if out is not None:
        _write_new(out, [proof], end="")
    document = {"index": found.index, "leaf": found.raw.decode("ascii"), "proof": proof, "file": out}
    console().emit(document, f"proof of entry {found.index} written to {out}" if out else proof.rstrip("\n"))


@app.command()
def verify(
    log: LogPlace = None,
    key: LogKeys = None,
    trust: TrustFile = None,
    held: Annotated[Path | None, typer.Option("--held", metavar="FILE", help="A checkpoint seen before; the log must extend it.")] = None,
    keep: Annotated[
        Path | None, typer.Option("--keep", metavar="FILE", help="Write the verified checkpoint here, to be held against the log.")
    ] = None,
    proof: Annotated[
        Path | None, typer.Option("--proof", metavar="FILE", help="Check one tlog-proof offline instead; needs --leaf.")
    ] = None,
    leaf: Annotated[Path | None, typer.Option("--leaf", metavar="FILE", help="The entry's exact bytes, for --proof.")] = None,
    fork: Annotated[Path | None, typer.Option("--fork", metavar="FILE", help="Check evidence of a fork offline instead.")] = None,
) -> None:
    """Check a whole log: every entry, every tile, the root and the signature; or one proof, or evidence of a fork, offline."""
    here = console()
    if proof is not None or fork is not None:
        _verify_offline(proof, leaf, fork, accepted_offline(key, trust))
        return
    reader = open_log(log)
    accepted = accepted_log(reader, one_key(key), trust)
    workers = len(os.sched_getaffinity(0))
    with here.progress("verifying", "entries") as progress:
        check = verify_log(
            reader, accepted.rules, held=held.read_text(encoding="utf-8") if held else None, progress=progress, workers=workers
        )
    if keep is not None:
        keep.write_text(check.note, encoding="utf-8")
    document = {
        "ok": True,
        "origin": check.checkpoint.origin,
        "size": check.checkpoint.size,
        "root": check.checkpoint.root.hex(),
        "key": accepted.rules.keys[0].text,
        "key_trusted": accepted.trusted,
        "extends_held": held is not None,
        "signers": [{"name": name, "time": time} for name, time in check.signers],
    }
    whose = "with the key that was given" if accepted.trusted else "with the key that the log names itself"
    size = counted(check.checkpoint.size, "entry", "entries")
    witnesses = ", ".join(name for name, moment in check.signers if moment is not None)
    cosigned = f"\ncosigned by {witnesses}" if witnesses else ""
    here.emit(
        document,
        f"{check.checkpoint.origin}: {size}, every one in place, signed {whose}{cosigned}\nroot {document['root']}",
    )


def _verify_offline(proof: Path | None, leaf: Path | None, fork: Path | None, rules: LogRules) -> None:
    chain = rules.from_handovers(())
    if fork is not None:
        evidence = ForkEvidence.from_text(fork.read_text(encoding="utf-8"))
        for note in (evidence.held, evidence.shown):
            chain.open(note)  # a retired key in wrong hands must not pass for the log
        old, new = evidence.verify(chain.keys)
        document: dict[str, object] = {"ok": True, "fork": True, "origin": old.origin, "sizes": [old.size, new.size]}
        console().emit(document, f"proven: {old.origin} signed two histories, seen at {old.size} and {new.size} entries")
        return
    if proof is None or leaf is None:
        raise UsageError(
            "--proof needs --leaf",
            rule="audit-leaf",
            seen="no entry",
            wanted="--leaf FILE",
            fix="'sealrig audit prove --leaf FILE' writes it",
        )
    parsed = TlogProof.from_text(proof.read_text(encoding="utf-8"))
    checkpoint = rules.check(parsed, leaf.read_bytes(), chain)
    document = {"ok": True, "index": parsed.index, "origin": checkpoint.origin, "size": checkpoint.size}
    console().emit(document, f"entry {parsed.index} stands in {checkpoint.origin} ({checkpoint.size} entries)")


def _query(
    since: str | None,
    until: str | None,
    kind: str | None,
    actor: str | None,
    tenant: str | None,
    node: str | None,
    lease: str | None,
    outcome: str | None,
    text: str | None,
) -> Query:
    return Query(kind, actor, tenant, node, lease, outcome, text, _time("--since", since), _time("--until", until))


def _time(flag: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{flag}: not a time", rule="time", seen=text, wanted="such as 2026-11-05 or 2026-11-05T12:00:00Z") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _find(reader: LogReader, entry: str) -> tuple[Found, str]:
    """Return an entry by index or id, and the proof that it stands in the tree of the checkpoint, which is checked.

    Raises ``NotFoundError``, or ``LogError`` where the proof does not hold.
    """
    if entry.isascii() and entry.isdigit():
        index = int(entry[:20])
        found = next(Query().run(reader, start=index, end=index + 1), None)
    else:
        found = find_id(reader, entry)
    if found is None:
        raise NotFoundError(
            f"the log has no entry {entry}", rule="audit-entry", seen=f"{reader.size()} entries", wanted="an index or id in the log"
        )
    (logged,) = reader.extract([found.index]).entries
    if logged.leaf != found.raw:
        raise TileError(
            "the log showed two entries at one place",
            rule="entry-changed",
            seen=found.raw.decode(errors="replace")[:100],
            wanted=logged.leaf.decode(errors="replace")[:100],
        )
    return found, logged.proof


def _row(found: Found) -> dict[str, object]:
    leaf = found.leaf
    return {
        "index": found.index,
        "occurred_at": leaf.occurred_at,
        "type": leaf.type,
        "resource": leaf.resource_ref,
        "actor": leaf.actor_ref,
        "tenant": leaf.tenant_ref,
        "action": leaf.action,
        "outcome": leaf.outcome,
        "evidence": leaf.evidence.digest if leaf.evidence else None,
        "id": leaf.id,
    }


def _short(row: dict[str, object]) -> dict[str, object]:
    """Return what fits a terminal's width; ``show`` and ``--json`` have the rest."""
    return {name: row[name] for name in ("index", "occurred_at", "type", "outcome", "resource", "actor")}


def _head(reader: LogReader) -> Checkpoint:
    return Checkpoint.parse(Note.parse(reader.checkpoint()).text)


def _write_new(path: Path, lines: Iterator[str] | list[str], end: str = "\n") -> int:
    """Write lines to a new file; return how many. Raises ``InputError`` rather than overwrite; leaves no half file, however it ends."""
    count = 0
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError as error:
        raise InputError(f"{path} exists", rule="no-overwrite", seen=str(path), wanted="a new file", fix="name another file") from error
    try:
        with file:
            for count, line in enumerate(lines, start=1):  # noqa: B007  (the last number is the count)
                file.write(line + end)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return count
