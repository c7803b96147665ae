"""Who am I, tokens, identities."""

from __future__ import annotations

from fastapi import APIRouter, Response

from sandbox.control import access, customers
from sandbox.control.api.auth import AnyCaller, ControlDep, Customer, Operator, Person
from sandbox.model import TokenId
from sandbox.wire import IdentityEnrolment, TokenInfo, TokenIssued, TokenRequest, Whoami

router = APIRouter(prefix="/v1", tags=["people"])


@router.get("/whoami")
def whoami(caller: AnyCaller) -> Whoami:
    """Say who the token is."""
    return Whoami(token=caller.token, role=caller.role, tenant=caller.tenant)


@router.post("/tokens", status_code=201)
def issue_token(request: TokenRequest, control: ControlDep, caller: Operator) -> TokenIssued:
    """Issue a token; its secret is shown this once."""
    return access.issue_token(control, request, actor=caller.token)


@router.get("/tokens")
def list_tokens(control: ControlDep, caller: Operator) -> list[TokenInfo]:
    """List tokens without their secrets."""
    del caller
    return access.list_tokens(control)


@router.delete("/tokens/{token}")
def revoke_token(token: TokenId, control: ControlDep, caller: Operator) -> TokenInfo:
    """Revoke a token at once."""
    return access.revoke_token(control, token, actor=caller.token)


@router.post("/identities", status_code=201)
def enrol(request: IdentityEnrolment, control: ControlDep, caller: Customer, response: Response) -> IdentityEnrolment:
    """Enrol a public identity for the token's tenant; 200 where it was enrolled already."""
    if not customers.enrol(control, caller, request.identity):
        response.status_code = 200
    return request


@router.get("/identities")
def list_identities(control: ControlDep, caller: Person) -> list[str]:
    """List enrolled identities."""
    return customers.identities(control, caller)
