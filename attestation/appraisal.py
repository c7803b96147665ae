"""The result of appraising evidence: an EAR (draft-ietf-rats-ear-04) with AR4SI trustworthiness vectors, and the level that follows.

The level is computed from the vectors of the submods and from nothing else; nobody can assert it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, Self

from attestation.errors import FormatError, Step
from attestation.shape import shape

EAR_PROFILE = "tag:ietf.org,2026:rats/ear#04"
VERIFIER = {"developer": "https://sealrig.dev", "build": "sealrig-attestation-1"}

# AR4SI values (draft-ietf-rats-ar4si): 2 to 31 affirming, 32 to 95 warning, 96 to 127 contraindicated, 0 no claim.
NO_CLAIM = 0
RECOGNIZED = 2
"""instance-identity: a recognised instance, not known to be compromised."""
GENUINE = 2
"""hardware: genuine, and its versions are above the floors."""
APPROVED_RUNTIME = 2
"""executables: only approved files were loaded, up to the runner."""
APPROVED_BOOT = 3
"""executables: only approved files were loaded during boot."""
APPROVED_CONFIGURATION = 2
NO_VULNERABILITIES = 3
UNSAFE_CONFIGURATION = 32
ENCRYPTED_RUNTIME = 2
"""runtime-opaque: memory is encrypted against all outside the enclave or confidential VM."""
ISOLATED_RUNTIME = 32
"""runtime-opaque: memory is isolated from other users, readable to the node's root."""
UNRECOGNIZED = 97

_CLAIMS = (
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
)
_TIERS = ((96, "contraindicated"), (32, "warning"), (2, "affirming"))
_ORDER = ("none", "affirming", "warning", "contraindicated")


class Level(IntEnum):
    """How far evidence reaches; each level holds against more than the one before."""

    SOFTWARE = 0
    MEASURED = 1
    CONFIDENTIAL = 2
    CONFIDENTIAL_GPU = 3

    @property
    def label(self) -> str:
        """The level as written in files: ``software``, ``measured``, ``confidential`` or ``confidential-gpu``."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def from_label(cls, label: str) -> Self:
        """Return the level that ``label`` names. Raises ``FormatError``."""
        for level in cls:
            if level.label == label:
                return level
        raise FormatError("not an assurance level", seen=shape(label), wanted=", ".join(level.label for level in cls))


@dataclass(frozen=True)
class Submod:
    """One attester (``node``, ``cpu0``, ``gpu0``…): its trustworthiness claims and the facts behind them."""

    claims: Mapping[str, int]
    facts: Mapping[str, object]

    def __post_init__(self) -> None:
        if unknown := set(self.claims) - set(_CLAIMS):
            raise FormatError("not a trustworthiness claim", seen=", ".join(sorted(unknown)), wanted=", ".join(_CLAIMS))

    @property
    def status(self) -> str:
        """The worst tier among the claims that were made; ``none`` where none was."""
        tiers = [_tier(value) for value in self.claims.values()]
        return max(tiers, key=_ORDER.index, default="none")

    def to_json(self) -> dict[str, Any]:
        """Return the EAR appraisal of this submod."""
        vector = {name: self.claims[name] for name in _CLAIMS if name in self.claims}
        return {"ear_status": self.status, "ear_trustworthiness_vector": vector, "ear_verifier_claims": dict(self.facts)}


@dataclass(frozen=True)
class Appraisal:
    """What a verifier concluded: the level, the EAR as JSON, and every step it took. Only a verifier that passed makes one."""

    level: Level
    ear: Mapping[str, Any]
    steps: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the appraisal as one JSON document."""
        steps = [{"step": step.step, "ok": step.ok, "seen": step.seen, "wanted": step.wanted} for step in self.steps]
        return {"ok": all(step.ok for step in self.steps), "level": self.level.label, "ear": dict(self.ear), "steps": steps}


def appraise(submods: Mapping[str, Submod], *, nonce: bytes | None, policy_id: str, steps: tuple[Step, ...], at: datetime) -> Appraisal:
    """Return the appraisal of verified submods. ``nonce`` is the one the evidence answered; ``policy_id`` names the trust file."""
    ear: dict[str, Any] = {
        "eat_profile": EAR_PROFILE,
        "iat": int(at.timestamp()),
        "ear_verifier_id": dict(VERIFIER),
        "submods": {name: {**submod.to_json(), "ear_appraisal_policy_ids": [policy_id]} for name, submod in submods.items()},
    }
    if nonce is not None:
        ear["eat_nonce"] = nonce.hex()
    return Appraisal(level_of(submods), ear, steps)


def level_of(submods: Mapping[str, Submod]) -> Level:
    """Return the highest level that the submods' claims carry; a claim that is absent or not affirming carries nothing."""
    cpu, node = submods.get("cpu0"), submods.get("node")
    gpus = [submod for name, submod in submods.items() if name.startswith("gpu")]
    if cpu is not None and _confidential(cpu):
        return Level.CONFIDENTIAL_GPU if gpus and all(_confidential(gpu) for gpu in gpus) else Level.CONFIDENTIAL
    if node is not None and _affirms(node, "hardware", "executables", "instance-identity"):
        return Level.MEASURED
    return Level.SOFTWARE


def _confidential(submod: Submod) -> bool:
    return _affirms(submod, "hardware", "executables", "configuration") and submod.claims.get("runtime-opaque") == ENCRYPTED_RUNTIME


def _affirms(submod: Submod, *names: str) -> bool:
    return submod.status != "contraindicated" and all(_tier(submod.claims.get(name, NO_CLAIM)) == "affirming" for name in names)


def _tier(value: int) -> str:
    for floor, name in _TIERS:
        if value >= floor:
            return name
    return "none"
