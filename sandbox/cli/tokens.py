"""``sealrig token``: who may do what on a control plane (operator)."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from sandbox.cli.console import console
from sandbox.cli.context import ServerOption, client

app = typer.Typer(help="Issue, list and revoke tokens.")


@app.command("new")
def new(
    role: Annotated[Literal["customer", "operator", "auditor", "node"], typer.Option("--role", help="What the token may do.")],
    tenant: Annotated[str, typer.Option("--tenant", help="Whose token it is, for example a customer's name.")],
    ttl: Annotated[
        str | None,
        typer.Option("--ttl", metavar="TIME", help="How long it is valid, such as 30d. For ever if not given.", show_default=False),
    ] = None,
    server: ServerOption = None,
) -> None:
    """Issue a token. Its secret is printed once, and nothing can show it again."""
    from policies.units import parse_duration
    from sandbox.errors import UsageError
    from sandbox.wire import TokenRequest

    try:
        wanted = TokenRequest(role=role, tenant=tenant, ttl_seconds=parse_duration(ttl) if ttl else None)
    except ValueError as error:
        raise UsageError(
            "not a token that can be issued",
            rule="token-request",
            seen=f"tenant {tenant!r}, ttl {ttl!r}"[:200],
            wanted="a tenant of a-z, 0-9 and '-', a ttl of 1m to 366d",
            fix="correct --tenant or --ttl",
        ) from error
    with client(server) as control:
        issued = control.new_token(wanted)
    console().say(f"{issued.role} token {issued.id} for {issued.tenant}; its secret is shown this once:")
    console().emit(issued, issued.token)


@app.command("list")
def list_(server: ServerOption = None) -> None:
    """List tokens, without their secrets."""
    with client(server) as control:
        found = control.tokens()
    rows = [
        {"token": t.id, "role": t.role, "tenant": t.tenant, "created": t.created_at, "expires": t.expires_at, "revoked": t.revoked_at}
        for t in found
    ]
    console().emit(found, lambda: console().table(rows, empty="no tokens"))


@app.command("revoke")
def revoke(
    token: Annotated[str, typer.Argument(metavar="TOKEN-ID", help="token-… as 'token list' shows it.")], server: ServerOption = None
) -> None:
    """Revoke a token at once."""
    import re

    from sandbox.errors import UsageError

    if not re.fullmatch(r"token-[0-9a-f]{32}", token):
        raise UsageError(
            "not a token's id", rule="token-id", seen="something else", wanted="token- and 32 hex digits", fix="see 'sealrig token list'"
        )
    with client(server) as control:
        control.revoke_token(token)
    console().emit({"token": token, "revoked": True}, f"revoked {token}")
