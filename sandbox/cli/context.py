"""What many commands take: server, identity, trust file; each from its flag, else the settings, else one clear sentence."""

from __future__ import annotations

import getpass
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sandbox.cli.console import console
from sandbox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from attestation.trust import Trust
    from sandbox.customer.client import Client
    from sandbox.customer.state import State
    from sandbox.sealing.keys import Identity

MAX_PASSPHRASE_BYTES = 4096

ServerOption = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="The control plane's address. [SEALRIG_SERVER, config]", show_default=False)
]
KeyOption = Annotated[
    Path | None, typer.Option("--key", metavar="DIR", help="Your identity's folder. [SEALRIG_KEY, config]", show_default=False)
]
TrustOption = Annotated[
    Path | None, typer.Option("--trust", metavar="TRUST.yaml", help="Your trust file. [SEALRIG_TRUST, config]", show_default=False)
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="Read the identity's passphrase from a file ('-': stdin).", show_default=False),
]


@contextmanager
def client(server: str | None, *, needs_token: bool = True, patience: float | None = None) -> Iterator[Client]:
    """Open a client for ``--server`` or the settings, which tries ``patience`` seconds for an answer.

    Raises ``UsageError`` where there is no address or no token.
    """
    from sandbox.customer.client import Client

    address, token = server_and_token(server, needs_token=needs_token)
    with Client(address, token or None, patience=patience, waiting=console().say) as opened:
        yield opened


def server_and_token(server: str | None, *, needs_token: bool = True) -> tuple[str, str]:
    """Return the address of ``--server`` or the settings, and the token. Raises ``UsageError`` where one is missing or unsafe."""
    from sandbox.config import load_settings
    from sandbox.customer.http import check_server

    settings = load_settings()
    address = server or settings.server
    if not address:
        raise UsageError("no server is named", rule="server", seen="nothing", wanted="an address",
                         fix="use --server URL, set SEALRIG_SERVER, or run 'sealrig config login URL'")  # fmt: skip
    if needs_token and not settings.token:
        raise UsageError("there is no token", rule="token", seen="nothing", wanted="SEALRIG_TOKEN or a token in the config file",
                         fix=f"sealrig config login {address}")  # fmt: skip
    return check_server(address), settings.token or ""


def server_named(server: str | None) -> bool:
    """Say whether an address and a token are at hand, for commands that use a server only if there is one."""
    from sandbox.config import load_settings

    settings = load_settings()
    return bool((server or settings.server) and settings.token)


def identity(key: Path | None, passphrase_file: Path | None = None) -> Identity:
    """Load the identity of ``--key`` or the settings, asking for its passphrase if it has one. Raises ``KeyFileError``, ``UsageError``."""
    from sandbox.config import load_settings
    from sandbox.sealing.keys import Identity, is_protected

    folder = key or load_settings().key
    if folder is None:
        raise UsageError("no identity is named", rule="key", seen="nothing", wanted="an identity's folder",
                         fix="use --key DIR or set SEALRIG_KEY; make one with 'sealrig key new DIR'")  # fmt: skip
    if not is_protected(folder):
        return Identity.load(folder)
    return Identity.load(folder, passphrase(passphrase_file, prompt=f"Passphrase of {folder}: "))


def trust_file(path: Path | None) -> Trust:
    """Load the trust file of ``--trust`` or the settings. Raises ``UsageError``, ``InputError``."""
    from sandbox.customer.trustfile import load_trust

    return load_trust(trust_path(path))


def trust_path(path: Path | None) -> Path:
    """Return where the trust file of ``--trust`` or the settings is. Raises ``UsageError``."""
    from sandbox.config import load_settings

    found = path or load_settings().trust
    if found is None:
        raise UsageError("no trust file is named", rule="trust", seen="nothing", wanted="a trust file",
                         fix="use --trust TRUST.yaml or set SEALRIG_TRUST; make one with 'sealrig trust init'")  # fmt: skip
    return found


def state() -> State:
    """Open the state folder."""
    from sandbox.customer.state import State

    return State()


def passphrase(file: Path | None, *, prompt: str, twice: bool = False) -> str:
    """Read a passphrase from a file or stdin, else ask on the terminal (``twice`` to catch slips). Never from argv or environment."""
    if file is not None:
        return secret_line(file)
    if not console().interactive:
        raise UsageError("a passphrase is needed and there is no terminal to ask on", rule="passphrase", seen="no terminal",
                         wanted="a terminal or --passphrase-file", fix="use --passphrase-file FILE ('-' reads stdin)")  # fmt: skip
    first = getpass.getpass(prompt)
    if twice and getpass.getpass("Again: ") != first:
        raise UsageError(
            "the two passphrases differ", rule="passphrase", seen="two different ones", wanted="the same twice", fix="try again"
        )
    return first


def secret_line(file: Path) -> str:
    """Return the first line of a file, or of stdin for ``-``. Raises ``UsageError`` for none or one that is too long."""
    raw = sys.stdin.buffer.readline(MAX_PASSPHRASE_BYTES + 1) if str(file) == "-" else _first_line(file)
    text = raw.decode("utf-8", "surrogateescape").rstrip("\r\n")
    if not text or len(raw) > MAX_PASSPHRASE_BYTES:
        raise UsageError(
            "no secret was read",
            rule="secret",
            seen=f"{len(raw)} bytes",
            wanted=f"one line of at most {MAX_PASSPHRASE_BYTES} bytes",
            fix="check what is in the file or on stdin",
        )
    return text


def _first_line(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.readline(MAX_PASSPHRASE_BYTES + 1)
