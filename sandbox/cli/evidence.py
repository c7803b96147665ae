"""``sealrig evidence``: one piece of evidence on its own, offline."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from attestation.errors import Step, VerificationError
from sandbox.cli.collateral import CacheOption, moment, open_cache
from sandbox.cli.collateral import app as collateral_app
from sandbox.cli.console import console
from sandbox.errors import LimitError, UsageError

app = typer.Typer(help="Verify one piece of evidence, offline; keep what that needs.")
app.add_typer(collateral_app, name="collateral")

MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_NONCE_BYTES = 64


class Kind(StrEnum):
    """What a file holds."""

    SOFTWARE = "software"
    TPM = "tpm"
    SEV_SNP = "sev-snp"
    TDX = "tdx"
    NVIDIA_GPU = "nvidia-gpu"


_FILE: Any = {"exists": True, "dir_okay": False}


@app.callback()
def evidence() -> None:
    """Verify one piece of evidence, offline."""


@app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Evidence, as a node or a vendor's tool wrote it.", **_FILE)],
    kind: Annotated[Kind, typer.Option("--kind", help="What the file holds.")],
    chain: Annotated[Path | None, typer.Option("--chain", metavar="F", help="Certificates of the key that signed.", **_FILE)] = None,
    roots: Annotated[
        Path | None, typer.Option("--roots", metavar="F", help="Trusted roots or keys, in place of the packaged ones.", **_FILE)
    ] = None,
    nonce: Annotated[str | None, typer.Option("--nonce", metavar="HEX", help="What the evidence must answer.")] = None,
    rim: Annotated[
        list[Path] | None, typer.Option("--rim", metavar="F", help="A GPU's reference measurements; may be repeated.", **_FILE)
    ] = None,
    collateral: Annotated[
        Path | None, typer.Option("--collateral", metavar="F", help="Intel's signed tables and revocation lists (JSON), for tdx.", **_FILE)
    ] = None,
    crl: Annotated[Path | None, typer.Option("--crl", metavar="F", help="A revocation list, for sev-snp and nvidia-gpu.", **_FILE)] = None,
    crl_max_age: Annotated[int | None, typer.Option("--crl-max-age", metavar="DAYS", min=1, help="How old that list may be.")] = None,
    ocsp: Annotated[
        list[Path] | None, typer.Option("--ocsp", metavar="F", help="An OCSP response (DER), for nvidia-gpu; may be repeated.", **_FILE)
    ] = None,
    cache: CacheOption = None,
    at: Annotated[str | None, typer.Option("--at", metavar="TIME", help="When certificates must be valid; the default is now.")] = None,
) -> None:
    """Verify one piece of evidence. What is not given is not compared, and nothing is claimed that rests on it."""
    from attestation.verify.single import verify_single

    when = moment(at)
    try:
        appraisal = verify_single(
            kind.value,
            _read(file),
            at=when,
            nonce=_nonce(nonce),
            chain=_read(chain) if chain is not None else None,
            roots=[_read(roots)] if roots is not None else [],
            rims=[_read(path) for path in rim or []],
            collateral=_read(collateral) if collateral is not None else None,
            crl=_read(crl) if crl is not None else None,
            crl_max_age=timedelta(days=crl_max_age) if crl_max_age is not None else None,
            ocsp=[_read(path) for path in ocsp or []],
            cached=open_cache(cache).load(),
        )
    except VerificationError as error:
        console().fail({"ok": False, "level": None, "ear": None, "steps": [_step(step) for step in error.steps]}, error)
    lines = [f"ok  {step.step}: {step.seen} ({step.wanted})" for step in appraisal.steps]
    console().emit(appraisal.to_json(), "\n".join([*lines, f"verified: {len(appraisal.steps)} steps, level {appraisal.level.label}"]))


def _step(step: Step) -> dict[str, object]:
    return {"step": step.step, "ok": step.ok, "seen": step.seen, "wanted": step.wanted}


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        raw = stream.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise LimitError(
            f"{path} is too large", rule="evidence-size", seen="more", wanted=f"≤ {MAX_FILE_BYTES} bytes", fix="name a file of evidence"
        )
    return raw


def _nonce(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if not 1 <= len(raw) <= MAX_NONCE_BYTES:
        raise UsageError(
            "not a nonce", rule="nonce", seen=text[:200], wanted=f"1 to {MAX_NONCE_BYTES} bytes in hex", fix="write hex digits"
        )
    return raw
