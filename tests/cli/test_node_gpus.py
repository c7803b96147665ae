"""``sealrig node wipe`` and ``node show`` where there are GPUs, on the stand-in driver."""

from __future__ import annotations

import json
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from sandbox.cli import main
from sandbox.cli import node as module
from sandbox.cli.bars import Bar
from sandbox.node.gpu.model import Errors, Gpu, Link, Thermals
from sandbox.wire import Capacity, NodeInfo, QualificationInfo
from tests.cli.test_console import Terminal
from tests.control.test_qualification import UUIDS, card
from tests.node.gpu.fixtures import driver_libraries, machine  # noqa: F401  (fixtures)

NODE = "node-" + "0" * 32
NOW = datetime(2026, 11, 28, tzinfo=UTC)
TOLD = Gpu(
    uuid=UUIDS[0], name="NVIDIA A100-SXM4-80GB", memory=80 * 2**30, reserved=0, driver="580.178.04", vbios="92.00.45.00.03",
    serial="1324120011223", link=Link(1, 8, 4, 16), errors=Errors(ecc=True, uncorrected=2, remapping_pending=True),
    thermals=Thermals(64, 92, 250.5, 400.0, ("power cap",)), nvlinks=12, mig=False,
)  # fmt: skip
ROW = (
    "gen 1 x8, of gen 4 x16", "ECC on, 2 uncorrected, remapping pending", "64 °C, 250.5 of 400.0 W, held back: power cap",
    "MIG off, 12 NVLinks", "580.178.04, VBIOS 92.00.45.00.03, 1324120011223",
)  # fmt: skip


def test_a_wipe_that_was_proven_is_a_table_and_exit_0(machine, capsys):  # noqa: F811
    uuid = machine.card()
    assert main(["node", "wipe"]) == 0
    head, _, row = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["device", "name", "backend", "coverage"]
    assert row.startswith(uuid)
    assert row.split()[-1] == "yes"
    assert not any(machine.local())


def test_a_wipe_that_was_not_proven_is_exit_1_with_the_report_and_the_reason(machine, capsys):  # noqa: F811
    good, bad = machine.card(0), machine.card(1, flips=1)
    assert main(["node", "wipe", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert [(row["uuid"], row["ok"]) for row in said["devices"]] == [(good, True), (bad, False)]
    assert said["error"]["details"]["rule"] == "vram-wipe"
    assert said["error"]["details"]["seen"].startswith(f"{bad}: pattern random: 1 words read back wrong")


def test_only_the_device_that_was_named_is_wiped(machine, capsys):  # noqa: F811
    machine.card(0)
    other = machine.card(1)
    assert main(["node", "wipe", "--json", "--device", other]) == 0
    assert [row["uuid"] for row in json.loads(capsys.readouterr().out)["devices"]] == [other]


def test_a_person_sees_how_far_the_wipe_is(machine, monkeypatch):  # noqa: F811
    machine.card(0)
    machine.card(1)
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    told, real = [], Bar.update

    def update(self, done, total):
        told.append(done)
        real(self, done, total)

    monkeypatch.setattr(Bar, "update", update)
    assert main(["node", "wipe"]) == 0
    assert "wiping" in screen.getvalue()
    assert "100%" in screen.getvalue()
    assert told == sorted(told)
    assert len(set(told)) > 4


def test_without_a_gpu_nothing_is_wiped_and_nothing_claimed(machine, capsys):  # noqa: F811
    assert main(["node", "wipe"]) == 0
    said = capsys.readouterr()
    assert (said.out, "nothing was wiped, nothing is claimed" in said.err) == ("", True)


def show(monkeypatch, capsys, inventory: dict[str, object], gpus: tuple[str, ...] = (), **of: object):
    info = NodeInfo(
        id=NODE, public_key="ed25519:x", version="1", capacity=Capacity(slots=1, cpus=1, memory=1, scratch=1, gpus=gpus),
        inventory=inventory, state="ready", last_seen=NOW, **of,
    )  # fmt: skip

    @contextmanager
    def client(_server):
        yield type("Control", (), {"node": lambda _self, _name: info})()

    monkeypatch.setattr(module, "client", client)
    assert main(["node", "show", NODE]) == 0
    return capsys.readouterr()


def test_a_nodes_gpus_are_shown_with_grade_link_errors_and_origin(monkeypatch, capsys):
    qualified = QualificationInfo(digest="sha256:" + "0" * 64, mode="quick", at=NOW, floors_date="2026-11-28", cards=(card(UUIDS[0]),))
    driver = {"version": "580.178.04", "confidential": True, "parameters": {"RegistryDwords": "RMDisableScrubOnFree=1"}}
    inventory = {"gpus": [TOLD.row(), "nonsense"], "gpuDriver": driver}
    said = show(monkeypatch, capsys, inventory, UUIDS[:2], qualification=qualified).out.splitlines()
    (row,) = (line for line in said if line.startswith(UUIDS[0]))
    for words in ("training", *ROW):
        assert words in row, words
    (other,) = (line for line in said if line.startswith(UUIDS[1]))
    assert other.split()[1:4] == ["-", "-", "unknown"]
    (line,) = (line for line in said if line.startswith("gpu driver"))
    assert line.endswith("580.178.04, confidential computing on, RegistryDwords=RMDisableScrubOnFree=1")


@pytest.mark.parametrize(
    ("inventory", "words"), [({}, "no GPU on this node"), ({"gpuDetail": "1 on the bus, but none shows"}, "1 on the bus")]
)
def test_a_node_without_gpus_says_why(monkeypatch, capsys, inventory, words):
    assert words in show(monkeypatch, capsys, inventory).err
