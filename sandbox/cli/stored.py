"""A bundle that a command reads in place: a file on this machine, or a digest on the server, of which only what is needed is fetched."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandbox.cli.console import console
from sandbox.cli.context import server_and_token, state
from sandbox.cli.transfers import checked
from sandbox.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbox.sealing.bundle import Source
    from sandbox.sealing.keys import Identity
    from sandbox.sealing.mount import Remote

PATIENCE_SECONDS = 15.0
CACHE_BYTES = 8 * 2**30
"""What a mounted bundle of a server keeps on disk, at most; and half of what is free."""

StoredArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="A bundle's file, or blake3:… of one on the server.")]


@dataclass(frozen=True)
class Stored:
    """A bundle on the server. ``header`` is the digest of its header, where this machine has seen the whole bundle."""

    server: str
    token: str
    digest: str
    header: str | None

    def __str__(self) -> str:
        return self.digest

    def insists(self, me: Identity) -> dict[str, Any]:
        """Return what a reader must insist on, because nobody takes the whole digest of what is read in parts.

        The header that was remembered when the bundle was sealed or pushed here; else at least that it is one of our own.
        """
        if self.header is not None:
            return {"header": self.header}
        console().warn("this machine has not seen this bundle whole: which of your own bundles it is, is the server's word")
        return {"signers": [me.signing_key.public]}


def find(bundle: str, server: str | None) -> Path | Stored:
    """Return the file or the bundle on the server that ``bundle`` names. Raises ``UsageError``."""
    path = Path(bundle)
    if not bundle.startswith("blake3:") or path.exists():
        if not path.is_file():
            raise UsageError("there is no such bundle", rule="bundle", seen=bundle[:200], wanted="a file, or blake3:… on the server",
                             fix="see 'sealrig bundle list' for what the server has")  # fmt: skip
        return path
    from sandbox.sealing.format import read_header

    address, token = server_and_token(server)
    first = state().header(checked(bundle))
    return Stored(address, token, bundle, None if first is None else read_header(first).digest)


@contextmanager
def opened(place: Path | Stored) -> Iterator[Source]:
    """Open a bundle for reading in place. Raises ``NotFoundError``, ``AccessError`` or ``ServerError`` for one on the server."""
    from sandbox.sealing.bundle import FileSource

    if isinstance(place, Path):
        with FileSource(place) as source:
            yield source
        return
    from sandbox.sealing.remote import HttpSource, content_url

    remote = HttpSource(content_url(place.server, place.digest), place.token, place.digest, patience=PATIENCE_SECONDS)
    try:
        yield remote
    finally:
        remote.close()


@contextmanager
def mountable(place: Path | Stored) -> Iterator[Path | Remote]:
    """Return what ``Mount.start`` takes; what is fetched of a bundle on the server is kept, as ciphertext, while the block runs."""
    if isinstance(place, Path):
        yield place
        return
    from sandbox.sealing.mount import Remote

    with tempfile.TemporaryDirectory(prefix="sealrig-view-") as folder:
        limit = min(CACHE_BYTES, shutil.disk_usage(folder).free // 2)
        yield Remote(place.server, place.token, place.digest, Path(folder) / "fetched", limit, patience=PATIENCE_SECONDS)
