"""``sealrig node attest``: what a node would say of itself, and the node's side of its TPM's enrolment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sandbox.cli.console import console
from sandbox.cli.files import new_file, small_file

if TYPE_CHECKING:
    from attestation.collect.enrolment import TpmEnrolment

app = typer.Typer()
attest_app = typer.Typer(help="Show what a node would say of itself; enrol its TPM.")
app.add_typer(attest_app, name="attest")

DataOption = Annotated[Path, typer.Option("--data", metavar="DIR", help="The node's data folder.")]
HandleOption = Annotated[str, typer.Option("--handle", metavar="0x81…", help="Where the TPM keeps the attestation key.")]
AlgorithmOption = Annotated[Literal["ecc", "rsa"], typer.Option("--algorithm", help="Which of the TPM's endorsement keys is used.")]
TctiOption = Annotated[
    str | None, typer.Option("--tcti", metavar="TCTI", help="The TPM's address for tpm2-tools; the system's own if not given.")
]
_DEFAULT_DATA = Path("/var/lib/sealrig/node")
_HANDLE = "0x81010002"
_FILE: Any = {"exists": True, "dir_okay": False}


@attest_app.callback(invoke_without_command=True)
def attest(ctx: typer.Context, data: DataOption = _DEFAULT_DATA) -> None:
    """Show what this node would say of itself in evidence, apart from any lease."""
    if ctx.invoked_subcommand is not None:
        return
    from attestation.collect.runner import runner_digest
    from sandbox.cli.node import log_to_stderr
    from sandbox.node.start import make_node

    log_to_stderr()
    node, _, capacity = make_node(data)
    digest, version = runner_digest()
    document = {
        "node": node.id,
        "node_key": node.key.public.text,
        "runner_digest": digest,
        "runner_version": version,
        "level": "software",
        "engine": node.facts.engine,
        "isolation": node.facts.isolation,
        "scratch": node.facts.scratch,
        "posture": [fact.model_dump(mode="json") for fact in node.posture()],
        "capacity": capacity.model_dump(mode="json"),
        "quarantine": [{"lease": row.lease, "reason": row.reason} for row in node.state.quarantine],
        "previous_wipes": node.state.previous_wipes(gpu.uuid for gpu in node.gpus.inventory.gpus),
        **node.gpus.inventory.summary(),
    }
    console().emit(document, lambda: console().fields({key: value for key, value in document.items() if not isinstance(value, dict)}))


@attest_app.command("offer")
def offer(
    out_file: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write the offer.")],
    data: DataOption = _DEFAULT_DATA,
    handle: HandleOption = _HANDLE,
    algorithm: AlgorithmOption = "ecc",
    tcti: TctiOption = None,
) -> None:
    """Make an attestation key in the TPM, and the offer that customers and operators answer with a challenge."""
    from attestation.signing import b64decode
    from attestation.verify.enrolment import ek_digest
    from attestation.verify.tpm_public import parse_public
    from sandbox.node.layout import NodeFolder
    from sandbox.node.settings import load_node_settings

    node = load_node_settings(NodeFolder(data.absolute())).id
    made = _tpm(handle, algorithm, tcti).offer(node)
    new_file(out_file, made.to_payload())
    digest = ek_digest(parse_public(b64decode(made.ek)))
    document = {"offer": str(out_file), "node": node, "ek": digest, "ek_certificate": bool(made.ek_certificate), "handle": handle}
    console().emit(document, f"{out_file}\nendorsement key {digest}" + ("" if made.ek_certificate else " (the TPM holds no certificate)"))


@attest_app.command("activate")
def activate(
    challenge: Annotated[Path, typer.Argument(metavar="CHALLENGE", help="The answer to the offer.", **_FILE)],
    offer_file: Annotated[Path, typer.Option("--offer", metavar="FILE", help="The offer that was made here.", **_FILE)],
    out_file: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write the answer.")],
    handle: HandleOption = _HANDLE,
    algorithm: AlgorithmOption = "ecc",
    tcti: TctiOption = None,
) -> None:
    """Open a challenge with the TPM. Only the TPM with the offered endorsement key can, and only if the attestation key is in it."""
    from attestation.enrolment import Challenge

    answer = _tpm(handle, algorithm, tcti).answer(Challenge.from_payload(small_file(challenge)), small_file(offer_file))
    new_file(out_file, answer.to_payload())
    console().emit({"answer": str(out_file), "node": answer.node}, str(out_file))


def _tpm(handle: str, algorithm: Literal["ecc", "rsa"], tcti: str | None) -> TpmEnrolment:
    from attestation.collect.enrolment import TpmEnrolment
    from attestation.collect.tpm import Tools

    return TpmEnrolment(handle, algorithm, Tools(tcti))
