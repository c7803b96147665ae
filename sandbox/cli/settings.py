"""``sealrig config``: server address and token, kept in the configuration file (0600)."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from sandbox.cli.console import console
from sandbox.cli.context import ServerOption, client, secret_line

app = typer.Typer(help="Keep server address and token.")


@app.command("login")
def login(
    server: Annotated[str, typer.Argument(metavar="URL", help="The control plane's address.")],
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help="Read the token from a file ('-': stdin) instead of asking.", show_default=False),
    ] = None,
) -> None:
    """Try a token and keep it, with the server's address, in the configuration file."""
    from sandbox.config import config_path, save_settings
    from sandbox.customer.client import Client
    from sandbox.errors import UsageError

    out = console()
    if token_file is None and not out.interactive:
        raise UsageError(
            "there is no terminal to ask for the token on",
            rule="token",
            seen="no terminal",
            wanted="a terminal or --token-file",
            fix="use --token-file FILE ('-' reads stdin)",
        )
    token = secret_line(token_file) if token_file is not None else getpass.getpass("Token: ")
    with Client(server, token) as control:
        who = control.whoami()
        save_settings(server=control.base, token=token)
    out.emit(
        {"config": str(config_path()), "server": server, "role": who.role, "tenant": who.tenant},
        f"{who.role} of {who.tenant}; kept in {config_path()}",
    )


@app.command("whoami")
def whoami(server: ServerOption = None) -> None:
    """Show who the server takes you for."""
    with client(server) as control:
        who = control.whoami()
        document = {"server": control.base, "token": who.token, "role": who.role, "tenant": who.tenant}
    console().emit(document, lambda: console().fields(document))
