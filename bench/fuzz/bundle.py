"""Fuzz the bundle format: ``python -m bench.fuzz.bundle [--seconds 60] [--seed N] [--case N [--save FILE]]``.

Two of three cases are damaged inside: one layer (an entry, a line, the tar, the document, the envelope) is altered before what is above it
is signed and encrypted, so that the parsers inside are reached. Some of these are sound after all, hence two readers judge each: Sealrig's
and the second implementation, which was written from ``docs/format.md``. They must agree, and what opens must be what the index says.
The third is the golden bundle damaged from outside: each bit flipped once, in random order, then cuts, splices and fillings; it must be
refused. Refusing is a ``BundleError``, or a ``LimitError`` for sizes that no reader would take; anything else, a case over two seconds of
processor time, or 256 MiB more memory, ends the run with exit code 1. A case follows from the seed and its number alone: it is printed with
both, and ``--case`` repeats it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attestation.signing import b64decode, b64encode
from bench.fuzz.sealer import Signed, mad_bundle
from bench.fuzz.twist import twist
from sandbox.errors import BundleError, LimitError
from sandbox.sealing.bundle import BundleReader, RangeSource, open_bundle, read_header
from sandbox.sealing.keys import DataKey, Identity
from tests.sealing import second

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "sealing" / "vectors" / "v1.json"
STRIDE = 1_000_003
"""Prime, so that going on by so many bits, round and round, meets each bit once."""
SLOW_SECONDS = 2.0
SHOWN_BYTES = 16 * 1024
MORE_MEMORY = 256 * 1024  # KiB, as getrusage counts


@dataclass(frozen=True)
class Case:
    """A bundle and a key for it; ``outside`` if it was damaged by somebody without the signer's key, so that it must be refused."""

    kind: str
    raw: bytes
    key: DataKey | Identity
    outside: bool = False


