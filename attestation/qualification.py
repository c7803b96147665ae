"""Which of a node's GPUs are fit for what: measured by the node, each value beside its floors, signed by the node's key.

A card's grade is the worst that one of its measurements allows. It follows from them and cannot be set to anything else. A value that is
wanted but could not be measured fits nothing: unknown is never a pass.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from attestation.document import Document, Moment, Name, NodeId, Part, Text

QUALIFICATION_PAYLOAD_TYPE = "application/vnd.sealrig.qualification+json"
MAX_CARDS = 64
MAX_MEASUREMENTS = 64
Grade = Literal["training", "inference", "unfit"]
GRADES: tuple[Grade, ...] = ("unfit", "inference", "training")
"""Worst first."""
Number = Annotated[float, Field(allow_inf_nan=False)]


class Measurement(Part):
    """One value and the floors that it has to reach; ``at-most`` makes them ceilings. No floor at all judges nothing.

    ``source`` says where the floors come from, ``detail`` how the value came about.
    """

    id: Name
    seen: Number | None
    unit: Text = ""
    training: Number | None = None
    inference: Number | None = None
    sense: Literal["at-least", "at-most"] = "at-least"
    source: Text = ""
    detail: Text = ""

    @property
    def fits(self) -> Grade:
        """The best grade that this value alone allows."""
        if self._reaches(self.training) and self._reaches(self.inference):
            return "training"
        return "inference" if self._reaches(self.inference) else "unfit"

    def _reaches(self, floor: float | None) -> bool:
        if floor is None:
            return True
        if self.seen is None:
            return False
        return self.seen >= floor if self.sense == "at-least" else self.seen <= floor

    @property
    def reason(self) -> str:
        """In words, what keeps a card from a better grade."""
        floor = self.inference if self.fits == "unfit" else self.training
        seen = "not measured" if self.seen is None else f"{self.seen:g} {self.unit}".strip()
        words = {"at-least": "at least", "at-most": "at most"}[self.sense]
        wanted = {"unfit": "inference", "inference": "training"}.get(self.fits, "")
        return f"{self.id}: {seen}, {wanted} needs {words} {floor:g} {self.unit}".strip()


class Card(Part):
    """One GPU. ``known_as`` names its entry in the table of cards, empty where the table has none.

    Raises a validation error unless grade and reasons are those that follow from the measurements.
    """

    uuid: Name
    name: Text
    pci_id: Text = ""
    known_as: Text = ""
    vbios: Text = ""
    measurements: Annotated[tuple[Measurement, ...], Field(min_length=1, max_length=MAX_MEASUREMENTS)]
    grade: Grade
    reasons: tuple[Text, ...]

    @model_validator(mode="after")
    def _follows(self) -> Self:
        if (self.grade, self.reasons) != verdict(self.measurements):
            msg = "grade and reasons are not those that follow from the measurements"
            raise ValueError(msg)
        return self


class Qualification(Document):
    """The payload of ``QUALIFICATION_PAYLOAD_TYPE``. ``floors`` is the digest of the table of floors, ``floors_date`` its date."""

    v: Literal[1] = 1
    node: NodeId
    mode: Literal["quick", "full"]
    started_at: Moment
    ended_at: Moment
    driver: Text = ""
    floors: Text
    floors_date: Text
    cards: Annotated[tuple[Card, ...], Field(max_length=MAX_CARDS)]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len({card.uuid for card in self.cards}) != len(self.cards):
            msg = "a card stands twice"
            raise ValueError(msg)
        return self


def verdict(measurements: tuple[Measurement, ...]) -> tuple[Grade, tuple[str, ...]]:
    """Return the grade that follows from measurements, and a reason for each that keeps it from being ``training``."""
    fits: list[Grade] = [item.fits for item in measurements]
    grade: Grade = min(fits, key=GRADES.index) if fits else "unfit"
    return grade, tuple(item.reason for item in measurements if item.fits != "training")
