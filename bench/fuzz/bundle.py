"""Fuzz the bundle format: ``python -m bench.fuzz.bundle [--seconds 60] [--seed N]``.

Every bit of a small bundle is flipped once, in random order; then random cuts, splices and fillings. Each case must be refused by a
``BundleError``; anything else (another exception, or success) is printed with its seed and ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from sandbox.errors import BundleError
from sandbox.sealing.bundle import BundleReader, RangeSource, seal
from sandbox.sealing.keys import DataKey, Identity


def _bundle(folder: Path, who: Identity, number: int) -> bytes:
    source = folder / f"source{number}"
    (source / "folder").mkdir(parents=True)
    (source / "folder" / "file").write_bytes(os.urandom(100))
    (source / "link").symlink_to("folder/file")
    out = folder / f"bundle{number}"
    seal([source], out, recipients=[who.public], signer=who.signing_key)
    return out.read_bytes()


def read_all(raw: bytes, key: Identity | DataKey) -> None:
    """Read everything in a bundle. Raises ``BundleError`` if it is not whole and sound."""
    reader = BundleReader(RangeSource(len(raw), lambda start, end: raw[start:end]), key)
    reader.entries()
    for index in range(reader.payload.segments):
        reader.segment(index)


def _mutate(dice: random.Random, raws: list[bytes]) -> bytes:
    raw = dice.choice(raws)
    start = dice.randrange(len(raw) + 1)
    end = min(len(raw), start + dice.choice([0, 1, 2, 16, 512, 4096]))
    kind = dice.randrange(4)
    if kind == 0:
        return raw[:start]
    if kind == 1:
        return raw[:start] + dice.randbytes(dice.randrange(64)) + raw[end:]
    if kind == 2:
        other = dice.choice(raws)
        return raw[:start] + other[start:end] + raw[end:] if dice.random() < 0.5 else raw[:start] + other[start:]
    at = dice.randrange(len(raw))
    return raw[:start] + raw[at : at + end - start] + raw[end:]


def main() -> None:
    """Run until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench.fuzz.bundle")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    dice = random.Random(options.seed)  # noqa: S311  (cases, not secrets)
    who = Identity.generate()
    with tempfile.TemporaryDirectory() as name:
        raws = [_bundle(Path(name), who, number) for number in range(3)]
    for raw in raws:
        read_all(raw, who)
    bits = list(range(len(raws[0]) * 8))
    dice.shuffle(bits)
    done, end = 0, time.monotonic() + options.seconds
    while time.monotonic() < end:
        if bits:
            bit = bits.pop()
            changed = bytearray(raws[0])
            changed[bit // 8] ^= 1 << bit % 8
            case = bytes(changed)
        else:
            case = _mutate(dice, raws)
            if case in raws:
                continue
        try:
            read_all(case, who)
        except BundleError:
            done += 1
            continue
        except Exception as error:  # noqa: BLE001  (what fuzzing looks for)
            print(f"seed {options.seed}, case {done}: {type(error).__name__}: {error}")
            sys.exit(1)
        print(f"seed {options.seed}, case {done}: accepted")
        sys.exit(1)
    print(f"{done} cases refused, every bit of the bundle flipped: {'yes' if not bits else f'no, {len(bits)} left'}, seed {options.seed}")


if __name__ == "__main__":
    main()
