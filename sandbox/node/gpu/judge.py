"""What a card's figures are worth: each beside its floors, in one list, from which the grade follows. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from attestation.qualification import Card, Measurement, verdict
from sandbox.node.gpu.cards import Claims, Table
from sandbox.node.gpu.measure import Measured
from sandbox.node.gpu.model import Gpu

GIB = 2**30
_SHOWN_FAULTS = 8
_HOLDING_BACK = ("hardware slowdown", "thermal slowdown (software)", "thermal slowdown (hardware)", "power brake")


@dataclass(frozen=True)
class Watched:
    """A card before and after its test, and the worst that was seen meanwhile. None where the driver does not tell."""

    before: Gpu
    after: Gpu
    hottest: int | None = None
    throttled_by: tuple[str, ...] | None = None
    generation: int | None = None
    width: int | None = None
    power: float | None = None


@dataclass(frozen=True)
class Provenance:
    """What the kernel says of the driver's module: whether it was forced in, whether it bears a signature; None where it cannot be told."""

    forced: bool | None
    signed: bool | None
    words: str


def judge(measured: Measured, watched: Watched | None, provenance: Provenance | None, table: Table) -> Card:
    """Return the card with its grade. ``watched`` and ``provenance`` are None for devices that no driver tells of."""
    gpu = watched.before if watched else None
    claims = table.claims(gpu.pci_id) if gpu else None
    rows = [*_speed(measured, claims, table), *_memory(measured, table)]
    if watched is not None:
        rows += [*_health(watched, table), *_heat(watched, table), *_link(watched)]
    if gpu is not None and gpu.backend == "cuda":
        rows += _origin(gpu, provenance)
    if measured.failures:
        rows.append(
            Measurement(
                id="finished", seen=0, training=1, inference=1, source="the test has to end", detail="; ".join(measured.failures)[:1900]
            )
        )
    found = tuple(rows)
    grade, reasons = verdict(found)
    return Card(
        uuid=measured.uuid,
        name=measured.name or "unknown",
        pci_id=gpu.pci_id if gpu else "",
        known_as=claims.name if claims else "",
        vbios=gpu.vbios if gpu else "",
        measurements=found,
        grade=grade,
        reasons=reasons,
    )


def _speed(measured: Measured, claims: Claims | None, table: Table) -> Iterator[Measurement]:
    def row(name: str, quantity: str, seen: float | None, detail: str = "") -> Measurement:
        training, inference = table.floor("training", quantity, claims), table.floor("inference", quantity, claims)
        source = training.source if training == inference else f"training: {training.source}; inference: {inference.source}"
        return Measurement(
            id=name,
            seen=seen,
            unit=training.unit,
            training=training.value,
            inference=inference.value,
            source=source[:1900],
            detail=detail,
        )

    claim = f"{claims.name} claims {claims.memory:g} GiB" if claims else "not in the table of cards"
    yield row("memory-size", "memory", round(measured.total_bytes / GIB, 3), claim)
    if claims:
        yield _at_most("memory-over-claim", round(measured.total_bytes / GIB / claims.memory, 4), table, "memory_over_claim", claim)
    rates = f"fill {measured.fill_rate}, compare {measured.compare_rate} GB/s" if measured.fill_rate else ""
    yield row("memory-bandwidth", "bandwidth", measured.copy_rate, f"copy within the device, read and write; {rates}")
    yield row("link-to-device", "link", measured.to_device_rate, "from pinned memory")
    yield row("link-from-device", "link", measured.from_device_rate, "into pinned memory")
    yield row("sustained", "sustained", measured.sustained, "speed at the load's end by that at its start")
    products = {product.kind: product for product in measured.products}
    for kind in ("fp32", "fp16"):
        product = products.get(kind)
        if product is None and measured.backend != "cuda" and kind == "fp16":
            yield Measurement(id="matmul-fp16", seen=None, unit="TFLOPS", detail="this driver offers no fp16 arithmetic")
            continue
        yield row(f"matmul-{kind}", kind, product.tflops if product else None, f"n = {product.n}" if product else "")
    for kind in ("bf16", "int8", "fp64"):
        if kind in products:
            yield Measurement(id=f"matmul-{kind}", seen=products[kind].tflops, unit="TFLOPS", detail=f"n = {products[kind].n}")
    wrong = [f"{product.kind}: {product.wrong} of {product.n} rows" for product in measured.products if product.wrong]
    faults = table.limits["faults"]
    yield Measurement(
        id="matmul-wrong-rows",
        seen=sum(product.wrong for product in measured.products) if measured.products else None,
        training=faults.value,
        inference=faults.value,
        sense="at-most",
        source=faults.source,
        detail=", ".join(wrong) or "each product checked whole by Freivalds' method",
    )


