"""Policies: the one that applies to me, all of them, and binding one to a tenant."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from attestation.policy_change import POLICY_CHANGE_MEDIA
from attestation.signing import b64decode
from sandbox.control import tenant_policies
from sandbox.control.access import Caller
from sandbox.control.api.auth import ControlDep, Operator, Overseer, Person
from sandbox.control.transitions import POLICY_MEDIA
from sandbox.errors import AccessError
from sandbox.model import Sha256Digest, TenantName
from sandbox.wire import MAX_CHANGES, LoggedPolicyChange, PolicyApplication, PolicyChange, PolicyInfo

router = APIRouter(prefix="/v1", tags=["policies"])


@router.get("/policy")
def show_policy(control: ControlDep, caller: Person, tenant: Annotated[TenantName | None, Query()] = None) -> PolicyInfo:
    """Show the policy of the token's tenant; operators and auditors may name another."""
    return tenant_policies.show_policy(control, _own(caller, tenant))


@router.get("/policy/{digest}")
def policy_text(digest: Annotated[Sha256Digest, Path()], control: ControlDep, caller: Person) -> Response:
    """Send a policy's exact bytes, which are kept once, by their digest; customers see those that hold or held for their tenant."""
    return Response(tenant_policies.policy_text(control, caller, digest), media_type=POLICY_MEDIA)


@router.get("/policy-changes")
def list_changes(
    control: ControlDep,
    caller: Person,
    tenant: Annotated[TenantName | None, Query()] = None,
    before: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_CHANGES)] = 20,
) -> list[LoggedPolicyChange]:
    """List the changes of a tenant's policy, newest first, before log index ``before``; operators and auditors may name a tenant."""
    return tenant_policies.list_changes(control, _own(caller, tenant), limit=limit, before=before)


@router.get("/policy-changes/{digest}")
def change_document(digest: Annotated[Sha256Digest, Path()], control: ControlDep, caller: Person) -> Response:
    """Send the document of a change in its exact bytes: what an entry ``policy.applied`` of the audit log names as evidence."""
    return Response(tenant_policies.change_document(control, caller, digest), media_type=POLICY_CHANGE_MEDIA)


@router.get("/policies")
def list_policies(control: ControlDep, caller: Overseer) -> list[PolicyInfo]:
    """Show every tenant's policy."""
    del caller
    return tenant_policies.list_policies(control)


@router.put("/policies/{tenant}")
def apply_policy(
    tenant: TenantName, request: PolicyApplication, control: ControlDep, caller: Operator, *, dry_run: Annotated[bool, Query()] = False
) -> PolicyChange:
    """Bind a policy to a tenant. With ``dry_run``, change nothing and say what would happen to waiting leases."""
    return tenant_policies.apply_policy(control, caller, tenant, b64decode(request.raw), dry_run=dry_run)


def _own(caller: Caller, tenant: str | None) -> str:
    if tenant is not None and tenant != caller.tenant and not caller.sees_all:
        raise AccessError(
            "a customer sees the policy of its own tenant",
            rule="policy-tenant",
            seen=tenant,
            wanted=caller.tenant,
            fix="leave the tenant out",
        )
    return tenant or caller.tenant
