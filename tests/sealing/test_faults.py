"""A failure at any system call that writes leaves everything as before, and says what it was."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from sandbox.errors import InputError
from sandbox.sealing import opener, output, staging, unpack
from sandbox.sealing.bundle import open_bundle, seal
from tests.sealing.trees import make_tree, names


@pytest.fixture
def place(tmp_path):
    (tmp_path / "src").mkdir()
    make_tree(tmp_path / "src")
    return tmp_path


def _failing(monkeypatch, modules, name, at):
    """Make the ``at``-th call of ``os.name``, as ``modules`` see it, fail for want of room. Returns the count of calls."""
    calls = []
    true = getattr(os, name)

    def call(*args, **kwargs):
        calls.append(name)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return true(*args, **kwargs)

    class Os:
        def __getattr__(self, other):
            return call if other == name else getattr(os, other)

    for module in modules:
        monkeypatch.setattr(module, "os", Os())
    return calls


@pytest.mark.parametrize("name", ["open", "pwrite", "posix_fadvise", "fsync", "link", "fstatvfs"])
def test_sealing_onto_a_full_disk_leaves_nothing(place, monkeypatch, alice, name):
    for at in range(1, 60):
        with monkeypatch.context() as patch:
            calls = _failing(patch, [output], name, at)
            try:
                seal([place / "src"], place / "b", recipients=[alice.public], signer=alice.signing_key)
            except InputError as error:
                assert "No space left" in error.message  # noqa: PT017  (all calls are walked until one is not reached)
            else:
                assert len(calls) < at
                (place / "b").unlink()
                break
        assert names(place) == ["src"], (name, at)


@pytest.mark.parametrize("name", ["open", "pwrite", "mkdir", "symlink", "link", "utime", "fchmod", "ftruncate", "fstatvfs", "rename"])
def test_opening_onto_a_full_disk_leaves_nothing(place, monkeypatch, alice, name):
    seal([place / "src"], place / "b", recipients=[alice.public], signer=alice.signing_key)
    for inside in (False, True):
        dest = place / ("inside" if inside else "new")
        if inside:
            dest.mkdir()
        before = names(place)
        for at in range(1, 200):
            with monkeypatch.context() as patch:
                calls = _failing(patch, [opener, staging, unpack], name, at)
                try:
                    open_bundle(place / "b", dest, key=alice)
                except InputError as error:
                    assert "No space left" in error.message  # noqa: PT017  (all calls are walked until one is not reached)
                else:
                    assert len(calls) < at
                    break
            assert names(place) == before, (name, at)
            if inside:
                assert names(dest) == []


def test_a_small_disk_is_noticed_before_anything_is_written(place, monkeypatch, alice):
    full = os.statvfs_result((4096, 4096, 10, 1, 1, 10, 10, 10, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda fd: full)
    with pytest.raises(InputError, match="No space left"):
        seal([place / "src"], place / "b", recipients=[alice.public], signer=alice.signing_key)
    assert names(place) == ["src"]


def test_memory_stays_bounded_whatever_the_size(tmp_path):
    script = """
import sys
from pathlib import Path
from sandbox.sealing.bundle import open_bundle, seal
from sandbox.sealing.keys import Identity
root = Path(sys.argv[1])
(root / "src").mkdir()
with (root / "src" / "big").open("wb") as file:
    file.truncate(300 * 1024 * 1024)
for number in range(5000):
    (root / "src" / f"{number:05d}").write_bytes(b"x" * (number % 300))
who = Identity.generate()
seal([root / "src"], root / "b", recipients=[who.public], signer=who.signing_key)
open_bundle(root / "b", root / "out", key=who)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 64 * 1024
