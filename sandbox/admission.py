"""From a job to what policies decide on. Pure; used by the customer's dry run and by the control plane alike."""

from __future__ import annotations

from policies.model import LaunchRequest
from sandbox.job import Egress, Job, JobStatement


def launch_request(job: JobStatement | Job, tenant: str) -> LaunchRequest:
    """Return the request that a policy is asked about.

    ``tenant`` is the tenant of the caller's token, never one that the job claims for itself.
    """
    plain = job.job if isinstance(job, JobStatement) else job
    spec = plain.spec
    return LaunchRequest(
        tenant=tenant,
        name=plain.metadata.name,
        image=spec.image,
        image_signatures=spec.image_signatures,
        command=spec.command,
        env=spec.env,
        inputs=tuple((item.bundle, item.access) for item in spec.inputs),
        output_max_size=spec.output.max_size,
        gpus=spec.resources.gpus,
        gpu_memory=spec.resources.gpu_memory,
        cpus=spec.resources.cpus,
        memory=spec.resources.memory,
        scratch=spec.resources.scratch,
        shm=spec.resources.shm,
        pids=spec.resources.pids,
        lease_seconds=spec.lease.duration,
        egress=spec.network.egress if isinstance(spec.network, Egress) else (),
        isolation=spec.isolation,
        attestation_minimum=spec.attestation.minimum,
    )
