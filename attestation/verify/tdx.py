"""Intel TDX: a genuine CPU with current firmware, an accepted guest, and this very question.

Steps: ``tdx-format`` · ``tdx-chain`` the platform's key (PCK) was issued under Intel's pinned root · ``tdx-enclave`` it signed the quoting
enclave's report · ``tdx-key`` which names the key that · ``tdx-signature`` signed the quote · ``tdx-collateral`` Intel's tables are signed
and current, nothing is revoked · ``tdx-qe``, ``tdx-tcb``, ``tdx-module`` enclave, platform and TDX module are the tables' and up to date ·
``tdx-policy`` debugging off · ``tdx-measurement`` · ``tdx-rtmrN``, ``tdx-mrseam``, ``tdx-config-id``, ``tdx-owner``, ``tdx-owner-config``
where wanted · ``tdx-nonce``.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.appraisal import APPROVED_CONFIGURATION, APPROVED_RUNTIME, ENCRYPTED_RUNTIME, GENUINE, NO_CLAIM, Submod
from attestation.document import time_text
from attestation.errors import AttestationError, FormatError
from attestation.steps import Steps
from attestation.verify.binary import BinaryReader
from attestation.verify.certificates import load_chain, packaged_roots, verify_chain
from attestation.verify.der import SEQUENCE, members, take, value
from attestation.verify.tdx_collateral import (
    Collateral,
    collateral_fix,
    level_status,
    module_of,
    open_collateral,
    platform_status,
    signed_by,
)
from attestation.verify.tdx_quote import TdxQuote, parse_tdx_quote

UP_TO_DATE = frozenset({"UpToDate"})
REPORT_DATA_BYTES = 64
_SGX_OID = "1.2.840.113741.1.13.1"
_AGAIN = "ask for a new quote, and have it sent as the platform made it"


@dataclass(frozen=True)
class TdxRules:
    """What a quote must show. ``measurements`` are accepted MRTD values; None compares nothing and then claims nothing of the guest.

    ``rtmrs`` are accepted values of the registers that the guest itself extends, by their number (0 to 3); ``modules`` of MRSEAM;
    ``config_ids``, ``owners`` and ``owner_configs`` of what the host set when it made the guest. None of these compares nothing.
    """

    measurements: Collection[bytes] | None = None
    statuses: Collection[str] = UP_TO_DATE
    rtmrs: Mapping[int, Collection[bytes]] = field(default_factory=dict)
    modules: Collection[bytes] | None = None
    config_ids: Collection[bytes] | None = None
    owners: Collection[bytes] | None = None
    owner_configs: Collection[bytes] | None = None


@dataclass(frozen=True)
class Platform:
    """What a PCK certificate says of its platform."""

    components: tuple[int, ...]
    pcesvn: int
    fmspc: bytes
    pce_id: bytes


def verify_tdx(
    raw: bytes,
    collateral: bytes | None,
    *,
    nonce: bytes | None,
    rules: TdxRules,
    at: datetime,
    steps: Steps,
    roots: Sequence[x509.Certificate] = (),
    cached: Sequence[bytes] = (),
) -> Submod:
    """Record the steps and return the claims. Raises ``VerificationError`` where later steps would have no basis.

    ``collateral`` came with the quote; the newest of ``cached``, one's own, that is current and for this platform is used in its place.
    Without any the firmware is not judged, and nothing is claimed. ``roots`` replaces Intel's packaged root.
    """
    pinned = list(roots) or list(packaged_roots("intel_sgx.pem"))
    try:
        quote = parse_tdx_quote(raw)
        chain = load_chain(quote.chain)
        platform = parse_platform(chain[0])
    except AttestationError as error:
        steps.fail("tdx-format", error)
    steps.check("tdx-format", ok=True, seen=f"quote v{quote.version}, FMSPC {platform.fmspc.hex()}", wanted="quote v4 or v5")
    try:
        root = verify_chain(chain, pinned, at)
    except AttestationError as error:
        steps.fail("tdx-chain", error)
    steps.check("tdx-chain", ok=True, seen=root, wanted="Intel's pinned root")
    _check_signatures(quote, chain[0], steps)
    collateral = _own(platform, cached, chain=chain, roots=pinned, at=at) or collateral
    judged = _check_collateral(quote, platform, collateral, chain=chain, roots=pinned, rules=rules, at=at, steps=steps)
    _check_guest(quote, rules, nonce, steps)
    known = judged and nonce is not None
    claims = {
        "hardware": GENUINE if known else NO_CLAIM,
        "configuration": APPROVED_CONFIGURATION if known else NO_CLAIM,
        "executables": APPROVED_RUNTIME if known and rules.measurements is not None else NO_CLAIM,
        "runtime-opaque": ENCRYPTED_RUNTIME if known else NO_CLAIM,
    }
    facts = {
        "fmspc": platform.fmspc.hex(),
        "tcb_svn": quote.tcb_svn.hex(),
        "measurement": quote.measurement.hex(),
        "rtmrs": [value.hex() for value in quote.rtmrs],
        "mrseam": quote.seam.hex(),
        "owner": quote.owner.hex(),
        "config_id": quote.config_id.hex(),
    }
    return Submod(claims, facts)


def _check_signatures(quote: TdxQuote, pck: x509.Certificate, steps: Steps) -> None:
    good = signed_by(pck, quote.enclave_signature, quote.enclave.raw)
    steps.need(
        "tdx-enclave",
        ok=good,
        seen="proven" if good else "another key, or other bytes",
        wanted="a signature by the platform's key",
        fix=_AGAIN,
    )
    named = hashlib.sha256(quote.key + quote.authentication).digest().ljust(REPORT_DATA_BYTES, b"\0")
    steps.need("tdx-key", ok=quote.enclave.data == named, seen=quote.enclave.data.hex(), wanted=named.hex(), fix=_AGAIN)
    try:
        own = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + quote.key)
        good = signed_by(own, quote.signature, quote.signed)
    except ValueError:
        good = False
    steps.need(
        "tdx-signature",
        ok=good,
        seen="proven" if good else "another key, or other bytes",
        wanted="a signature by the quote's key",
        fix=_AGAIN,
    )


def _check_collateral(
    quote: TdxQuote,
    platform: Platform,
    raw: bytes | None,
    *,
    chain: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    rules: TdxRules,
    at: datetime,
    steps: Steps,
) -> bool:
    """Return whether there was collateral to judge the platform by."""
    if raw is None:
        wanted = f"not compared: no collateral was given. {collateral_fix(platform.fmspc.hex())}"
        steps.check("tdx-collateral", ok=True, seen="none", wanted=wanted)
        return False
    try:
        found = open_collateral(raw, chain, roots, at)
    except AttestationError as error:
        steps.fail("tdx-collateral", error)
    steps.check("tdx-collateral", ok=True, seen=f"valid until {time_text(found.until)}; {found.revocation}", wanted="signed and current")
    _check_tables(quote, platform, found, rules, steps)
    return True


def _own(
    platform: Platform, cached: Sequence[bytes], *, chain: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], at: datetime
) -> bytes | None:
    """Return the newest collateral for this platform that verifies at ``at``, or None. What does not is not this quote's fault."""
    found: list[tuple[datetime, bytes]] = []
    for raw in cached:
        with contextlib.suppress(AttestationError):
            opened = open_collateral(raw, chain, roots, at)
            if bytes.fromhex(opened.tcb.fmspc) == platform.fmspc:
                found.append((opened.tcb.issue_date, raw))
    return max(found, default=(None, None))[1]