class Cases:
    """All cases of one seed."""

    def __init__(self, seed: int) -> None:
        vector = json.loads(GOLDEN.read_bytes())
        self._seed = seed
        self._golden = b64decode(vector["bundle"])
        self._secret = b64decode(vector["identity"])
        self._identity = Identity(self._secret)
        self._theirs = second.Identity(self._secret)
        self._bits = len(self._golden) * 8

    def flipped(self, cases: int) -> str:
        """Say how many bits the first ``cases`` cases flip."""
        return f"{min(-(-cases // 3), self._bits)} of {self._bits} bits of the golden bundle flipped"

    def case(self, number: int) -> Case:
        """Return one case."""
        dice = random.Random(f"{self._seed}:{number}")  # noqa: S311  (cases, not secrets)
        if number % 3 == 0:
            return Case("outside", self._damaged(dice, number // 3), self._identity, outside=True)
        if dice.random() < 0.1:
            return Case("signed anew", self._signed_anew(dice), self._identity)
        layer, raw, key = mad_bundle(dice)
        return Case(layer, raw, key)

    def other_key(self, key: DataKey | Identity) -> bytes | second.Identity:
        """Return a case's key as the second implementation takes it."""
        return key.raw if isinstance(key, DataKey) else self._theirs

    def _damaged(self, dice: random.Random, number: int) -> bytes:
        changed = bytearray(self._golden)
        if number < self._bits:
            bit = (self._seed + number * STRIDE) % self._bits
            changed[bit // 8] ^= 1 << bit % 8
        while changed == self._golden:
            start, at = dice.randrange(len(changed) + 1), dice.randrange(len(changed))
            length = dice.choice((1, 2, 16, 512, 4096))
            changed[start : start + dice.choice((0, length))] = dice.choice((b"", dice.randbytes(length), changed[at : at + length]))
            if dice.random() < 0.1:
                del changed[start:]
        return bytes(changed)

    def _signed_anew(self, dice: random.Random) -> bytes:
        """Return the golden bundle under an altered document that its sealer signed: the wrapped keys are reached."""
        header = read_header(self._golden)
        signed = Signed(twist(dice, header.document), self._identity.signing_key)
        return signed.header(dice, twisted=False) + self._golden[header.payload_offset :]


def read_all(raw: bytes, key: Identity | DataKey) -> None:
    """Read everything in a bundle. Raises ``BundleError`` if it is not whole and sound."""
    reader = BundleReader(RangeSource(len(raw), lambda start, end: raw[start:end]), key)
    reader.entries()
    for index in range(reader.payload.segments):
        reader.segment(index)


def judge(case: Case, theirs: bytes | second.Identity, folder: Path) -> str:
    """Return ``refused`` or ``accepted`` when that is right. Raises ``AssertionError`` or anything else when it is not."""
    began = time.process_time()
    accepted = _opens(case, folder)
    spent = time.process_time() - began
    assert spent < SLOW_SECONDS, f"took {spent:.1f} s"
    if case.outside:
        assert not accepted, "accepted"
        return "refused"
    opened, reason = _second(case.raw, theirs)
    assert accepted == (opened is not None), f"accepted: {accepted}; the second implementation says: {reason or 'accepted'}"
    if opened is None:
        return "refused"
    _compare(opened, folder)
    return "accepted"


def _opens(case: Case, folder: Path) -> bool:
    """Say whether Sealrig opens it."""
    try:
        read_all(case.raw, case.key)
        (folder / "bundle").write_bytes(case.raw)
        open_bundle(folder / "bundle", folder / "out", key=case.key)
    except (BundleError, LimitError):
        assert not (folder / "out").exists(), "refused, but something stands there"
        return False
    return True


def _second(raw: bytes, key: bytes | second.Identity) -> tuple[second.Opened | None, str]:
    """Return what the second implementation opens, or why it refuses."""
    try:
        return second.open_bundle(raw, key), ""
    except second.Refused as error:
        return None, str(error)


def _compare(opened: second.Opened, folder: Path) -> None:
    """Raise ``AssertionError`` unless what was opened is what the second implementation finds, and nothing else is there."""
    out = os.fsencode(folder / "out")
    found = {os.path.join(place, name)[len(out) + 1 :] for place, folders, files in os.walk(out) for name in folders + files}  # noqa: PTH118  (names are bytes)
    assert found == {entry.path for entry in opened.entries}, "other names"
    assert {path.name for path in folder.iterdir()} == {"bundle", "out"}, "something stands outside"
    for path, content in opened.contents.items():
        assert Path(os.fsdecode(out + b"/" + path)).read_bytes() == content, "other bytes"
    for entry in opened.entries:
        if entry.kind == "symlink":
            assert os.readlink(out + b"/" + entry.path) == entry.target, "another target"  # noqa: PTH115  (names are bytes)


def attempt(cases: Cases, number: int, seed: int) -> str:
    """Judge one case; an empty text, once it was printed, when it is a finding."""
    case = cases.case(number)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong = ""
    try:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:  # noqa: S108  (memory, not a disk)
            verdict = judge(case, cases.other_key(case.key), Path(folder))
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > memory + MORE_MEMORY:
            wrong = f"took more than {MORE_MEMORY // 1024} MiB"
    except Exception as error:  # noqa: BLE001  (what fuzzing looks for)
        wrong = f"{type(error).__name__}: {error}"
    if not wrong:
        return f"{case.kind} {verdict}"
    key = f"data key {b64encode(case.key.raw)}" if isinstance(case.key, DataKey) else "the golden identity"
    print(f"seed {seed}, case {number} ({case.kind}): {wrong}; {key}, {len(case.raw)} bytes", file=sys.stderr)
    if len(case.raw) <= SHOWN_BYTES:
        print(b64encode(case.raw), file=sys.stderr)
    print(f"again: python -m bench.fuzz.bundle --seed {seed} --case {number} --save FILE", file=sys.stderr)
    return ""


def fuzz(seed: int, running: Callable[[], bool]) -> int:
    """Judge cases from number 0 while ``running``; return the exit code."""
    cases, counts = Cases(seed), Counter[str]()
    while running():
        verdict = attempt(cases, counts.total(), seed)
        if not verdict:
            return 1
        counts[verdict] += 1
    print(f"{counts.total()} cases, {cases.flipped(counts.total())}, seed {seed}")
    print(", ".join(f"{verdict} {count}" for verdict, count in sorted(counts.items())))
    return 0


def main() -> int:
    """Run until the time is over, or one case; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench.fuzz.bundle")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--case", type=int)
    parser.add_argument("--save", type=Path)
    options = parser.parse_args()
    if options.case is not None:
        if options.save is not None:
            options.save.write_bytes(Cases(options.seed).case(options.case).raw)
        verdict = attempt(Cases(options.seed), options.case, options.seed)
        print(verdict)
        return int(not verdict)
    end = time.monotonic() + options.seconds
    return fuzz(options.seed, lambda: time.monotonic() < end)


if __name__ == "__main__":
    sys.exit(main())
