"""What a person, and a script, is told when a command ends badly: one shape for every error of every package."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import typer

from sandbox.cli.plain import plain

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_TIMED_OUT = 124
"""As ``timeout`` of GNU coreutils ends."""
EXIT_INTERRUPTED = 130
_EXIT_CODES = {"usage": EXIT_USAGE, "timed-out": EXIT_TIMED_OUT}

# The module that a missing extra leaves out, and the extra that brings it.
_EXTRAS = {
    "docker": "node", "pynvml": "node", "fastapi": "server", "starlette": "server", "uvicorn": "server", "sqlalchemy": "server",
    "alembic": "server", "obstore": "server", "prometheus_client": "server", "cuda": "nvidia", "numpy": "nvidia", "pyopencl": "opencl",
    "mfusepy": "mount",
}  # fmt: skip
_ORDER = ("rule", "seen", "wanted", "fix")


@dataclass(frozen=True)
class Problem:
    """An error as it is told: stable code, message, JSON details, exit code."""

    code: str
    message: str
    details: dict[str, object] = field(default_factory=dict)
    exit_code: int = EXIT_REFUSED

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield the lines for stderr, each with its style: message, checks or reasons, then rule, seen, wanted, fix."""
        if isinstance(self.details.get("help"), str):
            yield str(self.details["help"]), ""
            return
        yield f"error: {self.message} [{self.code}]", "bold red"
        for number, step in enumerate(_records(self.details.get("steps")), 1):
            yield step_line(number, step), "" if step.get("ok") is True else "red"
        for reason in _records(self.details.get("reasons")):
            yield f"  - {reason.get('rule')}: seen {reason.get('seen')}; wanted {reason.get('wanted')}", ""
            if reason.get("fix"):
                yield f"    fix: {reason['fix']}", "green"
        for name in _ORDER:
            if self.details.get(name):
                yield f"  {name:<6}  {self.details[name]}", "green" if name == "fix" else ""


def step_line(number: int, step: Mapping[str, object]) -> str:
    """Return one step of a verification as it is told: its number, whether it held, what was seen and what was wanted.

    A server tells of its own steps in one ``detail``.
    """
    detail = f"seen {step['seen']}; wanted {step['wanted']}" if "seen" in step and "wanted" in step else step.get("detail")
    return f"{number:>3} {'ok    ' if step.get('ok') is True else 'FAILED'} {step.get('step')}: {detail}"


def problem_of(error: BaseException) -> Problem:
    """Return how an error is told. Unknown ones are ``internal`` and name ``--debug``."""
    if isinstance(error, typer.Abort):
        return Problem("interrupted", "nothing was done", exit_code=EXIT_INTERRUPTED)
    if isinstance(error, typer.TyperException):
        return _usage(error)
    code = getattr(error, "code", None)
    if isinstance(code, str) and hasattr(error, "details"):
        details = _details(error)
        return Problem(code, str(error), details, _EXIT_CODES.get(code, EXIT_REFUSED))
    if isinstance(error, ModuleNotFoundError) and error.name and (extra := _EXTRAS.get(error.name.partition(".")[0])):
        return Problem(
            "missing-extra",
            f"this command needs the '{extra}' extra; install it with: pip install 'sealrig[{extra}]'",
            {
                "rule": "missing-extra",
                "seen": f"no module {error.name}",
                "wanted": f"sealrig[{extra}]",
                "fix": f"pip install 'sealrig[{extra}]'",
            },
        )
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return Problem("io", f"{place}{error.strerror or error}", {"errno": error.errno} if error.errno else {})
    return Problem("internal", f"{type(error).__name__}: {error}"[:500], {"fix": "run it again with --debug and report what it prints"})


def _usage(error: typer.TyperException) -> Problem:
    context = getattr(error, "ctx", None)
    message = error.format_message()
    if context is None:
        return Problem("usage", message, exit_code=EXIT_USAGE)
    if message.startswith("Usage:"):
        return Problem("usage", "a command is wanted", {"help": message}, EXIT_USAGE)
    return Problem("usage", message, {"fix": f"see '{context.command_path} --help'"}, EXIT_USAGE)


def _details(error: BaseException) -> dict[str, object]:
    found = getattr(error, "details", {})
    details = {str(key): plain(value) for key, value in found.items()} if isinstance(found, Mapping) else {}
    steps = getattr(error, "steps", ())
    if steps and "steps" not in details:
        details["steps"] = [dataclasses.asdict(step) for step in steps]
    return details


def _records(value: object) -> Iterator[Mapping[str, object]]:
    if isinstance(value, (list, tuple)):
        yield from (item for item in value if isinstance(item, Mapping))
