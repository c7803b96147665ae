"""What all leases of one running node share."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sandbox.node.gpu.touch import mark
from sandbox.sealing.mount import Spare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from attestation.collect import EvidenceSource
    from attestation.evidence import PostureFact
    from attestation.signing import SigningKey
    from policies.model import NodeFacts
    from sandbox.node.client import ControlClient
    from sandbox.node.engine import Engine
    from sandbox.node.gpu.inventory import GpuWiper
    from sandbox.node.gpu.pool import GpuPool
    from sandbox.node.layout import NodeFolder
    from sandbox.node.state import NodeState


@dataclass(frozen=True)
class Node:
    """One running node. ``seccomp`` is the profile's text; ``apparmor`` a profile's name, empty where the host has none."""

    id: str
    folder: NodeFolder
    key: SigningKey
    client: ControlClient
    engine: Engine
    state: NodeState
    gpus: GpuPool
    gpu_wiper: GpuWiper
    facts: NodeFacts
    posture: Callable[[], tuple[PostureFact, ...]]
    """Examines the host anew: swap may have been switched on since the node started."""
    seccomp: str
    apparmor: str
    view_cache: int = 8 * 2**30
    """Bytes of ciphertext that the view of one input keeps on disk, at most."""
    spare: Spare = field(default_factory=Spare)
    """A process for the next view, started beforehand."""
    devices: tuple[EvidenceSource, ...] = ()
    """What vouches for the machine in evidence; none makes it evidence of level ``software``."""
    gpu_mark: Callable[[str], str | None] = mark
    """Tells whether a GPU was used since it was wiped; see ``sandbox.node.gpu.touch``."""
    _fetching: dict[str, threading.Lock] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def fetching(self, bundle: str) -> Iterator[None]:
        """Hold while a bundle is fetched, so that two leases do not write one file."""
        with self._lock:
            lock = self._fetching.setdefault(bundle, threading.Lock())
        with lock:
            yield
