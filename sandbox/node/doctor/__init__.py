"""What state this host is in: one check a property, each with what was seen, what is wanted and how to get there.

Reading is apart from judging: ``host.py`` reads text, the other modules are pure functions over that text, tested on output captured
from several distributions. A check that cannot be made says ``unknown``, and ``unknown`` is never a pass. The ids are part of the
contract: they stand in evidence and in policies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from sandbox.node.doctor import boot, engine, kernel, memory, nvidia, versions
from sandbox.node.doctor.check import Check, Result, unknown
from sandbox.node.doctor.host import Host

if TYPE_CHECKING:
    from sandbox.node.engine import EngineFacts

__all__ = ["HOST_CHECKS", "Check", "Host", "Result", "all_ids", "run_checks"]

HostCheck = Callable[[Host], Check | None]
"""Returns None where the check has no meaning on this host, such as a GPU check without a GPU."""

HOST_CHECKS: dict[str, HostCheck] = {**memory.CHECKS, **kernel.CHECKS, **boot.CHECKS, **nvidia.CHECKS, **versions.CHECKS}


def run_checks(host: Host | None = None, *, facts: EngineFacts | None = None, now: datetime | None = None) -> list[Check]:
    """Make every check. Never raises: a check that breaks is ``unknown``.

    ``facts`` are the engine's, where it answers; ``now`` dates the version floors.
    """
    here = host or Host()
    moment = now or datetime.now(UTC)
    found = [_guarded(name, partial(check, here)) for name, check in HOST_CHECKS.items()]
    found += [_guarded(name, partial(engine_check, facts)) for name, engine_check in engine.CHECKS.items()]
    found.append(_guarded(versions.AGE, partial(versions.floors_age, moment)))
    return [check for check in found if check is not None]


def all_ids() -> Iterable[str]:
    """Return every id that a check can have."""
    return (*HOST_CHECKS, *engine.CHECKS, versions.AGE)


def _guarded(name: str, make: Callable[[], Check | None]) -> Check | None:
    try:
        return make()
    except Exception as error:  # noqa: BLE001  (one broken check must not hide the others, and unknown is never a pass)
        return unknown(name, f"the check failed: {type(error).__name__}", "a check that works", "report this with the file it reads")
