"""``sealrig policy apply|list|history``: which policy holds, or held, for which tenant on a control plane, and who changed it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attestation.errors import VerificationError
from sandbox.cli.console import console, printable
from sandbox.cli.context import ServerOption, client
from sandbox.cli.logs import LogKey, LogPlace, TrustFile, accepted_log, open_log
from sandbox.wire import MAX_CHANGES

if TYPE_CHECKING:
    from attestation.log.reader import LogReader
    from attestation.log.rules import LogRules
    from sandbox.customer.client import Client
    from sandbox.wire import LoggedPolicyChange, PolicyChange

app = typer.Typer(help="Apply policies to tenants.")


@app.command("apply")
def apply(
    policy: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A policy file.")],
    tenant: Annotated[str, typer.Option("--tenant", help="For whose jobs it holds from now on.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; show the difference and what it would do.")] = False,
    server: ServerOption = None,
) -> None:
    """Apply a policy to a tenant. Leases that wait are denied where it denies them; running ones go on under the earlier one."""
    from policies.loader import POLICY_MAX_BYTES, load_policy

    with policy.open("rb") as file:
        raw = file.read(POLICY_MAX_BYTES + 1)
    load_policy(raw)  # what is wrong with it is said here, before anything is sent
    with client(server) as control:
        change = control.apply_policy(tenant, raw, dry_run=dry_run)
    console().emit(change, lambda: _tell(change))


def _tell(change: PolicyChange) -> None:
    here = console()
    if not change.applied:
        here.print(printable(change.diff) or "no difference")
    rows = [
        {
            "lease that waits": each.lease,
            "name": each.name,
            "": ("goes on" if each.allowed else "is denied") if change.applied else ("would go on" if each.allowed else "would be denied"),
            "by": ", ".join(reason.rule for reason in each.reasons),
        }
        for each in change.queued
    ]
    here.table(rows, empty="no lease waits")
    here.print(f"{change.name} {'holds' if change.applied else 'would hold'} for {change.tenant}\n{change.digest}")


@app.command("list")
def list_(server: ServerOption = None) -> None:
    """List which policy holds for which tenant."""
    with client(server) as control:
        found = control.policies()
    rows = [{"tenant": item.tenant, "policy": item.name, "digest": item.digest} for item in found]
    console().emit(found, lambda: console().table(rows, empty="no policies were applied; the server's own holds"))


@app.command("history")
def history(
    tenant: Annotated[str | None, typer.Option("--tenant", help="Whose policy (operator, auditor); left out: your tenant's.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=MAX_CHANGES, help="How many changes at most, the newest.")] = 20,
    log: LogPlace = None,
    key: LogKey = None,
    trust: TrustFile = None,
    server: ServerOption = None,
) -> None:
    """Show who changed a policy, when, and the difference. Each change is proven from the audit log. Exit code 1 where one is not."""
    with client(server) as control:
        found = control.policy_changes(tenant, limit=limit)
        reader = open_log(log or server)
        rules = accepted_log(reader, key, trust).rules
        rows = [_proven(control, reader, rules, change) for change in found]
    for newer, older in pairwise(rows):
        if newer["before"] != older["after"]:
            raise VerificationError("the server left a change out", rule="policy-history",
                                    seen=f"entry {newer['index']} follows another policy than entry {older['index']} set",
                                    wanted="changes that follow from each other",
                                    fix="see 'sealrig audit list --type policy.applied', and ask the operator")  # fmt: skip
    here = console()

    def tell() -> None:
        for row in rows:
            here.print(f"entry {row['index']}: {row['occurred_at']} by {row['actor']}: {row['before'] or 'none'} → {row['after']}")
            here.print(printable(f"{row['diff']}\n" if row["diff"] else "no difference\n"))

    here.emit({"changes": rows}, tell)


def _proven(control: Client, reader: LogReader, rules: LogRules, change: LoggedPolicyChange) -> dict[str, object]:
    """Return what the log says of a change. Raises ``VerificationError`` or ``LogError`` where document, texts or entry do not agree."""
    from attestation.document import time_text
    from attestation.log.leaf import Leaf
    from attestation.log.proof import TlogProof
    from attestation.policy_change import verify_change
    from attestation.signing import b64decode

    (entry,) = reader.extract([change.log_index]).entries
    rules.check(TlogProof.from_text(entry.proof), entry.leaf, rules.follow(reader))
    leaf = Leaf.from_bytes(entry.leaf)
    before = None if change.before is None else control.policy_text(change.before)
    document = verify_change(b64decode(change.document), leaf, before, control.policy_text(change.after))
    return {
        "index": entry.index,
        "occurred_at": time_text(leaf.occurred_at),
        "actor": leaf.actor_ref,
        "tenant_ref": leaf.tenant_ref,
        "before": document.before,
        "after": document.after,
        "diff": document.diff,
        "document": leaf.evidence.digest if leaf.evidence else None,
    }
