"""Hardware evidence inside a node's evidence: each piece is checked by its own verifier and must carry ``Evidence.binding()``.

A kind that the trust file has no section for is not appraised and claims nothing; a kind that it has a section for must verify.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from attestation.appraisal import Submod
from attestation.errors import FormatError
from attestation.evidence import Evidence, TeeEvidence
from attestation.signing import b64decode
from attestation.steps import Steps
from attestation.trust import SnpTrust, TdxTrust, TpmTrust, Trust
from attestation.verify.cache import NOTHING, Cached
from attestation.verify.snp import SnpRules, verify_snp
from attestation.verify.snp_report import Tcb
from attestation.verify.statuses import StatusFiles
from attestation.verify.tdx import TdxRules, verify_tdx
from attestation.verify.tpm import TpmEvidence, verify_tpm
from attestation.verify.tpm_rules import TpmRules

_PCR_BYTES = 32


def check_tee(evidence: Evidence, node: Submod, trust: Trust, at: datetime, steps: Steps, *, cached: Cached = NOTHING) -> dict[str, Submod]:
    """Record the steps of all hardware evidence; return the submods ``node``, ``cpu0`` and ``gpu0…``.

    ``cached`` is collateral of one's own, used beside what came along.
    """
    submods = {"node": node}
    names = {"node": "node", "cpu0": "cpu0"} | {gpu.uuid: f"gpu{number}" for number, gpu in enumerate(evidence.gpus)}
    submods |= {names[gpu.uuid]: Submod({}, {"uuid": gpu.uuid, "name": gpu.name}) for gpu in evidence.gpus}
    found = evidence.tee or ()
    places = [(tee.kind, tee.target) for tee in found]
    # Two kinds of CPU evidence would be two CPUs: their claims must not be added up.
    cpus = sum(tee.target == "cpu0" for tee in found)
    fitting = (
        cpus <= 1 and all(tee.target in names and _fits(tee.kind, names[tee.target]) for tee in found) and len(set(places)) == len(places)
    )
    steps.check(
        "tee-targets",
        ok=fitting,
        seen=", ".join(f"{kind} of {target}" for kind, target in places)[:400] or "none",
        wanted="one piece of each kind for each device",
        fix="have the node send one piece for each device that it lists",
    )
    if not fitting:
        return submods
    gpus: list[Submod] = []
    for tee in found:
        name = names[tee.target]
        submod = _appraise(tee, evidence, trust, at=at, steps=steps, cached=cached)
        known = submods.get(name, Submod({}, {}))
        submods[name] = Submod({**known.claims, **submod.claims}, {**known.facts, **submod.facts})
        if tee.kind == "nvidia-gpu":
            gpus.append(submod)
    if gpus and trust.spec.gpu is not None:
        from attestation.verify.nvidia import check_distinct

        check_distinct(gpus, steps)
    return submods


def _fits(kind: str, name: str) -> bool:
    return {"tpm": name == "node", "sev-snp": name == "cpu0", "tdx": name == "cpu0", "nvidia-gpu": name.startswith("gpu")}[kind]


def _appraise(tee: TeeEvidence, evidence: Evidence, trust: Trust, *, at: datetime, steps: Steps, cached: Cached) -> Submod:
    spec, binding = trust.spec, evidence.binding()
    try:
        if tee.kind == "tpm" and spec.tpm is not None:
            key = spec.tpm.keys.get(evidence.node)
            keys = [] if key is None else [b64decode(key)]
            wanted = tpm_rules(spec.tpm, evidence.runner_digest)
            return verify_tpm(tpm_evidence(tee), nonce=binding, keys=keys, rules=wanted, steps=steps)
        if tee.kind == "sev-snp" and spec.snp is not None:
            crl = part(tee, "crl") if "crl" in tee.parts else None
            return verify_snp(
                part(tee, "report"),
                part(tee, "chain"),
                nonce=binding,
                rules=snp_rules(spec.snp),
                at=at,
                steps=steps,
                crl=crl,
                cached=cached.crls,
            )
        if tee.kind == "tdx" and spec.tdx is not None:
            given = part(tee, "collateral") if "collateral" in tee.parts or not cached.tdx else None
            rules = tdx_rules(spec.tdx)
            return verify_tdx(part(tee, "quote"), given, nonce=binding, rules=rules, at=at, steps=steps, cached=cached.tdx)
        if tee.kind == "nvidia-gpu" and spec.gpu is not None:
            # XML libraries load here only: most evidence has no GPU report.
            from attestation.verify.nvidia import GpuRules, verify_gpu

            return verify_gpu(
                part(tee, "report"),
                part(tee, "chain"),
                _numbered(tee, "rim"),
                nonce=binding,
                rules=GpuRules(drivers=spec.gpu.drivers, vbios=spec.gpu.vbios, status_max_age=spec.gpu.status_max_age),
                at=at,
                steps=steps,
                statuses=StatusFiles(crls=[*cached.crls, *_numbered(tee, "crl")], ocsp=[*cached.ocsp, *_numbered(tee, "ocsp")]),
                cached=cached.rims,
            )
    except FormatError as error:
        steps.fail(f"{tee.kind}-parts", error)
    section = {"tpm": "tpm", "sev-snp": "snp", "tdx": "tdx", "nvidia-gpu": "gpu"}[tee.kind]
    steps.check(
        f"{tee.kind}-trust", ok=True, seen="not appraised, nothing is claimed of it", wanted=f"no section {section!r} in the trust file"
    )
    return Submod({}, {})


def _numbered(tee: TeeEvidence, name: str) -> list[bytes]:
    return [b64decode(data) for key, data in sorted(tee.parts.items()) if key.startswith(name)]


def part(tee: TeeEvidence, name: str) -> bytes:
    """Return one part's bytes. Raises ``FormatError`` where it is missing."""
    if name not in tee.parts:
        raise FormatError(f"the {tee.kind} evidence has no {name}", seen=", ".join(sorted(tee.parts)), wanted=name)
    return b64decode(tee.parts[name])


