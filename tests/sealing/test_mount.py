"""The mounted view: what is sealed is what is seen, read-only, many readers at once; damage and death give errors, never a hang."""

from __future__ import annotations

import errno
import importlib.util
import mmap
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sandbox.errors import InputError, ServerError
from sandbox.sealing import mount as mounting
from sandbox.sealing.bundle import bundle_digest, data_key, read_header, seal
from sandbox.sealing.keys import DataKey
from sandbox.sealing.mount import READ_AHEAD_KIB, Mount, Remote, Spare
from sandbox.sealing.mountinfo import is_mounted
from tests.patience import LONG
from tests.sealing.ranged import TOKEN, serving
from tests.sealing.trees import describe, make_tree

MISSING = [
    what
    for what, there in (
        ("/dev/fuse", Path("/dev/fuse").exists()),
        ("the mfusepy package", importlib.util.find_spec("mfusepy") is not None),
        ("the right to mount (root)", os.geteuid() == 0),
        ("umount", shutil.which("umount") is not None),
    )
    if not there
]
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=f"mounting needs {', '.join(MISSING)}")]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory, alice):
    root = tmp_path_factory.mktemp("mount")
    (root / "src").mkdir()
    make_tree(root / "src")
    (root / "src" / "weights").write_bytes(os.urandom(9 * 1024 * 1024 + 17))
    seal([root / "src"], root / "b", recipients=[alice.public], signer=alice.signing_key)
    return root


@pytest.fixture
def key(sealed, alice):
    return data_key(read_header((sealed / "b").read_bytes()[:65536]), alice)


@pytest.fixture
def mounted(sealed, key, tmp_path):
    (tmp_path / "view").mkdir()
    with Mount.start(sealed / "b", tmp_path / "view", key) as mount:
        yield mount
    assert not is_mounted(tmp_path / "view")
    assert mount.process.returncode is not None


def test_the_view_is_the_tree(sealed, mounted):
    want = describe(sealed / "src")
    for name in ("a/text", "zz-hard-link"):  # a view has no hard links: each name is a file
        want[name] = want[name][:4]
    assert describe(mounted.folder) == want
    assert mounted.problems == []


def test_ranges_and_mmap(sealed, mounted):
    want = (sealed / "src" / "weights").read_bytes()
    with (mounted.folder / "weights").open("rb") as file:
        assert os.pread(file.fileno(), 100, 5_000_000) == want[5_000_000:5_000_100]
        assert os.pread(file.fileno(), 100, len(want) - 50) == want[-50:]
        assert os.pread(file.fileno(), 100, len(want) + 50) == b""
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            assert view[1_048_500:1_048_600] == want[1_048_500:1_048_600]


def test_the_kernel_reads_ahead_as_far_as_wanted_from_the_first_open_on(mounted):
    device = mounted.folder.stat().st_dev
    place = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    if not os.access(place, os.W_OK):
        pytest.skip("nobody may tell the kernel how far to read ahead where sysfs is read-only, as in most containers")
    assert int(place.read_text()) == READ_AHEAD_KIB


def test_a_view_is_there_also_where_the_kernel_cannot_be_told_how_far_to_read_ahead(sealed, key, tmp_path, monkeypatch):
    def refuse(*_args, **_named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    (tmp_path / "view").mkdir()
    monkeypatch.setattr(Path, "write_text", refuse)
    with Mount.start(sealed / "b", tmp_path / "view", key) as mount:
        assert (mount.folder / "weights").stat().st_size == (sealed / "src" / "weights").stat().st_size


def test_a_start_that_is_interrupted_leaves_neither_view_nor_process(sealed, key, tmp_path, monkeypatch):
    """At the last moment, when it is mounted already."""
    started = []

    def interrupt(_folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(mounting, "_widen_read_ahead", interrupt)
    monkeypatch.setattr(mounting, "_spawn", lambda spawn=mounting._spawn: started.append(spawn()) or started[0])
    (tmp_path / "view").mkdir()
    with pytest.raises(KeyboardInterrupt):
        Mount.start(sealed / "b", tmp_path / "view", key)
    assert not is_mounted(tmp_path / "view")
    assert started[0].returncode is not None


def test_many_readers_at_once(sealed, mounted):
    want = (sealed / "src" / "weights").read_bytes()
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: (mounted.folder / "weights").read_bytes() == want, range(16)))


