"""Inputs opened into scratch: which failure is the bundle's size, and which is not."""

from __future__ import annotations

import errno
import os
import random

import pytest

from sandbox.errors import InputError, LimitError
from sandbox.lifecycle import Outcome
from sandbox.node import inputs
from sandbox.node.inbox import Ended
from sandbox.sealing import opener, source, staging, unpack
from sandbox.sealing.bundle import Limits, data_key, read_header, seal
from sandbox.sealing.keys import Identity

BUDGET = 10**6


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    root, me = tmp_path_factory.mktemp("sealed"), Identity.generate()
    (root / "src").mkdir()
    for number in range(3):
        (root / "src" / str(number)).write_bytes(random.Random(number).randbytes(1000))
    done = seal([root / "src"], root / "b", recipients=[me.public], signer=me.signing_key)
    (root / "cache").mkdir()
    (root / "b").rename(inputs.cached(root / "cache", done.digest))
    key = data_key(read_header(inputs.cached(root / "cache", done.digest).read_bytes()), me)
    return root / "cache", done.digest, key


@pytest.fixture
def open_input(sealed, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "hand_over", lambda _folder: None)
    cache, digest, key = sealed
    return lambda budget=BUDGET: inputs.open_input(cache, tmp_path / "input", digest, key, budget=budget)


def _failing(monkeypatch, module, name, number):
    def fail(*_args, **_named):
        raise OSError(number, os.strerror(number))

    class Os:
        def __getattr__(self, other):
            return fail if other == name else getattr(os, other)

    monkeypatch.setattr(module, "os", Os())


def test_an_input_stands_in_its_folder_and_nothing_is_synced_to_a_scratch_that_goes_with_the_power(open_input, tmp_path, monkeypatch):
    monkeypatch.setattr(staging.ctypes, "CDLL", None)
    open_input()
    assert sorted(path.name for path in (tmp_path / "input").iterdir()) == ["0", "1", "2"]


def test_what_does_not_fit_is_the_limit_of_the_disk(open_input):
    with pytest.raises(Ended) as ended:
        open_input(budget=2999)
    assert (ended.value.verdict.outcome, ended.value.verdict.limit) == (Outcome.DISK_LIMIT, "scratch")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_scratch_that_fills_up_is_the_limit_of_the_disk(open_input, monkeypatch, number):
    _failing(monkeypatch, unpack, "pwrite", number)
    with pytest.raises(Ended) as ended:
        open_input()
    assert (ended.value.verdict.outcome, ended.value.verdict.limit) == (Outcome.DISK_LIMIT, "scratch")


def test_a_scratch_without_room_at_the_start_is_the_limit_of_the_disk(open_input, monkeypatch):
    full = os.statvfs_result((4096, 4096, 10, 0, 0, 10, 10, 10, 0, 255))

    class Os:
        def __getattr__(self, other):
            return (lambda _fd: full) if other == "fstatvfs" else getattr(os, other)

    monkeypatch.setattr(opener, "os", Os())
    with pytest.raises(Ended) as ended:
        open_input()
    assert ended.value.verdict.outcome is Outcome.DISK_LIMIT


def test_a_failing_disk_is_not_called_a_full_one(open_input, monkeypatch):
    _failing(monkeypatch, unpack, "pwrite", errno.EIO)
    with pytest.raises(InputError, match="cannot be written: Input/output error"):
        open_input()


def test_a_cache_that_cannot_be_read_is_not_called_a_full_scratch(open_input, monkeypatch):
    _failing(monkeypatch, source, "preadv", errno.EIO)
    with pytest.raises(InputError, match="cannot be read: Input/output error"):
        open_input()


def test_too_many_files_are_called_that(open_input, monkeypatch):
    monkeypatch.setattr(inputs, "Limits", lambda **bounds: Limits(files=2, **bounds))
    with pytest.raises(LimitError, match="too many files"):
        open_input()
