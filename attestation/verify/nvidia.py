"""NVIDIA GPUs with confidential computing: a genuine GPU, this very question, and nothing running but what NVIDIA signed.

Steps: ``gpu-format`` · ``gpu-chain`` the GPU's key was issued under NVIDIA's pinned root · ``gpu-signature`` · ``gpu-fwid`` the
certificate is for the firmware that reports · ``gpu-nonce`` · ``gpu-versions`` · ``gpu-rim-N`` each reference file is signed and is for
this firmware · ``gpu-measurements`` all active measurements have an accepted value.

A GPU reports these measurements in confidential mode only, and in debug mode they differ; so mode on and debugging off follow from
the measurements, and only from both references together: driver and VBIOS.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation.appraisal import APPROVED_CONFIGURATION, APPROVED_RUNTIME, ENCRYPTED_RUNTIME, GENUINE, NO_CLAIM, Submod
from attestation.errors import AttestationError, FormatError
from attestation.steps import Steps
from attestation.verify.certificates import load_chain, packaged_roots, verify_chain
from attestation.verify.nvidia_report import FWID, SHA384_BYTES, GpuReport, parse_gpu_report
from attestation.verify.rim import Rim, verify_rim

CHAIN_LENGTH = 5
NVDEC0_INDEX = 35
"""The measurement (from 0) that exists only while the video decoder is on."""
_TCB_INFO = "2.23.133.5.4.1"  # TCG DICE TcbInfo; ends with the firmware's SHA-384


@dataclass(frozen=True)
class GpuRules:
    """Accepted driver and VBIOS versions (empty: any that NVIDIA signed) and replacements for the packaged roots."""

    drivers: Collection[str] = ()
    vbios: Collection[str] = ()
    device_roots: Sequence[x509.Certificate] = ()
    rim_roots: Sequence[x509.Certificate] = ()


def verify_gpu(
    report: bytes, chain: bytes, rims: Sequence[bytes], *, nonce: bytes | None, rules: GpuRules, at: datetime, steps: Steps
) -> Submod:
    """Record the steps and return the claims. Raises ``VerificationError`` where later steps would have no basis.

    ``nonce`` is 32 bytes, or None to compare nothing and then claim nothing.
    """
    try:
        parsed, certificates = parse_gpu_report(report), load_chain(chain)
    except AttestationError as error:
        steps.fail("gpu-format", error)
    steps.check("gpu-format", ok=True, seen=f"{len(parsed.measurements)} measurements", wanted="an SPDM measurement report")
    _check_chain(certificates, rules, at, steps)
    _check_signature(parsed, certificates[0], steps)
    _check_fwid(parsed, certificates[0], steps)
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
    complete = _check_references(parsed, rims, rules, at, steps)
    known = nonce is not None
    claims = {
        "hardware": GENUINE if known else NO_CLAIM,
        "executables": APPROVED_RUNTIME if known and complete else NO_CLAIM,
        "configuration": APPROVED_CONFIGURATION if known and complete else NO_CLAIM,
        "runtime-opaque": ENCRYPTED_RUNTIME if known and complete else NO_CLAIM,
    }
    return Submod(claims, {"driver": parsed.driver, "vbios": parsed.vbios, "references": "driver and VBIOS" if complete else "incomplete"})


def _check_chain(certificates: Sequence[x509.Certificate], rules: GpuRules, at: datetime, steps: Steps) -> None:
    roots = list(rules.device_roots) or packaged_roots("nvidia_device.pem")
    try:
        root = verify_chain(certificates, roots, at)
    except AttestationError as error:
        steps.fail("gpu-chain", error)
    steps.need(
        "gpu-chain",
        ok=len(certificates) == CHAIN_LENGTH,
        seen=f"{len(certificates)} certificates to {root}",
        wanted=f"{CHAIN_LENGTH} certificates to NVIDIA's pinned root",
    )


def _check_signature(report: GpuReport, leaf: x509.Certificate, steps: Steps) -> None:
    key = leaf.public_key()
    good = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)
    if isinstance(key, ec.EllipticCurvePublicKey) and good:
        try:
            key.verify(encode_dss_signature(*report.signature), report.signed, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature:
            good = False
    steps.need("gpu-signature", ok=good, seen="proven" if good else "another key, or other bytes", wanted="a signature by the GPU's key")


def _check_fwid(report: GpuReport, leaf: x509.Certificate, steps: Steps) -> None:
    """Firmware before R550 reports no FWID; its key is bound to the firmware by the certificate alone."""
    seen = report.opaque.get(FWID)
    wanted = next(
        (
            extension.value.value[-SHA384_BYTES:]
            for extension in leaf.extensions
            if isinstance(extension.value, x509.UnrecognizedExtension) and extension.oid.dotted_string == _TCB_INFO
        ),
        b"",
    )
    steps.check(
        "gpu-fwid",
        ok=len(wanted) == SHA384_BYTES and seen in (None, wanted),
        seen="not reported" if seen is None else seen.hex(),
        wanted=f"{wanted.hex() or 'a firmware id in the certificate'}{' where reported' if seen is None else ''}",
    )


def _check_references(report: GpuReport, rims: Sequence[bytes], rules: GpuRules, at: datetime, steps: Steps) -> bool:
    """Return whether both references (driver and VBIOS) were there and every active measurement fits."""
    found: dict[str, Rim] = {}
    for number, raw in enumerate(rims):
        try:
            rim = verify_rim(raw, at, rules.rim_roots)
            kind = _kind(rim, report)
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
    good, active = _compare(report, found, steps)
    return good and active > 0 and set(found) == {"driver", "vbios"}


def _kind(rim: Rim, report: GpuReport) -> str:
    kinds = {report.driver.upper(): "driver", report.vbios.upper(): "vbios"}
    kind = kinds.get(rim.version.upper()) if rim.version else None
    if kind is None:
        raise FormatError(
            "the reference is for other firmware",
            seen=f"{rim.product} {rim.version}",
            wanted=f"driver {report.driver} or VBIOS {report.vbios}",
        )
    return kind


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
