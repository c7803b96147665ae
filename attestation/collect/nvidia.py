"""Node side of an NVIDIA GPU's report, through NVML's confidential-computing calls. Needs the extra ``sealrig[node]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attestation.errors import AttestationError
from attestation.evidence import TeeEvidence
from attestation.signing import b64encode

_FIX = "turn confidential computing on for this GPU ('nvidia-smi conf-compute -f' shows the mode)"


@dataclass(frozen=True)
class GpuSource:
    """One GPU by its uuid. ``rims`` are the files with NVIDIA's references for its driver and VBIOS; they travel with the report.

    So do ``ocsp``, the files with the responder's answers about the certificates.
    """

    uuid: str
    rims: Sequence[Path] = ()
    ocsp: Sequence[Path] = ()

    def quote(self, binding: bytes) -> TeeEvidence:
        """Return the GPU's report with ``binding`` as its nonce. Raises ``AttestationError`` where the driver refuses."""
        try:
            import pynvml
        except ImportError as error:
            raise AttestationError(
                "NVML is not installed", rule="gpu-nvml", seen="no module pynvml", wanted="nvidia-ml-py", fix="pip install 'sealrig[node]'"
            ) from error
        try:
            pynvml.nvmlInit()
            try:
                device = pynvml.nvmlDeviceGetHandleByUUID(self.uuid)
                certificate = pynvml.nvmlDeviceGetConfComputeGpuCertificate(device)
                answer = pynvml.nvmlDeviceGetConfComputeGpuAttestationReport(device, binding)
            finally:
                pynvml.nvmlShutdown()
        except pynvml.NVMLError as error:
            raise AttestationError(
                "the driver gives no GPU report", rule="gpu-report", seen=str(error)[:200], wanted=f"a report of {self.uuid}", fix=_FIX
            ) from error
        parts = {
            "report": bytes(answer.attestationReport[: answer.attestationReportSize]),
            "chain": bytes(certificate.attestationCertChain[: certificate.attestationCertChainSize]),
        }
        parts |= {f"rim{number}": path.read_bytes() for number, path in enumerate(self.rims)}
        parts |= {f"ocsp{number}": path.read_bytes() for number, path in enumerate(self.ocsp)}
        return TeeEvidence(kind="nvidia-gpu", target=self.uuid, parts={name: b64encode(data) for name, data in parts.items()})
