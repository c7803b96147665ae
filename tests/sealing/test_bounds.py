"""Whatever can be sealed can be opened, up to the longest names, paths, targets and times that a file system takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.errors import InputError, UnsafePathError
from sandbox.sealing.bundle import open_bundle, seal
from sandbox.sealing.entries import MAX_MTIME_NS, MAX_PATH_BYTES, shown
from tests.sealing.trees import describe, names

PATH_MAX = 4096
NAME_MAX = 255
MAX_SECONDS = MAX_MTIME_NS // 10**9
_RAM = Path("/dev/shm")
"""Where time stamps go furthest, and nothing waits for a disk."""


def cut(unit: bytes, length: int) -> bytes:
    """Return ``unit`` again and again, cut at ``length`` bytes, in the middle of a character too."""
    return (unit * length)[:length]


UNITS = st.sampled_from([b"x", "é".encode(), "文".encode(), "😀".encode(), b"\xff", b"\x01", b'"\\', b" \n"])
NAMES = st.builds(cut, UNITS, st.integers(1, NAME_MAX))
PATHS = st.lists(NAMES, min_size=1, max_size=24)
TARGETS = st.builds(cut, st.one_of(UNITS, st.builds(lambda unit, length: cut(unit, length) + b"/", UNITS, st.integers(1, NAME_MAX))),
                    st.integers(1, PATH_MAX - 1))  # fmt: skip
SECONDS = st.integers(-(10**13), 10**13)


@contextmanager
def workplace() -> Iterator[Path]:
    with TemporaryDirectory(prefix="sealrig-", dir=_RAM if os.access(_RAM, os.W_OK) else None) as name:
        (Path(name) / "src").mkdir()
        yield Path(name)


def make(folder: Path, parts: list[bytes], target: bytes, seconds: int) -> bytes:
    """Make a symlink, or without a target a file, below folders, one by one, for the whole path may be longer than any call takes."""
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            os.mkdir(part, dir_fd=here)
            there = os.open(part, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here = there
        if target:
            os.symlink(target, parts[-1], dir_fd=here)
        else:
            os.close(os.open(parts[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=here))
        os.utime(parts[-1], (0, seconds), dir_fd=here, follow_symlinks=False)
    finally:
        os.close(here)
    return b"/".join(parts)


def names_it(error: InputError | UnsafePathError, path: bytes) -> bool:
    """Say whether an error names a path, or the beginning of one that is too long."""
    beginning = shown(path[:200])
    return any(name in error.message for name in (shown(path), beginning, repr(beginning)))


LONGEST = [b"n" * NAME_MAX] * 14 + [b"n" * (MAX_PATH_BYTES - 14 * (NAME_MAX + 1))]


EDGES = [
    ([b"link"], b"t" * MAX_PATH_BYTES, 0, True),
    ([b"link"], b"t" * (MAX_PATH_BYTES + 1), 0, False),
    ([b"link"], b"t/" * (PATH_MAX // 2 - 1), 0, False),
    ([b"link"], "é".encode() * (PATH_MAX // 2 - 1), 0, False),
    (LONGEST, b"", 0, True),
    (LONGEST, b"t" * MAX_PATH_BYTES, 0, True),
    ([*LONGEST[:-1], LONGEST[-1] + b"n"], b"", 0, False),
    ([b"x" * NAME_MAX] * 17, b"", 0, False),
    ([b"file"], b"", MAX_SECONDS, True),
    ([b"file"], b"", MAX_SECONDS + 1, False),
    ([b"file"], b"", -MAX_SECONDS, True),
    ([b"file"], b"", -MAX_SECONDS - 1, False),
    ([b"file"], b"", 2**63 // 10**9 + 1, True),
    ([b"link"], b"t", -(2**63) // 10**9 - 1, True),
]


@pytest.mark.skipif(not os.access(_RAM, os.W_OK), reason="other file systems keep fewer times")
@pytest.mark.parametrize(("parts", "target", "seconds", "kept"), EDGES)
def test_what_is_too_long_or_too_far_away_is_refused_by_name_and_left_out_if_lenient(alice, parts, target, seconds, kept):
    with workplace() as place:
        path = make(place / "src", parts, target, seconds)
        sealed = {"recipients": [alice.public], "signer": alice.signing_key}
        if not kept:
            with pytest.raises((InputError, UnsafePathError)) as refused:
                seal([place / "src"], place / "b", **sealed)
            assert names_it(refused.value, path)
            assert names(place) == ["src"]
        skipped = seal([place / "src"], place / "b", lenient=True, **sealed).skipped
        assert [name for name in skipped if shown(path).startswith(name)] == list(skipped)
        assert bool(skipped) is not kept
        open_bundle(place / "b", place / "out", key=alice)


@settings(max_examples=30)
@given(PATHS, st.one_of(st.just(b""), TARGETS), SECONDS)
def test_what_seals_opens(alice, parts, target, seconds):
    with workplace() as place:
        path = make(place / "src", parts, target, seconds)
        try:
            seal([place / "src"], place / "b", recipients=[alice.public], signer=alice.signing_key)
        except (InputError, UnsafePathError) as error:
            assert names_it(error, path)  # noqa: PT017  (the other way is no failure)
        else:
            open_bundle(place / "b", place / "out", key=alice)
            assert describe(place / "out") == describe(place / "src")
