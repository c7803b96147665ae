"""What a node did to end a lease: an ordered list of steps, each with what was seen and what was wanted."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, computed_field

from attestation.document import Count, Document, Duration, LeaseId, Moment, Name, NodeId, Part, Text

WIPE_PAYLOAD_TYPE = "application/vnd.sealrig.wipe+json"
MAX_STEPS = 512
MAX_MEDIA = 128
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class WipeStep(Part):
    """One step: what it was about, what was done, what was then seen. ``ok`` says that the wanted was proven."""

    step: Name
    target: Text
    action: Text
    seen: Text
    wanted: Text
    ok: bool
    seconds: Duration


def _is_none(value: object) -> bool:
    return value is None


class GpuWipe(Part):
    """What was written and read back on one GPU, in bytes.

    ``residue_words_before`` counts non-zero words found before writing, null where they were not read. ``coverage`` is the verified share
    of (total - reserved), rounded down, and ``rest_bytes`` what is missing from it. The rates are of the slowest pass, in 10^9 bytes a
    second. ``local_memory_proven``: the hardware itself told that every multiprocessor was reached. ``detail`` says why it is not ``ok``.
    What is null here is left out of the document, as in those that were made before there was such a field.
    """

    uuid: Name
    name: Name
    backend: Name
    total_bytes: Count
    reserved_bytes: Count
    written_bytes: Count
    verified_bytes: Count
    mismatches: Count
    residue_words_before: Count | None
    local_memory_scrubbed: bool
    seconds: Duration
    ok: bool
    coverage: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, exclude_if=_is_none)
    rest_bytes: Count | None = Field(default=None, exclude_if=_is_none)
    fill_gb_per_s: Rate | None = Field(default=None, exclude_if=_is_none)
    compare_gb_per_s: Rate | None = Field(default=None, exclude_if=_is_none)
    local_memory_proven: bool | None = Field(default=None, exclude_if=_is_none)
    detail: Text | None = Field(default=None, exclude_if=_is_none)


class Medium(Part):
    """One medium that held the lease's data, in the terms of NIST SP 800-88 Rev. 2.

    ``method`` is ``clear`` or ``purge``; ``technique`` says how (for example cryptographic erase); ``verification`` how it was checked.
    """

    kind: Name
    manufacturer: Text = "unknown"
    model: Text = "unknown"
    serial: Text = "unknown"
    source: Text = ""
    method: Literal["clear", "purge", "none"]
    technique: Text
    verification: Text
    proven: bool


class WipeReport(Document):
    """The payload of ``WIPE_PAYLOAD_TYPE``, signed by the node. ``proven`` follows from the steps and cannot be set."""

    derived: ClassVar[frozenset[str]] = frozenset({"proven"})

    v: Literal[1] = 1
    lease: LeaseId
    node: NodeId
    started_at: Moment
    ended_at: Moment
    steps: Annotated[tuple[WipeStep, ...], Field(max_length=MAX_STEPS)]
    gpus: Annotated[tuple[GpuWipe, ...], Field(max_length=64)] = ()
    media: Annotated[tuple[Medium, ...], Field(max_length=MAX_MEDIA)] = ()

    @computed_field  # type: ignore[prop-decorator]  # pydantic's documented use over a property
    @property
    def proven(self) -> bool:
        """Whether there is at least one step and every step, GPU and medium was proven."""
        parts = [step.ok for step in self.steps] + [gpu.ok for gpu in self.gpus] + [medium.proven for medium in self.media]
        return bool(self.steps) and all(parts)

    @property
    def failed(self) -> tuple[WipeStep, ...]:
        """The steps that were not proven."""
        return tuple(step for step in self.steps if not step.ok)
