"""The bench of the wipe on the stand-in driver: every row is there, and a wipe that proves nothing misses its goals."""

from __future__ import annotations

from bench import wipe
from tests.node.gpu.fixtures import driver_libraries, machine  # noqa: F401  (fixtures)

RATES = ("fill, random pattern", "compare, random pattern", "fill, zeros", "compare, zeros", "driver's memset")


def rows_of(wanted=None):
    return {row.what.removeprefix("NVIDIA Stand-in: "): row for row in wipe.measure(wanted)}


def test_every_rate_stands_against_the_copy_and_the_whole_wipe_against_its_goals(machine):  # noqa: F811
    machine.card()
    rows = rows_of()
    copy = rows["copy within the device (read and write)"]
    assert copy.value > 0
    for name in RATES[:-1]:
        # The last row of a name is the one beside the driver's memset; the goal is in the ratio to the copy.
        assert rows[name].peer == RATES[-1]
        assert rows[name].peer_value > 0
    against_copy = [row for row in wipe.measure() if row.peer == wipe.COPY]
    assert len(against_copy) == len(RATES) - 1
    assert all(row.ratio_at_least == wipe.SHARE_OF_COPY for row in against_copy)
    assert rows["whole wipe from process start"].at_most == wipe.WHOLE_WIPE_SECONDS
    assert 0 < rows["start of the process and the driver"].value < rows["whole wipe from process start"].value
    assert (rows["coverage of (total - reserved)"].ok, rows["proven"].ok) == (True, True)


def test_a_wipe_that_proves_nothing_misses(machine):  # noqa: F811
    machine.card(0)
    bad = machine.card(1, flips=1)
    rows = rows_of(bad)
    assert rows["proven"].ok is False
    assert len([name for name in rows if name.startswith("proven")]) == 1


def test_a_device_that_is_not_there_is_told_so(machine):  # noqa: F811
    machine.card()
    (row,) = wipe.measure("GPU-none")
    assert (row.what, row.value) == ("devices that can be wiped", 0)
