"""The data keys of bundles on a server, by digest.

A bundle's wrapped data key stands in its first bytes, but its digest covers the whole. A server that showed the first bytes of
another bundle would make the agent release the wrong key; so first bytes count only if they come from a file whose whole digest was
checked: when it was pushed from here, or else by reading the bundle once.
"""

from __future__ import annotations

from collections.abc import Callable

from blake3 import blake3

from sandbox.customer.client import Client
from sandbox.customer.results import resumed
from sandbox.customer.state import State
from sandbox.errors import BundleTamperedError
from sandbox.sealing.bundle import data_key
from sandbox.sealing.format import MAX_HEADER_BYTES, read_header
from sandbox.sealing.hashing import digest_text
from sandbox.sealing.keys import DataKey, Identity

Progress = Callable[[int, int], None]


def bundle_key(client: Client, state: State, identity: Identity, digest: str, progress: Progress | None = None) -> tuple[DataKey, str]:
    """Return the data key of the bundle ``digest``, and the digest of its header.

    Raises ``WrongKeyError`` when it is not sealed to ``identity``, ``BundleTamperedError`` when the server's bytes have another digest.
    """
    first = state.header(digest)
    if first is None:
        first = _checked_first_bytes(client, digest, progress)
        state.remember_header(digest, first)
    header = read_header(first)
    return data_key(header, identity), header.digest


def _checked_first_bytes(client: Client, digest: str, progress: Progress | None) -> bytes:
    """Read the whole bundle once and return its first bytes, if the whole has ``digest``. Resumes where the server breaks off."""
    hasher = blake3()
    first = bytearray()
    for piece in resumed(client, digest, client.bundle(digest).size, progress):
        first += piece[: MAX_HEADER_BYTES - len(first)]
        hasher.update(piece)
    seen = digest_text(hasher)
    if seen != digest:
        raise BundleTamperedError("the server's bundle is not the one that the job names", rule="bundle-digest", seen=seen, wanted=digest,
                                  fix="push the bundle again, from the file that you sealed")  # fmt: skip
    return bytes(first)
