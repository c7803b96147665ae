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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox.errors import InputError
from sandbox.sealing.bundle import data_key, read_header, seal
from sandbox.sealing.keys import DataKey
from sandbox.sealing.mount import Mount, is_mounted
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
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=f"mounting needs {', '.join(MISSING)}"), pytest.mark.timeout(60)]


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


def test_many_readers_at_once(sealed, mounted):
    want = (sealed / "src" / "weights").read_bytes()
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: (mounted.folder / "weights").read_bytes() == want, range(16)))


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
