"""AMD SEV-SNP: a genuine CPU with current firmware, an accepted guest, and this very question.

Steps: ``snp-format`` · ``snp-chain`` the chip's key (VCEK, or a cloud's VLEK) was issued under AMD's pinned roots ·
``snp-revocation`` AMD has not revoked its issuers · ``snp-signature`` it signed the report · ``snp-key``, ``snp-key-tcb``,
``snp-key-chip`` the certificate is for this signer, firmware and chip · ``snp-tcb`` at or above the floors · ``snp-policy`` debugging
off · ``snp-vmpl`` · ``snp-measurement`` · ``snp-host-data``, ``snp-id-key``, ``snp-author-key`` where wanted · ``snp-nonce``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation.appraisal import APPROVED_CONFIGURATION, APPROVED_RUNTIME, ENCRYPTED_RUNTIME, GENUINE, NO_CLAIM, Submod
from attestation.errors import AttestationError, FormatError
from attestation.steps import Steps
from attestation.verify.certificates import load_chain, packaged_roots, verify_chain
from attestation.verify.der import IA5, INTEGER, OCTETS, value
from attestation.verify.revocation import check_revocation, load_crl
from attestation.verify.snp_report import MAX_VMPL, VCEK, VLEK, SnpReport, Tcb, parse_report

PRODUCTS = ("milan", "genoa", "turin")
REPORT_DATA_BYTES = 64
NO_FLOOR = Tcb(bootloader=0, tee=0, snp=0, microcode=0)
_OID = "1.3.6.1.4.1.3704.1."
_PARTS = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_PRODUCT_OID, _CHIP_OID = "2", "4"
_TURIN_CHIP_BYTES = 8
_AGAIN = "ask for a new report, and have it sent as the firmware made it"
_FITTING = "send the certificate that AMD issued for this chip and its present firmware"


@dataclass(frozen=True)
class SnpRules:
    """What a report must show. ``measurements`` of None compares nothing and then claims nothing of the guest.

    ``host_data`` (32 bytes), ``id_keys`` and ``author_keys`` (48) are accepted values of what was bound to the guest at its launch; None of
    them compares nothing. ``max_vmpl`` is the least privileged level that may ask.
    """

    measurements: Collection[bytes] | None = None
    floor: Tcb = NO_FLOOR
    smt: bool = True
    migration: bool = False
    crl_max_age: timedelta | None = None
    """How old AMD's revocation list may be; None does not want one."""
    host_data: Collection[bytes] | None = None
    id_keys: Collection[bytes] | None = None
    author_keys: Collection[bytes] | None = None
    max_vmpl: int = MAX_VMPL


@dataclass(frozen=True)
class ChipCertificate:
    """What a VCEK or VLEK certificate says of the chip (AMD 57230). ``chip`` is empty on a VLEK, which stands for a cloud, not a chip."""

    product: str
    tcb: Tcb
    chip: bytes


def verify_snp(
    report: bytes,
    chain: bytes,
    *,
    nonce: bytes | None,
    rules: SnpRules,
    at: datetime,
    steps: Steps,
    roots: Sequence[x509.Certificate] = (),
    crl: bytes | None = None,
    cached: Sequence[bytes] = (),
) -> Submod:
    """Record the steps and return the claims. Raises ``VerificationError`` where later steps would have no basis.

    ``chain`` is the VCEK or VLEK, PEM or DER, with or without its issuers. ``nonce`` is 32 or 64 bytes, or None to compare nothing.
    ``roots`` replaces AMD's packaged certificates (ASK, ARK, ASVK). ``crl`` is the ARK's revocation list,
    as it came with the report; ``cached`` are lists of one's own, of which those of these issuers count.
    """
    try:
        certificates = load_chain(chain)
        about = parse_chip_certificate(certificates[0])
        parsed = parse_report(report, turin=about.product == "turin")
    except AttestationError as error:
        steps.fail("snp-format", error)
    steps.check("snp-format", ok=True, seen=f"report v{parsed.version}, {about.product}", wanted="report v2 to v5")
    issuers = _check_chain(certificates, about, roots, at, steps)
    _check_revocation([certificates[0], *issuers], crl, cached, max_age=rules.crl_max_age, at=at, steps=steps)
    _check_signature(parsed, certificates[0], steps)
    _check_key(parsed, about, steps)
    _check_rules(parsed, rules, steps)
    _check_nonce(parsed, nonce, steps)
    judged = nonce is not None and rules.measurements is not None
    claims = {
        "hardware": GENUINE if nonce is not None else NO_CLAIM,
        "configuration": APPROVED_CONFIGURATION if nonce is not None else NO_CLAIM,
        "executables": APPROVED_RUNTIME if judged else NO_CLAIM,
        "runtime-opaque": ENCRYPTED_RUNTIME if nonce is not None else NO_CLAIM,
    }
    facts = {
        "product": about.product,
        "tcb": str(parsed.reported_tcb),
        "measurement": parsed.measurement.hex(),
        "chip": parsed.chip_id.hex(),
        "host_data": parsed.host_data.hex(),
        "id_key": parsed.id_key.hex(),
        "vmpl": parsed.vmpl,
    }
    return Submod(claims, facts)


