"""``sealrig mount``: a bundle, here or on the server, as a read-only folder."""

from __future__ import annotations

import signal
import threading
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from sandbox.cli.console import console, counted
from sandbox.cli.context import KeyOption, PassphraseOption, ServerOption, identity
from sandbox.cli.stored import Stored, StoredArgument, find, mountable, opened
from sandbox.cli.unwinding import handling
from sandbox.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandbox.sealing.mount import Mount, Problem, Remote

LOOK_SECONDS = 0.2


def mount(
    bundle: StoredArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An empty folder.", exists=True, file_okay=False)],
    key: KeyOption = None,
    passphrase_file: PassphraseOption = None,
    server: ServerOption = None,
) -> None:
    """Show a bundle's files in DIR, decrypted as they are read, until Ctrl-C. A part that does not verify reads as an error."""
    from sandbox.sealing.bundle import BundleReader, data_key
    from sandbox.sealing.mount import Mount, Spare

    if find_spec("mfusepy") is None:
        raise ModuleNotFoundError("No module named 'mfusepy'", name="mfusepy")
    if any(folder.iterdir()):
        raise InputError(
            f"{folder} is not empty",
            rule="mount-folder",
            seen="a folder with something in it",
            wanted="an empty folder",
            fix="name another",
        )
    place = find(bundle, server)
    spare = Spare()
    spare.prepare()  # it starts while this process reads the identity and the index
    try:
        me = identity(key, passphrase_file)
        insists = place.insists(me) if isinstance(place, Stored) else {}
        with opened(place) as source:
            reader = BundleReader(source, me, **insists)
            files, secret = len(reader.entries()), data_key(reader.header, me)
        _show(place, folder, partial(Mount.start, key=secret, spare=spare, **insists), files)
    finally:
        spare.close()


def _show(place: Path | Stored, folder: Path, start: Callable[[Path | Remote, Path], Mount], files: int) -> None:
    out = console()
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    told = 0

    def tell(problems: Sequence[Problem]) -> None:
        nonlocal told
        for problem in problems[told:]:
            out.warn(f"{problem.get('path', place)}: {problem.get('message', 'a read failed')}")
            told += 1

    with (
        handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), end),
        mountable(place) as bundle,
        start(bundle, folder) as mounted,
    ):
        out.emit(
            {"bundle": str(place), "path": str(folder), "entries": files}, f"{folder}  {counted(files, 'entry', 'entries')}, read-only"
        )
        out.say("Ctrl-C unmounts it")
        while not ended.wait(LOOK_SECONDS) and mounted.process.poll() is None:
            tell(mounted.problems)
        if not ended.is_set() and (how := mounted.crash()):
            raise InputError(f"{folder} is no view any more: {how}", rule="mount", seen=how, wanted="a view until it is unmounted",
                             fix="mount it again; if it ends again, open the bundle instead")  # fmt: skip
    tell(mounted.problems)  # all of them are there once it has stopped
    out.say(f"unmounted {folder}")
