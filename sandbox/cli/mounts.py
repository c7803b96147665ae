"""``sealrig mount``: a bundle as a read-only folder."""

from __future__ import annotations

import signal
import threading
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from sandbox.cli.bundles import BundleArgument
from sandbox.cli.console import console
from sandbox.cli.context import KeyOption, PassphraseOption, identity

LOOK_SECONDS = 0.2


def mount(
    file: BundleArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An empty folder.", exists=True, file_okay=False)],
    key: KeyOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Show a bundle's files in DIR, decrypted as they are read, until Ctrl-C. A part that does not verify reads as an error."""
    from sandbox.errors import InputError
    from sandbox.sealing.bundle import BundleReader, FileSource, data_key
    from sandbox.sealing.mount import Mount

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
    out = console()
    me = identity(key, passphrase_file)
    with FileSource(file) as source:
        reader = BundleReader(source, me)
        files, secret = len(reader.entries()), data_key(reader.header, me)
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    with Mount.start(file, folder, secret) as mounted:
        out.emit({"bundle": str(file), "path": str(folder), "entries": files}, f"{folder}  {files} entries, read-only")
        out.say("Ctrl-C unmounts it")
        told = 0
        while not ended.wait(LOOK_SECONDS) and mounted.process.poll() is None:
            for problem in mounted.problems[told:]:
                out.warn(f"{problem.get('path', file)}: {problem.get('message', 'a read failed')}")
            told = len(mounted.problems)
    out.say(f"unmounted {folder}")
