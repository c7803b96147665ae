"""``/out`` goes to the customer: sealed on this node, then uploaded as ciphertext."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.errors import InputError, ServerError
from sandbox.sealing.bundle import seal

if TYPE_CHECKING:
    from collections.abc import Callable

    from attestation.signing import SigningKey
    from sandbox.node.client import ControlClient
    from sandbox.node.layout import LeaseFolder
    from sandbox.sealing.public import IdentityPublic

CHANGED = "source-changed"
SETTLE_SECONDS = 10.0
"""How long a job's files may still change after its end."""
PATIENCE_SECONDS = 24 * 3600.0
"""How long a result waits for a control plane that does not answer, before it is given up and the lease wiped."""
_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0, 15.0)


@dataclass(frozen=True)
class Result:
    """A sealed result. ``size`` in bytes."""

    digest: str
    size: int


def seal_output(folder: LeaseFolder, lease: str, recipient: IdentityPublic, signer: SigningKey) -> Result:
    """Seal everything in ``/out`` to the customer, signed by the node. Links are kept as links; nothing outside ``/out`` is read."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        folder.result.unlink(missing_ok=True)
        try:
            sealed = seal([folder.out], folder.result, recipients=[recipient], signer=signer, labels={"lease": lease}, lenient=True)
        except InputError as error:
            # A sandbox's file server may still be writing back when its job has ended (gVisor's does, for some milliseconds).
            if error.details.get("rule") != CHANGED or time.monotonic() >= deadline:
                raise
            time.sleep(0.1)
        else:
            return Result(sealed.digest, sealed.size)


def upload_result(client: ControlClient, folder: LeaseFolder, lease: str, result: Result, *, go_on: Callable[[], None]) -> None:
    """Upload the sealed result, trying again while the control plane does not answer. Raises ``ServerError`` when patience ends."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    attempt = 0
    while True:
        go_on()
        try:
            client.upload(folder.result, result.digest, lease, go_on=go_on)
        except ServerError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
            attempt += 1
        else:
            return
