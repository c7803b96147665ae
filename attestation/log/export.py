"""Entries for other tools: JSON lines, OCSF and CEF. Only a log's own bytes are evidence: all of these are marked as derived."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator

from attestation.log.query import Found
from attestation.merkle import leaf_hash

_OCSF_VERSION = "1.3.0"
# OCSF Entity Management (class 3004) knows create, read, update and delete; everything else is "other" under its own name.
_OCSF_CLASS = 3004
_OCSF_ACTIVITIES = {"submitted": 1, "enrolled": 1, "issued": 1, "registered": 1, "stored": 1, "deleted": 4, "revoked": 4}
_OCSF_OTHER = 99
_BAD = ("denied", "failed", "refused", "quarantined", "expired")


def _source(origin: str, found: Found) -> dict[str, object]:
    return {"origin": origin, "index": found.index, "leaf_hash": leaf_hash(found.raw).hex()}


def to_jsonl(origin: str, found: Found) -> str:
    """Return one line: where the entry stands, and the entry as it was logged."""
    line = {"derived": True, "source": _source(origin, found), "entry": json.loads(found.raw)}
    return json.dumps(line, sort_keys=True, separators=(",", ":"))


def to_ocsf(origin: str, found: Found) -> str:
    """Return one line of OCSF: Entity Management, with the entry's origin under ``metadata`` and the rest ``unmapped``."""
    leaf = found.leaf
    verb = leaf.type.rpartition(".")[2]
    activity = _OCSF_ACTIVITIES.get(verb, _OCSF_OTHER)
    bad = _is_bad(found)
    event = {
        "class_uid": _OCSF_CLASS,
        "class_name": "Entity Management",
        "category_uid": _OCSF_CLASS // 1000,
        "category_name": "Identity & Access Management",
        "activity_id": activity,
        "activity_name": verb if activity == _OCSF_OTHER else {1: "Create", 4: "Delete"}[activity],
        "type_uid": _OCSF_CLASS * 100 + activity,
        "time": _milliseconds(found),
        "severity_id": 3 if bad else 1,
        "status_id": 2 if bad else 1,
        "status_detail": leaf.outcome,
        "message": leaf.type,
        "actor": {"user": {"uid": leaf.actor_ref}},
        "entity": {"uid": leaf.resource_ref, "type": leaf.type.partition(".")[0]},
        "metadata": {
            "version": _OCSF_VERSION,
            "product": {"name": "Sealrig", "vendor_name": "Sealrig"},
            "uid": leaf.id,
            "logged_time": int(leaf.recorded_at.timestamp() * 1000),
            "log_name": origin,
            "sequence": found.index,
        },
        "unmapped": {"derived": True, "derived_from": _source(origin, found), "tenant_ref": leaf.tenant_ref, "action": leaf.action},
    }
    if leaf.evidence is not None:
        evidence = {"digest": leaf.evidence.digest, "mediaType": leaf.evidence.media_type}
        event["unmapped"] |= {"evidence": evidence}  # type: ignore[operator]  # a mapping, as made above
    return json.dumps(event, sort_keys=True, separators=(",", ":"))


def to_cef(origin: str, found: Found) -> str:
    """Return one line of ArcSight CEF, version 0. A leaf's grammar has none of the characters that CEF escapes; the origin may."""
    leaf = found.leaf
    fields = {
        "rt": _milliseconds(found),
        "externalId": leaf.id,
        "cn1Label": "logIndex",
        "cn1": found.index,
        "suid": leaf.actor_ref,
        "duid": leaf.resource_ref,
        "act": leaf.action,
        "outcome": leaf.outcome,
        "cs1Label": "derivedFromLog",
        "cs1": _cef_value(origin),
        "cs2Label": "leafHash",
        "cs2": leaf_hash(found.raw).hex(),
        "cs3Label": "evidence",
        "cs3": leaf.evidence.digest if leaf.evidence else "none",
        "cs4Label": "tenant",
        "cs4": leaf.tenant_ref or "none",
    }
    head = f"CEF:0|Sealrig|Sealrig|1|{leaf.type}|{leaf.type} (derived)|{6 if _is_bad(found) else 3}|"
    return head + " ".join(f"{name}={value}" for name, value in fields.items())


FORMATS: dict[str, Callable[[str, Found], str]] = {"jsonl": to_jsonl, "ocsf": to_ocsf, "cef": to_cef}


def export(origin: str, entries: Iterable[Found], form: str) -> Iterator[str]:
    """Yield a line an entry in one of ``FORMATS``."""
    write = FORMATS[form]
    return (write(origin, found) for found in entries)


def _is_bad(found: Found) -> bool:
    return found.leaf.outcome in _BAD or found.leaf.type.rpartition(".")[2] in _BAD


def _milliseconds(found: Found) -> int:
    return round(found.leaf.occurred_at.timestamp() * 1000)


def _cef_value(text: str) -> str:
    return text.replace("\\", "\\\\").replace("=", "\\=")
