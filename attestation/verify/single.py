"""One piece of evidence on its own, offline: for an auditor with a file in hand.

Accepts what nodes make and the vendors' public sample formats. What is not given is not compared, the step says so, and nothing is
claimed that rests on it; so the level is never higher than what was checked.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from cryptography import x509

from attestation.appraisal import ISOLATED_RUNTIME, RECOGNIZED, Appraisal, Submod, appraise
from attestation.canonical import parse_json
from attestation.document import time_text
from attestation.errors import AttestationError, FormatError
from attestation.evidence import EVIDENCE_PAYLOAD_TYPE, Evidence
from attestation.shape import shape
from attestation.signing import Envelope, VerifyKey, b64decode
from attestation.steps import Steps
from attestation.verify.cache import NOTHING, Cached
from attestation.verify.certificates import load_chain
from attestation.verify.snp import SnpRules, verify_snp
from attestation.verify.statuses import StatusFiles
from attestation.verify.tdx import TdxRules, verify_tdx
from attestation.verify.tpm import TpmEvidence, verify_tpm
from attestation.verify.tpm_rules import TpmRules

Kind = Literal["software", "tpm", "sev-snp", "tdx", "nvidia-gpu"]
KINDS: tuple[Kind, ...] = ("software", "tpm", "sev-snp", "tdx", "nvidia-gpu")
MAX_FILE_BYTES = 8 * 1024 * 1024
MAX_GPUS = 64
STAND_ALONE = "urn:sealrig:stand-alone"
GIVEN_ROOTS = "urn:sealrig:stand-alone:given-roots"
"""Names the appraisal policy of a result that rests on other roots than the packaged ones, so that nobody takes it for a vendor's word."""
_ROOTED = frozenset({"sev-snp", "tdx", "nvidia-gpu"})
_PEM_KEY = b"-----BEGIN PUBLIC KEY-----"


def verify_single(
    kind: Kind,
    raw: bytes,
    *,
    at: datetime,
    nonce: bytes | None = None,
    chain: bytes | None = None,
    roots: Sequence[bytes] = (),
    rims: Sequence[bytes] = (),
    collateral: bytes | None = None,
    crl: bytes | None = None,
    crl_max_age: timedelta | None = None,
    ocsp: Sequence[bytes] = (),
    cached: Cached = NOTHING,
) -> Appraisal:
    """Return the appraisal of one file. Raises ``VerificationError`` with all steps, ``FormatError`` or ``LimitError`` for other files.

    - ``software``: a signed evidence envelope; ``roots`` are node keys (``ed25519:…``).
    - ``tpm``: a JSON file with ``ak_public`` and ``tpm_quote``; ``roots`` are trusted attestation keys (DER or PEM).
    - ``sev-snp``: a report, with its VCEK or VLEK in ``chain``; ``roots`` replace AMD's certificates; ``crl`` is AMD's revocation list.
    - ``tdx``: a quote, with Intel's collateral (JSON) in ``collateral``; ``roots`` replace Intel's root.
    - ``nvidia-gpu``: a report (binary or hex) with ``chain``, or a JSON list of both for several GPUs; ``roots`` replace the device
      root, ``rims`` are the references, ``crl`` and ``ocsp`` say what was revoked.

    ``nonce`` is what the evidence must answer, ``at`` the moment at which certificates must be valid, ``cached`` collateral of
    one's own that is used beside what is given; ``crl_max_age`` wants revocation lists or responses no older than that.
    """
    if len(raw) > MAX_FILE_BYTES:
        raise FormatError("the file is too large", seen=f"{len(raw)} bytes", wanted=f"≤ {MAX_FILE_BYTES} bytes")
    steps = Steps("the evidence")
    replaced = bool(roots) and kind in _ROOTED
    if replaced:
        steps.check("roots", ok=True, seen="given by the caller", wanted="the vendor's pinned roots: this result does not rest on them")
    submods: Mapping[str, Submod]
    if kind == "software":
        submods = _software(raw, nonce, roots, steps)
    elif kind == "tpm":
        submods = {"node": _tpm(raw, nonce, roots, steps)}
    elif kind == "sev-snp":
        pinned = _pinned(roots, "snp-format", steps)
        rules = SnpRules(crl_max_age=crl_max_age)
        submods = {
            "cpu0": verify_snp(raw, chain or b"", nonce=nonce, rules=rules, at=at, steps=steps, roots=pinned, crl=crl, cached=cached.crls)
        }
    elif kind == "tdx":
        pinned = _pinned(roots, "tdx-format", steps)
        submods = {"cpu0": verify_tdx(raw, collateral, nonce=nonce, rules=TdxRules(), at=at, steps=steps, roots=pinned, cached=cached.tdx)}
    else:
        statuses = StatusFiles(crls=[*cached.crls, *([] if crl is None else [crl])], ocsp=[*cached.ocsp, *ocsp])
        submods = _gpus(
            raw,
            nonce=nonce,
            chain=chain,
            roots=roots,
            at=at,
            steps=steps,
            rims=rims,
            own=cached.rims,
            statuses=statuses,
            max_age=crl_max_age,
        )
    steps.finish()
    return appraise(submods, nonce=nonce, policy_id=GIVEN_ROOTS if replaced else STAND_ALONE, steps=steps.all, at=at)


