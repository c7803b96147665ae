"""Packed entries come back as they were, are found by path, and take little memory."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.sealing.entries import Entry, Kind, order
from sandbox.sealing.scan import Scan
from sandbox.sealing.spool import Spool
from sandbox.sealing.table import Listing, Table, pack, path_of, unpack
from tests.sealing.test_entries import ENTRIES


@given(ENTRIES, st.binary(max_size=40))
def test_what_was_packed_comes_back(entry, before):
    assert unpack(before + pack(entry), len(before)) == entry
    assert path_of(before + pack(entry), len(before)) == entry.path


@settings(max_examples=40)
@given(st.lists(ENTRIES, max_size=30, unique_by=lambda entry: entry.path), st.binary(max_size=20))
def test_a_table_is_the_mapping_of_its_entries(entries, other):
    table, plain = Table(), {}
    for entry in sorted(entries, key=lambda entry: order(entry.path)):
        table.append(entry)
        plain[entry.path] = entry
    assert len(table) == len(plain)
    assert list(table) == list(plain)
    assert list(table.values()) == list(plain.values())
    assert list(table.items()) == list(plain.items())
    assert [table.at(number) for number in range(len(table))] == list(plain.values())
    assert all(table[path] == entry for path, entry in plain.items())
    assert table.get(other) == plain.get(other)


def _many(number):
    return Entry(b"folder-%03d/a-file-%06d" % (number // 1000, number), Kind.FILE, 0o644, number, number, digest=bytes(32))


@settings(max_examples=40)
@given(st.lists(ENTRIES, max_size=30))
def test_a_listing_is_the_list_of_its_entries(tmp_path_factory, entries):
    with Spool(tmp_path_factory.getbasetemp()) as spool:
        listing = Listing(spool)
        for entry in entries:
            listing.append(entry)
        assert len(listing) == len(entries)
        assert list(listing.values()) == list(listing.values()) == entries


def test_ten_thousand_entries_of_a_table_take_less_than_2_mib():
    tracemalloc.start()
    try:
        table = Table()
        for number in range(10_000):
            table.append(_many(number))
        assert len(table) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [Scan, Listing])
def test_entries_of_a_scan_or_listing_take_no_more_memory_the_more_there_are(tmp_path, kind):
    tracemalloc.start()
    try:
        with Spool(tmp_path) as spool:
            found = kind(spool)
            for number in range(10_000):
                found.append(*((_many(number), b"/somewhere/", bytes(40)) if kind is Scan else (_many(number),)))
            assert len(found) == 10_000
            for number, entry in enumerate(found.entries() if kind is Scan else found.values()):
                assert entry == _many(number)
            assert tracemalloc.get_traced_memory()[1] < 2**19
    finally:
        tracemalloc.stop()
