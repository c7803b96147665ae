"""What a node remembers beyond one lease: its quarantine, where its last proven wipes stand in the audit log, which GPUs are clean."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sandbox.node.layout import NodeFolder, write_durably

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WHOLE_NODE = "node"


@dataclass(frozen=True)
class Quarantine:
    """Why the node takes no lease. ``told`` says that the control plane has taken the failure certificate."""

    lease: str
    reason: str
    told: bool


@dataclass(frozen=True)
class LastWipes:
    """What the node can say of its own wipes: the log index of the last one of itself and of each GPU, as of ``at``; None for none."""

    at: datetime
    indexes: dict[str, int | None]


class NodeState:
    """Durable, small, and safe for use by several threads. A damaged file means quarantine: unknown is never clean."""

    def __init__(self, folder: NodeFolder) -> None:
        """Read the state; a new node has none."""
        self._path = folder.state
        self._lock = threading.Lock()
        self._heard = threading.Condition(self._lock)
        self._under_way: set[str] = set()
        self._quarantine: dict[str, Quarantine] = {}
        self._wipes: dict[str, int] = {}
        self._clean: dict[str, str] = {}
        try:
            self._load(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError, AttributeError):
            self._quarantine = {"unknown": Quarantine("unknown", "the node's state file is damaged", told=True)}

    def _load(self, tree: dict[str, Any]) -> None:
        self._quarantine = {lease: Quarantine(lease, str(row["reason"]), bool(row["told"])) for lease, row in tree["quarantine"].items()}
        self._wipes = {str(target): int(index) for target, index in tree["wipes"].items()}
        self._clean = {str(uuid): str(mark) for uuid, mark in tree.get("clean", {}).items()}

    @property
    def quarantine(self) -> tuple[Quarantine, ...]:
        """Why the node is in quarantine; empty when it is not."""
        with self._lock:
            return tuple(self._quarantine.values())

    def put_in_quarantine(self, lease: str, reason: str) -> None:
        """Take no further lease, durably, before anybody is told."""
        with self._lock:
            self._quarantine[lease] = Quarantine(lease, reason[:500], told=False)
            self._save()

    def quarantine_told(self, lease: str) -> None:
        """Note that the control plane has the failure certificate: from now on its word lifts the quarantine."""
        with self._lock:
            if lease in self._quarantine:
                self._quarantine[lease] = Quarantine(lease, self._quarantine[lease].reason, told=True)
                self._save()

    def restore(self) -> None:
        """End the quarantine, at the operator's word."""
        with self._lock:
            self._quarantine = {}
            self._save()

    def previous_wipes(self, gpus: Iterable[str] = ()) -> dict[str, int | None]:
        """Return the log index of the last proven wipe of the node and of each GPU; None where there was none."""
        with self._lock:
            return {target: self._wipes.get(target) for target in (WHOLE_NODE, *gpus)}

    def last_wipes(self, gpus: Iterable[str], seconds: float) -> LastWipes | None:
        """Return what evidence says of earlier wipes; None where the end of a lease is still under way to the log after ``seconds``.

        The log may have that end already, and evidence that does not know of it would contradict the log. Whatever is sent after this
        returned carries a later time than ``at``.
        """
        with self._heard:
            if not self._heard.wait_for(lambda: not self._under_way, seconds):
                return None
            return LastWipes(datetime.now(UTC), {target: self._wipes.get(target) for target in (WHOLE_NODE, *gpus)})

    def end_under_way(self, lease: str) -> None:
        """Note, before it is sent, that the log may have a lease's end from now on; ``end_heard`` takes it back."""
        with self._heard:
            self._under_way.add(lease)

    def end_heard(self, lease: str) -> None:
        """Note that the control plane's answer on a lease's end was taken in, or that none will come."""
        with self._heard:
            self._under_way.discard(lease)
            self._heard.notify_all()

    def wiped(self, targets: Iterable[str], index: int) -> None:
        """Remember a proven wipe that stands in the log at ``index``."""
        with self._lock:
            self._wipes.update(dict.fromkeys((WHOLE_NODE, *targets), index))
            self._save()

    def clean_mark(self, gpu: str) -> str | None:
        """Return the mark that a GPU had right after its last proven wipe; None where it must be wiped before it is used."""
        with self._lock:
            return self._clean.get(gpu)

    def set_clean(self, marks: Mapping[str, str | None]) -> None:
        """Remember GPUs' marks; None forgets one, durably, before anybody uses the GPU."""
        if not marks:
            return
        with self._lock:
            self._clean.update({gpu: mark for gpu, mark in marks.items() if mark is not None})
            for gpu in [gpu for gpu, mark in marks.items() if mark is None]:
                self._clean.pop(gpu, None)
            self._save()

    def _save(self) -> None:
        tree = {
            "quarantine": {lease: {"reason": row.reason, "told": row.told} for lease, row in self._quarantine.items()},
            "wipes": self._wipes,
            "clean": self._clean,
        }
        write_durably(self._path, json.dumps(tree, sort_keys=True).encode())
