"""The console's addresses."""

from __future__ import annotations

import json
from importlib import resources
from typing import Annotated
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Depends, Path, Request
from fastapi.responses import RedirectResponse, Response

from attestation.policy_change import PolicyChange
from attestation.signing import b64decode
from sandbox.control import entries, nodes, tenant_policies, views
from sandbox.control.access import Caller, authenticate
from sandbox.control.core import Control
from sandbox.control.erasure import ERASED
from sandbox.control.search import entry_types, search
from sandbox.control.web import audit
from sandbox.control.web.cards import gpu_rows, plot_cards
from sandbox.control.web.page import HEADERS, Console
from sandbox.control.web.sessions import COOKIE, SESSION_SECONDS
from sandbox.errors import AuthenticationError, InputError
from sandbox.lifecycle import TERMINAL, LeaseState
from sandbox.model import LeaseId
from sandbox.told import driver_words

MAX_FORM_BYTES = 4096
LEASES_A_PAGE = 50
CHANGES_A_TENANT = 10
_STATIC = {"console.css": "text/css; charset=utf-8", "verify.js": "text/javascript; charset=utf-8"}
EntryIndex = Annotated[int, Path(ge=0, le=2**53)]


def console_router(control: Control) -> APIRouter:
    """Return the console's routes over one control plane."""
    router = APIRouter(include_in_schema=False)
    console = Console(control)
    _signing_in(router, console)
    _lease_pages(router, console)
    _audit_pages(router, console)

    @router.get("/")
    def start() -> RedirectResponse:
        return RedirectResponse("/leases", status_code=303, headers=HEADERS)

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in _STATIC:
            return Response(status_code=404, headers=HEADERS)
        data = resources.files("sandbox.control.web").joinpath("static", name).read_bytes()
        return Response(data, media_type=_STATIC[name], headers={**HEADERS, "Cache-Control": "max-age=3600"})

    @router.get("/nodes")
    def node_list(request: Request) -> Response:
        return console.page(request, "nodes.html", "Nodes", lambda caller: {"nodes": _nodes(control, caller)})

    @router.get("/policies")
    def policy_list(request: Request) -> Response:
        return console.page(request, "policies.html", "Policies", lambda caller: {"policies": _policies(control, caller)})

    return router


def _signing_in(router: APIRouter, console: Console) -> None:
    @router.get("/login")
    def login_page() -> Response:
        return console.render("login.html", "Sign in", {"problem": ""})

    @router.post("/login")
    async def login(request: Request) -> Response:
        try:
            caller = authenticate(console.control, (await _form(request)).get("token", "").strip())
        except AuthenticationError as error:
            return console.render("login.html", "Sign in", {"problem": error.message}, status=401)
        if caller.role == "node":
            return console.render("login.html", "Sign in", {"problem": "a node's token is for the node alone"}, status=403)
        answer = RedirectResponse("/", status_code=303, headers=HEADERS)
        secure = request.url.scheme == "https"
        name = console.sessions.open(caller.token)
        answer.set_cookie(COOKIE, name, max_age=SESSION_SECONDS, httponly=True, samesite="strict", secure=secure)
        return answer

    @router.post("/logout")
    async def logout(request: Request) -> Response:
        console.sessions.close(request.cookies.get(COOKIE), (await _form(request)).get("csrf", ""))
        return RedirectResponse("/login", status_code=303, headers=HEADERS)


def _lease_pages(router: APIRouter, console: Console) -> None:
    control = console.control

    @router.get("/leases")
    def lease_list(request: Request, state: str = "", before: str = "") -> Response:
        def view(caller: Caller) -> dict[str, object]:
            leases = views.list_leases(control, caller, _state(state), LEASES_A_PAGE, before or None)
            older = leases[-1].id if len(leases) == LEASES_A_PAGE else ""
            return {"leases": leases, "older": older, "filters": {"state": state}, "states": [each.value for each in LeaseState]}

        return console.page(request, "leases.html", "Leases", view)

    @router.get("/leases/{lease}")
    def lease_page(request: Request, lease: LeaseId) -> Response:
        return console.page(request, "lease.html", "Lease", lambda caller: _lease(control, caller, lease))

    @router.get("/leases/{lease}/receipt")
    def receipt(request: Request, lease: LeaseId) -> Response:
        return console.download(
            request, "application/json", f"{lease}.receipt.json", lambda caller: views.make_receipt(control, caller, lease)
        )


