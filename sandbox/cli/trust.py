"""``sealrig trust``: the file that decides which nodes may have your keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sandbox.cli.console import console, counted
from sandbox.cli.context import ServerOption, TrustOption, client, trust_file

app = typer.Typer(help="Make, check and explain a trust file.")


@app.command("init")
def init(
    out_file: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write it; an existing file is kept.")] = Path(
        "TRUST.yaml"
    ),
    level: Annotated[
        Literal["software", "measured", "confidential", "confidential-gpu"],
        typer.Option("--level", help="The least assurance that you accept."),
    ] = "software",
    server: ServerOption = None,
) -> None:
    """Write a first trust file from the nodes and the log key that the server shows. Compare the keys it prints before you use it."""
    from sandbox.customer.trustfile import draft_trust, load_trust
    from sandbox.errors import InputError

    out = console()
    with client(server) as control:
        text = draft_trust(control, level)
    try:
        with out_file.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise InputError(f"{out_file} exists already", rule="trust-overwrite", seen="an existing file", wanted="a new file",
                         fix="name another with -o, or remove it first") from error  # fmt: skip
    trust = load_trust(out_file)
    document = {"trust": str(out_file), "level": trust.spec.level, "nodes": dict(trust.spec.nodes), "log": trust.spec.log.key}
    out.emit(document, lambda: out.fields({"trust file": out_file, **trust.spec.nodes, trust.spec.log.origin: trust.spec.log.key}))
    out.warn("these keys are the server's word: compare them with what the operator and an auditor tell you by another way")


@app.command("check")
def check(file: Annotated[Path | None, typer.Argument(metavar="FILE", show_default=False)] = None, trust: TrustOption = None) -> None:
    """Check that a trust file is well formed."""
    found = trust_file(file or trust)
    document = {"ok": True, "digest": found.digest, "level": found.spec.level, "nodes": len(found.spec.nodes)}
    console().emit(document, f"ok: level {found.spec.level}, {counted(len(found.spec.nodes), 'node')}, {found.digest}")


@app.command("explain")
def explain(file: Annotated[Path | None, typer.Argument(metavar="FILE", show_default=False)] = None, trust: TrustOption = None) -> None:
    """Say in words what a trust file accepts, and what it leaves open."""
    from sandbox.customer.releases import explain_releases
    from sandbox.customer.trustfile import explain_trust

    found = trust_file(file or trust)
    lines = dict([*explain_trust(found), *explain_releases(found)])
    console().emit(lines, lambda: console().fields(lines))
