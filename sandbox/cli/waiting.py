"""``sealrig wait`` and ``sealrig node wait``: until a lease is over, the server answers, or nodes are ready."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from sandbox.cli.console import console, printable
from sandbox.cli.context import ServerOption, client
from sandbox.cli.following import Deadline, followed
from sandbox.cli.leases import end_error, state_words
from sandbox.errors import NotFoundError, SealrigError, StateError, UsageError, WaitError
from sandbox.lifecycle import TERMINAL, LeaseState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.customer.client import Client
    from sandbox.wire import LeaseInfo, NodeInfo

app = typer.Typer()
SERVER_SECONDS = 60
"""How long a server is waited for where no time is given."""
TimeoutOption = Annotated[
    str | None, typer.Option("--timeout", metavar="TIME", help="Give up after so long, such as 30s or 2h.", show_default=False)
]


def wait(
    lease: Annotated[
        str | None,
        typer.Argument(metavar="[LEASE|JOB]", help="lease-…, or a job's name for its newest lease. Without it: the server itself."),
    ] = None,
    state: Annotated[
        LeaseState | None, typer.Option("--for", help="Wait until the lease has come to this state, not for its end.", show_default=False)
    ] = None,
    timeout: TimeoutOption = None,
    server: ServerOption = None,
) -> None:
    """Wait until a lease is over and tell its states meanwhile; without a lease, until the server answers, 1m at most.

    Exit code 0 if the lease ended well or came to the state of --for, 1 if not, 124 when the time of --timeout is over.
    Example: sealrig wait name-file-types --for running --timeout 10m
    """
    seconds = _seconds(timeout)
    if lease is None:
        if state is not None:
            raise UsageError("--for is about a lease", rule="wait-lease", seen="no lease", wanted="LEASE or JOB", fix="name one")
        _wait_for_server(server, SERVER_SECONDS if seconds is None else seconds)
        return
    deadline, came = Deadline(seconds), False
    with _timely(server, seconds, deadline) as control:
        for info in followed(control, _lease_id(control, lease), deadline):
            came = state is not None and state in {info.state, *(step.state for step in info.history)}
            if came:
                break
    error = None if came else _missed(info, state)
    if error is not None:
        console().fail(info.model_dump(mode="json"), error)
    console().emit(info, f"{info.id}  {state_words(info)}")


@app.command("wait")
def wait_for_nodes(
    nodes: Annotated[
        list[str] | None, typer.Argument(metavar="[NODE...]", help="Nodes that must all be ready. Without them: any one.")
    ] = None,
    timeout: TimeoutOption = None,
    server: ServerOption = None,
) -> None:
    """Wait until nodes are ready to take leases, and tell what becomes of them meanwhile. Exit code 124 when the time is over.

    Example: sealrig node wait --timeout 2m
    """
    wanted, seconds = {_node_id(node) for node in nodes or ()}, _seconds(timeout)
    deadline = Deadline(seconds)
    told: dict[str, str] = {}
    with _timely(server, seconds, deadline) as control:
        mark, found = control.changed_nodes()
        while True:
            looked_at = [node for node in found if not wanted or node.id in wanted]
            for node in looked_at:
                if told.get(node.id) != (words := _node_words(node)):
                    console().say(f"{node.id}  {words}")
                told[node.id] = words
            ready = [node for node in looked_at if _is_ready(node)]
            if len(ready) >= max(1, len(wanted)):
                break
            if not (left := deadline.left()):
                missing = ", ".join(sorted(wanted - {node.id for node in ready})) or "any node"
                seen = ", ".join(f"{node}: {words}" for node, words in told.items()) or "no such node is registered"
                raise WaitError(f"not ready in time: {missing}", rule="wait-timeout", seen=seen[:500], wanted="ready",
                                fix="see that 'sealrig node run' runs on the node, and what it says; then wait again")  # fmt: skip
            mark, found = control.changed_nodes(mark=mark, wait=left)
    console().emit(ready, "\n".join(f"{node.id}  ready" for node in ready))


@contextmanager
def _timely(server: str | None, seconds: float | None, deadline: Deadline) -> Iterator[Client]:
    """Open a client that tries no longer than there is time. Raises ``WaitError`` where the server did not answer until it was over."""
    from sandbox.customer.http import PATIENCE_SECONDS

    short = seconds is not None and seconds <= PATIENCE_SECONDS
    with client(server, patience=seconds if short else None) as control:
        try:
            yield control
        except SealrigError as error:
            if short or not deadline.left():
                _tell_late(control, error)
            raise


def _wait_for_server(server: str | None, seconds: float) -> None:
    with client(server, needs_token=False, patience=seconds) as control:
        try:
            control.ready()
        except SealrigError as error:
            _tell_late(control, error)
            raise
        console().emit({"server": control.base, "ready": True}, f"{control.base} is ready")


def _tell_late(control: Client, error: SealrigError) -> None:
    """Raise ``WaitError``, now that the time is over, if the server did not answer, or answered that it is not ready."""
    from sandbox.customer.http import RETRIED_STATUS

    if error.details.get("rule") == "server-answers" or error.details.get("status") in RETRIED_STATUS:
        raise WaitError(f"{control.base} was not ready in time: {error.message}", **{**error.details, "rule": "wait-timeout"}) from error


def _missed(info: LeaseInfo, state: LeaseState | None) -> Exception | None:
    """Return what is wrong with where the waiting ended; None for a lease whose end was waited for and is good."""
    if info.state not in TERMINAL:
        return WaitError(f"lease {info.id} has not come so far in time", rule="wait-timeout", seen=state_words(info),
                         wanted="its end" if state is None else state.value, fix="wait again; the lease goes on")  # fmt: skip
    error = end_error(info)
    if state is None or error is not None:
        return error
    return StateError(f"lease {info.id} ended without that state", rule="wait-state", seen=state_words(info), wanted=state.value,
                      fix="see 'sealrig lease show'")  # fmt: skip


def _lease_id(control: Client, text: str) -> str:
    """Return the lease that is meant: its id, or the newest one of a job's name. Raises ``NotFoundError``."""
    from sandbox.cli.leases import checked
    from sandbox.wire import MAX_PAGE

    if text.startswith("lease-"):
        return checked(text)
    found = next((info.id for info in control.leases(limit=MAX_PAGE) if info.name == text), None)
    if found is None:
        raise NotFoundError(f"no lease of a job called {printable(text)[:100]}", rule="wait-job", seen=text[:100],
                            wanted=f"the name of a job among the newest {MAX_PAGE} leases", fix="see 'sealrig lease list'")  # fmt: skip
    console().say(found)
    return found


def _node_id(text: str) -> str:
    """Return the id. Raises ``UsageError`` for what is none, which would be waited for without end."""
    from pydantic import TypeAdapter, ValidationError

    from sandbox.model import NodeId

    try:
        return TypeAdapter(NodeId).validate_python(text)
    except ValidationError as error:
        raise UsageError("not a node id", rule="node-id", seen=text[:100], wanted="node- and 32 hex digits",
                         fix="see 'sealrig node list'") from error  # fmt: skip


def _is_ready(node: NodeInfo) -> bool:
    """Say whether a node takes leases. A ready node has a detail where the server has not heard of it for a while."""
    return node.state == "ready" and not node.detail


def _node_words(node: NodeInfo) -> str:
    return f"{node.state}{': ' if node.detail else ''}{node.detail}"


def _seconds(timeout: str | None) -> float | None:
    from policies.units import parse_duration

    try:
        return None if timeout is None else parse_duration(timeout)
    except ValueError as error:
        raise UsageError("--timeout: not a duration", rule="duration", seen=timeout, wanted="such as 30s or 5m") from error
