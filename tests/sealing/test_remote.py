"""A bundle on a server: only what is needed is fetched, nothing is served unverified, and a server that is away costs a bounded time."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sandbox.errors import AccessError, BundleError, BundleTamperedError, NotFoundError, ServerError
from sandbox.sealing import remote
from sandbox.sealing.algorithms import SEGMENT_BYTES
from sandbox.sealing.bundle import BundleReader, data_key, read_header, seal
from sandbox.sealing.cache import CachedSource
from sandbox.sealing.remote import HttpSource, content_url
from tests.patience import LONG
from tests.sealing.ranged import TOKEN, serving

WEIGHTS = 24 * SEGMENT_BYTES + 17


@pytest.fixture(scope="module")
def sealed(tmp_path_factory, alice):
    root = tmp_path_factory.mktemp("remote")
    (root / "src").mkdir()
    (root / "src" / "weights").write_bytes(random.Random(1).randbytes(WEIGHTS))
    (root / "src" / "zz").write_bytes(b"the last one")
    done = seal([root / "src"], root / "b", recipients=[alice.public], signer=alice.signing_key)
    return (root / "b").read_bytes(), done.digest, (root / "src" / "weights").read_bytes()


@pytest.fixture
def server(sealed):
    with serving(*sealed[:2]) as ranged:
        yield ranged


@pytest.fixture
def opened(server):
    found = []

    def start(**changes):
        source = HttpSource(
            content_url(server.address, server.digest), **{"token": TOKEN, "digest": server.digest, "patience": 0.5} | changes
        )
        found.append(source)
        return source

    yield start
    for source in found:
        source.close()


def test_one_file_costs_the_header_the_index_and_its_segments(server, opened, sealed, alice):
    reader = BundleReader(opened(), alice)
    assert b"".join(reader.read("weights", 10 * SEGMENT_BYTES, 10 * SEGMENT_BYTES + 100)) == sealed[2][10 * SEGMENT_BYTES :][:100]
    assert b"".join(reader.read("zz")) == b"the last one"
    header, index = read_header(sealed[0]), read_header(sealed[0]).index_size
    needed = 65536 + index + 2 * SEGMENT_BYTES + header.payload_size % SEGMENT_BYTES
    assert server.sent <= needed
    assert len(server.asked) <= 5


def test_a_refusal_is_said_at_once(server, opened):
    for trouble, kind in (("401", AccessError), ("403", AccessError), ("404", NotFoundError), ("416", BundleError), ("200", ServerError)):
        server.trouble = trouble
        with pytest.raises(kind):
            opened(patience=30)
    with pytest.raises(NotFoundError):
        opened(token="other", patience=30)


@pytest.mark.parametrize("trouble", ["other range", "other etag", "longer", "302", "200"])
def test_another_answer_than_was_asked_for_is_refused(server, opened, trouble):
    source = opened(patience=30)
    server.trouble = trouble
    with pytest.raises(ServerError):
        source.read_at(100_000, 50)


@pytest.mark.parametrize("trouble", ["cut", "500", "503", "429"])
def test_what_may_pass_is_tried_again_for_a_bounded_time(server, opened, sealed, trouble):
    source = opened()
    server.trouble = trouble
    start = time.monotonic()
    with pytest.raises(ServerError):
        source.read_at(100_000, 50_000)
    assert time.monotonic() - start < LONG
    before = len(server.asked)
    with pytest.raises(ServerError):
        source.read_at(100_000, 50_000)
    assert len(server.asked) - before <= 2  # asked once more, and once because a connection may have been an old one
    server.trouble = ""
    assert source.read_at(100_000, 50_000) == sealed[0][100_000:150_000]


@pytest.mark.parametrize("trouble", ["drip headers", "drip body"])
def test_an_answer_that_drips_costs_a_bounded_time(server, opened, sealed, monkeypatch, trouble):
    source = opened(patience=0)
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 0.4)
    server.trouble = trouble
    start = time.monotonic()
    with pytest.raises(ServerError):
        source.read_at(100_000, 50_000)
    assert 0.4 < time.monotonic() - start < LONG
    server.trouble = ""
    assert source.read_at(100_000, 50_000) == sealed[0][100_000:150_000]


def test_a_connection_that_was_nearly_too_slow_is_used_again_with_all_its_time(server, opened, monkeypatch):
    source = opened(patience=0)
    monkeypatch.setattr(remote, "ANSWER_SECONDS", remote.SOCKET_SECONDS / 10)
    source.read_at(100_000, 10)
    (connection,) = source._idle
    assert connection.sock.gettimeout() < remote.SOCKET_SECONDS
    monkeypatch.undo()
    limits = []
    request = connection.request
    monkeypatch.setattr(
        connection, "request", lambda *args, **named: (limits.append(connection.sock.gettimeout()), request(*args, **named))
    )
    source.read_at(200_000, 10)
    assert limits == [remote.SOCKET_SECONDS]


def test_a_server_that_was_started_anew_is_found_again(server, opened, sealed):
    source = opened(patience=5)
    assert source.read_at(100_000, 10) == sealed[0][100_000:100_010]
    server.stop()
    threading.Timer(0.3, server.start).start()
    assert source.read_at(200_000, 10) == sealed[0][200_000:200_010]


def test_a_range_past_the_end_is_a_bundle_cut_short(opened, sealed):
    with pytest.raises(BundleError):
        opened().read_at(len(sealed[0]) - 5, 10)


def test_other_bytes_are_never_served(server, opened, sealed, alice):
    reader = BundleReader(opened(), alice)
    reader.entries()
    server.trouble = "other bytes"
    with pytest.raises(BundleTamperedError):
        list(reader.read("weights", 0, 10))
    server.trouble = ""
    assert b"".join(reader.read("weights", 0, 10)) == sealed[2][:10]


def test_the_header_of_another_bundle_under_the_same_key_is_refused(server, opened, sealed, alice, bob):
    """Who once held the data key can seal other contents under it, and name itself the sealer; it cannot make this header."""
    header = read_header(sealed[0])
    key = data_key(header, alice)
    BundleReader(opened(), key, header=header.digest)
    with pytest.raises(BundleTamperedError):
        BundleReader(opened(), key, header="sha256:" + "0" * 64)


def test_reading_on_and_on_asks_for_several_segments_at_once(server, opened, sealed, tmp_path, alice):
    cached = CachedSource(opened(), tmp_path / "cache", 64 * SEGMENT_BYTES)
    reader = BundleReader(cached, alice, cached=24, ahead=16, run=4, cache=cached)
    assert b"".join(reader.read("weights")) == sealed[2]
    reader.close()
    assert len(server.asked) <= 12
    assert server.sent < len(sealed[0]) + 2 * SEGMENT_BYTES
    cached.close()


# ---- the cache


def test_a_second_read_comes_from_the_file(server, opened, sealed, tmp_path, alice):
    cached = CachedSource(opened(), tmp_path / "cache", 64 * SEGMENT_BYTES)
    for _ in range(2):
        reader = BundleReader(cached, alice, cache=cached)
        assert b"".join(reader.read("weights")) == sealed[2]
        reader.close()
    assert server.sent < len(sealed[0]) + 2 * SEGMENT_BYTES
    assert sealed[2][:64] not in (tmp_path / "cache").read_bytes()
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o600
    cached.close()


def test_the_file_never_grows_beyond_its_bound_and_what_was_not_used_goes_first(server, opened, sealed, tmp_path, alice):
    cached = CachedSource(opened(), tmp_path / "cache", 5 * SEGMENT_BYTES)
    reader = BundleReader(cached, alice, cached=2, cache=cached)
    assert b"".join(reader.read("weights")) == sealed[2]
    assert (tmp_path / "cache").stat().st_size <= 5 * SEGMENT_BYTES
    before = server.sent
    list(reader.read("weights", 22 * SEGMENT_BYTES, 22 * SEGMENT_BYTES + 1))
    assert server.sent == before
    list(reader.read("weights", 0, 1))
    assert server.sent > before
    cached.close()


def test_what_did_not_verify_is_asked_for_again(server, opened, sealed, tmp_path, alice):
    cached = CachedSource(opened(), tmp_path / "cache", 64 * SEGMENT_BYTES)
    reader = BundleReader(cached, alice, cached=2, cache=cached)
    list(reader.read("weights"))
    raw = bytearray((tmp_path / "cache").read_bytes())
    (tmp_path / "cache").write_bytes(bytes(len(raw)))  # the disk lost it all
    with pytest.raises(BundleTamperedError):
        list(reader.read("weights", 0, 10))
    assert b"".join(reader.read("weights", 0, 10)) == sealed[2][:10]
    cached.close()


@pytest.mark.parametrize("after", [0, 3])
def test_a_full_disk_costs_the_cache_and_no_read(opened, sealed, tmp_path, alice, monkeypatch, after):  # noqa: PLR0917
    cached = CachedSource(opened(), tmp_path / "cache", 64 * SEGMENT_BYTES)
    real, written = os.pwrite, []

    def full(fd, data, offset):
        if len(written) >= after:
            raise OSError(errno.ENOSPC, "full")
        written.append(offset)
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    reader = BundleReader(cached, alice, cached=2, cache=cached)
    assert b"".join(reader.read("weights")) == sealed[2]
    assert b"".join(reader.read("weights")) == sealed[2]
    cached.close()


def test_many_readers_of_a_small_cache_each_get_their_own_bytes(opened, sealed, tmp_path, alice):
    cached = CachedSource(opened(), tmp_path / "cache", 3 * SEGMENT_BYTES)
    reader = BundleReader(cached, alice, cached=2, cache=cached)

    def read(seed: int) -> bool:
        start = random.Random(seed).randrange(WEIGHTS - 1000)
        return b"".join(reader.read("weights", start, start + 1000)) == sealed[2][start : start + 1000]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))
    cached.close()
