"""The PTX that nodes load, executed: what fills, compares and scrubs on a card is this text, not the C that it was made from."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from sandbox.node.gpu.device import EMPTY_TALLY, TALLY_WORDS
from sandbox.node.gpu.tally import comparison
from tests.node.gpu.ptx_machine import Machine, PtxError
from tests.node.gpu.ram_device import pattern

ROOT = Path(__file__).resolve().parents[3]
KERNELS = resources.files("sandbox.node.gpu").joinpath("kernels.ptx").read_text("ascii")
LEAK = (ROOT / "bench" / "leak" / "leak.ptx").read_text("ascii")
MATMUL = resources.files("sandbox.node.gpu").joinpath("matmul.ptx").read_text("ascii")
SEEDS = [0, 1, 0x8000_0000_0000_0001, 0xFEDC_BA98_7654_3210, 0xFEDC_BA98_7654_3211]
GRID = (3, 32)
LANES = GRID[0] * GRID[1]
# A part of one stride, whole strides, whole rounds of four, and rests of each.
PAIRS = [1, LANES - 1, LANES, 3 * LANES + 5, 4 * LANES, 4 * LANES + 1, 9 * LANES - 7]


def filled(pairs, seed):
    machine = Machine(KERNELS)
    memory = np.full(2 * pairs, 0xDEAD, np.uint64)
    machine.launch("fill", *GRID, machine.buffer(memory), pairs, seed)
    return machine, memory


def compared(machine, pairs, seed):
    tally = np.zeros(TALLY_WORDS, np.uint32)
    tally[:4] = EMPTY_TALLY
    machine.launch("compare", *GRID, next(iter(machine.buffers)), pairs, seed, machine.buffer(tally))
    return comparison(tally)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("pairs", PAIRS)
def test_fill_writes_the_pattern_everywhere_and_nowhere_else(pairs, seed):
    machine, memory = filled(pairs, seed)  # one pair further would be outside of the buffer, which is an error
    assert np.array_equal(memory, pattern(2 * pairs, seed))
    assert compared(machine, pairs, seed).mismatches == 0


@pytest.mark.parametrize("pairs", PAIRS)
def test_compare_sees_every_word_of_the_complement(pairs):
    machine, _ = filled(pairs, 7)
    seen = compared(machine, pairs, 6)
    assert (seen.mismatches, seen.first) == (2 * pairs, 0)
    assert {fault.bits for fault in seen.faults} == {2**64 - 1}


@pytest.mark.parametrize("seed", [0, 9])
def test_compare_finds_each_single_bit_where_it_is(seed):
    pairs = 4 * LANES + 3
    machine, memory = filled(pairs, seed)
    for word, bit in ((0, 0), (1, 63), (2 * LANES + 1, 17), (2 * 3 * LANES, 31), (2 * 4 * LANES + 1, 5), (2 * pairs - 1, 32)):
        memory[word] ^= np.uint64(1 << bit)
        seen = compared(machine, pairs, seed)
        assert (seen.mismatches, seen.first) == (1, word)
        assert [(fault.index, fault.bits) for fault in seen.faults] == [(word, 1 << bit)]
        memory[word] ^= np.uint64(1 << bit)
    assert compared(machine, pairs, seed).mismatches == 0


def test_compare_counts_all_and_tells_of_64():
    pairs = 4 * LANES
    machine, memory = filled(pairs, 3)
    wrong = np.arange(11, 2 * pairs, 3)
    memory[wrong] ^= np.uint64(0x10)
    seen = compared(machine, pairs, 3)
    assert (seen.mismatches, seen.first) == (len(wrong), 11)
    assert len(seen.faults) == 64
    assert {fault.index for fault in seen.faults} <= set(wrong.tolist())


WORDS = 700


def scrubbed(stuck=None, units=4, blocks=8):
    machine = Machine(KERNELS, units=units, stuck=stuck)
    tally, marks = np.zeros(8, np.uint32), np.zeros(16, np.uint32)
    left = machine.launch("scrub", blocks, 64, machine.buffer(tally), machine.buffer(marks), 0x0123_4567_89AB_CDEF, WORDS, shared=4 * WORDS)
    return tally, marks, left.view(np.uint32)


def test_scrub_writes_all_of_a_blocks_shared_memory_and_notes_every_unit():
    tally, marks, left = scrubbed()
    assert tally[0] == 0
    assert marks.tolist() == [1] * 4 + [0] * 12
    assert left.shape == (8, WORDS)
    assert not left.any()


@pytest.mark.parametrize("stuck", [0, 63, 64, WORDS - 1])
def test_scrub_counts_a_word_of_shared_memory_that_keeps_nothing(stuck):
    tally, _, _ = scrubbed(stuck)
    assert tally[0] == 8


def test_the_hunts_victim_leaves_its_canary_and_its_listener_finds_it():
    canary = 0x5EA1_51D0_C0FF_EE11
    machine = Machine(LEAK)
    tally, marks = np.zeros(4, np.uint32), np.zeros(16, np.uint32)
    places = machine.buffer(tally), machine.buffer(marks)
    left = machine.launch("plant", 4, 64, *places, canary, WORDS, shared=4 * WORDS)
    assert (left.view(np.uint32) == canary & 0xFFFFFFFF).all()
    assert tally.tolist() == [0, 0, 0, 0]
    machine.launch("look", 4, 64, *places, 0xA5A5_A5A5, WORDS, shared=4 * WORDS)  # what this machine's shared memory holds at the start
    assert tally[0] == 4 * WORDS
    memory, found = np.zeros(1000, np.uint64), np.zeros(4, np.uint32)
    place, count = machine.buffer(memory), machine.buffer(found)
    machine.launch("spread", *GRID, place, 1000, canary, count)
    assert (memory == canary).all()
    memory[[5, 999]] = 0
    machine.launch("count", *GRID, place, 1000, canary, count)
    assert found[0] == 998


@pytest.mark.parametrize(("kind", "dtype", "tolerance"), [("fp32", np.float32, 1e-4), ("fp64", np.float64, 1e-11)])
def test_products_of_matrices_are_right(kind, dtype, tolerance):
    n = 128
    machine = Machine(MATMUL)
    left, right = (np.random.default_rng(seed).standard_normal((n, n)).astype(dtype) for seed in (1, 2))
    product = np.zeros((n, n), dtype)
    machine.launch(f"multiply_{kind}", 1, 256, machine.buffer(left), machine.buffer(right), machine.buffer(product), n)
    assert np.allclose(product, left.astype(np.float64) @ right.astype(np.float64), atol=tolerance)


def test_the_machine_knows_a_wrong_text_from_a_right_one():
    """Else a machine that forgives would prove nothing: each of these would harm on a card."""
    ends = KERNELS.replace("setp.ge.u64", "setp.gt.u64")
    assert ends != KERNELS
    machine = Machine(ends)
    with pytest.raises(PtxError, match="outside"):
        machine.launch("fill", *GRID, machine.buffer(np.zeros(2 * 4 * LANES, np.uint64)), 4 * LANES, 1)
    machine = Machine(KERNELS)
    with pytest.raises(PtxError, match="multiple of 16"):
        machine.launch("fill", *GRID, machine.buffer(np.zeros(50, np.uint64)) + 8, 4, 1)
    with pytest.raises(PtxError, match="not known"):
        Machine(KERNELS.replace("xor.b64", "frob.b64")).launch("fill", *GRID, 0, 1, 1)


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="needs ptxas of the CUDA toolkit")
@pytest.mark.parametrize("capability", [75, 80, 86, 89, 90, 100])
def test_the_scrub_holds_248_registers_and_nothing_spills(tmp_path, capability):
    (tmp_path / "k.ptx").write_text(KERNELS, "ascii")
    command = ["ptxas", "-v", f"-arch=sm_{capability}", str(tmp_path / "k.ptx"), "-o", str(tmp_path / "out")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used = dict(re.findall(r"Compiling entry function '(\w+)'.*?Used (\d+) registers", said, re.DOTALL))
    assert int(used["scrub"]) >= 248
    assert int(used["compare"]) <= 64, "four accesses under way on every unit at once need room for many threads"
    assert set(re.findall(r"(\d+) bytes spill", said)) == {"0"}
