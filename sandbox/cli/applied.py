"""``sealrig policy apply|list``: which policy holds for which tenant on a control plane (operator)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandbox.cli.console import console
from sandbox.cli.context import ServerOption, client

app = typer.Typer(help="Apply policies to tenants.")


@app.command("apply")
def apply(
    policy: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A policy file.")],
    tenant: Annotated[str, typer.Option("--tenant", help="For whose jobs it holds from now on.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what it would do to leases that wait.")] = False,
    server: ServerOption = None,
) -> None:
    """Apply a policy to a tenant. Jobs that were signed under the earlier one are refused from then on; running leases go on."""
    from policies.loader import POLICY_MAX_BYTES, load_policy

    with policy.open("rb") as file:
        raw = file.read(POLICY_MAX_BYTES + 1)
    load_policy(raw)  # what is wrong with it is said here, before anything is sent
    with client(server) as control:
        change = control.apply_policy(tenant, raw, dry_run=dry_run)
    here = console()
    for effect in change.queued:
        if not effect.allowed:
            here.say(f"{effect.lease} ({effect.name}) waits and is denied: {'; '.join(reason.rule for reason in effect.reasons)}")
    here.emit(change, f"{change.name} {'holds' if change.applied else 'would hold'} for {change.tenant}\n{change.digest}")


@app.command("list")
def list_(server: ServerOption = None) -> None:
    """List which policy holds for which tenant."""
    with client(server) as control:
        found = control.policies()
    rows = [{"tenant": item.tenant, "policy": item.name, "digest": item.digest} for item in found]
    console().emit(found, lambda: console().table(rows, empty="no policies were applied; the server's own holds"))
