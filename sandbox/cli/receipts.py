"""``sealrig receipt``: offline verification of what happened in a lease."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from sandbox.cli.collateral import open_cache
from sandbox.cli.console import console
from sandbox.cli.context import TrustOption, trust_file
from sandbox.cli.problem import step_line

app = typer.Typer(help="Verify a receipt, offline.")


@app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A receipt from 'sealrig lease receipt'.", exists=True, dir_okay=False)],
    trust: TrustOption = None,
) -> None:
    """Verify every document, signature and log entry of a receipt against your trust file. Needs no network."""
    from attestation.errors import VerificationError
    from attestation.receipt import verify_receipt

    result = verify_receipt(_read(file), trust_file(trust), cached=open_cache(None).load())
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
    lines = [step_line(number, dataclasses.asdict(step)) for number, step in enumerate(result.steps, 1)]
    level = result.appraisal.level.label if result.appraisal is not None else "none: no key was released"
    console().emit(document, "\n".join([*lines, f"verified: {len(result.steps)} steps, {result.lease}, level {level}"]))


@app.command("show")
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A receipt from 'sealrig lease receipt'.", exists=True, dir_okay=False)],
    output: Annotated[Path, typer.Option("--html", metavar="FILE", help="Where to write the page; it must not exist yet.", dir_okay=False)],
    trust: TrustOption = None,
) -> None:
    """Write a receipt, checked against your trust file, as one page that can be printed and filed."""
    from datetime import UTC, datetime

    from attestation.canonical import sha256_digest
    from attestation.receipt import verify_receipt
    from attestation.receipt_page import receipt_page
    from sandbox.errors import UsageError

    raw, accepted = _read(file), trust_file(trust)
    result = verify_receipt(raw, accepted, cached=open_cache(None).load())
    page = receipt_page(result, digest=sha256_digest(raw), trust_digest=accepted.digest, at=datetime.now(UTC))
    try:
        with output.open("x", encoding="utf-8") as stream:
            stream.write(page)
    except OSError as error:
        raise UsageError(
            f"cannot write {output}", rule="output", seen=str(error.strerror), wanted="a new file", fix="choose another name"
        ) from error
    verdict = "verified" if result.ok else "does NOT verify; the page says so"
    console().emit({"ok": result.ok, "lease": result.lease, "page": str(output)}, f"{output}: {result.lease} {verdict}")


def _read(file: Path) -> bytes:
    from attestation.receipt import MAX_RECEIPT_BYTES

    with file.open("rb") as stream:
        return stream.read(MAX_RECEIPT_BYTES + 1)
