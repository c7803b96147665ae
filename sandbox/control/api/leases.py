"""Leases: submit, follow, decide, end."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool

from attestation.canonical import canonical_json
from attestation.signing import Envelope
from sandbox.control import grants, story, views
from sandbox.control.api.auth import AnyCaller, ControlDep, Customer, CustomerOrOperator, Person
from sandbox.errors import LimitError
from sandbox.lifecycle import LeaseState
from sandbox.model import LeaseId
from sandbox.wire import (
    MAX_ENVELOPE_BYTES,
    MAX_PAGE,
    MAX_WAIT_SECONDS,
    EvidenceInfo,
    GrantSubmission,
    LeaseInfo,
    LeaseSubmission,
    LogPage,
    NonceRequest,
    Refusal,
    WaitingLeases,
)

router = APIRouter(prefix="/v1/leases", tags=["leases"])
Wait = Annotated[float, Query(ge=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False)]


def envelope(tree: dict[str, Any], most: int = MAX_ENVELOPE_BYTES) -> Envelope:
    """Read a bounded DSSE envelope. Raises ``FormatError`` or ``LimitError``."""
    size = len(canonical_json(tree))
    if size > most:
        raise LimitError(
            "a signed document is too large",
            rule="envelope-size",
            seen=f"{size} bytes",
            wanted=f"at most {most} bytes",
            fix="shorten the document",
        )
    return Envelope.from_json(tree)


@router.post("", status_code=201)
def submit(request: LeaseSubmission, control: ControlDep, caller: Customer, response: Response) -> LeaseInfo:
    """Submit a signed job; the same one again gives the same lease with 200."""
    lease, new = story.submit(control, caller, envelope(request.job))
    if not new:
        response.status_code = 200
    return views.show_lease(control, caller, lease)


@router.get("")
def list_leases(
    control: ControlDep,
    caller: Person,
    state: Annotated[LeaseState | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    before: Annotated[LeaseId | None, Query()] = None,
) -> list[LeaseInfo]:
    """List leases, newest first; ``before`` is the last id of the page before."""
    return views.list_leases(control, caller, state, limit, before)


@router.get("/waiting")
async def waiting(control: ControlDep, caller: Customer, wait: Wait = 0, mark: Annotated[str, Query(max_length=80)] = "") -> WaitingLeases:
    """Show the leases that wait for the release agent; with ``wait`` and the last answer's ``mark``, wait until there are others."""

    async def others() -> WaitingLeases | None:
        found = await run_in_threadpool(views.waiting_leases, control, caller)
        return found if found.mark != mark else None

    found = await control.bell.wait_for(("waiting",), others, wait)
    return found if found is not None else await run_in_threadpool(views.waiting_leases, control, caller)


@router.get("/{lease}")
async def show_lease(
    lease: LeaseId, control: ControlDep, caller: AnyCaller, wait: Wait = 0, since: Annotated[LeaseState | None, Query()] = None
) -> LeaseInfo:
    """Show a lease; with ``wait`` and ``since``, wait until its state is no longer ``since``."""

    async def other() -> LeaseInfo | None:
        info = await run_in_threadpool(views.show_lease, control, caller, lease)
        return info if since is None or info.state is not since else None

    found = await control.bell.wait_for((lease,), other, wait)
    return found if found is not None else await run_in_threadpool(views.show_lease, control, caller, lease)


@router.post("/{lease}/cancel")
def cancel(lease: LeaseId, control: ControlDep, caller: CustomerOrOperator) -> LeaseInfo:
    """Ask for a lease's end."""
    story.cancel(control, caller, lease)
    return views.show_lease(control, caller, lease)


@router.post("/{lease}/revoke")
def revoke(lease: LeaseId, control: ControlDep, caller: Customer) -> LeaseInfo:
    """Take the keys back: the node stops and wipes."""
    story.revoke(control, caller, lease)
    return views.show_lease(control, caller, lease)


@router.put("/{lease}/nonce")
def set_nonce(lease: LeaseId, request: NonceRequest, control: ControlDep, caller: Customer) -> LeaseInfo:
    """Set the nonce that the node's evidence must answer."""
    story.set_nonce(control, caller, lease, request.nonce)
    return views.show_lease(control, caller, lease)


@router.get("/{lease}/evidence")
def evidence(lease: LeaseId, control: ControlDep, caller: Person) -> EvidenceInfo:
    """Show the node's evidence with the plan and the policy that it binds."""
    return views.show_evidence(control, caller, lease)


@router.post("/{lease}/grant")
def grant(lease: LeaseId, request: GrantSubmission, control: ControlDep, caller: Customer) -> LeaseInfo:
    """Hand over the data keys, wrapped to the attested lease key; a second, other grant is refused."""
    grants.unlock(control, caller, lease, envelope(request.grant))
    return views.show_lease(control, caller, lease)


@router.post("/{lease}/refusal")
def refusal(lease: LeaseId, request: Refusal, control: ControlDep, caller: Customer) -> LeaseInfo:
    """Say that no key will be released, and why."""
    story.refuse(control, caller, lease, request.reasons)
    return views.show_lease(control, caller, lease)


@router.get("/{lease}/logs")
async def logs(
    lease: LeaseId, control: ControlDep, caller: Customer, after: Annotated[int, Query(ge=0, le=2**31)] = 0, wait: Wait = 0
) -> LogPage:
    """Show sealed log chunks from number ``after`` on; wait for one."""

    async def some() -> LogPage | None:
        page = await run_in_threadpool(views.show_logs, control, caller, lease, after)
        return page if page.chunks or page.final else None

    found = await control.bell.wait_for((lease, f"logs:{lease}"), some, wait)
    return found or LogPage(chunks=(), final=False)


@router.get("/{lease}/receipt", response_class=Response)
def receipt(lease: LeaseId, control: ControlDep, caller: Person) -> Response:
    """Send the receipt's exact bytes."""
    return Response(views.make_receipt(control, caller, lease), media_type="application/json")
