"""``sealrig job``: check and submit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandbox.cli.console import console
from sandbox.cli.context import KeyOption, PassphraseOption, ServerOption, client, identity, server_named, state

app = typer.Typer(help="Check and submit jobs.")
JobArgument = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job file.", exists=True, dir_okay=False)]


@app.command("check")
def check(
    file: JobArgument,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", metavar="FILE", help="Check against this policy instead of the server's.", exists=True, dir_okay=False),
    ] = None,
    tenant: Annotated[str, typer.Option("--tenant", help="The tenant that --policy is asked about.")] = "default",
    server: ServerOption = None,
) -> None:
    """Check a job without submitting it: its form, what looks like a secret, and what the policy would say."""
    from policies.loader import load_policy
    from sandbox.customer.jobs import check_job, denied
    from sandbox.job import parse_job

    out = console()
    job = parse_job(file.read_bytes())
    if policy is not None:
        found = check_job(job, load_policy(policy.read_bytes()), tenant, None)
    elif server is not None or server_named(server):
        from attestation.signing import b64decode

        with client(server) as control:
            found = check_job(job, load_policy(b64decode(control.policy().raw)), control.whoami().tenant, control)
    else:
        found = check_job(job, None, tenant, None)
    for warning in found.warnings:
        out.warn(warning)
    decision = found.decision
    document = {
        "ok": found.ok,
        "job": job.metadata.name,
        "warnings": list(found.warnings),
        "policy": found.policy,
        "reasons": [
            {"rule": each.rule, "seen": each.seen, "wanted": each.wanted, "fix": each.fix}
            for each in (decision.reasons if decision else ())
        ],
        "missing": list(found.missing),
        "deferred": list(decision.deferred) if decision else [],
    }
    if not found.ok:
        out.fail(document, denied(found))
    if decision is None:
        out.say("no policy was checked: name one with --policy, or a server with --server")
    elif decision.deferred:
        out.say(f"decided when a node is known: {', '.join(decision.deferred)}")
    out.emit(document, f"{file}: ok{'' if decision is None else ', the policy allows it'}")


@app.command("submit")
def submit(
    file: JobArgument,
    key: KeyOption = None,
    passphrase_file: PassphraseOption = None,
    lease: Annotated[
        str | None, typer.Option("--lease", metavar="LEASE", help="Send an earlier submission again, as it was signed.", show_default=False)
    ] = None,
    server: ServerOption = None,
) -> None:
    """Sign a job and submit it. Run 'sealrig release --watch' beside it: no node gets a key without your agent's yes."""
    from sandbox.customer.jobs import submit_job
    from sandbox.customer.state import checked_lease
    from sandbox.job import parse_job, secret_warnings

    out = console()
    job = parse_job(file.read_bytes())
    for warning in secret_warnings(job):
        out.warn(warning)
    me = identity(key, passphrase_file)
    with client(server) as control:
        info = submit_job(control, me, state(), job, lease=checked_lease(lease) if lease else None)
    out.say(f"no node gets a key before your agent says yes: sealrig release {info.id}, or one 'sealrig release --watch' for all")
    out.emit({"lease": info.id, "state": info.state}, f"{info.id}  {info.state}")
