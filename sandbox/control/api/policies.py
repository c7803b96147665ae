"""Policies: the one that applies to me, all of them, and binding one to a tenant."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from attestation.signing import b64decode
from sandbox.control import tenant_policies
from sandbox.control.api.auth import ControlDep, Operator, Overseer, Person
from sandbox.errors import AccessError
from sandbox.model import TenantName
from sandbox.wire import PolicyApplication, PolicyChange, PolicyInfo

router = APIRouter(prefix="/v1", tags=["policies"])


@router.get("/policy")
def show_policy(control: ControlDep, caller: Person, tenant: Annotated[TenantName | None, Query()] = None) -> PolicyInfo:
    """Show the policy of the token's tenant; operators and auditors may name another."""
    if tenant is not None and tenant != caller.tenant and not caller.sees_all:
        raise AccessError(
            "a customer sees the policy of its own tenant",
            rule="policy-tenant",
            seen=tenant,
            wanted=caller.tenant,
            fix="leave the tenant out",
        )
    return tenant_policies.show_policy(control, tenant or caller.tenant)


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
