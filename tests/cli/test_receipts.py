"""``sealrig receipt verify``: a numbered step a line, each with what was seen and what was wanted, whether it held or not."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from sandbox.cli import main
from tests.attestation.leases import Story, append, documents, extract, receipt_of, trust_tree

LINE = re.compile(r" *(\d+) (ok    |FAILED) ([a-z0-9./-]+): seen (.*); wanted (.+)")


@pytest.fixture
def receipt(tmp_path, monkeypatch):
    """A receipt in a file; no cache of collateral on this machine takes part."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = documents()
    (indexes,) = append(tmp_path / "log", Story(found))
    path = tmp_path / "receipt.json"
    path.write_bytes(receipt_of(found, extract(tmp_path / "log", indexes)))
    return path


def verify(receipt, capsys, **changes):
    """Exit code, the lines on stdout and on stderr, and the steps of the same command with ``--json``."""
    trust = receipt.with_name("TRUST.yaml")
    trust.write_text(yaml.safe_dump(trust_tree(**changes)))
    words = ["receipt", "verify", str(receipt), "--trust", str(trust)]
    main([*words, "--json"])
    steps = json.loads(capsys.readouterr().out)["steps"]
    code = main(words)
    told = capsys.readouterr()
    return code, told.out.splitlines(), told.err.splitlines(), steps


def told_steps(lines):
    found = [match.groups() for match in map(LINE.fullmatch, lines) if match]
    return [(int(number), step, mark == "ok    ", seen, wanted) for number, mark, step, seen, wanted in found]


def wanted_steps(steps):
    return [(step["number"], step["step"], step["ok"], step["seen"], step["wanted"]) for step in steps]


def test_what_holds_is_told_step_by_step(receipt, capsys):
    code, out, err, steps = verify(receipt, capsys)
    assert (code, err) == (0, [])
    assert len(steps) > 50
    assert told_steps(out) == wanted_steps(steps)
    assert out[-1].startswith(f"verified: {len(steps)} steps, lease-")


def test_what_fails_is_told_beside_what_holds(receipt, capsys):
    code, out, err, steps = verify(receipt, capsys, level="measured")
    assert (code, out) == (1, [])
    assert told_steps(err) == wanted_steps(steps)
    assert [step for _, step, ok, _, _ in told_steps(err) if not ok] == ["appraisal/level"]
    assert "error: the receipt does not verify [not-verified]" in err[0]
    assert "  rule    appraisal/level" in err
