"""What is sealed: how much of it, under which names, and what is said when it cannot be read or changes meanwhile."""

from __future__ import annotations

import errno
import os
import time
from types import SimpleNamespace

import pytest

from sandbox.errors import InputError, LimitError
from sandbox.sealing import scan, source, writer
from sandbox.sealing.bundle import Limits, open_bundle, seal
from sandbox.sealing.format import MAX_PAYLOAD_BYTES
from sandbox.sealing.spool import Spool
from tests.sealing.trees import names

TICK = 0.02
"""Seconds: longer than the kernel's clock for dates stands still."""


def test_what_can_be_sealed_can_be_opened(tmp_path, monkeypatch, alice):
    assert Limits() == Limits(files=scan.MAX_ENTRIES, bytes=MAX_PAYLOAD_BYTES)
    (tmp_path / "src").mkdir()
    for number in range(4):
        (tmp_path / "src" / str(number)).touch()
    monkeypatch.setattr(scan, "MAX_ENTRIES", 4)
    seal([tmp_path / "src"], tmp_path / "b", recipients=[alice.public], signer=alice.signing_key)
    open_bundle(tmp_path / "b", tmp_path / "out", key=alice, limits=Limits(files=4))
    (tmp_path / "src" / "one more").touch()
    with pytest.raises(LimitError, match="too many"):
        seal([tmp_path / "src"], tmp_path / "c", recipients=[alice.public], signer=alice.signing_key)


@pytest.mark.parametrize("name", ["ü" * 120, "x" * 255])
def test_a_bundle_may_have_any_name_that_the_file_system_takes(tmp_path, alice, name):
    (tmp_path / "f").write_bytes(b"x")
    seal([tmp_path / "f"], tmp_path / name, recipients=[alice.public], signer=alice.signing_key)
    assert names(tmp_path) == sorted(["f", name])


def test_a_name_that_is_too_long_is_told_before_anything_is_read(tmp_path, alice):
    (tmp_path / "f").write_bytes(b"x")
    read = []
    with pytest.raises(InputError, match="name too long"):
        seal(
            [tmp_path / "f"],
            tmp_path / ("ü" * 128),
            recipients=[alice.public],
            signer=alice.signing_key,
            progress=lambda *_: read.append(1),
        )
    assert read == []
    assert names(tmp_path) == ["f"]


class Os:
    """The module ``os`` with another function in it."""

    def __init__(self, name, function):
        self._name, self._function = name, function

    def __getattr__(self, name):
        return self._function if name == self._name else getattr(os, name)


def _failing(number):
    def fail(*_args, **_named):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("call", "number", "said"),
    [
        ("readv", errno.EIO, "f cannot be read: Input/output error"),
        ("fstat", errno.ESTALE, "f cannot be read: Stale file handle"),
        ("open", errno.EACCES, "f cannot be read: Permission denied"),
        ("open", errno.EMFILE, "f cannot be read: Too many open files"),
        ("open", errno.ENOENT, "f changed while it was sealed"),
        ("open", errno.ELOOP, "f changed while it was sealed"),
    ],
)
def test_a_source_that_cannot_be_read_is_named_and_not_the_disk_that_is_written(tmp_path, monkeypatch, alice, call, number, said):  # noqa: PLR0917
    (tmp_path / "f").write_bytes(b"x" * 3000)
    monkeypatch.setattr(writer, "os", Os(call, _failing(number)))
    with pytest.raises(InputError, match=said) as caught:
        seal([tmp_path / "f"], tmp_path / "b", recipients=[alice.public], signer=alice.signing_key)
    assert caught.value.details["rule"] in {"source", "source-changed"}
    assert names(tmp_path) == ["f"]


def test_a_source_folder_that_went_away_is_named(tmp_path, alice):
    source_folder = tmp_path / "src"
    source_folder.mkdir()
    (source_folder / "f").write_bytes(b"x")
    with pytest.raises(InputError, match="src changed while it was sealed"):
        seal([source_folder], tmp_path / "b", recipients=[alice.public], signer=alice.signing_key,
             progress=lambda *_: source_folder.rename(tmp_path / "elsewhere"))  # fmt: skip
    assert names(tmp_path) == ["elsewhere"]