def _audit_pages(router: APIRouter, console: Console) -> None:
    control = console.control

    @router.get("/audit")
    def audit_list(request: Request, form: Annotated[audit.AuditForm, Depends()]) -> Response:
        def view(caller: Caller) -> dict[str, object]:
            page = search(control, caller, form.filters(), limit=audit.PAGE, start=form.start)
            return {
                "entries": page.rows,
                "left": page.left,
                "older": f"/audit?{urlencode({**form.chosen, 'before': page.left})}" if page.left else "",
                "newest": f"/audit?{urlencode(form.chosen)}" if form.before else "",
                "form": form,
                "types": entry_types(control),
                "log_size": audit.log_size(control),
                "published": control.log.health().published,
            }

        return console.page(request, "audit.html", "Audit log", view)

    @router.get("/audit/{index}")
    def entry_page(request: Request, index: EntryIndex) -> Response:
        def view(caller: Caller) -> dict[str, object]:
            shown = entries.entry(control, caller, index)
            leaf = json.loads(shown.logged.leaf)
            return {
                "index": index,
                "leaf": leaf,
                "pretty": json.dumps(leaf, indent=2, sort_keys=True),
                "committed": shown.committed,
                "vkey": control.vkey,
            }

        return console.page(request, "entry.html", f"Entry {index}", view)

    @router.get("/audit/{index}/proof")
    def proof(request: Request, index: EntryIndex) -> Response:
        return console.download(
            request, "text/plain", f"{index}.tlog-proof", lambda caller: entries.entry(control, caller, index).logged.proof.encode()
        )

    @router.get("/audit/{index}/leaf")
    def leaf(request: Request, index: EntryIndex) -> Response:
        return console.download(
            request, "application/json", f"{index}.json", lambda caller: entries.entry(control, caller, index).logged.leaf
        )


async def _form(request: Request) -> dict[str, str]:
    """Read a small form. The body is bounded before it is read, and never spooled to a file."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return {}
    fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=8)
    return {name: values[0] for name, values in fields.items()}


def _lease(control: Control, caller: Caller, lease: str) -> dict[str, object]:
    info = views.show_lease(control, caller, lease)
    return {"lease": info, "ended": info.state in TERMINAL, "erased": info.image == ERASED}


def _state(text: str) -> LeaseState | None:
    if not text:
        return None
    try:
        return LeaseState(text)
    except ValueError as error:
        raise InputError(
            "no such state", rule="lease-state", seen=text[:40], wanted=", ".join(LeaseState), fix="choose one from the list"
        ) from error


def _nodes(control: Control, caller: Caller) -> list[dict[str, object]]:
    """Return nodes with their GPUs as the inventory tells of them, and a plot of those that were qualified."""
    rows: list[dict[str, object]] = []
    for node in nodes.list_nodes(control, caller):
        said = node.qualification
        plot = plot_cards(f"plot-{node.id}", said.cards) if said is not None and said.cards else ""
        detail = str(node.inventory.get("gpuDetail") or "none on this node")[:500]
        rows.append({"node": node, "gpus": gpu_rows(node), "detail": detail, "driver": driver_words(node.inventory), "plot": plot})
    return rows


def _policies(control: Control, caller: Caller) -> list[dict[str, object]]:
    infos = tenant_policies.list_policies(control) if caller.sees_all else [tenant_policies.show_policy(control, caller.tenant)]
    return [
        {
            "tenant": each.tenant,
            "name": each.name,
            "digest": each.digest,
            "text": b64decode(each.raw).decode("utf-8", "replace"),
            "changes": _changes(control, each.tenant),
        }
        for each in infos
    ]


def _changes(control: Control, tenant: str) -> list[dict[str, object]]:
    return [
        {
            "at": change.at,
            "actor": change.actor,
            "index": change.log_index,
            "diff": PolicyChange.from_payload(b64decode(change.document)).diff,
        }
        for change in tenant_policies.list_changes(control, tenant, limit=CHANGES_A_TENANT)
    ]
