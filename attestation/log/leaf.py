"""One entry of the audit log: what happened to which thing, and the digest of the document that proves why.

A leaf is public for ever, so its grammar leaves no room for personal data or free text: references are random ids or
digests, words are slugs, and anything else stands only as a salted commitment (``attestation.log.commitments``).
Every text that fits the grammar is ASCII without escapes and has its keys in order, so it is its own only spelling in
RFC 8785: one regular expression is parser, validator and canonical check at once.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Self

from uuid_utils import uuid7

from attestation.canonical import canonical_json, parse_json
from attestation.errors import FormatError, LimitError
from attestation.log.errors import LeafError
from attestation.shape import shape

MAX_LEAF_BYTES = 65535  # an entry bundle counts a leaf's length with 16 bits
MAX_COMMITMENTS = 64

_SLUG = r"[a-z0-9][a-z0-9._-]{0,63}"
_REF = r"(?:server|[a-z0-9]{1,16}[:-][0-9a-f]{16,64}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
_UUID7 = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]\.[0-9]{3}Z"
_DIGEST = r"[a-z0-9]{1,16}:[0-9a-f]{64}"
_MEDIA = r"[a-z0-9][a-z0-9.+-]{0,62}/[a-z0-9][a-z0-9.+-]{0,126}"
_COMMITMENT = rf'\{{"field":"{_SLUG}","mac":"[0-9a-f]{{64}}"\}}'
_COMMITMENTS = rf"(?:{_COMMITMENT}(?:,{_COMMITMENT}){{0,{MAX_COMMITMENTS - 1}}})?"
_LEAF = re.compile(
    rf'\{{"action":"({_SLUG})","actor_ref":"({_REF})","commitments":\[({_COMMITMENTS})\],'
    rf'"evidence":(?:null|\{{"digest":"({_DIGEST})","mediaType":"({_MEDIA})"\}}),"id":"({_UUID7})","occurred_at":"({_TIME})",'
    rf'"outcome":"({_SLUG})","recorded_at":"({_TIME})","resource_ref":"({_REF})","tenant_ref":(?:null|"({_REF})"),"type":"({_SLUG})","v":1\}}'
)
_EACH = re.compile(r'"field":"([^"]*)","mac":"([^"]*)"')
_KEYS = frozenset(
    (
        "action",
        "actor_ref",
        "commitments",
        "evidence",
        "id",
        "occurred_at",
        "outcome",
        "recorded_at",
        "resource_ref",
        "tenant_ref",
        "type",
        "v",
    )
)
_WORDS = {
    name: re.compile(pattern)
    for name, pattern in {
        "action": _SLUG,
        "outcome": _SLUG,
        "type": _SLUG,
        "actor_ref": _REF,
        "resource_ref": _REF,
        "tenant_ref": _REF,
        "id": _UUID7,
        "occurred_at": _TIME,
        "recorded_at": _TIME,
        "digest": _DIGEST,
        "mediaType": _MEDIA,
    }.items()
}


@dataclass(frozen=True)
class DocumentRef:
    """The document that justified an event: digest (``sha256:…``, ``blake3:…``) of its exact bytes, and its media type."""

    digest: str
    media_type: str


@dataclass(frozen=True)
class Commitment:
    """A field whose value is hidden: 64 hex digits of HMAC-SHA-256 under a random salt kept elsewhere."""

    field: str
    mac: str


@dataclass(frozen=True)
class Leaf:
    """One event. ``id`` is a UUIDv7 and makes appending idempotent; times are UTC, cut to milliseconds.

    ``type`` is such as ``lease.running``; ``*_ref`` are random ids or digests (``server`` for the control plane itself).
    Raises ``LeafError`` where a value does not fit the grammar.
    """

    type: str
    occurred_at: datetime
    recorded_at: datetime
    actor_ref: str
    resource_ref: str
    action: str
    outcome: str
    tenant_ref: str | None = None
    evidence: DocumentRef | None = None
    commitments: tuple[Commitment, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", new_leaf_id())
        for name in ("occurred_at", "recorded_at"):
            object.__setattr__(self, name, _to_milliseconds(name, getattr(self, name)))
        raw = self.to_bytes()
        if len(raw) > MAX_LEAF_BYTES or _LEAF.fullmatch(raw.decode("ascii")) is None:
            _explain(raw)

    def to_bytes(self) -> bytes:
        """Return the leaf as RFC 8785 canonical JSON."""
        fields = {
            "v": 1,
            "id": self.id,
            "type": self.type,
            "occurred_at": _spell(self.occurred_at),
            "recorded_at": _spell(self.recorded_at),
            "actor_ref": self.actor_ref,
            "tenant_ref": self.tenant_ref,
            "resource_ref": self.resource_ref,
            "action": self.action,
            "outcome": self.outcome,
            "evidence": {"digest": self.evidence.digest, "mediaType": self.evidence.media_type} if self.evidence else None,
            "commitments": [{"field": each.field, "mac": each.mac} for each in self.commitments],
        }
        # The standard encoder is ten times faster; what fits the grammar has one spelling, whoever wrote it.
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read a leaf from exact bytes. Raises ``LeafError`` for anything but the canonical form."""
        match = _match(raw)
        action, actor, commitments, digest, media, id_, occurred, outcome, recorded, resource, tenant, kind = match.groups()
        return cls(
            type=kind,
            occurred_at=_parse_time(occurred),
            recorded_at=_parse_time(recorded),
            actor_ref=actor,
            resource_ref=resource,
            action=action,
            outcome=outcome,
            tenant_ref=tenant,
            evidence=DocumentRef(digest, media) if digest else None,
            commitments=tuple(Commitment(*pair) for pair in _EACH.findall(commitments)),
            id=id_,
        )


