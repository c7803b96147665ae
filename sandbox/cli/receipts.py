"""``sealrig receipt``: offline verification of what happened in a lease."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sandbox.cli.console import console
from sandbox.cli.context import TrustOption, trust_file

app = typer.Typer(help="Verify a receipt, offline.")


@app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A receipt from 'sealrig lease receipt'.", exists=True, dir_okay=False)],
    trust: TrustOption = None,
) -> None:
    """Verify every document, signature and log entry of a receipt against your trust file. Needs no network."""
    from attestation.errors import VerificationError
    from attestation.receipt import MAX_RECEIPT_BYTES, verify_receipt

    with file.open("rb") as stream:
        raw = stream.read(MAX_RECEIPT_BYTES + 1)
    result = verify_receipt(raw, trust_file(trust))
    document = result.to_json()
    if not result.ok:
        failed = next(step for step in result.steps if not step.ok)
        console().fail(
            document,
            VerificationError(
                "the receipt does not verify",
                steps=result.steps,
                rule=failed.step,
                seen=failed.seen,
                wanted=failed.wanted,
                fix="ask for the receipt again; if it stays so, the lease is not proven",
            ),
        )
    lines = [f"ok  {step.step}: {step.detail}" for step in result.steps]
    level = result.appraisal.level.label if result.appraisal is not None else "none: no key was released"
    console().emit(document, "\n".join([*lines, f"verified: {len(result.steps)} steps, {result.lease}, level {level}"]))
