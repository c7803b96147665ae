"""How verifiers record what they checked: every step in order, with what was seen and what was wanted; a failure is raised."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

from attestation.errors import AttestationError, Step, VerificationError

_UNALTERED = "have this piece made anew and sent as it was made"
"""The way out where an error names none: such an error tells of bytes that nobody who made them would have written."""


class Steps:
    """The steps of one verification. ``check`` records and goes on; ``need`` ends it at once, as later steps would have no basis."""

    def __init__(self, subject: str) -> None:
        """``subject`` names in errors what is verified, for example ``the evidence``."""
        self._subject = subject
        self._steps: list[Step] = []

    @property
    def all(self) -> tuple[Step, ...]:
        """The steps so far."""
        return tuple(self._steps)

    def check(self, step: str, *, ok: bool, seen: object, wanted: object, fix: str = "") -> bool:
        """Record one step and return whether it held."""
        self._steps.append(Step(step, ok, str(seen), str(wanted), "" if ok else fix))
        return ok

    def need(self, step: str, *, ok: bool, seen: object, wanted: object, fix: str = "") -> None:
        """Record one step; raise ``VerificationError`` with all steps so far unless it held."""
        if not self.check(step, ok=ok, seen=seen, wanted=wanted, fix=fix):
            raise self._error()

    def fail(self, step: str, error: AttestationError) -> NoReturn:
        """Record a step that an error ended, and raise."""
        self.note(step, error)
        raise self._error() from error

    def note(self, step: str, error: AttestationError) -> None:
        """Record a step that an error ended, and go on."""
        seen = f"{error.message}: {error.details['seen']}" if "seen" in error.details else error.message
        wanted = error.details.get("wanted", "a step without an error")
        self.check(step, ok=False, seen=seen, wanted=wanted, fix=str(error.details.get("fix") or _UNALTERED))

    def absorb(self, steps: tuple[Step, ...], prefix: str = "") -> None:
        """Take over the steps of a verification that was part of this one."""
        self._steps += [replace(step, step=f"{prefix}{step.step}") for step in steps]

    def finish(self) -> None:
        """Raise ``VerificationError`` unless there are steps and all of them held; the error names the first that failed."""
        if not self._steps or not all(step.ok for step in self._steps):
            raise self._error()

    def _error(self) -> VerificationError:
        failed = [step for step in self._steps if not step.ok]
        first = failed[0] if failed else Step("none", ok=False, seen="no step was made", wanted="at least one step")
        return VerificationError(
            f"{self._subject} does not verify at step {first.step}: seen {first.seen}; wanted {first.wanted}",
            steps=self.all,
            rule=first.step,
            seen=first.seen,
            wanted=first.wanted,
            fix=first.fix or (f"see what is wanted at {', '.join(step.step for step in failed) or 'each step'}"),
        )
