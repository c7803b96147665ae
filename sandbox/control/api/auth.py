"""Who calls, and which roles a route is for. A role that is not named is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from sandbox.control.access import Caller, authenticate
from sandbox.control.core import Control
from sandbox.errors import AccessError
from sandbox.wire import Role


def get_control(request: Request) -> Control:
    """Return the control plane that this application serves."""
    control: Control = request.app.state.control
    return control


ControlDep = Annotated[Control, Depends(get_control)]


def get_caller(request: Request, control: ControlDep) -> Caller:
    """Return who calls, from ``Authorization: Bearer TOKEN``. Raises ``AuthenticationError``."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    return authenticate(control, secret.strip() if scheme.lower() == "bearer" else "")


AnyCaller = Annotated[Caller, Depends(get_caller)]


def _need(*roles: Role) -> Callable[[AnyCaller], Caller]:
    def check(caller: AnyCaller) -> Caller:
        if caller.role not in roles:
            raise AccessError(
                "your role does not allow this", rule="role", seen=caller.role, wanted=" or ".join(roles), fix="use a token of such a role"
            )
        return caller

    return check


Customer = Annotated[Caller, Depends(_need("customer"))]
Operator = Annotated[Caller, Depends(_need("operator"))]
NodeCaller = Annotated[Caller, Depends(_need("node"))]
Person = Annotated[Caller, Depends(_need("customer", "operator", "auditor"))]
Overseer = Annotated[Caller, Depends(_need("operator", "auditor"))]
CustomerOrOperator = Annotated[Caller, Depends(_need("customer", "operator"))]
Reader = Annotated[Caller, Depends(_need("customer", "node"))]
