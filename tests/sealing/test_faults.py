"""A failure at any system call that writes leaves everything as before, and says what it was."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

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


def _failing_path(monkeypatch, name, at):
    """Make the ``at``-th call of ``Path.name`` fail for want of room. Returns the count of calls."""
    calls = []
    true = getattr(Path, name)

    def call(path, *args, **kwargs):
        calls.append(name)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return true(path, *args, **kwargs)

    monkeypatch.setattr(Path, name, call)
    return calls


def _failing_syncfs(monkeypatch, at):
    """Make the ``at``-th call of ``syncfs`` fail for want of room. Returns the count of calls."""
    calls = []

    class Libc:
        @staticmethod
        def syncfs(_fd):
            calls.append("syncfs")
            ctypes.set_errno(errno.ENOSPC)
            return -(len(calls) == at)

    monkeypatch.setattr(staging.ctypes, "CDLL", lambda *_args, **_named: Libc)
    return calls


OPENING = ["open", "pwrite", "mkdir", "symlink", "link", "utime", "fchmod", "ftruncate", "fstatvfs", "rename", "fsync", "syncfs",
           "Path.mkdir", "Path.rename", "Path.rmdir", "Path.chmod", "Path.iterdir"]  # fmt: skip
INSIDE_ONLY = {"rename", "Path.rmdir"}
OUTSIDE_ONLY = {"Path.rename", "Path.chmod"}


@pytest.mark.parametrize("name", OPENING)
def test_opening_onto_a_full_disk_leaves_nothing(place, monkeypatch, alice, name):
    seal([place / "src"], place / "b", recipients=[alice.public], signer=alice.signing_key)
    for inside in (False, True):
        dest = place / ("inside" if inside else "new")
        if inside:
            dest.mkdir()
        before = names(place)
        for at in range(1, 200):
            with monkeypatch.context() as patch:
                if name == "syncfs":
                    calls = _failing_syncfs(patch, at)
                elif name.startswith("Path."):
                    calls = _failing_path(patch, name.removeprefix("Path."), at)
                else:
                    calls = _failing(patch, [opener, staging, unpack], name, at)
                try:
                    open_bundle(place / "b", dest, key=alice)
                except InputError as error:
                    assert "No space left" in error.message  # noqa: PT017  (all calls are walked until one is not reached)
                else:
                    assert len(calls) < at
                    assert at > 1 or name in (OUTSIDE_ONLY if inside else INSIDE_ONLY | {"Path.iterdir"})
                    break
            assert names(place) == before, (name, at)
            if inside:
                assert names(dest) == []


class ToldToEndError(BaseException):
    """What a signal raises: right behind a call that did what it should."""


def _ended_behind(monkeypatch, owner, name, at):
    """Make the ``at``-th call of ``name`` do its work and then end the command. Returns the count of calls."""
    calls = []
    true = getattr(owner, name)

    def call(*args, **kwargs):
        done = true(*args, **kwargs)
        calls.append(name)
        if len(calls) == at:
            raise ToldToEndError
        return done

    monkeypatch.setattr(owner, name, call)
    return calls


@pytest.mark.parametrize("name", ["open", "fstatvfs", "pwrite", "fsync", "link"])
def test_sealing_that_is_ended_behind_any_call_leaves_nothing(place, monkeypatch, alice, name):
    for at in range(1, 60):
        with monkeypatch.context() as patch:
            calls = _ended_behind(patch, os, name, at)
            try:
                seal([place / "src"], place / "b", recipients=[alice.public], signer=alice.signing_key)
            except ToldToEndError:
                pass
            else:
                assert 0 < len(calls) < at
                break
        assert names(place) == ["src"], (name, at)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", ["open", "pwrite", "mkdir", "link", "symlink", "rename", "fsync", "fstatvfs", "Path.rename", "Path.mkdir"])
def test_opening_that_is_ended_behind_any_call_leaves_nothing(place, monkeypatch, alice, name, inside):
    seal([place / "src"], place / "b", recipients=[alice.public], signer=alice.signing_key)
    if inside:
        (place / "out").mkdir()
    before = names(place)
    for at in range(1, 200):
        with monkeypatch.context() as patch:
            calls = _ended_behind(patch, Path if name.startswith("Path.") else os, name.removeprefix("Path."), at)
            try:
                open_bundle(place / "b", place / "out", key=alice)
            except ToldToEndError:
                pass
            else:
                assert len(calls) < at
                assert at > 1 or name == "Path.rename"
                break
        assert names(place) == before, (name, at)
        assert not inside or names(place / "out") == []


def test_an_end_in_the_middle_of_removing_removes_the_rest(place, monkeypatch, alice):
    seal([place / "src"], place / "b", recipients=[alice.public], signer=alice.signing_key)
    monkeypatch.setattr(staging, "_sync_contents", _no_room)
    for at in range(1, 100):
        with monkeypatch.context() as patch:
            calls = _ended_behind(patch, os, "unlink", at)
            with pytest.raises((ToldToEndError, InputError)):
                open_bundle(place / "b", place / "out", key=alice)
        assert names(place) == ["b", "src"]
        if len(calls) < at:
            break
    assert at > 1


def _no_room(*_args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_folders_deeper_than_a_stack_of_calls_are_removed_too(tmp_path):
    ram = Path("/dev/shm")
    with TemporaryDirectory(prefix="sealrig-test-", dir=ram if os.access(ram, os.W_OK) else tmp_path) as place:

        def fill(staged):
            here = os.dup(staged.fd)
            for _ in range(sys.getrecursionlimit() + 50):
                os.mkdir("d", dir_fd=here)
                there = os.open("d", os.O_RDONLY, dir_fd=here)
                os.close(here)
                here = there
            os.close(os.open("secret", os.O_WRONLY | os.O_CREAT, dir_fd=here))
            os.fchmod(here, 0)
            os.close(here)
            raise ToldToEndError

        with pytest.raises(ToldToEndError), staging.Staging(Path(place) / "out") as staged:
            fill(staged)
        assert names(Path(place)) == []


@pytest.mark.parametrize("inside", [False, True])
def test_a_limit_on_the_size_of_files_is_an_error_like_a_full_disk(place, alice, inside):
    """``ulimit -f``, which a process cannot see beforehand: the system takes a part of a write and refuses the next."""
    (place / "src" / "random").write_bytes(os.urandom(3 * 2**20))
    seal([place / "src"], place / "b", recipients=[alice.public], signer=alice.signing_key)
    alice.save(place / "key")
    (place / "out").mkdir()
    before = names(place)
    script = """
