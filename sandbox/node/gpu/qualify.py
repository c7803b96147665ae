"""Qualifying a rig: each device measured in a process of its own with a time limit, watched by its driver meanwhile, then judged.

Devices are measured one after another, because two at once would share the link and each other's heat, and the figures would be of
neither. Pairs of GPUs follow: neighbours in the quick test, every pair in the full one.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from pydantic import ValidationError

from attestation.qualification import Card, Measurement, verdict
from sandbox.node.doctor.host import Host
from sandbox.node.doctor.nvidia import has_nvidia, module_taint, module_words
from sandbox.node.gpu import child
from sandbox.node.gpu.cards import table
from sandbox.node.gpu.device import DeviceFacts
from sandbox.node.gpu.inventory import inventory, watch
from sandbox.node.gpu.judge import Provenance, Watched, judge
from sandbox.node.gpu.measure import Effort, Measured
from sandbox.node.gpu.model import Gpu

Progress = Callable[[str, str], None]
"""Told the device's uuid and what is done with it."""
PEER_SECONDS = 60.0
_LOOK_EVERY = 0.5
_MAX_REPORT = 1024 * 1024


def qualify(devices: Sequence[DeviceFacts], effort: Effort, *, progress: Progress) -> tuple[Card, ...]:
    """Measure and judge these devices. Never raises for what a device does: what could not be measured fits nothing."""
    origin = _provenance()
    cards = [_one(facts, effort, origin, progress) for facts in devices]
    wholes = [facts.uuid for facts in devices if facts.uuid.startswith("GPU-")]
    pairs = list(itertools.combinations(wholes, 2)) if effort.mode == "full" else list(itertools.pairwise(wholes))
    for one, other in pairs:
        progress(one, f"copies to {other}")
        row = _pair(one, other)
        cards = [_with(card, row) if card.uuid == one else card for card in cards]
    return tuple(cards)


def _one(facts: DeviceFacts, effort: Effort, origin: Provenance | None, progress: Progress) -> Card:
    before = _look(facts.uuid)
    if before is not None and (why := _held(before)):
        return judge(_nothing(facts, why), Watched(before, before), origin, table())
    seen: list[Gpu] = []
    measured = _run(facts, effort, lambda line: progress(facts.uuid, line), lambda: _see(before, seen))
    after = _look(facts.uuid)
    return judge(measured, _watched(before, after, seen) if before is not None and after is not None else None, origin, table())


def _held(gpu: Gpu) -> str:
    """Say why the card cannot be measured now; empty where nobody holds it. Load of somebody else's would be taken for the card's own."""
    if gpu.processes is None:
        return "the driver does not tell which processes hold the device"
    held = ", ".join(str(pid) for pid in gpu.processes[:8])
    return f"processes hold the device: {held}" if held else ""


def _see(before: Gpu | None, seen: list[Gpu]) -> None:
    if before is not None and (now := _glance(before)) is not None:
        seen.append(now)


def _run(facts: DeviceFacts, effort: Effort, tell: Callable[[str], None], look: Callable[[], None]) -> Measured:
    """Run the worker, and look at the card until it ends."""
    argv = [sys.executable, "-m", "sandbox.node.gpu.qualifier", facts.backend, facts.uuid, effort.model_dump_json()]
    deadline = time.monotonic() + effort.limit
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as words:
        try:
            worker = child.start(argv, out=said, err=words)
        except child.WorkerError as error:
            return _nothing(facts, str(error))
        told = 0
        try:
            while worker.poll() is None:
                if time.monotonic() > deadline:
                    return _nothing(facts, child.stop(worker, effort.limit))
                told = child.hand_on(words, told, tell)
                look()
                time.sleep(_LOOK_EVERY)
        finally:
            worker.kill()  # one that has ended is left alone
        child.hand_on(words, told, tell)
        said.seek(0)
        raw = said.read(_MAX_REPORT)
        if worker.returncode != 0:
            words.seek(0)
            return _nothing(facts, child.ended(worker.returncode, words.read(_MAX_REPORT)))
    try:
        measured = Measured.model_validate_json(raw)
    except ValidationError:
        return _nothing(facts, "the worker's report cannot be read")
    return measured if measured.uuid == facts.uuid else _nothing(facts, f"the worker reported on {measured.uuid[:80]}")


def _nothing(facts: DeviceFacts, why: str) -> Measured:
    return Measured(
        uuid=facts.uuid,
        name=facts.name,
        backend=facts.backend,
        total_bytes=facts.total_bytes,
        reserved_bytes=facts.reserved_bytes,
        failures=(why,),
    )


def _look(uuid: str) -> Gpu | None:
    """Return the card as it is now, with all that its driver tells."""
    return next((gpu for gpu in inventory().gpus if gpu.uuid == uuid), None)


def _glance(gpu: Gpu) -> Gpu | None:
    """Look at a card under load: at it alone and at what changes, so that the look itself does not slow the test down."""
    return watch(gpu) if gpu.backend == "cuda" and not gpu.parent else _look(gpu.uuid)


def _watched(before: Gpu, after: Gpu, seen: Sequence[Gpu]) -> Watched:
    every = (before, *seen, after)
    told = [gpu.thermals.throttled_by for gpu in every if gpu.thermals.throttled_by is not None]
    return Watched(
        before,
        after,
        hottest=max((gpu.thermals.temperature for gpu in every if gpu.thermals.temperature is not None), default=None),
        throttled_by=tuple(sorted({reason for reasons in told for reason in reasons})) if told else None,
        generation=max((gpu.link.generation for gpu in every if gpu.link.generation is not None), default=None),
        width=max((gpu.link.width for gpu in every if gpu.link.width is not None), default=None),
        power=max((gpu.thermals.power for gpu in every if gpu.thermals.power is not None), default=None),
    )


def _provenance() -> Provenance | None:
    host = Host()
    if not has_nvidia(host):
        return None
    taint = module_taint(host)
    if taint is None:
        return Provenance(None, None, "the module is not loaded")
    return Provenance("F" in taint, "E" not in taint, module_words(host, taint))


def _pair(one: str, other: str) -> Measurement:
    name = f"peer-{other}"
    try:
        found = json.loads(child.answer([sys.executable, "-m", "sandbox.node.gpu.peers", one, other], PEER_SECONDS))
    except (child.WorkerError, ValueError) as error:
        return Measurement(id=name, seen=None, unit="GB/s", detail=f"could not be measured: {error}"[:500])
    way = "directly" if found["direct"] else "through the host: the driver allows no peer access"
    if not found["right"]:
        return Measurement(
            id=name, seen=0, unit="GB/s", training=1, inference=1, source="what is copied has to arrive", detail="bytes differ"
        )
    return Measurement(id=name, seen=float(found["rate"]), unit="GB/s", detail=way)


def _with(card: Card, row: Measurement) -> Card:
    rows = (*card.measurements, row)
    grade, reasons = verdict(rows)
    return Card.model_validate({**dict(card), "measurements": rows, "grade": grade, "reasons": reasons})