def _check_chain(
    certificates: Sequence[x509.Certificate], about: ChipCertificate, roots: Sequence[x509.Certificate], at: datetime, steps: Steps
) -> list[x509.Certificate]:
    """Return the certificates above the chip's, its issuer among them."""
    pinned = list(roots) or list(packaged_roots(f"amd_{about.product}.pem"))
    tops = [certificate for certificate in pinned if certificate.issuer == certificate.subject]
    try:
        middle = next(certificate for certificate in pinned if certificate.subject == certificates[0].issuer)
        root = verify_chain([certificates[0], middle], tops, at)
    except StopIteration:
        steps.need(
            "snp-chain",
            ok=False,
            seen=certificates[0].issuer.rfc4514_string()[:200],
            wanted="an issuer among AMD's pinned certificates",
            fix="send the certificate that AMD issued for this chip",
        )
    except AttestationError as error:
        steps.fail("snp-chain", error)
    else:
        steps.check("snp-chain", ok=True, seen=root, wanted="AMD's pinned root")
    return pinned


def _check_revocation(
    certificates: Sequence[x509.Certificate],
    crl: bytes | None,
    cached: Sequence[bytes],
    *,
    max_age: timedelta | None,
    at: datetime,
    steps: Steps,
) -> None:
    """Every list of these issuers must be silent about them: the node's own may be one from before a revocation."""
    fix = "import AMD's current list (https://kdsintf.amd.com/vcek/v1/{Milan,Genoa,Turin}/crl), or have the node send it"
    seen: list[str] = []
    try:
        lists = [] if crl is None else [load_crl(crl)]
        lists += [own for own in map(load_crl, cached) if any(own.issuer == item.subject for item in certificates)]
        for listed in lists:
            issuer = next((item for item in certificates if item.subject == listed.issuer), certificates[-1])
            seen.append(check_revocation(listed, issuer, certificates, at=at, max_age=max_age))
    except AttestationError as error:
        error.details["fix"] = fix
        steps.note("snp-revocation", error)
        return
    if seen:
        steps.check("snp-revocation", ok=True, seen="; ".join(seen), wanted="AMD's current list names none of them")
    else:
        wanted = "not compared: no list was given" if max_age is None else "AMD's revocation list"
        steps.check("snp-revocation", ok=max_age is None, seen="none", wanted=wanted, fix=fix)


