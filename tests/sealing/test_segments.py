"""The cache of decrypted segments: each read once however many ask or read on beside each other, and nothing kept of one that failed."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandbox.errors import BundleTamperedError
from sandbox.sealing import segments
from sandbox.sealing.algorithms import SEGMENT_BYTES
from sandbox.sealing.entries import Entry, Kind
from sandbox.sealing.keys import DataKey
from sandbox.sealing.segments import SegmentCache
from sandbox.sealing.stream import Stream
from sandbox.sealing.view import View
from tests.patience import LONG, eventually

SEGMENTS = 72


class Sealed:
    """A stream's ciphertext; counts what is asked for, and lets somebody wait for one segment."""

    def __init__(self) -> None:
        self.stream = Stream.fresh(DataKey.generate(), b"", SEGMENTS * SEGMENT_BYTES - 40_000)
        self.plain, self.sealed = [], []
        block = os.urandom(SEGMENT_BYTES)
        for index in range(self.stream.segments):
            low, high = self.stream.plain_span(index)
            plain = bytes([index]) + block[1 : high - low]
            out = bytearray(len(plain) + 16)
            self.stream.seal_segment(index, memoryview(plain), memoryview(out))
            self.plain.append(plain)
            self.sealed.append(out)
        self.asked: list[int] = []
        self.slow = -1
        self.gate = threading.Event()

    def read(self, spans):
        numbers = [offset // SEGMENT_BYTES for offset, _ in spans]
        self.asked += numbers
        if self.slow in numbers:
            assert self.gate.wait(LONG)
        return [bytes(self.sealed[number]) for number in numbers]


@pytest.fixture(scope="module")
def made():
    return Sealed()


@pytest.fixture
def source(made):
    made.asked.clear()
    made.slow = -1
    made.gate.clear()
    return made


@pytest.mark.parametrize(("ahead", "run"), [(4, 1), (16, 4)])
@pytest.mark.parametrize("readers", [1, 2, 3, 6, 8])
def test_readers_beside_each_other_cost_each_segment_once(source, readers, ahead, run):
    cache = SegmentCache(source.stream, source.read, capacity=24, ahead=ahead, run=run)
    part = SEGMENTS // readers
    try:
        for step in range(part - 1 - min(ahead, 12 // readers)):  # so that nobody is read ahead of into another's part
            if step == 3:  # while the first of many is the only one yet, more is read ahead for it than is kept
                source.asked.clear()
            for reader in range(readers):
                index = reader * part + step
                assert cache.get(index) == source.plain[index]
    finally:
        cache.close()
    assert len(source.asked) == len(set(source.asked))


def test_who_reads_on_is_read_ahead_of_and_who_jumps_is_not(source):
    cache = SegmentCache(source.stream, source.read, capacity=24, ahead=4)
    for index in (10, 30, 50):
        cache.get(index)
    assert sorted(source.asked) == [10, 30, 50]
    cache.get(51)
    cache.close()  # waits for what is read in the background
    assert sorted(source.asked) == [10, 30, 50, 51, 52, 53, 54, 55]


def test_a_segment_on_its_way_is_not_given_up_for_another(source):
    cache = SegmentCache(source.stream, source.read, capacity=2)
    source.slow = 7
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, 7)
        while not source.asked:
            threading.Event().wait(0.001)
        for index in range(20, 30):
            cache.get(index)
        second = pool.submit(cache.get, 7)
        source.gate.set()
        assert first.result(20) == second.result(20) == source.plain[7]
    assert source.asked.count(7) == 1


def test_no_more_is_kept_than_was_agreed(source):
    cache = SegmentCache(source.stream, source.read, capacity=5)
    kept = [weakref.ref(Plain(cache, index)) for index in range(40)]
    assert len(cache._used) == 5
    assert [ref() for ref in kept] == [None] * 40


def test_what_is_read_ahead_counts_too(source):
    cache = SegmentCache(source.stream, source.read, capacity=8, ahead=4, run=2)
    try:
        for index in range(24):
            cache.get(index)
            # What is on its way is not given up for another, so there may be more for a moment.
            eventually(lambda: all(slot.plain is not None for slot in list(cache._early.values())))
            assert len(cache._used) + len(cache._early) <= 8
    finally:
        cache.close()


class Plain:
    """Something that ends with the last who holds it."""

    def __init__(self, cache: SegmentCache, index: int) -> None:
        self.bytes = cache.get(index)


def test_a_segment_that_fails_is_told_to_all_and_nothing_of_it_is_kept(source):
    class Ciphertext(bytearray):
        """Ciphertext that can be watched."""

    watched: list[weakref.ref[Ciphertext]] = []

    def read(spans):
        pieces = [Ciphertext(data) for data in source.read(spans)]
        for piece in pieces:
            piece[100] ^= 1
            watched.append(weakref.ref(piece))
        return pieces

    forgotten: list[int] = []
    cache = SegmentCache(source.stream, read, capacity=4, forget=forgotten.append)
    gc.disable()
    try:
        for index in (3, 3, 4):
            with pytest.raises(BundleTamperedError, match=f"segment {index}"):
                cache.get(index)
        assert source.asked == [3, 3, 4]
        assert forgotten == [3 * SEGMENT_BYTES, 3 * SEGMENT_BYTES, 4 * SEGMENT_BYTES]
        assert [ref() for ref in watched] == [None] * 3, "without the collector's help"
    finally:
        gc.enable()


def test_who_shares_a_segment_loads_the_next_one_before_waiting_for_it(source):
    cache = SegmentCache(source.stream, source.read, capacity=8)
    source.slow = 7
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(cache.get, 7)
        eventually(lambda: source.asked == [7])
        both = pool.submit(lambda: list(cache.get_all(range(7, 9))))
        eventually(lambda: source.asked == [7, 8])
        source.gate.set()
        assert first.result(LONG) == source.plain[7]
        assert both.result(LONG) == source.plain[7:9]
    assert source.asked == [7, 8]


class Shown:
    """What a view needs of a reader, over one cache."""

    def __init__(self, cache: SegmentCache, size: int) -> None:
        self.segments = cache.get_all
        self._size = size

    def entries(self):
        return {b"f": Entry(b"f", Kind.FILE, mode=0o644, mtime_ns=0, size=self._size, offset=0)}


def test_a_read_that_fails_in_a_view_names_its_segment_and_keeps_no_plaintext_of_those_beside_it(source, monkeypatch):
    class Watched(bytearray):
        """Plaintext that can be watched."""

    watched: list[weakref.ref[Watched]] = []

    def make(size):
        made = Watched(size)
        watched.append(weakref.ref(made))
        return made

    def read(spans):
        pieces = [bytearray(data) for data in source.read(spans)]
        for piece, (offset, _) in zip(pieces, spans, strict=True):
            piece[100] ^= offset == 4 * SEGMENT_BYTES
        return pieces

    monkeypatch.setattr(segments, "_uncleared", make)
    cache = SegmentCache(source.stream, read, capacity=2)
    told = []
    view = View(Shown(cache, source.stream.plain_size), owner=(0, 0), tell=told.append)
    reply = ctypes.create_string_buffer(3 * SEGMENT_BYTES)
    gc.disable()
    try:
        with pytest.raises(OSError) as caught:
            view.read_into("/f", ctypes.addressof(reply), 2 * SEGMENT_BYTES, 3 * SEGMENT_BYTES, view.open("/f", os.O_RDONLY))
        assert caught.value.errno == errno.EIO
        del caught
        assert [(event["segment"], event["code"]) for event in told] == [(4, "bundle-tampered")]
        cache.close()
        assert [ref() for ref in watched] == [None] * len(watched), "without the collector's help"
    finally:
        gc.enable()
