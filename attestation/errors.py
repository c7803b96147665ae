"""Errors of the attestation package; an auditor meets them offline.

::

    AttestationError            attestation          base
    ├── FormatError             bad-format           bytes are not the document they should be
    ├── LimitError              limit-exceeded       a named bound on untrusted input was crossed
    ├── VerificationError       not-verified         a check failed; ``steps`` lists all up to and with the failed one
    │   └── SignatureError      bad-signature        no accepted key made this signature
    └── LogError                log                  the transparency log refuses or is not sound
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Step:
    """One numbered check: its name, whether it held, what was seen, what was wanted and, where it failed, what to change."""

    step: str
    ok: bool
    seen: str
    wanted: str
    fix: str = ""

    @property
    def detail(self) -> str:
        """Return the check in one line."""
        return self.seen if self.ok else f"seen {self.seen}; wanted {self.wanted}"


class AttestationError(Exception):
    """Base of the package's errors. ``code`` is stable; ``details`` holds JSON values."""

    code: ClassVar[str] = "attestation"

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, object] = details


class FormatError(AttestationError):
    """Bytes are not the document they should be."""

    code = "bad-format"


class LimitError(AttestationError):
    """A named bound on untrusted input was crossed."""

    code = "limit-exceeded"


class VerificationError(AttestationError):
    """A check failed. ``steps`` holds the checks made, the failed ones among them."""

    code = "not-verified"

    def __init__(self, message: str, *, steps: Sequence[Step] = (), **details: object) -> None:
        super().__init__(message, **details)
        self.steps = tuple(steps)


class SignatureError(VerificationError):
    """No accepted key made this signature over these bytes."""

    code = "bad-signature"


class LogError(AttestationError):
    """The transparency log refuses an operation or is not sound."""

    code = "log"
