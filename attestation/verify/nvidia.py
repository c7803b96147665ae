"""NVIDIA GPUs with confidential computing: a genuine GPU, this very question, and nothing running but what NVIDIA signed.

Steps: ``gpu-format`` · ``gpu-chain`` the GPU's key was issued under NVIDIA's pinned root · ``gpu-device`` it is a GPU, of a known
architecture · ``gpu-signature`` · ``gpu-fwid`` the certificate is for the firmware that reports · ``gpu-nonce`` · ``gpu-versions`` ·
``gpu-mode`` what the firmware says of its protection · ``gpu-rim-N`` each reference file is signed and is for this firmware ·
``gpu-revocation`` no certificate of these chains is known to be revoked · ``gpu-measurements`` all active measurements have an accepted
value.

A GPU reports these measurements in a protected mode only, and in debug mode they differ; so a protected mode and debugging off follow
from the measurements, and only from both references together: driver and VBIOS. Which mode it is the firmware says itself, from
driver R570 on; protected PCIe is not confidential computing, and no encrypted memory is claimed of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation.appraisal import APPROVED_CONFIGURATION, APPROVED_RUNTIME, ENCRYPTED_RUNTIME, GENUINE, ISOLATED_RUNTIME, NO_CLAIM, Submod
from attestation.errors import AttestationError, FormatError
from attestation.steps import Steps
from attestation.verify.certificates import load_chain, name_of, packaged_roots, verified_path
from attestation.verify.nvidia_identity import BLACKWELL, GpuIdentity, gpu_identity
from attestation.verify.nvidia_report import FWID, MULTI_GPU, SINGLE_GPU, GpuReport, parse_gpu_report
from attestation.verify.rim import Rim, verify_rim
from attestation.verify.statuses import NO_STATUS, StatusFiles, check_statuses

CHAIN_LENGTH = 5
_AGAIN = "ask for a new report, and have it sent as the GPU made it"
NVDEC0_INDEX = 35
"""The measurement (from 0) that exists only while the video decoder is on."""
_STATUS_FIX = (
    "ask NVIDIA's responder (ocsp.ndis.nvidia.com) about these certificates, and import its responses: 'sealrig evidence collateral'"
)


@dataclass(frozen=True)
class GpuRules:
    """Accepted driver and VBIOS versions (empty: any that NVIDIA signed) and replacements for the packaged roots.

    ``status_max_age``: how old the revocation status of each certificate may be; None does not want one.
    """

    drivers: Collection[str] = ()
    vbios: Collection[str] = ()
    status_max_age: timedelta | None = None
    device_roots: Sequence[x509.Certificate] = ()
    rim_roots: Sequence[x509.Certificate] = ()


def verify_gpu(
    report: bytes,
    chain: bytes,
    rims: Sequence[bytes],
    *,
    nonce: bytes | None,
    rules: GpuRules,
    at: datetime,
    steps: Steps,
    statuses: StatusFiles = NO_STATUS,
    cached: Sequence[bytes] = (),
) -> Submod:
    """Record the steps and return the claims. Raises ``VerificationError`` where later steps would have no basis.

    ``nonce`` is 32 bytes, or None to compare nothing and then claim nothing. ``rims`` came with the report; of ``cached`` references, one's
    own, those for this GPU that are current stand in for them. The fact ``device`` names the chip by its own key.
    """
    try:
        parsed, certificates = parse_gpu_report(report), load_chain(chain)
    except AttestationError as error:
        steps.fail("gpu-format", error)
    steps.check("gpu-format", ok=True, seen=f"{len(parsed.measurements)} measurements", wanted="an SPDM measurement report")
    path = _check_chain(certificates, rules, at, steps)
    identity = _check_device(path, steps)
    _check_signature(parsed, path[0], steps)
    _check_fwid(parsed, identity, steps)
    steps.check(
        "gpu-nonce",
        ok=nonce is None or parsed.nonce == nonce,
        seen=parsed.nonce.hex(),
        wanted="not compared: no nonce was given" if nonce is None else nonce.hex(),
        fix="ask for a new report over the right nonce",
    )
    accepted = (not rules.drivers or parsed.driver in rules.drivers) and (not rules.vbios or parsed.vbios in rules.vbios)
    steps.check(
        "gpu-versions",
        ok=accepted,
        seen=f"driver {parsed.driver}, VBIOS {parsed.vbios}",
        wanted=f"driver {', '.join(rules.drivers) or 'any'}, VBIOS {', '.join(rules.vbios) or 'any'}"[:400],
        fix="update the GPU's software",
    )
    encrypted = parsed.mode in {None, SINGLE_GPU, MULTI_GPU}
    steps.check(
        "gpu-mode",
        ok=True,
        seen=parsed.mode or "not reported: follows from the references",
        wanted="confidential computing, single GPU or multi-GPU"
        if encrypted
        else "confidential computing; so no encrypted memory is claimed",
    )
    own = _own_references(parsed, identity, cached, rules, at)
    found = own | _read_references(parsed, identity, rims, rules=rules, at=at, steps=steps, known=own)
    _check_revocation([path[1:], *(rim.chain for rim in found.values())], statuses, rules, at, steps)
    good, active = _compare(parsed, found, steps)
    known, complete = nonce is not None, good and active > 0 and set(found) == {"driver", "vbios"}
    claims = {
        "hardware": GENUINE if known else NO_CLAIM,
        "executables": APPROVED_RUNTIME if known and complete else NO_CLAIM,
        "configuration": APPROVED_CONFIGURATION if known and complete else NO_CLAIM,
        "runtime-opaque": NO_CLAIM if not (known and complete) else ENCRYPTED_RUNTIME if encrypted else ISOLATED_RUNTIME,
    }
    facts = {
        "device": identity.device.hex(),
        "chip": identity.chip,
        "architecture": identity.architecture,
        "mode": parsed.mode or "not reported",
        "driver": parsed.driver,
        "vbios": parsed.vbios,
        "references": "driver and VBIOS" if complete else "incomplete",
    }
    return Submod(claims, facts)


def check_distinct(submods: Sequence[Submod], steps: Steps) -> None:
    """Require that each of these GPUs is another chip: one GPU's report must not stand in for two."""
    seen = {submod.facts.get("device") for submod in submods}
    steps.check(
        "gpu-distinct",
        ok=len(seen) == len(submods),
        seen=f"{len(seen)} chips",
        wanted=f"{len(submods)}, one a report",
        fix="let each GPU make its own report",
    )


