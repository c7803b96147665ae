"""The table of cards and floors (``cards.yaml``): what a card claims, what it must reach, and where that is written."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

Quantity = Literal["memory", "bandwidth", "fp32", "fp16"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Floor(_Model):
    """A value to reach, and why it is this one."""

    value: Annotated[float, Field(ge=0)]
    unit: str = ""
    source: Annotated[str, Field(min_length=1)]


class Claims(_Model):
    """What the maker's data sheet says of one card. ``link`` is (PCIe generation, lanes); sizes in GiB, GB/s and TFLOPS.

    ``checked`` says when the figures were compared, and with what; empty where nobody has.
    """

    name: str
    pci: Annotated[tuple[str, ...], Field(min_length=1)]
    memory: float
    bandwidth: float
    fp32: float | None = None
    fp16: float | None = None
    link: tuple[int, int]
    source: Annotated[str, Field(min_length=1)]
    checked: str = ""


class Table(_Model):
    """The whole file. ``digest`` is over its exact bytes."""

    date: str
    floors: dict[Literal["training", "inference"], dict[str, Floor]]
    shares: dict[Literal["training", "inference"], dict[Quantity, Floor]]
    limits: dict[str, Floor]
    cards: tuple[Claims, ...]
    digest: str = ""

    def claims(self, pci_id: str) -> Claims | None:
        """Return what a card with this PCI id (``vendor:device``) claims; None where the table has none."""
        return next((card for card in self.cards if pci_id in card.pci), None)

    def floor(self, grade: Literal["training", "inference"], quantity: str, claims: Claims | None) -> Floor:
        """Return the floor of a quantity: the one for every card, or a share of this card's own claim where that is more."""
        general = self.floors[grade][quantity]
        share = next((share for name, share in self.shares[grade].items() if name == quantity), None)
        if claims is None or share is None or (claimed := getattr(claims, quantity)) is None:
            return general
        own = round(share.value * claimed, 3)
        if own <= general.value:
            return general
        return Floor(value=own, unit=general.unit, source=f"{share.value:g} of {claimed:g} ({claims.source}): {share.source}")


@functools.cache
def table() -> Table:
    """Return the shipped table."""
    raw = resources.files("sandbox.node.gpu").joinpath("cards.yaml").read_bytes()
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    return Table.model_validate({**yaml.safe_load(raw), "digest": digest})
