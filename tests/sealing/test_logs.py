"""Sealed logs: only in order, only whole, only for their lease and customer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.errors import BundleError, BundleTamperedError, LimitError, StateError, WrongKeyError
from sandbox.sealing.logs import MAX_CHUNK_BYTES, MAX_TEXT_BYTES, LogOpener, LogSealer


@pytest.fixture(scope="module")
def chunks(alice):
    sealer = LogSealer("lease-1", alice.public)
    return [sealer.header, sealer.seal(b"one"), sealer.seal(b""), sealer.seal(b"three", final=True)]


def opened(identity, chunks, lease="lease-1"):
    opener = LogOpener(lease, identity)
    return b"".join(opener.open(seq, chunk) for seq, chunk in enumerate(chunks)), opener.finished


def test_a_log_comes_back_and_knows_its_end(alice, chunks):
    assert opened(alice, chunks) == (b"onethree", True)
    assert opened(alice, chunks[:-1]) == (b"one", False)


def test_it_opens_for_its_lease_and_customer_only(alice, bob, chunks):
    with pytest.raises(WrongKeyError):
        opened(bob, chunks)
    with pytest.raises(WrongKeyError):
        opened(alice, chunks, "lease-2")


@pytest.mark.parametrize("order", [[0, 2, 1, 3], [0, 1, 1, 2], [0, 1, 3], [1, 0], [0, 1, 2, 3, 3]])
def test_chunks_cannot_be_moved_repeated_or_left_out(alice, chunks, order):
    with pytest.raises(BundleError):
        opened(alice, [chunks[number] for number in order])


def test_a_chunk_of_another_log_does_not_fit(alice, chunks):
    other = LogSealer("lease-1", alice.public)
    with pytest.raises(BundleTamperedError):
        opened(alice, [chunks[0], other.seal(b"one")])
    with pytest.raises(BundleTamperedError):
        opened(alice, [other.header, chunks[1]])


def test_the_end_can_neither_be_faked_nor_taken_away(alice, chunks):
    with pytest.raises(BundleTamperedError):
        opened(alice, [chunks[0], b"\x01" + chunks[1][1:]])
    with pytest.raises(BundleTamperedError):
        opened(alice, [*chunks[:3], b"\x00" + chunks[3][1:]])
    opener = LogOpener("lease-1", alice)
    for seq, chunk in enumerate(chunks):
        opener.open(seq, chunk)
    with pytest.raises(BundleTamperedError, match="order"):
        opener.open(4, chunks[1])


def test_a_bad_chunk_does_not_spoil_the_good_one(alice, chunks):
    opener = LogOpener("lease-1", alice)
    opener.open(0, chunks[0])
    with pytest.raises(BundleTamperedError):
        opener.open(1, chunks[2])
    with pytest.raises(BundleTamperedError):
        opener.open(2, chunks[2])
    assert opener.open(1, chunks[1]) == b"one"


@settings(deadline=None)
@given(st.data())
def test_any_flip_is_refused(alice, chunks, data):
    number = data.draw(st.integers(0, 3))
    bit = data.draw(st.integers(0, len(chunks[number]) * 8 - 1))
    changed = bytearray(chunks[number])
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(BundleError):
        opened(alice, [*chunks[:number], bytes(changed), *chunks[number + 1 :]])


def test_chunks_are_bounded_and_end_once(alice):
    sealer = LogSealer("lease-1", alice.public)
    with pytest.raises(LimitError):
        sealer.seal(b"x" * (MAX_TEXT_BYTES + 1))
    last = sealer.seal(b"x" * MAX_TEXT_BYTES, final=True)
    assert len(last) == MAX_CHUNK_BYTES
    with pytest.raises(StateError):
        sealer.seal(b"")
    assert opened(alice, [sealer.header, last]) == (b"x" * MAX_TEXT_BYTES, True)
