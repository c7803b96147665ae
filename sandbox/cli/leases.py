"""``sealrig lease``: follow leases, read their logs, fetch results and receipts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sandbox.cli.console import console, counted, shown
from sandbox.cli.context import KeyOption, PassphraseOption, ServerOption, TrustOption, client, identity, state, trust_file
from sandbox.cli.following import Deadline, followed
from sandbox.lifecycle import TERMINAL, LeaseState, Outcome

if TYPE_CHECKING:
    from sandbox.wire import LeaseInfo

app = typer.Typer(help="Follow leases; fetch logs, results and receipts.")
LeaseArgument = Annotated[str, typer.Argument(metavar="LEASE", help="lease-… as 'job submit' printed it.")]


@app.command("list")
def list_(
    only: Annotated[LeaseState | None, typer.Option("--state", help="Only leases in this state.", show_default=False)] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=500, help="How many at most, newest first.")] = 50,
    server: ServerOption = None,
) -> None:
    """List your tenant's leases, newest first."""
    with client(server) as control:
        found = control.leases(only, limit=limit)
    rows = [{"lease": each.id, "state": state_words(each), "job": each.name, "changed": each.updated_at} for each in found]
    console().emit(found, lambda: console().table(rows, empty="no leases; submit one with 'sealrig job submit JOB.yaml'"))


@app.command("show")
def show(lease: LeaseArgument, server: ServerOption = None) -> None:
    """Show one lease: where it stands, how it came there, and why."""
    with client(server) as control:
        info = control.lease(checked(lease))
    console().emit(info, lambda: _show(info))


@app.command("watch")
def watch(lease: LeaseArgument, server: ServerOption = None) -> None:
    """Follow a lease until it ends. Exit code 1 if its job did not succeed or its wipe was not proven."""
    out = console()
    with client(server) as control:
        *_, info = followed(control, checked(lease), Deadline())
    error = end_error(info)
    if error is not None:
        out.fail(info.model_dump(mode="json"), error)
    out.emit(info, f"{info.id}  {state_words(info)}")


@app.command("logs")
def logs(
    lease: LeaseArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    key: KeyOption = None,
    passphrase_file: PassphraseOption = None,
    server: ServerOption = None,
) -> None:
    """Print a job's output. It is sealed on the node and opened here; a log that was cut or changed is an error."""
    from sandbox.customer.results import read_logs

    out = console()
    me = identity(key, passphrase_file)
    kept = bytearray()
    with client(server) as control:
        for text in read_logs(control, me, checked(lease), follow=follow):
            if out.json:
                kept += text
            else:
                sys.stdout.buffer.write(text)
                sys.stdout.buffer.flush()
    if out.json:
        out.emit({"lease": lease, "text": kept.decode("utf-8", "replace")})


@app.command("cancel")
def cancel(lease: LeaseArgument, server: ServerOption = None) -> None:
    """Ask for a lease's end. A node that was touched wipes before the lease is over."""
    with client(server) as control:
        info = control.cancel(checked(lease))
    console().emit(info, f"{info.id}  {state_words(info)}{'' if info.state in TERMINAL else ': the node will stop and wipe'}")


@app.command("results")
def results(
    lease: LeaseArgument,
    dest: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the files go; an empty or new folder.")],
    key: KeyOption = None,
    trust: TrustOption = None,
    passphrase_file: PassphraseOption = None,
    server: ServerOption = None,
) -> None:
    """Fetch a lease's results and open them here. Only files that the node of this lease sealed are accepted."""
    from policies.units import format_size
    from sandbox.customer.results import open_results

    out = console()
    me = identity(key, passphrase_file)
    with client(server) as control, out.progress("fetching") as progress:
        digest, opened = open_results(control, me, state(), checked(lease), dest, trust=lambda: trust_file(trust), progress=progress)
    document = {"lease": lease, "bundle": digest, "path": str(dest), "files": opened.files, "size": opened.size}
    out.emit(document, f"{counted(opened.files, 'file')}, {format_size(opened.size)}, in {dest}")


@app.command("receipt")
def receipt(
    lease: LeaseArgument,
    file: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write it.")],
    server: ServerOption = None,
) -> None:
    """Fetch a lease's receipt: one file that proves the whole lease offline ('sealrig receipt verify')."""
    from sandbox.customer.state import write_whole

    with client(server) as control:
        raw = control.receipt(checked(lease))
    write_whole(file, raw)
    console().emit(
        {"lease": lease, "path": str(file), "size": len(raw)}, f"{file}  {len(raw)} bytes; check it with 'sealrig receipt verify {file}'"
    )


def checked(lease: str) -> str:
    """Return the id. Raises ``UsageError`` for what is none, before it becomes part of a URL."""
    from sandbox.customer.state import checked_lease

    return checked_lease(lease)


def state_words(info: LeaseInfo) -> str:
    """Return a lease's state with how its job ended."""
    if info.outcome is None:
        return info.state.value
    code = f" {info.exit_code}" if info.outcome is Outcome.FAILED and info.exit_code is not None else ""
    return f"{info.state.value} ({info.outcome.value}{code})"


def end_error(info: LeaseInfo) -> Exception | None:
    """Return what was wrong with how a lease ended; None for a job that succeeded on a node that was proven wiped."""
    from sandbox.errors import DeniedError, StateError, WipeError

    if info.state is LeaseState.QUARANTINED:
        return WipeError(f"lease {info.id}: the node could not prove its wipe", rule="wipe", seen=info.detail or "a failed step",
                         wanted="every step of the wipe proven", fix="read the receipt; the operator must look at the node")  # fmt: skip
    if info.state is LeaseState.DENIED:
        return DeniedError(f"lease {info.id} was denied", reasons=[denial.model_dump() for denial in info.denials])
    if info.outcome is Outcome.SUCCEEDED:
        return None
    fixes = {
        Outcome.FAILED: "see 'sealrig lease logs'",
        Outcome.TIME_LIMIT: "raise lease.duration",
        Outcome.MEMORY_LIMIT: "raise resources.memory",
        Outcome.DISK_LIMIT: "raise resources.scratch",
        Outcome.OUTPUT_LIMIT: "raise output.maxSize",
        Outcome.NODE_FAILURE: "submit the job again",
        Outcome.EXPIRED: "check that a node is free and that 'sealrig release --watch' runs, then submit again",
    }
    return StateError(
        f"lease {info.id} ended: {state_words(info)}",
        rule="lease-outcome",
        seen=info.detail or state_words(info),
        wanted="succeeded",
        fix=fixes.get(info.outcome, "") if info.outcome is not None else "",
        exit_code=info.exit_code,
    )


def _show(info: LeaseInfo) -> None:
    out = console()
    fields = {
        "lease": info.id,
        "job": info.name,
        "state": state_words(info),
        "detail": info.detail,
        "image": info.image,
        "node": info.node,
        "level": info.level,
        "job digest": info.job_digest,
        "policy": info.policy_digest,
        "result": info.result,
        "submitted": info.created_at,
    }
    out.fields({name: value for name, value in fields.items() if value not in (None, "")})
    for denial in info.denials:
        out.print(f"denied     {denial.rule}: seen {shown(denial.seen)}; wanted {shown(denial.wanted)}; fix: {shown(denial.fix)}")
    for step in info.history:
        entry = f"log {step.log_index}" if step.log_index is not None else ""
        out.print(f"  {shown(step.at)}  {step.state.value:<11} {entry:<9} {shown(step.detail) if step.detail else ''}".rstrip())
