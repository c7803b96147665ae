"""Which of the machine's devices vouch for it in evidence: a TPM, the confidential CPU, confidential GPUs. Named in ``node.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from attestation.appraisal import Level
from attestation.collect import EvidenceSource
from attestation.collect.nvidia import GpuSource
from attestation.collect.runner import runner_digest
from attestation.collect.snp import SnpSource, TdxSource
from attestation.collect.tpm import Tools, TpmSource, measure_runner

PathText = Annotated[str, Field(min_length=1, max_length=500)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True)


class TpmDevice(_Section):
    """A TPM's attestation key by its persistent handle, and the PCRs (SHA-256 bank) that it quotes.

    ``runner`` is the PCR that the runner is measured into when the node starts, and quoted with the others; null measures nothing.
    ``event_log`` and ``ima_log`` are the kernel's files of measurements that travel with the quote.
    """

    handle: Annotated[str, Field(pattern=r"^0x81[0-9a-fA-F]{6}$")]
    pcrs: Annotated[tuple[Annotated[int, Field(ge=0, le=23, strict=True)], ...], Field(min_length=1, max_length=24)]
    tcti: Annotated[str, Field(max_length=500)] | None = None
    runner: Annotated[int, Field(ge=8, le=23, strict=True)] | None = 23
    event_log: PathText | None = None
    ima_log: PathText | None = None


class SnpDevice(_Section):
    """The SEV-SNP guest that the node runs in. ``chain``: its VCEK or VLEK, where the host does not hand it over.

    ``crl``: AMD's revocation list.
    """

    chain: PathText | None = None
    crl: PathText | None = None


class TdxDevice(_Section):
    """The TDX guest that the node runs in. ``collateral``: Intel's signed tables and revocation lists."""

    collateral: PathText


class NvidiaDevices(_Section):
    """All GPUs, with confidential computing on. ``rims``: NVIDIA's reference files for their driver and VBIOS.

    ``ocsp``: NVIDIA's answers about the certificates, as files.
    """

    rims: Annotated[tuple[PathText, ...], Field(max_length=4)] = ()
    ocsp: Annotated[tuple[PathText, ...], Field(max_length=10)] = ()


class EvidenceDevices(_Section):
    """The devices that vouch; each that is named must answer, or the node makes no evidence."""

    tpm: TpmDevice | None = None
    sev_snp: SnpDevice | None = None
    tdx: TdxDevice | None = None
    nvidia: NvidiaDevices | None = None


def evidence_sources(devices: EvidenceDevices, gpus: Sequence[str]) -> tuple[EvidenceSource, ...]:
    """Return the sources that ``devices`` names; ``gpus`` are the uuids of all GPUs of the node."""
    found: list[EvidenceSource] = []
    if devices.tpm is not None:
        found.append(_tpm(devices.tpm))
    if devices.sev_snp is not None:
        chain, crl = (Path(path) if path is not None else None for path in (devices.sev_snp.chain, devices.sev_snp.crl))
        found.append(SnpSource(chain, crl))
    if devices.tdx is not None:
        found.append(TdxSource(Path(devices.tdx.collateral)))
    if devices.nvidia is not None:
        rims, ocsp = (tuple(Path(path) for path in paths) for paths in (devices.nvidia.rims, devices.nvidia.ocsp))
        found += [GpuSource(uuid, rims, ocsp) for uuid in gpus]
    return tuple(found)


def reachable_level(devices: EvidenceDevices) -> Level:
    """Return the highest level that evidence by these devices can reach.

    A node asks the policy with it only to refuse early what it can never fulfil; whether the level is reached others decide.
    """
    if devices.sev_snp is not None or devices.tdx is not None:
        return Level.CONFIDENTIAL_GPU if devices.nvidia is not None else Level.CONFIDENTIAL
    return Level.MEASURED if devices.tpm is not None else Level.SOFTWARE


def measure_start(devices: EvidenceDevices) -> bool:
    """Measure this runner into the TPM's PCR that ``devices`` names; say whether the PCR vouches for it now.

    Raises ``AttestationError`` where the TPM does not answer.
    """
    tpm = devices.tpm
    if tpm is None or tpm.runner is None:
        return True
    digest, _ = runner_digest()
    return measure_runner(tpm.runner, bytes.fromhex(digest.removeprefix("sha256:")), Tools(tpm.tcti))


def _tpm(tpm: TpmDevice) -> TpmSource:
    pcrs = tuple(sorted({*tpm.pcrs, *(() if tpm.runner is None else (tpm.runner,))}))
    logs = [Path(path) if path is not None else None for path in (tpm.event_log, tpm.ima_log)]
    return TpmSource(tpm.handle, pcrs, tpm.tcti, *logs)