def _software(raw: bytes, nonce: bytes | None, roots: Sequence[bytes], steps: Steps) -> Mapping[str, Submod]:
    try:
        envelope = Envelope.from_bytes(raw.removesuffix(b"\n"))
        keys = [VerifyKey.from_text(text.decode("ascii", errors="replace").strip()) for text in roots]
        claimed = Evidence.from_payload(envelope.payload)
        evidence = Evidence.from_payload(envelope.verify(EVIDENCE_PAYLOAD_TYPE, keys or [VerifyKey.from_text(claimed.node_key)]))
    except AttestationError as error:
        steps.fail("signature", error)
    steps.check(
        "signature",
        ok=True,
        seen=f"{evidence.node} with {evidence.node_key}",
        wanted="a signature by a given key" if keys else "a signature by the key that the evidence names itself: no key was given",
    )
    steps.check(
        "node",
        ok=not keys or evidence.node_key in {key.text for key in keys},
        seen=evidence.node_key,
        wanted="the key that signed",
        fix="name the key that the evidence names (--roots)",
    )
    steps.check(
        "nonce",
        ok=nonce is None or evidence.nonce == nonce.hex(),
        seen=evidence.nonce,
        wanted="not compared: no nonce was given" if nonce is None else nonce.hex(),
        fix="ask for new evidence over the right nonce",
    )
    failed = [fact.id for fact in evidence.posture if fact.result != "pass"]
    steps.check(
        "posture",
        ok=True,
        seen=f"{len(evidence.posture) - len(failed)} of {len(evidence.posture)} pass, made {time_text(evidence.made_at)}",
        wanted="the node's own word",
    )
    known = bool(keys) and nonce is not None
    claims = {"runtime-opaque": ISOLATED_RUNTIME} | ({"instance-identity": RECOGNIZED} if known else {})
    return {"node": Submod(claims, {"node": evidence.node, "runner": evidence.runner_digest, "posture_not_passed": failed})}


def _tpm(raw: bytes, nonce: bytes | None, roots: Sequence[bytes], steps: Steps) -> Submod:
    try:
        tree = parse_json(raw)
        quote, key = _field(tree, "tpm_quote", dict), _field(tree, "ak_public", str)
        values = _field(quote, "pcrs", list)
        pcrs = {index: _hex(value) for index, value in enumerate(values)}
        evidence = TpmEvidence(b64decode(_field(quote, "message", str)), b64decode(_field(quote, "signature", str)), pcrs, b64decode(key))
        keys = [_public_key(root) for root in roots] or None
    except AttestationError as error:
        steps.fail("tpm-format", error)
    return verify_tpm(evidence, nonce=nonce, keys=keys, rules=TpmRules(), steps=steps)


def _pinned(roots: Sequence[bytes], step: str, steps: Steps) -> list[x509.Certificate]:
    """Return the certificates that replace the packaged roots."""
    try:
        return [certificate for root in roots for certificate in load_chain(root)]
    except AttestationError as error:
        steps.fail(step, error)


def _gpus(
    raw: bytes,
    *,
    nonce: bytes | None,
    chain: bytes | None,
    roots: Sequence[bytes],
    at: datetime,
    steps: Steps,
    rims: Sequence[bytes],
    own: Sequence[bytes],
    statuses: StatusFiles,
    max_age: timedelta | None,
) -> Mapping[str, Submod]:
    from attestation.verify.nvidia import GpuRules, check_distinct, verify_gpu

    try:
        rules = GpuRules(device_roots=[certificate for root in roots for certificate in load_chain(root)], status_max_age=max_age)
        pieces = _gpu_pieces(raw, chain)
    except AttestationError as error:
        steps.fail("gpu-format", error)
    submods = {
        f"gpu{number}": verify_gpu(report, certificates, rims, nonce=nonce, rules=rules, at=at, steps=steps, statuses=statuses, cached=own)
        for number, (report, certificates) in enumerate(pieces)
    }
    check_distinct(list(submods.values()), steps)
    return submods


def _gpu_pieces(raw: bytes, chain: bytes | None) -> list[tuple[bytes, bytes]]:
    """Return (report, chain) of each GPU in a JSON list, or of the one report in a hex or binary file."""
    text = raw.strip()
    if text.startswith(b"["):
        tree = parse_json(raw)
        if not isinstance(tree, list) or not 1 <= len(tree) <= MAX_GPUS:
            raise FormatError("not a list of GPU evidence", seen=shape(tree), wanted=f"1 to {MAX_GPUS} GPUs")
        return [(b64decode(_field(item, "evidence", str)), b64decode(_field(item, "certificate", str))) for item in tree]
    try:
        report = binascii.unhexlify(text)
    except (binascii.Error, ValueError):
        report = raw
    return [(report, chain or b"")]


def _field(tree: object, name: str, kind: type[Any]) -> Any:  # noqa: ANN401  (of the type that ``kind`` names, as checked)
    value = tree.get(name) if isinstance(tree, dict) else None
    if not isinstance(value, kind):
        raise FormatError(f"{name} is missing or of a wrong type", seen=shape(value), wanted=kind.__name__)
    return value


def _hex(value: object) -> bytes:
    try:
        return bytes.fromhex(value if isinstance(value, str) else "-")
    except ValueError as error:
        raise FormatError("not hex digits", seen=shape(value), wanted="hex digits") from error


def _public_key(raw: bytes) -> bytes:
    """Return DER of a key given as DER or PEM."""
    if _PEM_KEY not in raw:
        return raw
    body = b"".join(line for line in raw.splitlines() if line and not line.startswith(b"-"))
    return b64decode(body.decode("ascii", errors="replace"))
