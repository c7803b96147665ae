"""``sealrig trust tpm``: enrol a node's TPM, so that its attestation key may stand in a trust file. Works offline."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from sandbox.cli.console import console
from sandbox.cli.files import new_file, small_file

app = typer.Typer()
tpm_app = typer.Typer(help="Enrol a node's TPM: challenge its offer, accept its answer.")
app.add_typer(tpm_app, name="tpm")
_FILE: Any = {"exists": True, "dir_okay": False}


@tpm_app.command("challenge")
def challenge(
    offer: Annotated[Path, typer.Argument(metavar="OFFER", help="What 'sealrig node attest offer' wrote.", **_FILE)],
    out_file: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write the challenge, for the node.")],
    pending_file: Annotated[Path, typer.Option("--pending", metavar="FILE", help="Where to keep the secret until the answer (mode 0600).")],
    ek: Annotated[list[str] | None, typer.Option("--ek", metavar="sha256:…", help="An endorsement key that you approve.")] = None,
    ek_roots: Annotated[
        Path | None, typer.Option("--ek-roots", metavar="FILE", help="Roots (PEM) of the makers whose TPMs you accept.", **_FILE)
    ] = None,
    ek_chain: Annotated[
        Path | None, typer.Option("--ek-chain", metavar="FILE", help="Intermediate certificates (PEM) below the roots.", **_FILE)
    ] = None,
    ek_crl: Annotated[
        list[Path] | None, typer.Option("--ek-crl", metavar="FILE", help="A maker's revocation list; may be repeated.", **_FILE)
    ] = None,
    ek_crl_max_age: Annotated[
        int | None, typer.Option("--ek-crl-max-age", metavar="DAYS", min=1, help="Want lists for all certificates, no older than this.")
    ] = None,
) -> None:
    """Answer a node's offer with a secret that only its TPM can open. Name the endorsement key, or its maker's roots."""
    from attestation.verify.certificates import load_chain
    from attestation.verify.enrolment import make_challenge
    from attestation.verify.statuses import StatusFiles

    made, pending, steps = make_challenge(
        small_file(offer),
        at=datetime.now(UTC),
        roots=load_chain(small_file(ek_roots)) if ek_roots is not None else (),
        intermediates=load_chain(small_file(ek_chain)) if ek_chain is not None else (),
        approved=ek or (),
        statuses=StatusFiles(crls=[small_file(path) for path in ek_crl or []]),
        status_max_age=timedelta(days=ek_crl_max_age) if ek_crl_max_age is not None else None,
    )
    new_file(pending_file, pending.to_payload(), mode=0o600)
    new_file(out_file, made.to_payload())
    document = {"challenge": str(out_file), "pending": str(pending_file), "node": made.node, "basis": pending.basis}
    lines = [f"ok  {step.step}: {step.seen} ({step.wanted})" for step in steps.all]
    console().emit(document, "\n".join([*lines, str(out_file)]))


@tpm_app.command("accept")
def accept(
    answer: Annotated[Path, typer.Argument(metavar="ANSWER", help="What 'sealrig node attest activate' wrote.", **_FILE)],
    pending_file: Annotated[Path, typer.Option("--pending", metavar="FILE", help="What the challenge kept.", **_FILE)],
) -> None:
    """Accept a node's answer and print the line for the trust file."""
    from attestation.enrolment import Pending
    from attestation.verify.enrolment import accept_answer

    found = accept_answer(small_file(answer), Pending.from_payload(small_file(pending_file)))
    pending_file.unlink()  # one challenge is answered once
    document = {"node": found.node, "basis": found.basis, "trust": {"tpm": {"keys": {found.node: found.ak}}}}
    console().emit(document, f'proven: {found.basis}\nPut this into your trust file:  tpm: {{keys: {{{found.node}: "{found.ak}"}}}}')