def tpm_evidence(tee: TeeEvidence) -> TpmEvidence:
    """Return the parts of a TPM's evidence: ``quote``, ``signature``, ``key``, ``pcrs`` as (index, 32 bytes) each, and logs if there.

    Raises ``FormatError``.
    """
    raw = part(tee, "pcrs")
    if len(raw) % (1 + _PCR_BYTES):
        raise FormatError("not PCR values", seen=f"{len(raw)} bytes", wanted=f"a multiple of {1 + _PCR_BYTES}")
    pcrs: Mapping[int, bytes] = {raw[at]: raw[at + 1 : at + 1 + _PCR_BYTES] for at in range(0, len(raw), 1 + _PCR_BYTES)}
    logs = [part(tee, name) if name in tee.parts else None for name in ("event_log", "ima_log")]
    return TpmEvidence(part(tee, "quote"), part(tee, "signature"), pcrs, part(tee, "key"), *logs)


def tpm_rules(section: TpmTrust, runner_digest: str) -> TpmRules:
    """Return what the trust file wants of a TPM's quote, for evidence that names this runner."""
    return TpmRules(
        pcrs={int(index): [bytes.fromhex(value) for value in values] for index, values in section.pcrs.items()},
        events={int(index): [bytes.fromhex(value) for value in values] for index, values in section.events.items()},
        ima=section.ima,
        runner_pcr=section.runner,
        runner=bytes.fromhex(runner_digest.removeprefix("sha256:")),
    )


def snp_rules(section: SnpTrust) -> SnpRules:
    """Return what the trust file wants of an SEV-SNP report."""
    tcb = section.tcb
    return SnpRules(
        measurements=[bytes.fromhex(text) for text in section.measurements],
        floor=Tcb(bootloader=tcb.bootloader, tee=tcb.tee, snp=tcb.snp, microcode=tcb.microcode, fmc=tcb.fmc),
        smt=section.smt,
        migration=section.migration,
        crl_max_age=section.crl_max_age,
        host_data=_values(section.host_data),
        id_keys=_values(section.id_keys),
        author_keys=_values(section.author_keys),
        max_vmpl=section.max_vmpl,
    )


def tdx_rules(section: TdxTrust) -> TdxRules:
    """Return what the trust file wants of a TDX quote."""
    return TdxRules(
        measurements=_values(section.measurements),
        statuses=section.statuses,
        rtmrs={int(index): [bytes.fromhex(text) for text in texts] for index, texts in section.rtmrs.items()},
        modules=_values(section.modules),
        config_ids=_values(section.config_ids),
        owners=_values(section.owners),
        owner_configs=_values(section.owner_configs),
    )


def _values(texts: Sequence[str] | None) -> list[bytes] | None:
    return None if texts is None else [bytes.fromhex(text) for text in texts]
