"""A bench's ``ok`` follows from its goal, and its document is the agreed one."""

from __future__ import annotations

import json

import pytest

from bench.report import Row, main


@pytest.mark.parametrize(
    ("row", "ok"),
    [
        (Row("x", 1, "s"), None),
        (Row("x", 1, "s", at_most=1), True),
        (Row("x", 1.1, "s", at_most=1), False),
        (Row("x", 1, "GB/s", at_least=2), False),
        (Row("x", 3, "GB/s", at_least=2, at_most=4), True),
    ],
)
def test_ok_follows_from_the_goal(row, ok):
    assert row.ok is ok


def test_document(capsys):
    code = main("lease", lambda: [Row("x", 2, "s", "docker run", 4, at_most=1)], ["--json"])
    document = json.loads(capsys.readouterr().out)
    assert code == 1
    assert set(document) == {"bench", "machine", "rows"}
    assert document["rows"] == [
        {"what": "x", "value": 2, "unit": "s", "peer": "docker run", "peer_value": 4, "ratio": 0.5, "goal": "≤ 1 s", "ok": False}
    ]
