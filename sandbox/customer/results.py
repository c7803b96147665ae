"""Results and live logs: fetched as ciphertext, checked against their digests, opened here and nowhere else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from blake3 import blake3

from attestation.errors import AttestationError
from attestation.evidence import Evidence
from attestation.signing import Envelope, VerifyKey, b64decode
from attestation.trust import Trust
from sandbox.customer.client import Client
from sandbox.customer.state import State
from sandbox.errors import BundleTamperedError, NotFoundError, ServerError, StateError
from sandbox.lifecycle import TERMINAL, LeaseState
from sandbox.sealing.bundle import OpenResult, open_bundle
from sandbox.sealing.hashing import digest_text
from sandbox.sealing.keys import Identity
from sandbox.sealing.logs import LogOpener
from sandbox.wire import MAX_WAIT_SECONDS

MAX_FAILURES = 6
"""How often in a row a download may break off without one more byte."""

Progress = Callable[[int, int], None]


def download(client: Client, digest: str, path: Path, progress: Progress | None = None) -> int:
    """Write a bundle to a new file and return its size. Resumes where the server breaks off; leaves nothing half under ``path``.

    Raises ``BundleTamperedError`` when the bytes have another digest.
    """
    total = client.bundle(digest).size
    part = path.with_name(f".{path.name}.part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            hasher = blake3()
            for piece in resumed(client, digest, total, progress):
                hasher.update(piece)
                file.write(piece)
            if digest_text(hasher) != digest:
                raise BundleTamperedError("the server sent another bundle", rule="bundle-digest", seen=digest_text(hasher), wanted=digest,
                                          fix="fetch it again; if it stays so, tell the operator")  # fmt: skip
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)
    return total


def resumed(client: Client, digest: str, total: int, progress: Progress | None) -> Iterator[bytes]:
    """Yield a bundle's ``total`` bytes, going on where the server breaks off. Raises ``ServerError`` when it gives nothing more."""
    done = failures = 0
    while done < total:
        before = done
        try:
            for piece in client.bundle_content(digest, done):
                done += len(piece)
                yield piece
                if progress is not None:
                    progress(min(done, total), total)
                if done >= total:
                    return
        except ServerError:
            failures = failures + 1 if done == before else 1
            if failures > MAX_FAILURES:
                raise
            client.sleep(min(2**failures / 10, 3.0))
        else:
            raise ServerError(
                "the server's bundle is cut short", rule="bundle-size", seen=f"{done} bytes", wanted=f"{total} bytes", fix="fetch it again"
            )


def open_results(
    client: Client,
    identity: Identity,
    state: State,
    lease: str,
    dest: Path,
    *,
    trust: Callable[[], Trust] | None = None,
    progress: Progress | None = None,
) -> tuple[str, OpenResult]:
    """Fetch and open a lease's results into ``dest``; return the bundle's digest and what was opened.

    The node must have sealed them: the one whose evidence this customer accepted, else one that the trust file lists (``trust`` reads
    it, and is called only then). Raises ``NotFoundError`` where there are none (yet).
    """
    info = client.lease(lease)
    if info.result is None:
        ended = info.state in TERMINAL
        raise NotFoundError(
            f"lease {lease} has no results{'' if ended else ' yet'}",
            rule="lease-results",
            seen=f"{info.state}, outcome {info.outcome or 'open'}",
            wanted="a lease whose job has ended",
            fix="see 'sealrig lease show'" if ended else "wait: 'sealrig lease watch'",
        )
    dest.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sealrig-", dir=dest.parent) as folder:
        path = Path(folder) / "result"
        download(client, info.result, path, progress)
        return info.result, open_bundle(path, dest, key=identity, signers=_signers(state, lease, trust))


def _signers(state: State, lease: str, trust: Callable[[], Trust] | None) -> tuple[VerifyKey, ...]:
    raw = state.document(lease, "evidence")
    if raw is not None:
        try:
            return (VerifyKey.from_text(Evidence.from_payload(Envelope.from_bytes(raw).payload).node_key),)
        except AttestationError as error:
            raise StateError(
                "the remembered evidence is damaged",
                rule="state-file",
                seen=error.message,
                wanted="evidence as it was accepted",
                fix=f"remove {state.lease_folder(lease) / 'evidence'} and name a trust file",
            ) from error
    if trust is not None:
        return trust().node_keys
    raise StateError(
        "it is not known which node ran this lease",
        rule="result-signer",
        seen="no evidence that was accepted here, no trust file",
        wanted="the node's key",
        fix="name a trust file with --trust",
    )


def read_logs(client: Client, identity: Identity, lease: str, *, follow: bool) -> Iterator[bytes]:
    """Yield a lease's output as it is there; with ``follow`` until its sealed end.

    Raises ``BundleTamperedError`` for a chunk that is missing, repeated, changed or cut off: an end without the seal of an end.
    """
    opener = LogOpener(lease, identity)
    after = 0
    while True:
        page = client.logs(lease, after=after, wait=MAX_WAIT_SECONDS if follow else 0)
        for chunk in page.chunks:
            text = opener.open(chunk.seq, b64decode(chunk.data))
            after = chunk.seq + 1
            if text:
                yield text
        if opener.finished or (not follow and not page.chunks):
            return
        if page.final:
            raise BundleTamperedError(
                "the log was cut off",
                rule="log-end",
                seen=f"an end after chunk {after - 1}",
                wanted="the sealed end",
                fix="ask the operator for the rest; the node may have died in mid-lease",
            )
        if follow and not page.chunks and client.lease(lease).state in _NEVER_RAN:
            return


_NEVER_RAN = frozenset({LeaseState.DENIED, LeaseState.CANCELLED, LeaseState.EXPIRED})
