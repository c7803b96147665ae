"""``sealrig node``: make, run and look after nodes (operator)."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandbox.cli.console import Progress, console, shown
from sandbox.cli.context import ServerOption, client, secret_line
from sandbox.cli.unwinding import handling
from sandbox.told import driver_words, gpu_words

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

    from sandbox.node.gpu.device import DeviceFacts
    from sandbox.node.gpu.erase import DeviceWipe

app = typer.Typer(help="Make, run and look after nodes.")
DataOption = Annotated[Path, typer.Option("--data", metavar="DIR", help="The node's data folder.")]
_DEFAULT_DATA = Path("/var/lib/sealrig/node")


@app.command("init")
def init(
    server: Annotated[str, typer.Option("--server", metavar="URL", help="The control plane's address.")],
    data: DataOption = _DEFAULT_DATA,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help="Read the node's token from a file ('-': stdin) and keep it.")
    ] = None,
    docker: Annotated[
        str, typer.Option("--docker", metavar="URL", help="The Docker Engine's socket. [DOCKER_HOST, the usual one]", show_default=False)
    ] = "",
    slots: Annotated[int, typer.Option("--slots", min=1, max=1024, help="How many leases may run at once.")] = 4,
) -> None:
    """Make a node: its key, its settings and the place of its token."""
    from sandbox.node.init import init_node

    token = secret_line(token_file) if token_file is not None else None
    node, key = init_node(data, server=server, token=token, docker=docker, slots=slots)
    here = console()
    if token is None:
        here.say(f"put a token of role node into {data / 'node.token'} (mode 0600), then: sealrig node run --data {data}")
    here.emit(
        {"node": node, "public_key": key.text, "data": str(data), "trust": {node: key.text}},
        f'{node}\n{key.text}\nCustomers put this into their trust file:  nodes: {{{node}: "{key.text}"}}',
    )


@app.command("run")
def run(data: DataOption = _DEFAULT_DATA) -> None:
    """Run the node in the foreground. Ctrl-C ends every lease with a wipe."""
    from sandbox.node.layout import NodeFolder
    from sandbox.node.start import make_supervisor
    from sandbox.node.supervisor import only_one

    log_to_stderr()
    folder = NodeFolder(data.absolute())
    supervisor, _ = make_supervisor(folder.root)

    def stop(_number: int, _frame: FrameType | None) -> None:
        # In a thread of its own: a signal may arrive while the main thread holds the very lock that stopping needs.
        threading.Thread(target=supervisor.stop, name="stop", daemon=True).start()

    with only_one(folder), handling((signal.SIGINT, signal.SIGTERM), stop):
        supervisor.run()


@app.command("wipe")
def wipe(
    backend: Annotated[str, typer.Option("--backend", metavar="cuda|opencl|auto", help="Which driver interface to wipe through.")] = "auto",
    device: Annotated[
        str | None, typer.Option("--device", metavar="UUID", help="Only this device; all of them if not given.", show_default=False)
    ] = None,
) -> None:
    """Wipe GPU memory and prove it, device by device."""
    from sandbox.errors import NotFoundError, UsageError, WipeError
    from sandbox.node.gpu.vram import list_devices

    if backend not in ("auto", "cuda", "opencl"):
        raise UsageError("no such backend", rule="backend", seen=backend, wanted="cuda, opencl or auto", fix="use --backend auto")
    found = [facts for facts in list_devices(backend) if device is None or facts.uuid == device]
    here = console()
    if device is not None and not found:
        raise NotFoundError("no such device", rule="device", seen=device, wanted="a device of this node", fix="see 'sealrig node attest'")
    with here.progress("wiping") as progress:
        reports = _wiped(found, progress)
    document = {"devices": [report.model_dump(mode="json") for report in reports]}
    failed = [report for report in reports if not report.ok]
    if failed:
        here.fail(
            document,
            WipeError(
                "a wipe was not proven",
                rule="vram-wipe",
                seen="; ".join(f"{row.uuid}: {', '.join(row.failures)}" for row in failed)[:500],
                wanted="every device written and verified",
                fix="look for processes that hold the GPU, then wipe again",
            ),
        )
    here.emit(
        document,
        lambda: here.table([_row(report) for report in reports], empty="no GPU on this node: nothing was wiped, nothing is claimed"),
    )


def _wiped(found: Sequence[DeviceFacts], progress: Progress) -> list[DeviceWipe]:
    """Wipe these devices; ``progress`` is told the bytes that all passes over all of them have come to."""
    from sandbox.node.gpu.erase import PASSES, STEPS
    from sandbox.node.gpu.inventory import inventory
    from sandbox.node.gpu.vram import wipe_device
    from sandbox.node.gpu.wiper import VramWiper

    sizes = {facts.uuid: facts.total_bytes - facts.reserved_bytes for facts in found}
    passes, lock = dict.fromkeys(sizes, 0), threading.Lock()

    def tell(uuid: str, done: int) -> None:
        with lock:  # devices are wiped side by side
            passes[uuid] = done
            progress(sum(passes[each] * size for each, size in sizes.items()), PASSES * sum(sizes.values()))

    def one(facts: DeviceFacts) -> DeviceWipe:
        report = wipe_device(facts, tell=lambda step: tell(facts.uuid, STEPS.get(step, 0)))
        if report.ok:
            tell(facts.uuid, PASSES)
        return report

    # Where the node's drivers tell of a device they are asked who holds it; one that only OpenCL knows is wiped as it is.
    known = {gpu.uuid for gpu in inventory().gpus}
    return [
        *VramWiper(one).reports(tuple(facts.uuid for facts in found if facts.uuid in known)),
        *(one(facts) for facts in found if facts.uuid not in known),
    ]


def _row(report: DeviceWipe) -> dict[str, object]:
    return {
        "device": report.uuid,
        "name": report.name,
        "backend": report.backend,
        "coverage": _percent(report.coverage),
        "residue words": report.residue_words_before,
        "seconds": f"{report.seconds:.1f}",
        "proven": report.ok,
    }


def _percent(share: float) -> str:
    """Write a share in hundredths of a per cent, rounded down: what is not all does not read as 100 %."""
    hundredths = round(share * 10**6) // 100
    return f"{hundredths // 100}.{hundredths % 100:02d}%"


@app.command("list")
def list_(server: ServerOption = None) -> None:
    """List the nodes of a control plane."""
    with client(server) as control:
        nodes = control.nodes()
    rows = [
        {
            "node": node.id,
            "state": node.state,
            "leases": len(node.leases),
            "slots": node.capacity.slots,
            "gpus": len(node.capacity.gpus),
            "last seen": node.last_seen,
            "detail": node.detail,
        }
        for node in nodes
    ]
    console().emit(nodes, lambda: console().table(rows))


@app.command("show")
def show(node: Annotated[str, typer.Argument(help="The node's id.")], server: ServerOption = None) -> None:
    """Show one node."""
    with client(server) as control:
        _show(control.node(node))


@app.command("quarantine")
def quarantine(node: Annotated[str, typer.Argument(help="The node's id.")], server: ServerOption = None) -> None:
    """Give a node no further lease; its present ones go on."""
    with client(server) as control:
        _show(control.quarantine(node))


@app.command("restore")
def restore(node: Annotated[str, typer.Argument(help="The node's id.")], server: ServerOption = None) -> None:
    """Lift a quarantine once its cause was found and mended. The node wipes once more before it takes a lease."""
    with client(server) as control:
        _show(control.restore(node))


def _show(info: Any) -> None:  # noqa: ANN401  (sandbox.wire.NodeInfo, imported late)
    def human() -> None:
        here = console()
        left_out = {"capacity", "inventory", "qualification"}
        driver = {"gpu driver": driver_words(info.inventory)} if info.capacity.gpus else {}
        fields = {**info.model_dump(mode="json", exclude=left_out), **info.capacity.model_dump(mode="json", exclude={"gpus"})}
        here.fields({**fields, **driver})
        here.table(_gpus(info), empty=str(info.inventory.get("gpuDetail") or "no GPU on this node"))
        if _gpus(info) and "gpuDetail" in info.inventory:
            here.print(shown(info.inventory["gpuDetail"]))

    console().emit(info, human)


def _gpus(info: Any) -> list[dict[str, object]]:  # noqa: ANN401  (sandbox.wire.NodeInfo, imported late)
    """Return a row a GPU. The inventory is the node's word, of any shape: nothing of it is relied on."""
    told = info.inventory.get("gpus")
    found = {str(gpu.get("uuid")): gpu for gpu in told if isinstance(gpu, dict)} if isinstance(told, list) else {}
    grades = {card.uuid: card.grade for card in info.qualification.cards} if info.qualification else {}
    rows = []
    for uuid in dict.fromkeys([*info.capacity.gpus, *found]):  # also those that are not leased
        gpu = found.get(uuid, {})
        rows.append(
            {
                "gpu": uuid,
                "name": gpu.get("name"),
                "memory": gpu.get("memory"),
                "grade": grades.get(uuid, "unknown"),
                **gpu_words(gpu),
            }
        )
    return rows


def log_to_stderr() -> None:
    """Send the node's log to stderr, one JSON line an event; stdout is for a command's one document."""
    import structlog

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(),
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
    )
