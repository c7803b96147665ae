"""``sealrig push`` and ``sealrig bundle``: bundles on the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandbox.cli.console import console
from sandbox.cli.context import ServerOption, client, state

app = typer.Typer(help="List, show and delete uploaded bundles.")
DigestArgument = Annotated[str, typer.Argument(metavar="DIGEST", help="blake3:… as 'push' and 'seal' print it.")]


def push(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A bundle made by 'sealrig seal'.", exists=True, dir_okay=False)],
    server: ServerOption = None,
) -> None:
    """Upload a bundle. An upload that was cut off goes on at the exact byte where it stopped."""
    from policies.units import format_size
    from sandbox.customer.upload import push as upload

    out = console()
    with client(server) as control, out.progress("hashing") as hashing, out.progress("uploading") as sending:
        done = upload(control, file, state(), progress=sending, hashing=hashing)
    if done.sent == 0:
        out.say("the server has this bundle already")
    document = {"digest": done.digest, "size": done.size, "sent": done.sent}
    out.emit(document, f"{done.digest}  {format_size(done.size)}")


@app.command("list")
def list_(server: ServerOption = None) -> None:
    """List your tenant's bundles."""
    from policies.units import format_size

    with client(server) as control:
        found = control.bundles()
    rows = [{"bundle": each.digest, "size": format_size(each.size), "uploaded": each.created_at} for each in found]
    console().emit(found, lambda: console().table(rows, empty="no bundles; upload one with 'sealrig push FILE'"))


@app.command("show")
def show(digest: DigestArgument, server: ServerOption = None) -> None:
    """Show one bundle."""
    with client(server) as control:
        found = control.bundle(checked(digest))
    console().emit(found, lambda: console().fields({"bundle": found.digest, "size": found.size, "uploaded": found.created_at}))


@app.command("delete")
def delete(digest: DigestArgument, server: ServerOption = None) -> None:
    """Delete a bundle from the server. The file on your machine stays."""
    with client(server) as control:
        control.delete_bundle(checked(digest))
    console().emit({"digest": digest, "deleted": True}, f"deleted {digest}")


def checked(digest: str) -> str:
    """Return a bundle digest. Raises ``UsageError`` for what is none, before it becomes part of a URL."""
    from sandbox.errors import UsageError
    from sandbox.model import is_bundle_digest

    if not is_bundle_digest(digest):
        raise UsageError(
            "not a bundle digest",
            rule="bundle-digest",
            seen=digest[:100],
            wanted="blake3: and 64 hex digits",
            fix="see 'sealrig bundle list'",
        )
    return digest
