"""``sealrig node qualify``: which of this rig's GPUs are fit for training, for inference, or for neither, and why."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sandbox.cli.console import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attestation.qualification import Card, Measurement
    from sandbox.node.gpu.device import DeviceFacts
    from sandbox.node.gpu.measure import Effort
    from sandbox.node.layout import NodeFolder

app = typer.Typer()
DataOption = Annotated[Path, typer.Option("--data", metavar="DIR", help="The node's data folder.")]
_DEFAULT_DATA = Path("/var/lib/sealrig/node")


@app.command("qualify")
def qualify(
    data: DataOption = _DEFAULT_DATA,
    quick: Annotated[bool, typer.Option("--quick", help="At most two minutes a card; this is what happens without an option.")] = False,
    full: Annotated[bool, typer.Option("--full", help="At most 15 minutes a card: longer load, more memory patterns, every pair.")] = False,
    backend: Annotated[
        str, typer.Option("--backend", metavar="cuda|opencl|auto", help="Which driver interface to measure through.")
    ] = "auto",
    device: Annotated[
        str | None, typer.Option("--device", metavar="UUID", help="Only this device; all of them if not given.", show_default=False)
    ] = None,
) -> None:
    """Measure this rig's GPUs and say what each is fit for. The node must not be running.

    In a node's data folder the result is signed, kept in place of the last one, and sent to the control plane, whose policies and console
    show it.
    """
    from sandbox.errors import NotFoundError, UsageError
    from sandbox.node.gpu.measure import FULL, QUICK
    from sandbox.node.gpu.vram import list_devices
    from sandbox.node.layout import NodeFolder

    if quick and full:
        raise UsageError("two efforts at once", rule="qualify-effort", seen="--quick and --full", wanted="one of them", fix="leave one out")
    if backend not in ("auto", "cuda", "opencl"):
        raise UsageError("no such backend", rule="backend", seen=backend, wanted="cuda, opencl or auto", fix="use --backend auto")
    effort = FULL if full else QUICK
    found = [facts for facts in list_devices(backend) if device is None or facts.uuid == device]
    if device is not None and not found:
        raise NotFoundError("no such device", rule="device", seen=device, wanted="a device of this node", fix="leave --device out")
    folder = NodeFolder(data.absolute())
    if folder.settings.exists():
        cards, said = _for_node(folder, found, effort)
    else:
        console().say(f"{data} is no node's data folder: the result is neither signed nor sent")
        cards, said = _measure(found, effort), {"signed": False, "sent": False}
    console().emit({"mode": effort.mode, "devices": [_device(card) for card in cards], **said}, lambda: _show(cards))


def _measure(found: Sequence[DeviceFacts], effort: Effort) -> tuple[Card, ...]:
    from sandbox.node.gpu.qualify import qualify as measure

    started = datetime.now(UTC)

    def progress(uuid: str, step: str) -> None:
        console().say(f"{(datetime.now(UTC) - started).total_seconds():6.1f} s  {uuid}  {step}")

    return measure(found, effort, progress=progress)


def _for_node(folder: NodeFolder, found: Sequence[DeviceFacts], effort: Effort) -> tuple[tuple[Card, ...], dict[str, object]]:
    from attestation.signing import SigningKey
    from sandbox.errors import SealrigError
    from sandbox.node.client import ControlClient
    from sandbox.node.gpu.inventory import inventory
    from sandbox.node.qualification import keep, sign
    from sandbox.node.settings import load_node_settings, load_token
    from sandbox.node.supervisor import only_one

    settings, key = load_node_settings(folder), SigningKey.load(folder.key)
    with only_one(folder):  # no lease may begin on a card that is being measured
        started = datetime.now(UTC)
        cards = _measure(found, effort)
        envelope = sign(settings.id, key, effort, cards, started_at=started, driver=inventory().driver.version)
        keep(folder, envelope)
    said: dict[str, object] = {"signed": True, "digest": envelope.digest}
    try:
        with ControlClient(settings.server, load_token(folder, settings), settings.id) as client:
            client.qualify(envelope)
    except SealrigError as error:
        console().say(f"not sent now ({error.message}); the node sends it when it next starts")
        return cards, {**said, "sent": False}
    return cards, {**said, "sent": True}


def _device(card: Card) -> dict[str, object]:
    rows = [{**item.model_dump(mode="json"), "fits": item.fits} for item in card.measurements]
    return {**card.model_dump(mode="json"), "measurements": rows}


def _show(cards: Sequence[Card]) -> None:
    here = console()
    if not cards:
        here.say("no GPU on this node: nothing was measured")
    for card in cards:
        here.print(f"{card.uuid}  {card.name}: {card.grade}")
        for reason in card.reasons:
            here.print(f"  {reason}")
        here.table([_row(item) for item in card.measurements])


def _row(item: Measurement) -> dict[str, object]:
    sign = "≥" if item.sense == "at-least" else "≤"
    floors = {
        name: "-" if floor is None else f"{sign} {floor:g}" for name, floor in (("inference", item.inference), ("training", item.training))
    }
    judged = item.training is not None or item.inference is not None
    seen = "-" if item.seen is None else f"{item.seen:g} {item.unit}".strip()
    return {"what": item.id, "seen": seen, **floors, "fits": item.fits if judged else "-"}
