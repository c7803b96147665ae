"""The ``sealrig`` command: a table of commands, each loaded when it is used.

Nothing of a command is imported to show ``sealrig --help`` or to complete a name, so start-up stays short, and a command whose
extra is not installed says so only when somebody runs it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from sandbox.cli.console import console, run

if TYPE_CHECKING:
    from collections.abc import Callable

# Section of the help, command, where it is ("module:attribute", several are merged into one group), what it does.
# An attribute is a typer.Typer (a group) or a function (one command).
_COMMANDS: tuple[tuple[str, str, str, str], ...] = (
    ("Customer", "key", "keys:app", "Make and show identities."),
    ("Customer", "seal", "bundles:seal", "Seal files and folders into one bundle."),
    ("Customer", "open", "bundles:open_", "Open a bundle back to files."),
    ("Customer", "inspect", "bundles:inspect", "Show what can be seen of a bundle without, or with, a key."),
    ("Customer", "mount", "mounts:mount", "Show a bundle as a read-only folder, decrypted on demand."),
    ("Customer", "cat", "bundles:cat", "Print one file from inside a bundle."),
    ("Customer", "push", "transfers:push", "Upload a bundle; a cut upload goes on where it stopped."),
    ("Customer", "bundle", "transfers:app", "List, show and delete uploaded bundles."),
    ("Customer", "job", "jobs:app", "Check and submit jobs."),
    ("Customer", "release", "release:release", "Verify a node's evidence, then release keys to it."),
    ("Customer", "lease", "leases:app", "Follow leases; fetch logs, results and receipts."),
    ("Customer", "wait", "waiting:wait", "Wait until a lease is over, or the server answers."),
    ("Customer", "trust", "trust:app enrolling:app runners:app", "Make, check and explain a trust file."),
    ("Customer", "demo", "demo:demo", "Run the main job on this machine."),
    ("Customer", "config", "settings:app", "Keep server address and token."),
    ("Operator", "serve", "serve:serve", "Run the control plane."),
    ("Operator", "token", "tokens:app", "Issue, list and revoke tokens."),
    ("Operator", "node", "node:app doctor:app attesting:app qualifying:app waiting:app", "Run and look after nodes."),
    ("Operator", "policy", "policy:app applied:app", "Check, test, explain and apply policies."),
    ("Auditor", "receipt", "receipts:app", "Verify a receipt, offline."),
    ("Auditor", "evidence", "evidence:app", "Verify one piece of evidence, offline."),
    ("Auditor", "audit", "auditor:app", "Read, verify, export and witness the audit log."),
)


class _Lazy(TyperGroup):
    """A command known by name and short help; the real one is loaded when it is parsed."""

    def __init__(self, name: str, places: str, summary: str, section: str) -> None:
        super().__init__(name=name, help=summary, rich_markup_mode=None)
        self.section = section
        self._places = places

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:  # noqa: ANN401  (typer's own types are private)
        return self.load().make_context(info_name, args, parent, **extra)

    def load(self) -> TyperCommand | TyperGroup:
        """Import the real command and give it the flags that all commands have."""
        return _load(str(self.name), str(self.help), self._places)


class _Root(TyperGroup):
    """The top: commands listed by who uses them."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401  (typer's own types are private)
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if isinstance(command, _Lazy):
                sections.setdefault(command.section, []).append((name, command.help or ""))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


@cache  # making a group out of its functions takes longer than most commands; a process that runs several makes each once
def _load(name: str, summary: str, places: str) -> TyperCommand | TyperGroup:
    command = _merge(name, summary, [_resolve(place) for place in places.split() if _exists(place)])
    _share_flags(command)
    return command


def _exists(place: str) -> bool:
    return find_spec(f"sandbox.cli.{place.partition(':')[0]}") is not None


def _resolve(place: str) -> typer.Typer | Callable[..., object]:
    module, _, name = place.partition(":")
    found: typer.Typer | Callable[..., object] = getattr(import_module(f"sandbox.cli.{module}"), name)
    return found


def _merge(name: str, summary: str, found: list[typer.Typer | Callable[..., object]]) -> TyperCommand | TyperGroup:
    """Return one command for a function, or one group with the commands of every Typer application found."""
    group: TyperGroup | None = None
    for item in found:
        if not isinstance(item, typer.Typer):
            single = typer.Typer(add_completion=False, rich_markup_mode=None)
            single.command(name)(item)
            command = typer.main.get_command(single)
            if not isinstance(command, TyperCommand):
                raise TypeError(f"{name} is not one command")
            return command
        part = typer.main.get_group(item)
        if group is None:
            group = part
        else:
            group.commands.update(part.commands)
    if group is None:
        raise ModuleNotFoundError(f"the command {name} is not part of this installation")
    group.name, group.help, group.no_args_is_help = name, group.help or summary, group.no_args_is_help or not group.invoke_without_command
    return group


def _flags(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback where something goes wrong.")] = False,
) -> None:
    """Hold the flags that every command has; ``console.run`` reads them."""


def _share_flags(command: Any) -> None:  # noqa: ANN401  (typer's own types are private)
    """Add ``--json`` and ``--debug`` to every command below, and plain help, which needs no Rich."""
    command.rich_markup_mode = None
    # A group that does something of its own without a subcommand takes the flags too.
    if not isinstance(command, TyperGroup) or command.invoke_without_command:
        command.params.extend(_shared_flags())
    if isinstance(command, TyperGroup):
        for child in command.commands.values():
            _share_flags(child)


@cache
def _shared_flags() -> tuple[Any, ...]:
    template = typer.Typer(add_completion=False)
    template.command()(_flags)
    flags = tuple(typer.main.get_command(template).params)
    for flag in flags:
        flag.expose_value = False
    return flags


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        console().print(f"sealrig {version('sealrig')}")
        raise typer.Exit


def _top(
    _version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Rent GPUs from operators you have no reason to trust.

    Bundles are sealed on your machine; a node proves what it is before it gets a key; what it held is wiped, and the wipe is signed
    and logged. Settings come from flags, SEALRIG_SERVER and SEALRIG_TOKEN, or ~/.config/sealrig/config.yaml.
    """


def root() -> TyperGroup:
    """Return the whole command tree, with nothing of it loaded yet."""
    app = typer.Typer(
        name="sealrig", cls=_Root, rich_markup_mode=None, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]}
    )
    app.callback()(_top)
    tree = typer.main.get_command(app)
    if not isinstance(tree, TyperGroup):
        raise TypeError("the command tree is no group")
    for section, name, places, summary in _COMMANDS:
        if any(_exists(place) for place in places.split()):
            tree.add_command(_Lazy(name, places, summary, section), name)
    return tree


def main(args: Sequence[str] | None = None) -> int:
    """Run ``sealrig`` with ``args`` (the process's own by default) and return the exit code."""
    return run(
        lambda words: root().main(args=list(words), prog_name="sealrig", standalone_mode=False), sys.argv[1:] if args is None else args
    )
