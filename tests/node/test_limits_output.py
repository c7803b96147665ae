"""An output of many small files is too large by its names and headers."""

from __future__ import annotations

import pytest

from sandbox.lifecycle import Outcome
from sandbox.node.engine import Exit
from sandbox.node.limits import judge, too_large, tree_overhead

MIB = 2**20


@pytest.mark.parametrize(
    ("size", "overhead", "fits"), [(MIB, 0, True), (MIB + 1, 0, False), (0, 64 * MIB + MIB // 8, True), (0, 64 * MIB + MIB // 8 + 1, False)]
)
def test_bounds(size, overhead, fits):
    assert (too_large(size, overhead, MIB) == "") is fits
    verdict = judge(
        Exit(0, oom_killed=False, error=""), stopped=None, scratch_full=False, output_bytes=size, output_max=MIB, overhead=overhead
    )
    assert verdict.outcome is (Outcome.SUCCEEDED if fits else Outcome.OUTPUT_LIMIT)


def test_every_entry_costs_its_headers_and_its_name(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "empty").touch()
    (tmp_path / "link").symlink_to("/")
    assert 3 * 2048 < tree_overhead(tmp_path) < 3 * 2048 + 9 * (len(str(tmp_path)) + 20)
