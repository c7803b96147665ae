"""Each extra declares what the code it is for imports: an install with it starts, whatever else happens to be there."""

from __future__ import annotations

import ast
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("policies", "attestation", "sandbox")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BASE = frozenset[str]()
SERVER, NODE = frozenset({"server"}), frozenset({"node"})
NVIDIA, OPENCL = NODE | {"nvidia"}, NODE | {"opencl"}
# The installs in which a file or folder has to work; the longest place that fits counts, and all else has to work in the base install.
INSTALLS = {
    "attestation/collect": [NODE],
    "attestation/log/bucket.py": [SERVER],
    "attestation/log/postgres.py": [SERVER | {"postgres"}],
    "sandbox/control": [SERVER],
    "sandbox/node": [NODE],
    "sandbox/node/gpu": [NVIDIA, OPENCL],
    "sandbox/node/gpu/cuda.py": [NVIDIA],
    "sandbox/node/gpu/opencl.py": [OPENCL],
    "sandbox/node/gpu/peers.py": [NVIDIA],
    "sandbox/sealing/viewer.py": [frozenset({"mount"})],
}
NOT_OURS = ("sandbox/cli/demo/job",)  # a customer's program: its image brings what it imports


class Imports(ast.NodeVisitor):
    """Collects the top names of all modules imported anywhere in a file, but for what only type checkers read."""

    def __init__(self, file):
        self.found = set()
        self.visit(ast.parse(file.read_text()))

    def visit_Import(self, node):
        self.found |= {alias.name.partition(".")[0] for alias in node.names}

    def visit_ImportFrom(self, node):
        if node.module and not node.level:
            self.found.add(node.module.partition(".")[0])

    def visit_If(self, node):
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self.generic_visit(node)


def declared(install):
    lines = [*PROJECT["dependencies"], *(line for extra in install for line in PROJECT["optional-dependencies"][extra])]
    return {canonicalize_name(Requirement(line).name) for line in lines}


@cache
def third_party():
    """Return (file, module) of every import of what is neither Python's nor ours."""
    known = {*sys.stdlib_module_names, *PACKAGES}
    files = {path.relative_to(ROOT).as_posix(): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    return [
        (place, module)
        for place, path in sorted(files.items())
        if not place.startswith(NOT_OURS)
        for module in sorted(Imports(path).found - known)
    ]


def installs(place):
    fits = [known for known in INSTALLS if place == known or place.startswith(f"{known}/")]
    return INSTALLS[max(fits, key=len)] if fits else [BASE]


def test_what_is_imported_is_declared_by_the_extra_that_the_code_is_for():
    distributions = packages_distributions()
    missing = []
    for place, module in third_party():
        names = {canonicalize_name(name) for name in distributions.get(module, ())}
        missing += [
            f"{place} imports {module}, of {' or '.join(sorted(names)) or 'nothing installed'}; wanted in {sorted(install) or 'base'}"
            for install in installs(place)
            if not names & declared(install)
        ]
    assert not missing, "\n".join(missing)


def test_every_extra_and_every_place_of_the_table_is_real():
    assert set().union(*(install for wanted in INSTALLS.values() for install in wanted)) == set(PROJECT["optional-dependencies"])
    assert [place for place in INSTALLS if not (ROOT / place).exists()] == []


@pytest.mark.parametrize("module", ["numpy", "docker", "fastapi"])
def test_the_walk_sees_imports_of_all_kinds(module):
    assert module in {found for _, found in third_party()}