import resource, sys
from pathlib import Path
from sandbox.errors import InputError
from sandbox.sealing.bundle import open_bundle, seal
from sandbox.sealing.keys import Identity
root, dest = Path(sys.argv[1]), sys.argv[2]
who = Identity.load(root / "key")
resource.setrlimit(resource.RLIMIT_FSIZE, (2 * 2**20 + 100, resource.RLIM_INFINITY))
for work in (
    lambda: seal([root / "src"], root / "again", recipients=[who.public], signer=who.signing_key),
    lambda: open_bundle(root / "b", root / dest, key=who),
):
    try:
        work()
    except InputError as error:
        print(error.details["rule"], error.message)
"""
    words = [sys.executable, "-c", script, str(place), "out" if inside else "new"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert [line.rpartition(": ")[2] for line in done.stdout.splitlines()] == [os.strerror(errno.EFBIG)] * 2
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["disk"] * 2
    assert names(place) == before
    assert names(place / "out") == []


def _told(monkeypatch, told, owner, name, text):
    real = getattr(owner, name)

    def call(*args, **kwargs):
        told.append(text(*args))
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)


def _file(fd):
    path = Path(f"/proc/self/fd/{fd}").readlink()
    return "staging" if path.name.endswith(".part") else path.name


def test_a_sealed_file_is_durable_before_it_has_its_name_and_the_name_before_it_is_told(place, monkeypatch, alice):
    told = []
    _told(monkeypatch, told, os, "fsync", lambda fd: f"sync {_file(fd)}")
    _told(monkeypatch, told, os, "link", lambda _old, new: f"name {Path(new).name}")
    seal([place / "src"], place / "b", recipients=[alice.public], signer=alice.signing_key)
    assert told == ["sync staging", "name b", f"sync {place.name}"]


def test_a_file_system_without_hard_links_takes_a_bundle_too_and_keeps_nothing_of_a_failure(place, monkeypatch, alice):
    def refuse(*_args):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with monkeypatch.context() as patch:
        _failing_path(patch, "rename", 1)
        with pytest.raises(InputError, match="No space left"):
            seal([place / "src"], place / "b", recipients=[alice.public], signer=alice.signing_key)
    assert names(place) == ["src"]
    seal([place / "src"], place / "b", recipients=[alice.public], signer=alice.signing_key)
    assert names(place) == ["b", "src"]


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("durable", [True, False])
def test_opened_files_are_durable_before_they_have_their_names(place, monkeypatch, alice, inside, durable):
    seal([place / "src"], place / "b", recipients=[alice.public], signer=alice.signing_key)
    dest = place / "out"
    if inside:
        dest.mkdir()
    told = []
    libc = ctypes.CDLL(None)

    class Libc:
        @staticmethod
        def syncfs(fd):
            told.append(f"sync all of {_file(fd)}")
            return libc.syncfs(fd)

    monkeypatch.setattr(staging.ctypes, "CDLL", lambda *_args, **_named: Libc)
    _told(monkeypatch, told, os, "fsync", lambda fd: f"sync {_file(fd)}")
    _told(monkeypatch, told, os, "rename", lambda _old, new: f"name {Path(new).name}")
    open_bundle(place / "b", dest, key=alice, durable=durable)
    named = [f"name {name}" for name in names(dest)] if inside else ["name out"]
    assert told == (["sync all of staging", *named, f"sync {dest.name if inside else place.name}"] if durable else named)


def test_where_there_is_no_call_for_one_file_system_all_are_made_durable(place, monkeypatch, alice):
    seal([place / "src"], place / "b", recipients=[alice.public], signer=alice.signing_key)
    told = []
    monkeypatch.setattr(staging.ctypes, "CDLL", lambda *_args, **_named: object())
    monkeypatch.setattr(os, "sync", lambda: told.append("sync"))
    open_bundle(place / "b", place / "out", key=alice)
    assert told == ["sync"]


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
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 * 1024