def _check_tables(quote: TdxQuote, platform: Platform, found: Collateral, rules: TdxRules, steps: Steps) -> None:
    wanted, report, fix = " or ".join(sorted(rules.statuses)), quote.enclave, "update the host's firmware"
    identity = found.enclave
    mask = int(identity.miscselect_mask, 16)
    same = (
        report.signer == bytes.fromhex(identity.mrsigner)
        and report.product == identity.isvprodid
        and report.misc_select & mask == int(identity.miscselect, 16) & mask
        and _masked(report.attributes, identity.attributes, identity.attributes_mask)
    )
    status = level_status(identity.tcb_levels, report.svn) if same else "another enclave"
    steps.check("tdx-qe", ok=same and status in rules.statuses, seen=status, wanted=f"Intel's quoting enclave, {wanted}", fix=fix)
    mine = platform.fmspc == bytes.fromhex(found.tcb.fmspc) and platform.pce_id == bytes.fromhex(found.tcb.pce_id)
    status = platform_status(found.tcb, platform.components, platform.pcesvn, quote.tcb_svn) if mine else "tables of another platform"
    steps.check("tdx-tcb", ok=mine and status in rules.statuses, seen=status, wanted=wanted, fix=fix)
    module, status = module_of(found.tcb, quote.tcb_svn)
    good = quote.seam_signer == bytes.fromhex(module["mrsigner"]) and _masked(
        quote.seam_attributes, module["attributes"], module["attributes_mask"]
    )
    steps.check(
        "tdx-module",
        ok=good and status in rules.statuses,
        seen=status if good else "another module",
        wanted=f"Intel's TDX module, {wanted}",
        fix=fix,
    )


