"""A bounded run of what 'bench/fuzz' does for long: every parser of evidence under damage."""

from __future__ import annotations

import pytest

from bench.fuzz.evidence import Samples, fuzz
from tests.conftest import VECTORS

SECONDS = 3.0


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the public vectors are not beside the checkout")
@pytest.mark.parametrize("seed", [1, 2])
def test_damage_is_refused_or_harmless(seed, capsys):
    assert fuzz(Samples(VECTORS), seed, SECONDS) == 0, capsys.readouterr().err
