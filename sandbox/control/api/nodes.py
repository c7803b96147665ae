"""Nodes: for themselves (their own token) and for those who look after them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from sandbox.control import incidents, logs, nodes, qualifications, reports, views
from sandbox.control.api.auth import AnyCaller, ControlDep, NodeCaller, Operator, Person
from sandbox.control.api.leases import Wait, envelope
from sandbox.errors import LimitError
from sandbox.model import LeaseId, NodeId
from sandbox.wire import (
    MAX_BODY_BYTES,
    MAX_LOG_CHUNK_BYTES,
    IncidentSubmission,
    LeaseInfo,
    NodeInfo,
    NodeRegistration,
    PollAnswer,
    PollRequest,
    QualificationSubmission,
    ReportSubmission,
)

router = APIRouter(prefix="/v1/nodes", tags=["nodes"])
_NOTHING = PollAnswer(assignments=(), node_state="ready")
"""What a node knows that was told nothing yet."""


@router.get("")
async def list_nodes(
    control: ControlDep, caller: Person, response: Response, wait: Wait = 0, mark: Annotated[str, Query(max_length=80)] = ""
) -> list[NodeInfo]:
    """List nodes; of their leases only those that the caller may see.

    The header ``ETag`` names where all of them stand; with ``wait`` and the last answer's as ``mark``, wait until it is another.
    """

    async def others() -> list[NodeInfo] | None:
        found = await run_in_threadpool(nodes.list_nodes, control, caller)
        return found if nodes.mark(found) != mark else None

    found = await control.bell.wait_for((nodes.CHANGED,), others, wait)
    listed = found if found is not None else await run_in_threadpool(nodes.list_nodes, control, caller)
    response.headers["ETag"] = f'"{nodes.mark(listed)}"'
    return listed


@router.get("/{node}")
def show_node(node: NodeId, control: ControlDep, caller: AnyCaller) -> NodeInfo:
    """Show one node."""
    return nodes.show_node(control, caller, node)


@router.put("/{node}")
def register(node: NodeId, request: NodeRegistration, control: ControlDep, caller: NodeCaller) -> NodeInfo:
    """Register a node, or say anew what it can give. Its token is bound to it."""
    nodes.register(control, caller, node, request)
    return nodes.show_node(control, replace(caller, node=node), node)


@router.put("/{node}/qualification")
def qualify(node: NodeId, request: QualificationSubmission, control: ControlDep, caller: NodeCaller) -> NodeInfo:
    """Take a node's signed qualification of its GPUs; the same one twice is one."""
    qualifications.take_qualification(control, caller, node, envelope(request.qualification, MAX_BODY_BYTES))
    return nodes.show_node(control, caller, node)


@router.post("/{node}/quarantine")
def quarantine(node: NodeId, control: ControlDep, caller: Operator) -> NodeInfo:
    """Give a node no further lease."""
    nodes.quarantine(control, caller, node)
    return nodes.show_node(control, caller, node)


@router.post("/{node}/restore")
def restore(node: NodeId, control: ControlDep, caller: Operator) -> NodeInfo:
    """Lift a node's quarantine."""
    nodes.restore(control, caller, node)
    return nodes.show_node(control, caller, node)


@router.post("/{node}/poll")
async def poll(node: NodeId, request: PollRequest, control: ControlDep, caller: NodeCaller) -> PollAnswer:
    """Take work. With ``wait``, the answer comes when something is other than what the node was told last."""

    async def news() -> PollAnswer | None:
        answer = await run_in_threadpool(nodes.take_work, control, caller, node, request)
        known = {each.lease for each in answer.assignments} == set(request.held)
        return None if known and answer == control.told.get(node, _NOTHING) else answer

    found = await control.bell.wait_for(("queue", f"node:{node}"), news, request.wait)
    control.told[node] = answer = found or control.told.get(node, _NOTHING)
    return answer


@router.post("/{node}/leases/{lease}/report")
def report(node: NodeId, lease: LeaseId, request: ReportSubmission, control: ControlDep, caller: NodeCaller) -> LeaseInfo:
    """Take a signed report; the same one twice is one."""
    reports.take_report(control, caller, node, lease, envelope(request.report, MAX_BODY_BYTES))
    return views.show_lease(control, caller, lease)


@router.post("/{node}/leases/{lease}/incidents")
def incident(node: NodeId, lease: LeaseId, request: IncidentSubmission, control: ControlDep, caller: NodeCaller) -> LeaseInfo:
    """Take a signed incident; the same one twice is one."""
    incidents.take_incident(control, caller, node, lease, envelope(request.incident, MAX_BODY_BYTES))
    return views.show_lease(control, caller, lease)


@router.put("/{node}/leases/{lease}/logs/{seq}", status_code=204)
async def put_log(  # noqa: PLR0917  (the parts of the path, and what FastAPI hands over)
    node: NodeId, lease: LeaseId, seq: Annotated[int, Path(ge=0, le=2**31)], request: Request, control: ControlDep, caller: NodeCaller
) -> None:
    """Take one sealed log chunk, raw; the same one twice is one."""
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_LOG_CHUNK_BYTES:
            raise LimitError(
                "a log chunk is too large",
                rule="log-chunk",
                seen=f"over {MAX_LOG_CHUNK_BYTES} bytes",
                wanted=f"at most {MAX_LOG_CHUNK_BYTES} bytes",
                fix="send smaller chunks",
            )
    await run_in_threadpool(logs.take_chunk, control, caller, node_id=node, lease_id=lease, seq=seq, data=data)
