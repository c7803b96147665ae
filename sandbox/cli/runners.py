"""``sealrig trust runners``: signed releases of the program, from whoever publishes them to the customer's trust file. Works offline."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sandbox.cli.console import console
from sandbox.cli.context import KeyOption, PassphraseOption, TrustOption, identity, trust_path
from sandbox.cli.files import new_file, small_file
from sandbox.errors import UsageError

app = typer.Typer()
runners_app = typer.Typer(help="Accept signed releases of the program, by the runners that they name; sign one.")
app.add_typer(runners_app, name="runners")
MAX_LOCK_BYTES = 16 * 1024 * 1024
_FILE: Any = {"exists": True, "dir_okay": False}


@runners_app.command("show")
def show() -> None:
    """Show the runner that is installed here: version, digest, and the kind of machine that the digest belongs to."""
    from attestation.collect.runner import machine_kind, runner_digest

    digest, version = runner_digest()
    document = {"version": version, "kind": machine_kind(), "runner": digest}
    console().emit(document, lambda: console().fields(document))


@runners_app.command("sign")
def sign(
    lock: Annotated[Path, typer.Option("--lock", metavar="FILE", help="The lock file that the release is installed from.", **_FILE)],
    out_file: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Where to write the signed release.")],
    runner: Annotated[
        list[str] | None,
        typer.Option("--runner", metavar="KIND=sha256:…", help="What 'show' printed on another machine; the one here if none is named."),
    ] = None,
    key: KeyOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Sign a release of the version that is installed here, with the publisher's identity; customers list the key that it prints."""
    from attestation.canonical import sha256_digest
    from attestation.collect.runner import machine_kind, runner_digest
    from attestation.runners import RELEASE_PAYLOAD_TYPE, build_release, verify_release
    from attestation.signing import sign_envelope

    digest, version = runner_digest()
    runners = _runners(runner) if runner else {machine_kind(): digest}
    signer = identity(key, passphrase_file).signing_key
    locked = sha256_digest(small_file(lock, MAX_LOCK_BYTES))
    made = sign_envelope(build_release(version, locked, runners, datetime.now(UTC)), RELEASE_PAYLOAD_TYPE, signer).to_bytes()
    document = {"release": str(out_file), **verify_release(made, [signer.public]).model_dump(mode="json")}
    new_file(out_file, made)
    console().emit(document, lambda: console().fields({name: document[name] for name in ("release", "version", "lock", "key")}))


@runners_app.command("add")
def add(
    file: Annotated[Path, typer.Argument(metavar="RELEASE", help="A signed release.", **_FILE)],
    trust: TrustOption = None,
    older: Annotated[bool, typer.Option("--older", help="Accept it although the trust file has a newer one.")] = False,
) -> None:
    """Verify a signed release under the trust file's release keys, and accept its runners from then on."""
    from sandbox.customer.releases import add_release

    path = trust_path(trust)
    added = add_release(path, small_file(file), older=older)
    document = {"trust": str(path), "added": added.new, "older": added.older, **added.release.model_dump(mode="json")}
    said = "accepted" if added.new else "accepted already"
    lines = [f"{added.release.version} of {document['released_at']}: {said}", *(f"  {k}  {v}" for k, v in added.release.runners.items())]
    console().emit(document, "\n".join(lines))
    if added.older:
        console().warn("the trust file accepts a newer release too: remove what no node that you trust runs any more")


def _runners(given: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in given:
        kind, _, digest = text.partition("=")
        if not kind or kind in found or not _is_digest(digest):
            raise UsageError("not a runner", rule="runner", seen=text[:200], wanted="KIND=sha256:64 hex digits, each kind once",
                             fix="take both from 'sealrig trust runners show' on that machine")  # fmt: skip
        found[kind] = digest
    return found


def _is_digest(text: str) -> bool:
    kind, _, digits = text.partition(":")
    return kind == "sha256" and len(digits) == 64 and set(digits) <= set("0123456789abcdef")
