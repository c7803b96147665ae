"""Signed releases of the program, put into a trust file: verified first, written beside what stands there, comments kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from attestation.canonical import canonical_json
from attestation.errors import AttestationError
from attestation.runners import verify_release
from attestation.signing import VerifyKey
from attestation.trust import AcceptedRelease, Trust
from policies.strictyaml import load_yaml
from sandbox.customer.trustfile import TRUST_MAX_BYTES, load_trust
from sandbox.errors import InputError


@dataclass(frozen=True)
class Added:
    """What ``add_release`` did: the release, and whether it is new in the file and older than one that was there."""

    release: AcceptedRelease
    new: bool
    older: bool


def add_release(path: Path, raw: bytes, *, older: bool) -> Added:
    """Verify a signed release under the keys of the trust file at ``path`` and write its runners there. Adding it again changes nothing.

    A release older than the newest accepted one is refused unless ``older``: whoever hands out old releases may be counting on their
    known faults. Raises ``AttestationError``, ``InputError``.
    """
    trust = load_trust(path)
    section = trust.spec.releases
    if section is None:
        raise InputError(
            f"{path} lists no release key",
            rule="release-key",
            seen="no 'releases'",
            wanted="spec.releases.keys",
            fix='obtain the publisher\'s key by a way that you trust and write  releases: {keys: ["ed25519:…"]}  below spec',
        )
    release = verify_release(raw, [VerifyKey.from_text(text) for text in section.keys])
    newest = max(section.accepted, key=lambda known: known.released_at, default=None)
    back = newest is not None and release.released_at < newest.released_at
    if release in section.accepted:
        return Added(release, new=False, older=back)
    if newest is not None and back and not older:
        raise InputError(
            "the release is older than one that the trust file accepts",
            rule="release-older",
            seen=_named(release),
            wanted=f"none before {_named(newest)}",
            fix="add it with --older, if nodes that you trust still run it",
        )
    _write(path, trust, release)
    return Added(release, new=True, older=back)


def explain_releases(trust: Trust) -> Iterator[tuple[str, str]]:
    """Yield (release, in words) for each release key and each runner that a signed release brought into the trust file."""
    section = trust.spec.releases
    if section is None:
        return
    yield "release keys", ", ".join(f"{key} ({VerifyKey.from_text(key).key_id})" for key in section.keys)
    for release in section.accepted:
        for kind, digest in release.runners.items():
            told = f"{digest}, lock file {release.lock}, signed by {VerifyKey.from_text(release.key).key_id}"
            yield f"release {_named(release)} on {kind}", told


def _named(release: AcceptedRelease) -> str:
    return f"{release.version} of {release.released_at:%Y-%m-%d %H:%M:%S} UTC"


def _write(path: Path, trust: Trust, release: AcceptedRelease) -> None:
    """Write the entry before the first one of its list; the file must then read back as what it was and this entry."""
    target = path.resolve()
    entry = canonical_json(release.model_dump(mode="json", by_alias=True)).decode()
    text = target.read_bytes().decode()
    changed = _insert(text, entry).encode()
    section = trust.spec.releases
    accepted = (release, *(section.accepted if section is not None else ()))
    try:
        found = Trust.from_tree(load_yaml(changed, max_bytes=TRUST_MAX_BYTES))
    except AttestationError as error:
        raise _unwritable(path, entry) from error
    if section is None or found.spec != trust.spec.model_copy(update={"releases": section.model_copy(update={"accepted": accepted})}):
        raise _unwritable(path, entry)
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(changed)
            os.fchmod(stream.fileno(), target.stat().st_mode & 0o7777)
            os.fsync(stream.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _insert(text: str, entry: str) -> str:
    """Return the YAML text with ``entry`` (a flow mapping) first in ``spec.releases.accepted``, whichever way that is written."""
    releases = _child(_child(yaml.compose(text, Loader=yaml.SafeLoader), "spec"), "releases")
    accepted = _child(releases, "accepted")
    node = accepted or releases
    if node is None:
        return text
    at, indent = node.start_mark.index, " " * node.start_mark.column
    if isinstance(node, yaml.CollectionNode) and node.flow_style:
        more = ", " if node.value else ""
        return text[: at + 1] + (f"{entry}{more}" if accepted else f"accepted: [{entry}]{more}") + text[at + 1 :]
    if accepted:
        return f"{text[:at]}- {entry}\n{indent}{text[at:]}"
    return f"{text[:at]}accepted:\n{indent}  - {entry}\n{indent}{text[at:]}"


def _child(node: yaml.Node | None, name: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for key, value in node.value if key.value == name), None)


def _unwritable(path: Path, entry: str) -> InputError:
    return InputError(f"the release cannot be written into {path}", rule="trust-write", seen="a spelling that does not take another entry",
                      wanted="spec.releases.accepted as a list", fix=f"write this entry there by hand: {entry}")  # fmt: skip