def _check_chain(certificates: Sequence[x509.Certificate], rules: GpuRules, at: datetime, steps: Steps) -> list[x509.Certificate]:
    roots = list(rules.device_roots) or packaged_roots("nvidia_device.pem")
    try:
        path = verified_path(certificates, roots, at)
    except AttestationError as error:
        steps.fail("gpu-chain", error)
    steps.need(
        "gpu-chain",
        ok=len(certificates) == CHAIN_LENGTH == len(path),
        seen=f"{len(certificates)} certificates to {name_of(path[-1])}",
        wanted=f"{CHAIN_LENGTH} certificates to NVIDIA's pinned root",
        fix="send the GPU's whole chain as the driver hands it out",
    )
    return path


def _check_device(path: Sequence[x509.Certificate], steps: Steps) -> GpuIdentity:
    try:
        identity = gpu_identity(path)
    except AttestationError as error:
        steps.fail("gpu-device", error)
    steps.check("gpu-device", ok=True, seen=f"{identity.chip}, {identity.architecture}", wanted="a GPU of a known architecture")
    return identity


def _check_signature(report: GpuReport, leaf: x509.Certificate, steps: Steps) -> None:
    key = leaf.public_key()
    good = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)
    if isinstance(key, ec.EllipticCurvePublicKey) and good:
        try:
            key.verify(encode_dss_signature(*report.signature), report.signed, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature:
            good = False
    steps.need(
        "gpu-signature",
        ok=good,
        seen="proven" if good else "another key, or other bytes",
        wanted="a signature by the GPU's key",
        fix=_AGAIN,
    )


def _check_fwid(report: GpuReport, identity: GpuIdentity, steps: Steps) -> None:
    """Hopper firmware before R550 reports no FWID; its key is bound to the firmware by the certificate alone."""
    seen = report.opaque.get(FWID)
    silent = seen is None and identity.architecture != BLACKWELL
    steps.check(
        "gpu-fwid",
        ok=silent or seen == identity.fwid,
        seen="not reported" if seen is None else seen.hex(),
        wanted=f"{identity.fwid.hex()}{' where reported' if silent else ''}",
        fix="send the report and the chain of one GPU, both from after its last start",
    )


def _read_references(
    report: GpuReport,
    identity: GpuIdentity,
    rims: Sequence[bytes],
    *,
    rules: GpuRules,
    at: datetime,
    steps: Steps,
    known: Mapping[str, Rim],
) -> dict[str, Rim]:
    """Return the references that verify, by what they are for: ``driver`` and ``vbios``; but for the parts that are ``known``."""
    for kind, rim in known.items():
        steps.check(
            f"gpu-rim-own-{kind}",
            ok=True,
            seen=f"{rim.product} {rim.version}, signed under {rim.signer}",
            wanted="a reference of one's own",
        )
    found: dict[str, Rim] = {}
    for number, raw in enumerate(rims):
        try:
            if _is_for(raw, known):
                continue
            rim = verify_rim(raw, at, rules.rim_roots)
            kind = _kind(rim, report, identity)
            if kind in found:
                raise FormatError("two references for one part", seen=kind, wanted="one each")
        except AttestationError as error:
            steps.note(f"gpu-rim-{number}", error)
            continue
        found[kind] = rim
        steps.check(
            f"gpu-rim-{number}",
            ok=True,
            seen=f"{kind} {rim.product} {rim.version}, signed under {rim.signer}",
            wanted="a reference for this GPU",
        )
    return found


def _is_for(raw: bytes, known: Mapping[str, Rim]) -> bool:
    """Say whether a file claims to be for a part of which there is a reference already, which is used instead."""
    return any(f'"{rim.version}"'.encode() in raw for rim in known.values())


def _own_references(report: GpuReport, identity: GpuIdentity, cached: Sequence[bytes], rules: GpuRules, at: datetime) -> dict[str, Rim]:
    """Return one's own references that are for this GPU and current."""
    found: dict[str, Rim] = {}
    versions = [version.encode() for version in (report.driver, report.vbios) if version]
    for raw in cached:
        if any(version in raw for version in versions):  # verifying takes long, and a cache may hold many
            with contextlib.suppress(AttestationError):
                rim = verify_rim(raw, at, rules.rim_roots)
                found[_kind(rim, report, identity)] = rim
    return found


def _check_revocation(
    paths: Sequence[Sequence[x509.Certificate]], statuses: StatusFiles, rules: GpuRules, at: datetime, steps: Steps
) -> None:
    """Look at ``paths``; the firmware's own certificate is not among them: the chip issues it itself, and nobody keeps its status."""
    try:
        seen = check_statuses(paths, statuses, at=at, max_age=rules.status_max_age, fix=_STATUS_FIX)
    except AttestationError as error:
        steps.note("gpu-revocation", error)
    else:
        steps.check("gpu-revocation", ok=True, seen=seen, wanted="no revoked certificate")


def _kind(rim: Rim, report: GpuReport, identity: GpuIdentity) -> str:
    kinds = {report.driver.upper(): "driver", report.vbios.upper(): "vbios"}
    kind = kinds.get(rim.version.upper()) if rim.version else None
    if kind is None or rim.product.upper() != identity.chip:
        raise FormatError(
            "the reference is for other firmware",
            seen=f"{rim.product} {rim.version}",
            wanted=f"{identity.chip}, driver {report.driver} or VBIOS {report.vbios}",
            fix=_reference_fix(report, identity),
        )
    return kind


def _reference_fix(report: GpuReport, identity: GpuIdentity) -> str:
    """Say under which names NVIDIA publishes the references of this GPU (the RIM service, ``rim.attestation.nvidia.com/v1/rim/NAME``)."""
    board, vbios = report.reference_ids
    driver = f"NV_GPU_CC_DRIVER_{identity.chip}" if identity.architecture == BLACKWELL else f"NV_GPU_DRIVER_{identity.chip}"
    return f"fetch {driver}_{report.driver} and NV_GPU_VBIOS_{board}_{vbios} from NVIDIA's RIM service (rim.attestation.nvidia.com)"


def _compare(report: GpuReport, found: dict[str, Rim], steps: Steps) -> tuple[bool, int]:
    """Compare every active reference (index from 0) with the report's block (from 1). Indexes of the two references must not overlap."""
    wrong: list[int] = []
    golden: dict[int, frozenset[bytes]] = {}
    for rim in found.values():
        wrong += sorted(set(golden) & set(rim.golden))
        golden.update(rim.golden)
    for index, values in golden.items():
        if index == NVDEC0_INDEX and report.nvdec0_on is False:
            continue
        if report.measurements.get(index + 1) not in values:
            wrong.append(index)
    good = not wrong
    matched = len(golden) - len(wrong)
    if found:
        steps.check(
            "gpu-measurements",
            ok=good,
            seen=f"wrong: {', '.join(map(str, sorted(wrong)))}" if wrong else f"{matched} of {len(golden)} match",
            wanted=f"an accepted value at each of {len(golden)} indexes",
            fix="the GPU runs what its references do not list: update it",
        )
    else:
        steps.check(
            "gpu-measurements", ok=True, seen="not compared: no reference was given", wanted="nothing is claimed of the GPU's software"
        )
    return good, len(golden)
