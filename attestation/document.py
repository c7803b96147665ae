"""What all signed documents share: one strict model base, one spelling as bytes, one type for each kind of field."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, StringConstraints, ValidationError

from attestation.canonical import canonical_json, parse_json
from attestation.errors import FormatError
from attestation.shape import place_of, shape
from attestation.signing import b64decode

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
MAX_TEXT = 2000
"""Characters of any text meant for people."""

LeaseId = Annotated[str, StringConstraints(pattern=r"^lease-[0-9a-f]{32}$")]
NodeId = Annotated[str, StringConstraints(pattern=r"^node-[0-9a-f]{32}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Blake3 = Annotated[str, StringConstraints(pattern=r"^blake3:[0-9a-f]{64}$")]
Nonce = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ImageRef = Annotated[str, StringConstraints(pattern=r"^(?:[a-z0-9][a-z0-9._:/-]{0,250}@)?sha256:[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
"""A whole number that JSON can carry exactly (RFC 8785 section 3.2.2.3)."""
Duration = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Seconds."""


def _utc_milliseconds(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        msg = "a time needs its zone"
        raise ValueError(msg)
    moment = moment.astimezone(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def _base64_text(text: str) -> str:
    try:
        b64decode(text)
    except FormatError as error:
        raise ValueError(error.message) from error
    return text


def time_text(moment: datetime) -> str:
    """Return RFC 3339 in UTC with milliseconds and ``Z``, the one spelling of a time in signed documents."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Moment = Annotated[datetime, AfterValidator(_utc_milliseconds), PlainSerializer(time_text)]
Base64 = Annotated[str, StringConstraints(max_length=MAX_DOCUMENT_BYTES), AfterValidator(_base64_text)]


class Part(BaseModel):
    """Base of all models inside signed documents: frozen, strict types, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class Document(Part):
    """A signed document. Its bytes are its canonical JSON, and only those bytes are accepted back.

    ``derived`` names the computed fields: they are written, and on reading they must be what the others give.
    """

    derived: ClassVar[frozenset[str]] = frozenset()

    def to_payload(self) -> bytes:
        """Return the canonical JSON (RFC 8785)."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_payload(cls, raw: bytes) -> Self:
        """Read bytes made by ``to_payload``. Raises ``FormatError`` or ``LimitError``."""
        tree = parse_json(raw, max_bytes=MAX_DOCUMENT_BYTES)
        if isinstance(tree, dict):
            tree = {name: value for name, value in tree.items() if name not in cls.derived}
        try:
            document = cls.model_validate_json(canonical_json(tree))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = place_of(cls, first["loc"]) or "the document"
            # The cause would show keys and values: what was read may be a secret in a wrong place.
            raise FormatError(f"{cls.__name__}: {place}: {first['msg']}", seen=shape(first["input"]), wanted=first["msg"]) from None
        if document.to_payload() != raw:
            # Two spellings of one document would have two digests; each document has exactly one.
            raise FormatError(f"{cls.__name__}: not in canonical form", seen="another spelling of the same values", wanted="RFC 8785 JSON")
        return document
