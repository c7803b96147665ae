"""Errors of the policy package.

::

    PolicyError            bad-policy           a policy (or any strict YAML) cannot be loaded
    └── PolicyLimitError   policy-too-large     a bound on size, depth or cost was crossed
"""

from __future__ import annotations

from typing import ClassVar


class PolicyError(Exception):
    """A policy, a policy case or any other strict YAML document cannot be accepted.

    ``details`` holds, where they apply, ``rule``, ``seen``, ``wanted`` and ``fix``.
    """

    code: ClassVar[str] = "bad-policy"

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, object] = details


class PolicyLimitError(PolicyError):
    """A named bound on size, depth or cost was crossed."""

    code = "policy-too-large"