def new_leaf_id() -> str:
    """Return a fresh UUIDv7 (RFC 9562) in its usual spelling."""
    return str(uuid7())


def leaf_id(raw: bytes) -> bytes:
    """Return the 16-byte id of a leaf once its exact bytes fit the grammar. Raises ``LeafError``."""
    id_, occurred, recorded = _match(raw).group(6, 7, 9)
    _check_day(occurred[:10])
    _check_day(recorded[:10])
    return bytes.fromhex(id_.replace("-", ""))


@lru_cache(maxsize=64)
def _check_day(text: str) -> None:
    """Refuse a day that no calendar has; the grammar sees to the time. Remembered, for most entries of a batch share their day."""
    try:
        date.fromisoformat(text)
    except ValueError as error:
        raise LeafError("a leaf's day is in no calendar", rule="leaf-day", seen=shape(text), wanted="a calendar date") from error


def _match(raw: bytes) -> re.Match[str]:
    if len(raw) <= MAX_LEAF_BYTES:
        try:
            match = _LEAF.fullmatch(raw.decode("ascii"))
        except UnicodeDecodeError:
            match = None
        if match is not None:
            return match
    return _explain(raw)


def _explain(raw: bytes) -> re.Match[str]:
    """Name the first thing that keeps ``raw`` from being a leaf; always raises ``LeafError``."""
    if len(raw) > MAX_LEAF_BYTES:
        raise LeafError("a leaf is too large", rule="leaf-size", seen=f"{len(raw)} bytes", wanted=f"≤ {MAX_LEAF_BYTES} bytes")
    try:
        tree = parse_json(raw)
    except (FormatError, LimitError) as error:
        raise LeafError("a leaf is not JSON", rule="leaf-json", seen=str(error.details.get("seen")), wanted="RFC 8785 JSON") from error
    if not isinstance(tree, dict) or set(tree) != _KEYS:
        raise LeafError("a leaf has other fields", rule="leaf-fields", seen=shape(tree), wanted=", ".join(sorted(_KEYS)))
    if tree["v"] != 1 or isinstance(tree["v"], bool):
        raise LeafError("a leaf of another version", rule="leaf-version", seen=shape(tree["v"]), wanted="1")
    _explain_words(tree)
    raise LeafError("a leaf is not in canonical form", rule="leaf-canonical", seen=shape(raw), wanted="RFC 8785 JSON")


def _explain_words(tree: dict[str, object]) -> None:
    words = {name: tree[name] for name in _WORDS if name in tree and not (name == "tenant_ref" and tree[name] is None)}
    evidence, commitments = tree["evidence"], tree["commitments"]
    if evidence is not None:
        if not isinstance(evidence, dict) or set(evidence) != {"digest", "mediaType"}:
            raise LeafError("a leaf's evidence is not a reference", rule="leaf-evidence", seen=shape(evidence), wanted="digest, mediaType")
        words |= evidence
    for name, value in words.items():
        if not isinstance(value, str) or _WORDS[name].fullmatch(value) is None:
            raise LeafError(
                f"a leaf's {name} is not acceptable",
                rule=f"leaf-{name}",
                seen=shape(value),
                wanted=_WORDS[name].pattern,
                fix="log random ids, digests and fixed words; put anything else into a salted commitment",
            )
    if not isinstance(commitments, list) or re.fullmatch(_COMMITMENTS, canonical_json(commitments).decode()[1:-1]) is None:
        raise LeafError("a leaf's commitments are not acceptable", rule="leaf-commitments", seen=shape(commitments), wanted="field, mac")


def _spell(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _to_milliseconds(name: str, moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise LeafError(f"a leaf's {name} needs its zone", rule=f"leaf-{name}", seen=moment.isoformat(), wanted="a time with its zone")
    utc = moment.astimezone(UTC)
    return utc.replace(microsecond=utc.microsecond // 1000 * 1000)


def _parse_time(text: str) -> datetime:
    _check_day(text[:10])
    return datetime.fromisoformat(text)