def _memory(measured: Measured, table: Table) -> Iterator[Measurement]:
    available = measured.total_bytes - measured.reserved_bytes
    yield Measurement(
        id="memory-tested",
        seen=round(measured.tested_bytes / available, 4) if available > 0 and measured.patterns else None,
        training=0.9,
        inference=0.9,
        source="a test of less says too little",
        detail=f"share of (total - reserved), {measured.patterns} patterns over {measured.tested_bytes} bytes",
    )
    limit = table.limits["faults"]
    shown = ", ".join(f"block {fault.block} byte {fault.offset:#x} bits {fault.bits}" for fault in measured.faults[:_SHOWN_FAULTS])
    yield Measurement(
        id="memory-faults",
        seen=measured.wrong_words,
        unit="words",
        training=limit.value,
        inference=limit.value,
        sense="at-most",
        source=limit.source,
        detail=shown or "no word read back wrong",
    )


def _health(watched: Watched, table: Table) -> Iterator[Measurement]:
    before, after = watched.before.errors, watched.after.errors
    if before.uncorrected is not None and after.uncorrected is not None:
        yield _at_most("ecc-new-uncorrected", after.uncorrected - before.uncorrected, table, "uncorrected", f"{after.uncorrected} in all")
    elif watched.before.errors.ecc is not True:
        words = "ECC is off" if before.ecc is False else "this card tells of no ECC"
        yield Measurement(id="ecc-new-uncorrected", seen=None, detail=f"{words}: wrong bits go unseen between tests")
    if before.corrected is not None and after.corrected is not None:
        yield Measurement(id="ecc-new-corrected", seen=after.corrected - before.corrected, detail=f"{after.corrected} in all")
    if after.retired_pages is not None:
        yield _at_most("retired-pages", after.retired_pages, table, "retired_pages", "")
    if after.remapped_rows is not None:
        yield Measurement(id="remapped-rows", seen=after.remapped_rows, detail="rows put in place of bad ones")
    troubles = {
        "retirement-pending": after.retirement_pending,
        "remapping-pending": after.remapping_pending,
        "remapping-failed": after.remapping_failed,
    }
    for name, trouble in troubles.items():
        if trouble is not None:
            yield _at_most(name, int(trouble), table, "remapping", "bad memory that is still in use until the card is reset")


def _heat(watched: Watched, table: Table) -> Iterator[Measurement]:
    slowdown_at = watched.after.thermals.slowdown_at
    if watched.hottest is not None and slowdown_at is not None:
        margin = slowdown_at - watched.hottest
        floor = table.limits["below_slowdown"]
        yield Measurement(id="thermal-margin", seen=margin, unit="°C", training=floor.value, inference=floor.value, source=floor.source,
                          detail=f"{watched.hottest} °C at most, slowdown at {slowdown_at} °C")  # fmt: skip
    elif watched.hottest is not None:
        yield Measurement(id="temperature", seen=watched.hottest, unit="°C", detail="the card does not tell its slowdown threshold")
    if watched.throttled_by is not None:
        held = [reason for reason in watched.throttled_by if reason in _HOLDING_BACK]
        yield Measurement(id="held-back", seen=len(held), training=0, sense="at-most", source="heat or power lowered the clocks under load",
                          detail=", ".join(watched.throttled_by) or "nothing lowered the clocks")  # fmt: skip


def _link(watched: Watched) -> Iterator[Measurement]:
    most = watched.after.link
    if watched.width is not None:
        yield Measurement(id="link-width", seen=watched.width, unit="lanes", detail=f"under load; the card has {most.width_most}")
    if watched.generation is not None:
        yield Measurement(id="link-generation", seen=watched.generation, detail=f"under load; card and slot allow {most.generation_most}")
    if watched.power is not None:
        yield Measurement(id="power", seen=watched.power, unit="W", detail=f"at most; the limit is {watched.after.thermals.power_limit} W")


def _origin(gpu: Gpu, provenance: Provenance | None) -> Iterator[Measurement]:
    if gpu.inforom_valid is not None:
        yield Measurement(
            id="inforom",
            seen=int(gpu.inforom_valid),
            training=1,
            inference=1,
            source="the board's own data must be intact",
            detail=f"VBIOS {gpu.vbios or 'not told'}; whether NVIDIA signed it only a confidential-computing report tells",
        )
    if provenance is not None:
        yield Measurement(
            id="driver-module",
            seen=None if provenance.forced is None else int(not provenance.forced),
            training=1,
            inference=1,
            source="a module that was forced into a kernel that it was not made for proves nothing of what it does",
            detail=provenance.words,
        )
        # Distributions build the module on the machine (DKMS), mostly without a signature, so that its lack alone says little. It is shown
        # here, and `sealrig node doctor` judges it (nvidia-module-signed).
        yield Measurement(
            id="driver-module-signed", seen=None if provenance.signed is None else int(provenance.signed), detail=provenance.words
        )


def _at_most(name: str, seen: float, table: Table, limit: str, detail: str) -> Measurement:
    floor = table.limits[limit]
    return Measurement(id=name, seen=seen, training=floor.value, inference=floor.value, sense="at-most", source=floor.source, detail=detail)
