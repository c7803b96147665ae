"""Make the evidence of one lease: what the node says of itself, bound to the agent's nonce, the plan and the lease key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attestation.collect import collect
from attestation.collect.runner import runner_digest
from attestation.document import MAX_TEXT
from attestation.evidence import DeviceCounts, Evidence, GpuFact
from attestation.signing import b64encode

if TYPE_CHECKING:
    from attestation.signing import Envelope
    from sandbox.node.context import Node
    from sandbox.node.gpu.model import Driver, Inventory, Link
    from sandbox.node.plan import LaunchPlan
    from sandbox.node.state import LastWipes


def gpu_facts(inventory: Inventory, leased: tuple[str, ...]) -> tuple[GpuFact, ...]:
    """Return what evidence and policies are told of all of a node's GPUs."""
    return tuple(
        GpuFact(
            uuid=gpu.uuid,
            name=gpu.name,
            memory=gpu.memory,
            leased=gpu.uuid in leased,
            pci=gpu.pci,
            driver=gpu.driver,
            vbios=gpu.vbios,
            serial=gpu.serial,
            parent=gpu.parent,
            link=_link(gpu.link),
            ecc=gpu.errors.ecc,
            uncorrected_errors=gpu.errors.uncorrected,
            retired_pages=gpu.errors.retired_pages,
            remapped_rows=gpu.errors.remapped_rows,
            repair_pending=_either(gpu.errors.retirement_pending, gpu.errors.remapping_pending),
            repair_failed=gpu.errors.remapping_failed,
            mig=gpu.mig,
            nvlinks=gpu.nvlinks,
            confidential=inventory.driver.confidential if gpu.backend == "cuda" else None,
            driver_parameters=_parameters(inventory.driver) if gpu.backend == "cuda" else None,
        )
        for gpu in inventory.gpus
    )


def _link(link: Link) -> str | None:
    told = (link.generation, link.width, link.generation_most, link.width_most)
    return None if None in told else "gen {} x{} of gen {} x{}".format(*told)


def _either(*told: bool | None) -> bool | None:
    known = [value for value in told if value is not None]
    return any(known) if known else None


def _parameters(driver: Driver) -> str | None:
    return "; ".join(f"{name}={value}" for name, value in driver.parameters.items())[:MAX_TEXT] or None


def make(
    node: Node, plan: LaunchPlan, *, nonce: str, lease_public_key: bytes, job_digest: str, policy_digest: str, leased: tuple[str, ...],
    wipes: LastWipes,
) -> Envelope:  # fmt: skip
    """Return the signed evidence. Raises ``AttestationError`` where a device that should vouch does not."""
    digest, version = runner_digest()
    inventory = node.gpus.inventory
    gpus = gpu_facts(inventory, leased)
    evidence = Evidence(
        lease=plan.lease,
        node=node.id,
        node_key=node.key.public.text,
        nonce=nonce,
        lease_public_key=b64encode(lease_public_key),
        job_digest=job_digest,
        image=plan.image_reference,
        policy_digest=policy_digest,
        plan_digest=plan.digest,
        runner_digest=digest,
        runner_version=version,
        posture=node.posture(),
        gpus=gpus,
        device_counts=DeviceCounts(pci=inventory.on_bus, driver=len({gpu.parent or gpu.uuid for gpu in inventory.gpus})),
        previous_wipes=wipes.indexes,
        made_at=wipes.at,
    )
    return collect(evidence, node.key, devices=node.devices)