@pytest.mark.parametrize("call", ["pread", "preadv"])
def test_a_bundle_that_cannot_be_read_is_named_and_not_the_disk_that_is_written(tmp_path, monkeypatch, alice, call):
    (tmp_path / "f").write_bytes(b"x" * 3000)
    seal([tmp_path / "f"], tmp_path / "b", recipients=[alice.public], signer=alice.signing_key)
    monkeypatch.setattr(source, "os", Os(call, _failing(errno.EIO)))
    with pytest.raises(InputError, match="b cannot be read: Input/output error") as caught:
        open_bundle(tmp_path / "b", tmp_path / "out", key=alice)
    assert caught.value.details["rule"] == "bundle-file"
    assert names(tmp_path) == ["b", "f"]


@pytest.fixture
def told(monkeypatch):
    """Whether sealing waited, and when it opened a source."""
    found = []

    def opened(place, flags, *rest, **named):
        found.append("read")
        return os.open(place, flags, *rest, **named)

    monkeypatch.setattr(writer, "os", Os("open", opened))
    monkeypatch.setattr(scan.time, "sleep", lambda _seconds: found.append("wait"))
    return found


def test_what_was_just_written_is_read_when_a_further_change_would_be_dated_later(tmp_path, monkeypatch, alice, told):
    (tmp_path / "f").write_bytes(b"x")
    monkeypatch.setattr(scan.time, "time_ns", lambda: (tmp_path / "f").stat().st_ctime_ns)
    seal([tmp_path / "f"], tmp_path / "b", recipients=[alice.public], signer=alice.signing_key)
    assert told == ["wait", "read"]


def test_a_folder_in_which_a_name_was_just_made_counts_too(tmp_path, monkeypatch, alice, told):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "f").write_bytes(b"x")
    before = time.time()
    while (tmp_path / "src").stat().st_ctime < before + 2 * TICK:
        (tmp_path / "src").chmod(0o700)
    monkeypatch.setattr(scan.time, "time_ns", lambda: (tmp_path / "src").stat().st_ctime_ns)
    seal([tmp_path / "src"], tmp_path / "b", recipients=[alice.public], signer=alice.signing_key)
    assert told == ["wait", "read"]


@pytest.mark.parametrize(("now", "slept"), [(0, [TICK]), (10**9, []), (-(10**9), [TICK]), (15 * 10**6, [0.005])])
def test_sealing_waits_for_the_next_tick_at_most_and_not_at_all_for_what_is_old(tmp_path, monkeypatch, now, slept):
    """A clock that was set back must not make it wait for the time to come."""
    (tmp_path / "f").write_bytes(b"x")
    with Spool(tmp_path) as spool:
        found = scan.scan([tmp_path / "f"], spool)
    waits = []
    monkeypatch.setattr(scan.time, "time_ns", lambda: found.newest_ns + now)
    monkeypatch.setattr(scan.time, "sleep", waits.append)
    scan.settle(found)
    assert waits == pytest.approx(slept)


@pytest.mark.parametrize("seconds", [9_300_000_000, 15_032_385_535, -2_000_000_000])
def test_files_may_be_dated_centuries_away(tmp_path, alice, seconds):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "f").write_bytes(b"x")
    for place in (tmp_path / "src" / "f", tmp_path / "src"):
        os.utime(place, (seconds, seconds))
    kept = (tmp_path / "src" / "f").stat().st_mtime_ns  # a file system with fewer years keeps the nearest
    seal([tmp_path / "src"], tmp_path / "b", recipients=[alice.public], signer=alice.signing_key)
    open_bundle(tmp_path / "b", tmp_path / "out", key=alice)
    assert (tmp_path / "out" / "f").stat().st_mtime_ns == kept


@pytest.mark.parametrize("seconds", [10**12, -(10**12)])
def test_a_time_that_no_index_can_hold_is_refused_by_name(tmp_path, monkeypatch, alice, seconds):
    (tmp_path / "f").write_bytes(b"x")
    lstat = os.lstat

    def dated(place):
        found = lstat(place)
        kept = {name: getattr(found, name) for name in dir(found) if name.startswith("st_")}
        return SimpleNamespace(**kept | {"st_mtime_ns": seconds * 10**9})

    monkeypatch.setattr(scan, "os", Os("lstat", dated))
    with pytest.raises(InputError, match="f has a time that no bundle can hold"):
        seal([tmp_path / "f"], tmp_path / "b", recipients=[alice.public], signer=alice.signing_key)
    assert names(tmp_path) == ["f"]
