"""The digest of the program that runs: every installed file of its packages, the interpreter, and its dependencies' versions.

Two machines that installed the same release with the same extras from the same lock file get the same digest.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import platform
import re
from importlib import metadata
from pathlib import Path

from attestation.canonical import bind
from attestation.errors import AttestationError

DISTRIBUTION = "sealrig"
PACKAGES = ("attestation", "policies", "sandbox")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@functools.cache
def runner_digest() -> tuple[str, str]:
    """Return (``sha256:…``, version) of the installed program. Read once a process: what runs is what was loaded then."""
    fields = [platform.python_implementation().encode(), platform.python_version().encode()]
    for package in PACKAGES:
        fields += [package.encode(), tree_digest(package_root(package))]
    fields += [f"{name}=={version}".encode() for name, version in sorted(_versions().items())]
    return f"sha256:{bind('sealrig/runner/v1', *fields).hex()}", _versions().get(DISTRIBUTION, "unversioned")


def package_root(package: str) -> Path:
    """Return the folder that a package is imported from. Raises ``AttestationError`` if it is not installed as a folder."""
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if len(places) != 1:
        raise AttestationError(
            f"the package {package} is not installed as one folder",
            rule="runner",
            seen=str(places),
            wanted="one folder",
            fix="install sealrig again",
        )
    return Path(places[0])


def tree_digest(root: Path) -> bytes:
    """Return 32 bytes over the relative names and bytes of all files below ``root``, compiled caches apart."""
    fields: list[bytes] = []
    for path in sorted(root.rglob("*"), key=lambda item: item.relative_to(root).as_posix()):
        if path.is_file() and "__pycache__" not in path.parts:
            with path.open("rb") as file:
                fields += [path.relative_to(root).as_posix().encode(), hashlib.file_digest(file, "sha256").digest()]
    return bind("sealrig/tree/v1", *fields)


@functools.cache
def _versions() -> dict[str, str]:
    """Return the versions of the distribution and of all that it needs, as far as installed."""
    found: dict[str, str] = {}
    wanted = [DISTRIBUTION]
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        wanted += [match[0] for line in distribution.requires or () if (match := _NAME.match(line))]
    return found
