"""A bounded run of the fuzzer of bundles; it repeats by its seed, reaches the parsers, and finds what is planted."""

from __future__ import annotations

import random
import time

import pytest

from bench.fuzz import bundle
from bench.fuzz.bundle import Cases, fuzz
from bench.fuzz.twist import twist
from sandbox.sealing import entries, index, unpack

SECONDS = 3.0
CASES = 300
"""At least so many, however slow the machine: the same ones each time, of every layer."""


def some(count):
    numbers = iter(range(count))
    return lambda: next(numbers, None) is not None


def test_damage_is_refused_and_both_readers_agree(capsys):
    end, left = time.monotonic() + SECONDS, some(CASES)
    code = fuzz(1, lambda: left() or time.monotonic() < end)
    shown = capsys.readouterr()
    assert code == 0, shown.err
    for layer in ("document", "end", "entries", "envelope", "line", "lines", "outside", "signed anew", "tar"):
        assert f"{layer} refused" in shown.out
    assert "none accepted" in shown.out
    assert "entries accepted" in shown.out


def test_twisting_leaves_nothing_behind_for_the_next_case():
    def all_of(seeds):
        return [twist(random.Random(seed), b'{"a":[[]],"b":{"c":1}}') for seed in seeds]

    assert all_of(range(2000)) == all_of(reversed(range(2000)))[::-1]


def test_the_seed_and_the_number_make_the_case():
    left, right, other = Cases(7), Cases(7), Cases(8)
    for number in range(60):
        assert (left.case(number).kind, left.case(number).raw) == (right.case(number).kind, right.case(number).raw)
        assert left.case(number).raw != other.case(number).raw


@pytest.mark.parametrize(
    ("where", "name", "instead"),
    [
        (index, "unsafe_links", lambda links: {}),
        (index.Order, "add", lambda self, entry: None),
        (entries, "_number", lambda value, limit: value),
        (unpack, "padding", lambda size: 0),
        (bundle, "BundleError", ArithmeticError),
    ],
)
def test_a_check_that_is_missing_is_found_and_the_case_is_shown(monkeypatch, capsys, where, name, instead):
    monkeypatch.setattr(where, name, instead)
    assert fuzz(1, some(3000)) == 1
    shown = capsys.readouterr().err
    assert "seed 1, case " in shown
    number = int(shown.partition("--seed 1 --case ")[2].split()[0])
    assert not bundle.attempt(Cases(1), number, 1)
    assert capsys.readouterr().err == shown
