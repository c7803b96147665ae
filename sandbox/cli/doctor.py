"""``sealrig node doctor``: what state this host is in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from sandbox.cli.console import console
from sandbox.errors import EngineError, InputError

if TYPE_CHECKING:
    from sandbox.node.engine import EngineFacts

app = typer.Typer()


@app.command()
def doctor(
    policy: Annotated[
        str | None,
        typer.Option("--policy", metavar="FILE", help="Exit with 1 unless each check that this policy demands passes; or profile:NAME."),
    ] = None,
    docker: Annotated[
        str, typer.Option("--docker", metavar="URL", help="The engine. [DOCKER_HOST, the usual socket]", show_default=False)
    ] = "",
) -> None:
    """Make every posture check and say how to fix what did not pass. A check that cannot be made is unknown, never a pass."""
    from sandbox.node.doctor import run_checks

    checks = run_checks(facts=_engine_facts(docker))
    demanded = _demanded(policy)
    results = {check.id: check.result for check in checks}
    missing = [name for name in demanded if results.get(name) != "pass"]
    counts = {result: sum(check.result == result for check in checks) for result in ("pass", "fail", "unknown")}
    document = {"ok": not missing, "checks": checks, "counts": counts, "demanded": demanded}
    here = console()
    if not here.json:
        here.table([{"check": check.id, "result": check.result, "seen": check.seen, "wanted": check.wanted} for check in checks])
        for check in checks:
            if check.result != "pass":
                here.say(f"{check.id}: {check.fix}")
    if missing:
        here.fail(document, InputError(f"{len(missing)} checks that the policy demands do not pass", rule="posture-required",
                                       seen=", ".join(f"{name}: {results.get(name, 'unknown')}" for name in missing), wanted="pass",
                                       fix="see the fix of each check above"))  # fmt: skip
    here.emit(document, f"{counts['pass']} pass, {counts['fail']} fail, {counts['unknown']} unknown")


def _engine_facts(docker: str) -> EngineFacts | None:
    try:
        from sandbox.node.engine import DEFAULT_SOCKET, Engine
    except ModuleNotFoundError:
        return None
    try:
        return Engine(docker or os.environ.get("DOCKER_HOST") or DEFAULT_SOCKET).facts()
    except EngineError:
        return None


def _demanded(policy: str | None) -> tuple[str, ...]:
    if policy is None:
        return ()
    from sandbox.cli.policy import policy_at

    return policy_at(policy).policy.spec.posture.require
