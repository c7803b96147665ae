"""Simulation stays in tests: no product module, flag or variable reaches a simulator or leaves a check out, and what is unsafe says so."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from attestation.verify import single
from attestation.verify.certificates import packaged_roots
from sandbox.cli import root
from tests.conftest import ROOT, VECTORS

PACKAGES = ("attestation", "policies", "sandbox")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
TESTERS = {"tests", "bench", "pytest", "_pytest", "unittest", "hypothesis", "doctest", "moto", "responses"}
SIMULATED = re.compile(
    r"simulat|swtpm|mssim|libtpms|\bmock|monkeypatch|\bfake[_ ]|dummy|insecure|skip_?verif|no_?verify|verify\s*=\s*False", re.IGNORECASE
)
AROUND = re.compile(r"skip|insecure|simulat|fake|mock|dummy|no-?verify|ignore-|disable|bypass|permissive|trust-all", re.IGNORECASE)
VARIABLES = {
    "DOCKER_HOST", "FUSE_LIBRARY_PATH", "PATH", "SEALRIG_KEY", "SEALRIG_SERVER", "SEALRIG_TOKEN", "SEALRIG_TRUST", "SSL_CERT_FILE",
    "XDG_CONFIG_HOME", "XDG_STATE_HOME",
}  # fmt: skip
"""Every environment variable that a program of the product reads. Addresses and places, no switch; the demo's own are beside the point."""


@cache
def trees():
    return [(path, list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))) for path in SOURCES]


def test_no_product_module_imports_what_is_for_tests():
    for path, nodes in trees():
        for node in nodes:
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & TESTERS, path


def test_no_product_source_knows_a_simulator_or_a_way_around_a_check():
    for path, nodes in trees():
        words = [node.id for node in nodes if isinstance(node, ast.Name)]
        words += [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        words += [f"{node.arg}" for node in nodes if isinstance(node, ast.arg)]
        words += [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value]
        words += [
            f"{node.arg}={node.value.value}" for node in nodes if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant)
        ]
        found = [word for word in words if SIMULATED.search(word)]
        assert not found, (path, found)


def test_what_is_installed_holds_no_tests():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == set(PACKAGES)
    assert set(project["project"]["scripts"]) == {"sealrig"}


def test_the_environment_holds_no_switch():
    read = set()
    for path, nodes in trees():
        if "demo" in path.parts:
            continue
        for node in nodes:
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"os.environ.get", "os.getenv", "environ.get"}:
                read.add(ast.literal_eval(node.args[0]))
            if (
                isinstance(node, ast.Subscript)
                and ast.unparse(node.value) in {"os.environ", "environ"}
                and isinstance(node.slice, ast.Constant)
            ):
                read.add(node.slice.value)
    assert read <= VARIABLES


def options():
    """Every option of every command."""
    found: dict[str, set[str]] = {}
    todo = [("", root())]
    while todo:
        path, command = todo.pop()
        command = command.load() if hasattr(command, "load") else command
        todo += [(f"{path} {name}".strip(), each) for name, each in getattr(command, "commands", {}).items()]
        found[path] = {text for parameter in command.params for text in (*parameter.opts, *parameter.secondary_opts)}
    return found


def test_no_option_leaves_a_check_out_and_unsafe_ones_say_so():
    found = options()
    assert len(found) > 40
    for path, names in found.items():
        assert not [name for name in names if name.startswith("-") and AROUND.search(name)], path
    unsafe = {name for names in found.values() for name in names if "unsafe" in name}
    assert unsafe == {"--unsafe-development"}


def test_no_verifier_takes_a_switch():
    """A verifier is told what to accept, never what to leave out: none of its parameters is a yes or no."""
    modules = [f"attestation.verify.{path.stem}" for path in (ROOT / "attestation" / "verify").glob("*.py")]
    for name in modules:
        for function in vars(import_module(name)).values():
            if not inspect.isfunction(function) or not function.__name__.startswith("verify_"):
                continue
            for parameter in inspect.signature(function).parameters.values():
                assert "bool" not in str(parameter.annotation), (name, function.__name__, parameter)
                assert not AROUND.search(parameter.name), (name, function.__name__, parameter)


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the public vectors are not beside the checkout")
def test_a_result_under_given_roots_is_marked():
    from datetime import UTC, datetime

    folder = VECTORS / "nvidia"
    raw, chain = (folder / "hopperAttestationReport.txt").read_bytes(), (folder / "hopperCertChain.txt").read_bytes()
    at = datetime(2024, 6, 1, tzinfo=UTC)
    plain = single.verify_single("nvidia-gpu", raw, at=at, chain=chain)
    given = single.verify_single("nvidia-gpu", raw, at=at, chain=chain, roots=[(folder / "nvidia_device_root.pem").read_bytes()])
    assert "roots" not in {step.step for step in plain.steps}
    assert next(step for step in given.steps if step.step == "roots").seen == "given by the caller"
    ids = [result.ear["submods"]["gpu0"]["ear_appraisal_policy_ids"] for result in (plain, given)]
    assert ids == [[single.STAND_ALONE], [single.GIVEN_ROOTS]]


def test_the_packaged_roots_are_the_vendors():
    for path in (ROOT / "attestation" / "verify" / "roots").glob("*.pem"):
        for certificate in packaged_roots(path.name):
            assert re.search(r"Advanced Micro Devices|NVIDIA|Intel", certificate.subject.rfc4514_string()), path
    assert Path(single.__file__).is_relative_to(ROOT)
