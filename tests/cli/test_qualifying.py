"""``sealrig node qualify`` and ``node wipe`` on a host without a GPU: they say so, and claim nothing."""

from __future__ import annotations

import json

import pytest

from sandbox.cli import main
from sandbox.node.gpu.inventory import inventory


@pytest.fixture(autouse=True)
def _no_gpu():
    if inventory().gpus:
        pytest.skip("this host has GPUs")


def test_nothing_is_measured_and_nothing_claimed(tmp_path, capsys):
    assert main(["node", "qualify", "--json", "--data", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"mode": "quick", "devices": [], "signed": False, "sent": False}
    assert "neither signed nor sent" in said.err
    assert main(["node", "qualify", "--data", str(tmp_path)]) == 0
    assert "no GPU on this node: nothing was measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "rule", "code"),
    [(["--quick", "--full"], "qualify-effort", 2), (["--backend", "metal"], "backend", 2), (["--device", "GPU-9"], "device", 1)],
)
def test_what_cannot_be_done_is_refused_with_its_rule(tmp_path, capsys, words, rule, code):
    assert main(["node", "qualify", "--json", "--data", str(tmp_path), *words]) == code
    assert json.loads(capsys.readouterr().out)["error"]["details"]["rule"] == rule
