"""``sealrig key``: identities."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandbox.cli.console import console
from sandbox.cli.context import PassphraseOption, passphrase

app = typer.Typer(help="Make and show identities.")


@app.command("new")
def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where identity.key (0600) and identity.pub are written.")],
    protect: Annotated[bool, typer.Option("--passphrase", help="Encrypt identity.key under a passphrase that is asked for.")] = False,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Make a new identity. An existing one is never overwritten.

    Whoever has identity.key can open your bundles and results and release their keys: keep a copy in a safe place. There is no
    other way to open what was sealed to it.
    """
    from sandbox.sealing.keys import Identity

    secret = None
    if protect or passphrase_file is not None:
        secret = passphrase(passphrase_file, prompt="New passphrase: ", twice=True)
    made = Identity.generate()
    made.save(folder, secret)
    document = {
        "identity": made.public.fingerprint, "key": str(folder / "identity.key"), "public": str(folder / "identity.pub"),
        "verify_key": made.public.verify_key.text, "passphrase": secret is not None,
    }  # fmt: skip
    console().emit(document, f"identity {made.public.fingerprint} in {folder}")
    if secret is None:
        console().say("identity.key is not encrypted; 'key new --passphrase' makes one that is")


@app.command("show")
def show(folder: Annotated[Path, typer.Argument(metavar="DIR|FILE", help="An identity's folder, or an identity.pub file.")]) -> None:
    """Show the public half of an identity, as others need it to seal to it."""
    from sandbox.sealing.keys import load_public

    public = load_public(folder)
    document = {"identity": public.fingerprint, "verify_key": public.verify_key.text, "public": public.text}
    console().emit(document, lambda: console().fields(document))
