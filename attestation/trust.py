"""The customer's trust file: which nodes, logs, levels and measurements the customer accepts. Absent means not accepted.

The caller parses the YAML (strictly); this module takes the tree. Unknown keys are refused with the valid ones named.
"""

from __future__ import annotations

import difflib
import re
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from attestation.appraisal import Level
from attestation.canonical import digest_of
from attestation.document import Base64, Moment, Name, NodeId, Sha256
from attestation.errors import FormatError
from attestation.shape import place_of, shape, unknown_key
from attestation.signing import VerifyKey

_DURATION = re.compile(r"(\d{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None or int(match[1]) == 0:
        msg = "a duration such as 90s, 10m, 24h or 7d is wanted"
        raise ValueError(msg)
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def _key(text: str) -> str:
    try:
        VerifyKey.from_text(text)
    except FormatError as error:
        raise ValueError(error.message) from error
    return text


def _level(text: object) -> object:
    return text.label if isinstance(text, Level) else text


LogKeyText = Annotated[str, StringConstraints(min_length=1, max_length=400)]
KeyText = Annotated[str, StringConstraints(max_length=200), AfterValidator(_key)]
LevelLabel = Annotated[Literal["software", "measured", "confidential", "confidential-gpu"], BeforeValidator(_level)]
Wait = Annotated[timedelta, BeforeValidator(_duration)]
Hex32 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Hex48 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{96}$")]
Byte = Annotated[int, Field(ge=0, le=255, strict=True)]
RtmrIndex = Annotated[str, StringConstraints(pattern=r"^[0-3]$")]
PcrIndex = Annotated[str, StringConstraints(pattern=r"^(?:[0-9]|1[0-9]|2[0-3])$")]

MAX_LIST = 4096
MAX_RUNNERS = 64
"""Kinds of machine that one release names."""
Accepted48 = Annotated[tuple[Hex48, ...], Field(min_length=1, max_length=MAX_LIST)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True)


class RetiredKey(_Section):
    """A key that a log had before. ``size``: of the tree with which it handed over; what it signs beyond that is not accepted.

    The size must be said here, because whoever shows a receipt can leave out the note that tells of the handover.
    """

    key: LogKeyText
    size: Annotated[int, Field(ge=1, le=2**63 - 1, strict=True)]


class LogTrust(_Section):
    """The audit log that is accepted: its origin line and its C2SP verifier key; ``retired`` are keys it had before.

    A newer key needs no mention: a log hands over to it in a note that the older key signed. Towards older keys there is no such way, as
    whoever has the newer one could make up an older; receipts from before an exchange need that key here.
    """

    origin: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    key: LogKeyText
    retired: Annotated[tuple[RetiredKey, ...], Field(max_length=64)] = ()


class AcceptedRelease(_Section):
    """One signed release that was verified: its runner digests by kind of machine, and the key that signed it."""

    version: Name
    released_at: Moment
    key: KeyText
    lock: Sha256
    runners: Annotated[dict[Name, Sha256], Field(min_length=1, max_length=MAX_RUNNERS)]


class ReleaseTrust(_Section):
    """Whose signed releases of the program are accepted, and those that were. Without ``keys`` none of ``accepted`` can be listed."""

    keys: Annotated[tuple[KeyText, ...], Field(min_length=1, max_length=64)]
    accepted: Annotated[tuple[AcceptedRelease, ...], Field(max_length=1024)] = ()

    @model_validator(mode="after")
    def _signed_by_listed_keys(self) -> Self:
        # Taking a key out of the list must take away what it vouched for, and say so rather than leave it silently.
        for release in self.accepted:
            if release.key not in self.keys:
                msg = f"release {release.version} was signed by a key that is not in 'keys': list {release.key}, or remove the release"
                raise ValueError(msg)
        return self


class TpmTrust(_Section):
    """Attestation keys of TPMs by node (base64 of the DER public key), and what their quotes must show (SHA-256 bank).

    ``pcrs``: accepted values. ``events``: accepted measurements by PCR, for the firmware's replayed log. ``ima``: accepted file digests,
    for IMA's replayed log. ``runner``: the PCR that must hold the runner that the evidence names, and nothing else.
    """

    keys: Annotated[dict[NodeId, Base64], Field(max_length=MAX_LIST)] = {}
    pcrs: Annotated[dict[PcrIndex, Annotated[tuple[Hex32, ...], Field(min_length=1, max_length=256)]], Field(max_length=24)] = {}
    events: Annotated[dict[PcrIndex, Annotated[tuple[Hex32, ...], Field(min_length=1, max_length=MAX_LIST)]], Field(max_length=24)] = {}
    ima: Annotated[frozenset[Sha256], Field(max_length=100_000)] | None = None
    runner: Annotated[int, Field(ge=0, le=23, strict=True)] | None = None


class TcbFloor(_Section):
    """The lowest accepted security version of each AMD firmware part. ``fmc`` exists on Turin only."""

    bootloader: Byte = 0
    tee: Byte = 0
    snp: Byte = 0
    microcode: Byte = 0
    fmc: Byte = 0


class SnpTrust(_Section):
    """What an SEV-SNP report must show: launch measurements (48 bytes in hex), firmware floors, guest policy.

    ``crl_max_age``: AMD's revocation list must be at hand, and be no older; None takes a report without one. ``host_data``, ``id_keys`` and
    ``author_keys``: accepted values of what was bound to the guest at its launch; None accepts any.
    """

    measurements: Annotated[tuple[Hex48, ...], Field(min_length=1, max_length=MAX_LIST)]
    tcb: TcbFloor = TcbFloor()
    smt: bool = True
    migration: bool = False
    crl_max_age: Wait | None = None
    host_data: Annotated[tuple[Hex32, ...], Field(min_length=1, max_length=MAX_LIST)] | None = None
    id_keys: Accepted48 | None = None
    author_keys: Accepted48 | None = None
    max_vmpl: Annotated[int, Field(ge=0, le=3, strict=True)] = 3


class TdxTrust(_Section):
    """What a TDX quote must show: accepted MRTD values (48 bytes in hex), and which of Intel's TCB statuses are accepted.

    ``rtmrs``: accepted values of the registers that the guest extends while it boots. ``modules``: of MRSEAM. ``config_ids``, ``owners``
    and ``owner_configs``: of what the host set when it made the guest. What is not named is not compared.
    """

    measurements: Annotated[tuple[Hex48, ...], Field(min_length=1, max_length=MAX_LIST)]
    statuses: Annotated[tuple[Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{1,64}$")], ...], Field(min_length=1, max_length=16)] = (
        "UpToDate",
    )
    rtmrs: Annotated[dict[RtmrIndex, Accepted48], Field(max_length=4)] = {}
    modules: Accepted48 | None = None
    config_ids: Accepted48 | None = None
    owners: Accepted48 | None = None
    owner_configs: Accepted48 | None = None


class GpuTrust(_Section):
    """Accepted driver and VBIOS versions of confidential GPUs; the reference measurements themselves come in signed RIM files.

    ``status_max_age``: of every certificate a revocation list or OCSP response must be at hand, and be no older; None wants none.
    """

    drivers: Annotated[tuple[str, ...], Field(max_length=256)] = ()
    vbios: Annotated[tuple[str, ...], Field(max_length=256)] = ()
    status_max_age: Wait | None = None


class TrustSpec(_Section):
    """All that is accepted.

    ``interlock`` is ``log`` (the previous wipes are looked up in the audit log) or ``claimed`` (the node's signed word is taken).
    ``runners`` are digests listed by hand, ``releases`` brings those of signed releases; where both are None any runner is accepted.
    ``customers`` of None accepts the identity inside the signed job.
    """

    level: LevelLabel
    nodes: Annotated[dict[NodeId, KeyText], Field(min_length=1, max_length=MAX_LIST)]
    log: LogTrust
    customers: Annotated[tuple[KeyText, ...], Field(max_length=MAX_LIST)] | None = None
    runners: Annotated[tuple[Sha256, ...], Field(max_length=MAX_LIST)] | None = None
    releases: ReleaseTrust | None = None
    posture: Annotated[tuple[str, ...], Field(max_length=256)] = ()
    freshness: Wait = timedelta(minutes=10)
    witnesses: Annotated[tuple[Annotated[str, StringConstraints(max_length=400)], ...], Field(max_length=64)] = ()
    witness_quorum: Annotated[int, Field(ge=0, le=64, strict=True)] = 0
    interlock: Literal["log", "claimed"] = "log"
    tpm: TpmTrust | None = None
    snp: SnpTrust | None = None
    tdx: TdxTrust | None = None
    gpu: GpuTrust | None = None

    @property
    def accepted_runners(self) -> frozenset[str] | None:
        """The digests of all accepted runners; None accepts any."""
        if self.runners is None and self.releases is None:
            return None
        released = self.releases.accepted if self.releases is not None else ()
        return frozenset(self.runners or ()).union(*(release.runners.values() for release in released))


class Trust(_Section):
    """A trust file (``apiVersion: sealrig/v1``, ``kind: Trust``)."""

    api_version: Literal["sealrig/v1"]
    kind: Literal["Trust"]
    spec: TrustSpec

    @classmethod
    def from_tree(cls, tree: object) -> Self:
        """Build from parsed YAML. Raises ``FormatError`` with the place, the value seen and what is wanted."""
        try:
            trust = cls.model_validate(tree)
        except ValidationError as error:
            raise _format_error(error) from None  # the cause would show keys and values
        if trust.spec.witness_quorum > len(trust.spec.witnesses):
            raise FormatError(
                "spec.witnessQuorum: more witnesses are wanted than named",
                rule="trust-schema",
                seen=str(trust.spec.witness_quorum),
                wanted=f"≤ {len(trust.spec.witnesses)}",
                fix="name more witnesses",
            )
        return trust

    @property
    def level(self) -> Level:
        """The least level that is accepted."""
        return Level.from_label(self.spec.level)

    @property
    def digest(self) -> str:
        """``sha256:…`` over the file's values; it names the appraisal policy in an EAR."""
        return digest_of(self.model_dump(mode="json", by_alias=True))

    def node_key(self, node: str) -> VerifyKey | None:
        """Return the key listed for a node, or None."""
        text = self.spec.nodes.get(node)
        return None if text is None else VerifyKey.from_text(text)

    @property
    def node_keys(self) -> tuple[VerifyKey, ...]:
        """The keys of all listed nodes."""
        return tuple(VerifyKey.from_text(text) for text in self.spec.nodes.values())


def _format_error(error: ValidationError) -> FormatError:
    first = error.errors(include_url=False)[0]
    place = place_of(Trust, first["loc"]) or "the document"
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        known = sorted({field.alias or name for model in _SECTIONS for name, field in model.model_fields.items()})
        place = place_of(Trust, first["loc"], nearly=known)
        close = difflib.get_close_matches(key, known, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"keys of a trust file: {', '.join(known)}"
        return FormatError(
            f"{place}: unknown key", rule="trust-schema", seen=unknown_key(key, known), wanted="a key of the trust file", fix=fix
        )
    text = first["msg"].removeprefix("Value error, ")
    return FormatError(
        f"{place}: {text}", rule="trust-schema", seen=shape(first["input"]), wanted=text, fix=f"correct {place} in the trust file"
    )


_SECTIONS: tuple[type[BaseModel], ...] = (
    Trust,
    TrustSpec,
    LogTrust,
    RetiredKey,
    ReleaseTrust,
    AcceptedRelease,
    TpmTrust,
    SnpTrust,
    TcbFloor,
    TdxTrust,
    GpuTrust,
)