LARGE = 56 * 2**20
"""More than the view keeps decrypted, and than the server's cache of ciphertext below."""


@pytest.fixture(scope="module")
def large(tmp_path_factory, alice):
    root = tmp_path_factory.mktemp("large")
    (root / "src").mkdir()
    block = os.urandom(2**20)
    (root / "src" / "data").write_bytes(b"".join(block[n:] + block[:n] for n in range(LARGE // 2**20)))
    seal([root / "src"], root / "b", recipients=[alice.public], signer=alice.signing_key)
    return root


def read_slowly(path, start):
    """Read on and on with small requests of odd sizes, as programs do; return a digest of it all."""
    state = blake3()
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while piece := file.read(300_007):
            state.update(piece)
        file.seek(0)
        while start > 0 and (piece := file.read(min(300_007, start))):
            state.update(piece)
            start -= len(piece)
    return state.hexdigest()


def test_many_readers_of_more_than_is_kept_see_what_was_sealed(large, alice, tmp_path):
    (tmp_path / "view").mkdir()
    key = data_key(read_header((large / "b").read_bytes()[:65536]), alice)
    starts = [n * LARGE // 6 for n in range(6)]
    with Mount.start(large / "b", tmp_path / "view", key) as mount, ThreadPoolExecutor(6) as pool:
        seen = list(pool.map(lambda start: read_slowly(tmp_path / "view" / "data", start), starts))
    assert seen == [read_slowly(large / "src" / "data", start) for start in starts]
    assert mount.problems == []


def test_readers_beside_each_other_do_not_cost_a_server_more_than_the_bundle(large, alice, tmp_path):
    raw = (large / "b").read_bytes()
    key = data_key(read_header(raw), alice)
    (tmp_path / "view").mkdir()
    with serving(raw, bundle_digest(large / "b")) as server:
        bundle = Remote(server.address, TOKEN, server.digest, tmp_path / "cache", 2**20, patience=5)
        with Mount.start(bundle, tmp_path / "view", key) as mount:
            files = [(mount.folder / "data").open("rb", buffering=0) for _ in range(2)]
            files[1].seek(LARGE // 2)
            want = [(large / "src" / "data").read_bytes()[n * LARGE // 2 : (n + 1) * LARGE // 2] for n in range(2)]
            for start in range(0, LARGE // 2, 2**20):
                assert [file.read(2**20) for file in files] == [part[start : start + 2**20] for part in want]
            for file in files:
                file.close()
        assert mount.problems == []
    spans = [span for span in server.asked if span[1] > 100]
    # At the seam the first reader is read ahead of into what the second has read already.
    assert sum(length for _, length in spans) < len(raw) + 20 * 2**20


def test_safetensors_maps_weights_in_a_view(alice, tmp_path):
    """As a job loads them: the library maps the file and touches only the tensors that are asked for."""
    source, view = tmp_path / "src", tmp_path / "view"
    source.mkdir()
    view.mkdir()
    weights = {f"layer.{n}": np.random.default_rng(n).standard_normal((512, 1024), dtype=np.float32) for n in range(24)}
    save_file(weights, source / "model.safetensors")
    seal([source], tmp_path / "b", recipients=[alice.public], signer=alice.signing_key)
    with Mount.start(tmp_path / "b", view, data_key(read_header((tmp_path / "b").read_bytes()[:65536]), alice)) as mount:
        with safe_open(view / "model.safetensors", framework="numpy") as found:
            assert set(found.keys()) == set(weights)
            assert np.array_equal(found.get_tensor("layer.17"), weights["layer.17"])
            assert np.array_equal(found.get_slice("layer.3")[100:200], weights["layer.3"][100:200])
        loaded = load_file(view / "model.safetensors")
        assert all(np.array_equal(loaded[name], want) for name, want in weights.items())
    assert mount.problems == []


def test_nothing_can_be_written(mounted):
    with pytest.raises(OSError) as caught:
        (mounted.folder / "a" / "text").write_text("x")
    assert caught.value.errno == errno.EROFS
    for action in (
        (mounted.folder / "new").touch,
        (mounted.folder / "a-b").unlink,
        lambda: (mounted.folder / "a-b").chmod(0),
    ):
        with pytest.raises(OSError):
            action()


def test_a_changed_segment_is_an_io_error_there_and_told_and_nowhere_else(sealed, key, tmp_path):
    raw = bytearray((sealed / "b").read_bytes())
    header = read_header(bytes(raw[:65536]))
    with (sealed / "src" / "weights").open("rb") as file:
        want = file.read()
    raw[header.index_offset - 6 * 1024 * 1024] ^= 1
    (tmp_path / "changed").write_bytes(raw)
    (tmp_path / "view").mkdir()
    with Mount.start(tmp_path / "changed", tmp_path / "view", key) as mount:
        weights = tmp_path / "view" / "weights"
        with pytest.raises(OSError) as caught:
            weights.read_bytes()
        assert caught.value.errno == errno.EIO
        with weights.open("rb") as file:
            assert os.pread(file.fileno(), 1000, len(want) - 1000) == want[-1000:]
    assert {problem["code"] for problem in mount.problems} == {"bundle-tampered"}
    assert mount.problems[0]["path"] == "/weights"


def test_a_killed_server_is_an_error_and_no_hang(sealed, key, tmp_path):
    (tmp_path / "view").mkdir()
    with Mount.start(sealed / "b", tmp_path / "view", key) as mount:
        mount.process.kill()
        mount.process.wait()
        with pytest.raises(OSError):
            (tmp_path / "view" / "weights").read_bytes()
    assert not is_mounted(tmp_path / "view")


def test_a_bundle_that_does_not_verify_is_not_mounted(sealed, key, tmp_path, bob):
    (tmp_path / "view").mkdir()
    for wrong, signers in ((DataKey.generate(), None), (key, [bob.signing_key.public])):
        with pytest.raises(InputError, match="cannot be mounted"):
            Mount.start(sealed / "b", tmp_path / "view", wrong, signers=signers)
        assert not is_mounted(tmp_path / "view")


@pytest.mark.parametrize(("ending", "why"), [("kill -KILL $$", "SIGKILL"), ("exit 3", "code 3"), ("read order; kill -SEGV $$", "SIGSEGV")])
def test_how_a_server_ended_that_gave_no_reason_is_told(sealed, key, monkeypatch, ending, why):
    program = sealed / "python"
    program.write_text(f"#!/bin/sh\n{ending}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(InputError, match=why):
        Mount.start(sealed / "b", sealed / "src", key)


def test_what_libfuse_refuses_after_the_bundle_was_found_good_is_told(sealed, key, tmp_path):
    with pytest.raises(InputError, match="cannot be mounted") as caught:
        Mount.start(sealed / "b", tmp_path / "missing", key)
    assert caught.value.details["seen"] == "RuntimeError"


def test_owner_and_other_users(sealed, key):
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        view = Path(name) / "view"
        view.mkdir()
        with Mount.start(sealed / "b", view, key, owner=(65532, 65532), allow_other=True):
            status = (view / "weights").stat()
            assert (status.st_uid, status.st_gid) == (65532, 65532)
            assert stat.S_ISREG(status.st_mode)
            done = subprocess.run(["head", "-c", "10", str(view / "weights")], user=65532, capture_output=True, check=True)
            assert done.stdout == (sealed / "src" / "weights").read_bytes()[:10]


# ---- a bundle that a server has


@pytest.fixture
def remote(sealed, key, tmp_path):
    raw = (sealed / "b").read_bytes()
    (tmp_path / "view").mkdir()
    with serving(raw, bundle_digest(sealed / "b")) as server:
        bundle = Remote(server.address, TOKEN, server.digest, tmp_path / "cache", 4 * 2**20, patience=1)
        with Mount.start(bundle, tmp_path / "view", key, header=read_header(raw[:65536]).digest) as mount:
            yield server, mount
    assert not is_mounted(tmp_path / "view")


def test_a_view_of_a_bundle_on_a_server_fetches_what_is_read(sealed, remote):
    server, mount = remote
    assert server.sent < 2 * 2**20
    assert (mount.folder / "a" / "text").read_bytes() == (sealed / "src" / "a" / "text").read_bytes()
    assert (mount.folder / "weights").read_bytes() == (sealed / "src" / "weights").read_bytes()
    assert (mount.folder.parent / "cache").stat().st_size <= 4 * 2**20
    assert mount.problems == []


def test_a_server_that_goes_away_is_an_io_error_and_reads_go_on_when_it_is_back(sealed, remote, monkeypatch):
    server, mount = remote
    server.stop()
    start = time.monotonic()
    with pytest.raises(OSError) as caught, (mount.folder / "weights").open("rb", buffering=0) as file:
        os.pread(file.fileno(), 10, 5_000_000)
    assert caught.value.errno == errno.EIO
    assert time.monotonic() - start < LONG
    server.start()
    assert (mount.folder / "weights").read_bytes() == (sealed / "src" / "weights").read_bytes()
    assert {problem["code"] for problem in mount.problems} == {"server-unreachable"}


def test_a_view_killed_in_mid_read_is_an_error_and_no_hang(remote):
    server, mount = remote
    server.gate.clear()
    asked = len(server.asked)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit((mount.folder / "weights").read_bytes)
        while not reading.running():
            time.sleep(0.01)
        time.sleep(0.3)
        assert (reading.done(), len(server.asked)) == (False, asked)
        mount.process.kill()
        with pytest.raises(OSError):
            reading.result(LONG)


def test_a_server_with_other_bytes_is_an_io_error_and_nothing_of_them_is_seen(sealed, remote):
    server, mount = remote
    server.trouble = "other bytes"
    with pytest.raises(OSError) as caught:
        (mount.folder / "weights").read_bytes()
    assert caught.value.errno == errno.EIO
    server.trouble = ""
    assert (mount.folder / "weights").read_bytes() == (sealed / "src" / "weights").read_bytes()
    assert {problem["code"] for problem in mount.problems} == {"bundle-tampered"}
    assert all(problem["segment"] >= 0 for problem in mount.problems)


def test_a_server_that_does_not_answer_at_the_start_is_told_apart_from_a_bad_bundle(sealed, key, tmp_path, monkeypatch):
    (tmp_path / "view").mkdir()
    raw = (sealed / "b").read_bytes()
    with serving(raw, bundle_digest(sealed / "b")) as server:
        bundle = Remote(server.address, TOKEN, server.digest, tmp_path / "cache", 2**20, patience=0.5)
        with pytest.raises(InputError, match="another bundle"):
            Mount.start(bundle, tmp_path / "view", key, header="sha256:" + "0" * 64)
        server.trouble = "404"
        with pytest.raises(InputError, match="no such bundle"):
            Mount.start(bundle, tmp_path / "view", key)
        server.trouble = "503"
        with pytest.raises(ServerError):
            Mount.start(bundle, tmp_path / "view", key)


def test_a_process_kept_waiting_shows_one_view_and_ends_with_its_owner(sealed, key, tmp_path):
    (tmp_path / "view").mkdir()
    spare = Spare()
    spare.prepare()
    waiting = spare._waiting
    spare.prepare()
    assert spare._waiting is waiting
    with Mount.start(sealed / "b", tmp_path / "view", key, spare=spare) as mount:
        assert mount.process is waiting
        assert (mount.folder / "a" / "text").exists()
    spare.prepare()
    waiting = spare._waiting
    waiting.stdin.close()
    assert waiting.wait(LONG) == 0
    waiting.stdout.close()
    with Mount.start(sealed / "b", tmp_path / "view", key, spare=spare) as mount:
        assert mount.process is not waiting
    spare.close()