def _check_signature(report: SnpReport, certificate: x509.Certificate, steps: Steps) -> None:
    key = certificate.public_key()
    good = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)
    if isinstance(key, ec.EllipticCurvePublicKey) and good:
        try:
            key.verify(encode_dss_signature(*report.signature), report.signed, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature:
            good = False
    steps.need(
        "snp-signature",
        ok=good,
        seen="proven" if good else "another key, or other bytes",
        wanted="a signature by the chip's key",
        fix=_AGAIN,
    )


def _check_key(report: SnpReport, about: ChipCertificate, steps: Steps) -> None:
    """Require a certificate for this signer, firmware and chip: an old certificate would hide a downgrade."""
    wanted = VCEK if about.chip else VLEK
    steps.check(
        "snp-key",
        ok=report.signer == wanted,
        seen=f"signing key {report.signer}",
        wanted=f"{wanted} ({'VCEK' if about.chip else 'VLEK'})",
        fix=_FITTING,
    )
    steps.check("snp-key-tcb", ok=about.tcb == report.reported_tcb, seen=str(report.reported_tcb), wanted=str(about.tcb), fix=_FITTING)
    if about.chip:
        size = len(about.chip)
        same = report.chip_id[:size] == about.chip and not any(report.chip_id[size:])
        steps.check(
            "snp-key-chip", ok=same and not report.chip_key_masked, seen=report.chip_id.hex(), wanted=about.chip.hex(), fix=_FITTING
        )


def _check_rules(report: SnpReport, rules: SnpRules, steps: Steps) -> None:
    low = next((tcb for tcb in (report.reported_tcb, report.committed_tcb, report.launch_tcb) if not tcb.covers(rules.floor)), None)
    steps.check(
        "snp-tcb", ok=low is None, seen=str(low or report.reported_tcb), wanted=f"at least {rules.floor}", fix="update the host's firmware"
    )
    policy = report.policy
    allowed = not policy.debug and (rules.migration or not policy.migration) and (rules.smt or not policy.smt)
    steps.check(
        "snp-policy",
        ok=allowed,
        seen=f"debug {policy.debug}, migration {policy.migration}, SMT {policy.smt}",
        wanted=f"debug False, migration {'any' if rules.migration else 'False'}, SMT {'any' if rules.smt else 'False'}",
        fix="start the guest with another policy",
    )
    steps.check(
        "snp-vmpl",
        ok=report.vmpl <= min(rules.max_vmpl, MAX_VMPL),
        seen=str(report.vmpl),
        wanted=f"0 to {rules.max_vmpl} (asked for by the guest, not the host)",
        fix="ask from a more privileged level of the guest, or accept this one in the trust file",
    )
    known = rules.measurements is None or report.measurement in rules.measurements
    steps.check(
        "snp-measurement",
        ok=known,
        seen=report.measurement.hex(),
        wanted="not compared: no measurement was given" if rules.measurements is None else f"one of {len(rules.measurements)} accepted",
        fix="add the measurement to the trust file, if you accept this image",
    )

    for name, seen, accepted in (
        ("host-data", report.host_data, rules.host_data),
        ("id-key", report.id_key, rules.id_keys),
        ("author-key", report.author_key, rules.author_keys),
    ):
        if accepted is not None:
            fix = "launch the guest with what the trust file accepts, or add this value to it"
            steps.check(f"snp-{name}", ok=seen in accepted, seen=seen.hex(), wanted=f"one of {len(accepted)} accepted", fix=fix)


def _check_nonce(report: SnpReport, nonce: bytes | None, steps: Steps) -> None:
    wanted = None if nonce is None else nonce.ljust(REPORT_DATA_BYTES, b"\0")
    steps.check(
        "snp-nonce",
        ok=wanted is None or report.report_data == wanted,
        seen=report.report_data.hex(),
        wanted="not compared: no nonce was given" if wanted is None else wanted.hex(),
        fix="ask for a new report over the right nonce",
    )


def parse_chip_certificate(certificate: x509.Certificate) -> ChipCertificate:
    """Read AMD's extensions of a VCEK or VLEK. Raises ``FormatError``."""
    values = {}
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.UnrecognizedExtension) and extension.oid.dotted_string.startswith(_OID):
            values[extension.oid.dotted_string.removeprefix(_OID)] = extension.value.value
    name = value(values.get(_PRODUCT_OID, b""), IA5).decode("ascii", errors="replace")
    product = "genoa" if name.lower().startswith("siena") else name.partition("-")[0].lower()
    if product not in PRODUCTS:
        raise FormatError("not a certificate of a known AMD product", seen=name[:40], wanted=", ".join(PRODUCTS))
    parts = {part: int.from_bytes(value(values[oid], INTEGER), "big") for part, oid in _PARTS.items() if oid in values}
    missing = {"bootloader", "tee", "snp", "microcode"} - set(parts)
    if missing or max(parts.values()) > 255:
        raise FormatError(
            "not a chip certificate", seen=f"missing: {', '.join(sorted(missing)) or 'none'}", wanted="the versions of all firmware parts"
        )
    chip = values.get(_CHIP_OID, b"")
    wanted = _TURIN_CHIP_BYTES if product == "turin" else REPORT_DATA_BYTES
    chip = chip[2:] if len(chip) == wanted + 2 and chip[:2] == bytes([OCTETS, wanted]) else chip
    if chip and len(chip) != wanted:
        raise FormatError("a chip id of another length", seen=f"{len(chip)} bytes", wanted=f"{wanted} bytes")
    return ChipCertificate(product, Tcb(**parts), chip)
