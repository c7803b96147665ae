"""The digest of the program that runs: every installed file of its packages and of all dependencies, lock file, interpreter's version.

Two machines of one kind that installed the same release with the same extras from the same lock file get the same digest. What installers
write about themselves, and compiled caches, are left out. The lock file counts where one lies beside the packages (a checkout); a wheel
has none, and there the signed release names the lock file (``attestation/runners.py``).
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
EXTRAS = frozenset({"node", "nvidia", "opencl", "mount"})
"""What a node may have installed beside the base; the server's and the tests' things are not the runner's."""
LOCK_FILE = "uv.lock"
_EXTRA = re.compile(r"""\bextra\s*==\s*['"]([\w-]+)['"]""")
_READ_AT_RUN_TIME = frozenset({"METADATA", "entry_points.txt"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@functools.cache
def runner_digest() -> tuple[str, str]:
    """Return (``sha256:…``, version) of the installed program. Read once a process: what runs is what was loaded then."""
    fields = [platform.python_implementation().encode(), platform.python_version().encode()]
    fields.append(lock_digest(package_root(PACKAGES[0]).parent))
    for package in PACKAGES:
        fields += [package.encode(), tree_digest(package_root(package))]
    installed = _distributions()
    for name, distribution in sorted(installed.items()):
        fields += [f"{name}=={distribution.version}".encode(), b"" if name == DISTRIBUTION else distribution_digest(distribution)]
    own = installed.get(DISTRIBUTION)
    return f"sha256:{bind('sealrig/runner/v3', *fields).hex()}", "unversioned" if own is None else own.version


def machine_kind() -> str:
    """Return what a runner digest depends on beside the release, for example ``cpython-3.11.7-linux-x86_64``."""
    parts = (platform.python_implementation(), platform.python_version(), platform.system(), platform.machine())
    return "-".join(parts).lower()


def lock_digest(folder: Path) -> bytes:
    """Return the SHA-256 (32 bytes) of the lock file in the folder that holds the packages; empty where there is none."""
    try:
        with (folder / LOCK_FILE).open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except FileNotFoundError:
        return b""


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


def distribution_digest(distribution: metadata.Distribution) -> bytes:
    """Return 32 bytes over the names and bytes of a dependency's installed files; empty where nothing says which those are.

    Raises ``AttestationError`` where one of them cannot be read.
    """
    if distribution.files is None:
        return b""
    fields: list[bytes] = []
    for path in sorted(distribution.files, key=str):
        # Scripts hold the folder they were installed into; of what describes the package only what the program reads counts.
        described = path.parts[0].endswith(".dist-info") and path.name not in _READ_AT_RUN_TIME
        if ".." in path.parts or "__pycache__" in path.parts or described:
            continue
        try:
            with open(path.locate(), "rb") as file:  # noqa: PTH123  (SimplePath has no open)
                fields += [str(path).encode(), hashlib.file_digest(file, "sha256").digest()]
        except OSError as error:
            raise AttestationError(
                f"a file of {distribution.metadata['Name']} cannot be read",
                rule="runner",
                seen=f"{path}: {error.strerror}",
                wanted="every installed file",
                fix="install sealrig again",
            ) from error
    return bind("sealrig/distribution/v1", *fields)


@functools.cache
def _distributions() -> dict[str, metadata.Distribution]:
    """Return the distribution and all that it needs on a node, as far as installed, by name."""
    found: dict[str, metadata.Distribution] = {}
    wanted = [DISTRIBUTION]
    while wanted:
        name = re.sub(r"[-_.]+", "-", wanted.pop()).lower()
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution
        extras = EXTRAS if name == DISTRIBUTION else frozenset()
        for line in distribution.requires or ():
            extra = _EXTRA.search(line)
            if (extra is None or extra[1] in extras) and (match := _NAME.match(line)):
                wanted.append(match[0])
    return found
