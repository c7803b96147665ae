"""The customer's trust file on disk: a first draft from what a server shows, reading it, and saying in words what it accepts."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from attestation.errors import AttestationError, FormatError
from attestation.log.note import NoteVerifier
from attestation.trust import TpmTrust, Trust, TrustSpec
from policies.errors import PolicyError
from policies.strictyaml import load_yaml
from policies.units import format_duration
from sandbox.customer.client import Client
from sandbox.errors import InputError, NotFoundError

TRUST_MAX_BYTES = 1024 * 1024

_LEVELS = {
    "software": "a node key and the node's own word: holds against other tenants, stolen disks and mistakes, not against the node's root",
    "measured": "a TPM's quote over boot and runner: the node's root must defeat measured boot; he can still read RAM",
    "confidential": "a CPU report: RAM is encrypted against the node's root; the GPU and its bus are not",
    "confidential-gpu": "CPU and GPU reports: RAM and VRAM are closed to the node's root",
}


def load_trust(path: Path) -> Trust:
    """Read a trust file. Raises ``InputError`` for one that is missing, and for YAML or values that are not acceptable."""
    try:
        with path.open("rb") as file:
            raw = file.read(TRUST_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", rule="trust-file", seen=str(error.strerror), wanted="a trust file",
                         fix="make one with 'sealrig trust init', or name it with --trust") from error  # fmt: skip
    try:
        return Trust.from_tree(load_yaml(raw, max_bytes=TRUST_MAX_BYTES))
    except (PolicyError, FormatError) as error:
        raise InputError(f"{path}: {error.message}", **error.details) from error


def draft_trust(client: Client, level: str) -> str:
    """Return a trust file that accepts the nodes and the log that the server shows now; a person must compare the keys.

    Raises ``NotFoundError`` while there is no node, ``InputError`` for a log key that is none.
    """
    nodes = client.nodes()
    if not nodes:
        raise NotFoundError("the server shows no node yet", rule="trust-nodes", seen="no nodes", wanted="at least one node",
                            fix="ask the operator to start one ('sealrig node run')")  # fmt: skip
    key = client.log_key()
    try:
        origin = NoteVerifier.from_text(key).name
    except AttestationError as error:
        raise InputError("the server's log key is not a verifier key", rule="log-key", seen=key[:100], wanted="a C2SP vkey",
                         fix="ask the operator for the log's key") from error  # fmt: skip
    lines = [
        "# What this customer accepts. The keys below are what the server showed when this file was made:",
        "# compare each with what the operator (nodes) and an auditor (log) tell you by another way.",
        "apiVersion: sealrig/v1",
        "kind: Trust",
        "spec:",
        f"  level: {level}",
        "  nodes:",
        *(f'    {node.id}: "{node.public_key}"' for node in sorted(nodes, key=lambda node: node.id)),
        "  log:",
        f'    origin: "{origin}"',
        f'    key: "{key}"',
        "  freshness: 10m",
    ]
    text = "\n".join(lines) + "\n"
    # What a server says goes into a file that decides about keys: it must read back as exactly these nodes and this log.
    trust = Trust.from_tree(load_yaml(text.encode(), max_bytes=TRUST_MAX_BYTES))
    if dict(trust.spec.nodes) != {node.id: node.public_key for node in nodes} or trust.spec.log.key != key:
        raise InputError(
            "the server's keys cannot be written down",
            rule="trust-keys",
            seen="other characters than keys have",
            wanted="plain keys",
            fix="ask the operator for the keys",
        )
    return text


def explain_trust(trust: Trust) -> Iterator[tuple[str, str]]:
    """Yield (what, in words) for everything that a trust file decides."""
    spec = trust.spec
    yield "level", f"{spec.level} or higher: {_LEVELS[spec.level]}"
    yield "nodes", f"{len(spec.nodes)} accepted: {', '.join(sorted(spec.nodes))}; any other node is refused"
    runners = spec.accepted_runners
    yield (
        "runner",
        (
            "any: whatever software a listed node runs is accepted"
            if runners is None
            else f"{len(runners)} accepted digests, {len(spec.runners or ())} of them listed by hand"
        ),
    )
    yield "posture", f"these checks must pass: {', '.join(spec.posture)}" if spec.posture else "any: no host setting is required"
    yield "freshness", f"evidence older than {format_duration(spec.freshness / timedelta(seconds=1))} is refused"
    log = "looked up in the audit log" if spec.interlock == "log" else "taken on the node's signed word alone"
    yield "previous wipe", f"each earlier lease on the node must have ended in a proven wipe, {log}"
    retired = "".join(f", up to {each.size} entries also by {each.key.rpartition('+')[0]}" for each in spec.log.retired)
    yield "log", f"{spec.log.origin}, checkpoints signed by {spec.log.key.rpartition('+')[0]}{retired}"
    witnesses = (
        f"{spec.witness_quorum} of {len(spec.witnesses)} must have signed"
        if spec.witness_quorum
        else "none required: a log that shows two faces is not noticed"
    )
    yield "witnesses", witnesses
    yield from _explain_hardware(spec)
    customers = "the identity that signed each job" if spec.customers is None else f"{len(spec.customers)} accepted"
    yield "customers", customers


def _explain_hardware(spec: TrustSpec) -> Iterator[tuple[str, str]]:
    none = "nothing is listed: evidence of that kind raises no level"
    yield "tpm", none if spec.tpm is None else _explain_tpm(spec.tpm)
    if spec.snp is None:
        yield "snp", none
    else:
        bound = [
            name
            for name, values in (("host data", spec.snp.host_data), ("id keys", spec.snp.id_keys), ("author keys", spec.snp.author_keys))
            if values
        ]
        yield (
            "snp",
            _sentence(
                f"{len(spec.snp.measurements)} launch measurements accepted, debugging refused",
                f"migration {'accepted' if spec.snp.migration else 'refused'}, SMT {'accepted' if spec.snp.smt else 'refused'}",
                f"listed too: {', '.join(bound)}" if bound else "",
                _age("AMD's revocation list", spec.snp.crl_max_age),
            ),
        )
    if spec.tdx is None:
        yield "tdx", none
    else:
        rtmrs = ", ".join(f"RTMR{index}" for index in sorted(spec.tdx.rtmrs)) or "none: what the guest booted after MRTD is not judged"
        yield (
            "tdx",
            _sentence(
                f"{len(spec.tdx.measurements)} MRTD values accepted, debugging refused, TCB status {' or '.join(spec.tdx.statuses)}",
                f"run-time registers: {rtmrs}",
            ),
        )
    if spec.gpu is None:
        yield "gpu", none
    else:
        yield (
            "gpu",
            _sentence(
                f"drivers: {', '.join(spec.gpu.drivers) or 'any that NVIDIA signed references for'}",
                f"VBIOS: {', '.join(spec.gpu.vbios) or 'any that NVIDIA signed references for'}",
                _age("the status of each certificate", spec.gpu.status_max_age),
            ),
        )


def _explain_tpm(tpm: TpmTrust) -> str:
    pcrs = ", ".join(f"PCR {index}" for index in sorted({*tpm.pcrs, *tpm.events}, key=int))
    return _sentence(
        f"{len(tpm.keys)} attestation keys",
        f"judged: {pcrs}" if pcrs else "no PCR is judged: nothing is claimed of the boot",
        "only listed files in IMA's log" if tpm.ima is not None else "files that ran are not judged",
        f"the runner in PCR {tpm.runner}" if tpm.runner is not None else "the runner is the node's word",
    )


def _age(what: str, age: timedelta | None) -> str:
    return (
        f"{what} is not demanded" if age is None else f"{what} must be at hand, no older than {format_duration(age / timedelta(seconds=1))}"
    )


def _sentence(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
