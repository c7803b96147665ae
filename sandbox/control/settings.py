"""What the operator decides when the control plane starts. Frozen; every bound on untrusted input has its name here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from attestation.log.policy import WitnessPolicy
from attestation.trust import Trust
from policies.loader import LoadedPolicy, load_profile

MAX_QUOTA_BYTES = 2**60


@dataclass(frozen=True)
class Limits:
    """Bounds. Sizes in bytes, times in seconds."""

    bundle_bytes: int = 2 * 2**40
    tenant_quota_bytes: int = 4 * 2**40
    """What the bundles of each tenant may take, with its uploads under way; at most ``MAX_QUOTA_BYTES``."""
    upload_seconds: int = 7 * 86400
    uploads_per_tenant: int = 64
    leases_per_tenant: int = 256
    identities_per_tenant: int = 1000
    queue_seconds: int = 86400
    """How long an admitted lease waits for a node."""
    release_seconds: int = 900
    """How long a placed lease waits for evidence and for the customer's agent."""
    stale_seconds: int = 120
    """A node not heard of for so long is noted as stale; its leases go on."""
    log_bytes_per_lease: int = 256 * 2**20
    log_chunks_per_lease: int = 1_000_000


@dataclass(frozen=True)
class ControlSettings:
    """Where the data is and what applies when nothing else was said."""

    data: Path
    database: str = ""
    store: str = ""
    policy: LoadedPolicy = field(default_factory=lambda: load_profile("strict"))
    unsafe_development: bool = False
    log_origin: str = ""
    log_state: str = ""
    log_lock: str = ""
    log_tiles: str = ""
    """Where the audit log is instead of below ``data``: see ``control.log_places``."""
    witnesses: WitnessPolicy = field(default_factory=WitnessPolicy)
    """Who must have cosigned a checkpoint of the audit log before it is published."""
    trust: Trust | None = None
    """What the operator accepts of nodes: it gives the level that policies see. None: ``software``."""
    limits: Limits = field(default_factory=Limits)

    @property
    def database_url(self) -> str:
        """The database's URL; SQLite below the data folder where none was given."""
        return self.database or f"sqlite:///{self.data / 'control.db'}"

    @property
    def uploads_folder(self) -> Path:
        """Uploads under way, one file each."""
        return self.data / "uploads"
