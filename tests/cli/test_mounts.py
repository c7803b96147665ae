from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.patience import eventually
from tests.rig import Person, run

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="needs /dev/fuse")


@pytest.fixture
def person(tmp_path):
    person = Person(tmp_path / "home", "http://127.0.0.1:1")
    person.run("key", "new", person.key).ok()
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "weights.bin").write_bytes(os.urandom(3_000_000))
    person.run("seal", tmp_path / "src", "-o", tmp_path / "x.sealed").ok()
    (tmp_path / "mnt").mkdir()
    return person


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_mount_shows_the_files_until_it_is_ended(person, tmp_path, number):
    if signal.getsignal(number) is signal.SIG_IGN and number == signal.SIGHUP:
        pytest.skip("whoever runs the tests ignores SIGHUP, and what they start does, too")
    mounting = person.spawn("mount", "mount", tmp_path / "x.sealed", tmp_path / "mnt", "--json")
    try:
        _wait_for_view(mounting, tmp_path)
        assert (tmp_path / "mnt" / "weights.bin").read_bytes() == (tmp_path / "src" / "weights.bin").read_bytes()
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "mnt" / "new").write_bytes(b"x")
    finally:
        code = mounting.stop(number)
    assert code == 0, mounting.text()
    assert str(tmp_path / "mnt") not in Path("/proc/self/mountinfo").read_text()
    assert list((tmp_path / "mnt").iterdir()) == []


def _started(person, tmp_path):
    mounting = person.spawn("mount", "mount", tmp_path / "x.sealed", tmp_path / "mnt")
    _wait_for_view(mounting, tmp_path)
    return mounting


def _wait_for_view(mounting, tmp_path):
    eventually(lambda: (tmp_path / "mnt" / "weights.bin").exists() or not mounting.running)
    assert mounting.running, mounting.text()


def _viewers(mounting):
    found = subprocess.run(["ps", "--ppid", str(mounting.process.pid), "-o", "pid="], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid in found.split()]


def test_a_view_that_ends_by_itself_is_a_failure_and_is_unmounted(person, tmp_path):
    mounting = _started(person, tmp_path)
    try:
        for viewer in _viewers(mounting):
            os.kill(viewer, signal.SIGKILL)
        assert mounting.process.wait(60) == 1, mounting.text()
    finally:
        mounting.stop()
    assert "SIGKILL" in mounting.text()
    assert str(tmp_path / "mnt") not in Path("/proc/self/mountinfo").read_text()


def test_a_read_that_fails_just_before_the_end_is_told(person, tmp_path):
    raw = bytearray((tmp_path / "x.sealed").read_bytes())
    raw[2_500_000] ^= 1
    (tmp_path / "x.sealed").write_bytes(raw)
    mounting = _started(person, tmp_path)
    try:
        with pytest.raises(OSError, match="Input/output error"):
            (tmp_path / "mnt" / "weights.bin").read_bytes()
    finally:
        code = mounting.stop(signal.SIGINT)
    assert code == 0, mounting.text()
    assert mounting.text().count("weights.bin: segment 2 does not verify") == 1


def test_a_view_that_somebody_unmounts_is_no_failure(person, tmp_path):
    mounting = _started(person, tmp_path)
    try:
        tool = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
        subprocess.run([*tool, str(tmp_path / "mnt")], check=True)
        assert mounting.process.wait(60) == 0, mounting.text()
    finally:
        mounting.stop()


def test_a_folder_with_something_in_it_and_another_identity_are_refused(person, tmp_path):
    full = person.run("mount", tmp_path / "x.sealed", tmp_path / "src", "--json")
    assert (full.code, full.error["details"]["rule"]) == (1, "mount-folder")
    run("key", "new", tmp_path / "other").ok()
    foreign = person.run("mount", tmp_path / "x.sealed", tmp_path / "mnt", "--key", tmp_path / "other", "--json")
    assert (foreign.code, foreign.error["code"]) == (1, "wrong-key")


def test_without_the_extra_one_sentence_names_it(person, tmp_path, monkeypatch):
    monkeypatch.setattr("sandbox.cli.mounts.find_spec", lambda _name: None)
    result = person.run("mount", tmp_path / "x.sealed", tmp_path / "mnt")
    assert result.code == 1
    assert "pip install 'sealrig[mount]'" in result.err


def test_the_key_is_not_in_any_command_line(person, tmp_path):
    mounting = person.spawn("mount", "mount", tmp_path / "x.sealed", tmp_path / "mnt")
    try:
        _wait_for_view(mounting, tmp_path)
        found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert [line for line in found.splitlines() if "sealing.viewer" in line and len(line.split()) > 4] == []
    finally:
        mounting.stop()