def _masked(seen: bytes, wanted: str, mask: str) -> bool:
    want, cover = bytes.fromhex(wanted), bytes.fromhex(mask)
    return len(seen) == len(want) == len(cover) and all(a & m == b & m for a, b, m in zip(seen, want, cover, strict=True))


def _check_guest(quote: TdxQuote, rules: TdxRules, nonce: bytes | None, steps: Steps) -> None:
    # The lowest byte (TUD) holds what puts a guest under debugging.
    steps.check(
        "tdx-policy",
        ok=quote.attributes[0] == 0,
        seen=quote.attributes.hex(),
        wanted="debugging off (first byte 00)",
        fix="start the guest without debugging",
    )
    steps.check(
        "tdx-measurement",
        ok=rules.measurements is None or quote.measurement in rules.measurements,
        seen=quote.measurement.hex(),
        wanted="not compared: no measurement was given" if rules.measurements is None else f"one of {len(rules.measurements)} accepted",
        fix="add the measurement to the trust file, if you accept this image",
    )
    lists: list[tuple[str, bytes, Collection[bytes] | None]] = [
        *((f"rtmr{index}", quote.rtmrs[index], rules.rtmrs[index]) for index in sorted(rules.rtmrs)),
        ("mrseam", quote.seam, rules.modules),
        ("config-id", quote.config_id, rules.config_ids),
        ("owner", quote.owner, rules.owners),
        ("owner-config", quote.owner_config, rules.owner_configs),
    ]
    for name, seen, accepted in lists:
        if accepted is not None:
            fix = "boot what the trust file accepts, or add this value to it"
            steps.check(f"tdx-{name}", ok=seen in accepted, seen=seen.hex(), wanted=f"one of {len(accepted)} accepted", fix=fix)
    wanted = None if nonce is None else nonce.ljust(REPORT_DATA_BYTES, b"\0")
    steps.check(
        "tdx-nonce",
        ok=wanted is None or quote.report_data == wanted,
        seen=quote.report_data.hex(),
        wanted="not compared: no nonce was given" if wanted is None else wanted.hex(),
        fix="ask for a new quote over the right nonce",
    )


def parse_platform(certificate: x509.Certificate) -> Platform:
    """Read Intel's extension of a PCK certificate (SGX PCK Certificate and CRL Profile, section 1.3.5). Raises ``FormatError``."""
    for extension in certificate.extensions:
        if extension.oid.dotted_string == _SGX_OID and isinstance(extension.value, x509.UnrecognizedExtension):
            fields = _pairs(extension.value.value)
            break
    else:
        raise FormatError("not a platform's certificate", seen="no SGX extension", wanted=_SGX_OID)
    tcb = _pairs(fields.get(2, b""))
    numbers = [int.from_bytes(value(tcb.get(index, b"")), "big") for index in range(1, 18)]
    fmspc, pce_id = value(fields.get(4, b"")), value(fields.get(3, b""))
    if len(fmspc) != 6 or len(pce_id) != 2:
        raise FormatError("not a platform's certificate", seen=f"FMSPC {fmspc.hex()}, PCE {pce_id.hex()}", wanted="6 and 2 bytes")
    return Platform(tuple(numbers[:16]), numbers[16], fmspc, pce_id)


def _pairs(der: bytes) -> dict[int, bytes]:
    """Return the members of a SEQUENCE of (OID, value) by the last number of their OID; a value keeps its tag and length."""
    found: dict[int, bytes] = {}
    for _, member in members(value(der, SEQUENCE)):
        pair = BinaryReader(member, "the SGX extension", "big")
        oid = take(pair)[1]
        found[oid[-1] if oid else 0] = pair.take(pair.left)
    return found
