"""Fuzz the verifiers of hardware evidence: ``python -m bench.fuzz.evidence [--seconds 60] [--seed N]``.

Public reports, certificates and references are altered at random. Each case must be refused by an ``AttestationError`` or, where the
change touches nothing that counts (white space in PEM, XML or JSON), verify to the same result; anything else, and any case over a
second, is printed with its seed and ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attestation.errors import AttestationError
from attestation.signing import b64decode, b64encode
from attestation.verify.single import Kind, verify_single

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors"
PUBLIC = Path(__file__).resolve().parents[2] / "tests" / "attestation" / "samples"
AT = datetime(2024, 6, 1, tzinfo=UTC)
TDX_AT = datetime(2025, 6, 25, tzinfo=UTC)
SLOW_SECONDS = 1.0
BLOCKS = (b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00")


@dataclass(frozen=True)
class Case:
    """One call of ``verify_single``."""

    kind: Kind
    raw: bytes
    others: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> object:
        """Return what must not change: the submods of the result."""
        return verify_single(self.kind, self.raw, at=TDX_AT if self.kind == "tdx" else AT, **self.others).ear["submods"]


def alter(dice: random.Random, raw: bytes) -> bytes:
    """Return ``raw`` after one to five random changes: bits, bytes, cuts, fillings, extreme numbers."""
    data = bytearray(raw)
    for _ in range(dice.choice((1, 1, 2, 5))):
        at = dice.randrange(len(data) + 1)
        change = dice.randrange(4)
        if change == 0 and at < len(data):
            data[at] ^= 1 << dice.randrange(8)
        elif change == 1:
            del data[at : at + dice.randrange(1, 40)]
        elif change == 2:
            data[at:at] = dice.randbytes(dice.randrange(1, 20))
        else:
            data[at : at + 4] = dice.choice(BLOCKS)
    return bytes(data)


class Samples:
    """The public samples, and a way to alter each part of them."""

    def __init__(self, folder: Path) -> None:
        self._tpm = json.loads((folder / "tpm" / "tpm_evidence.json").read_bytes())
        self._snp = ((folder / "snp" / "test-report.bin").read_bytes(), (folder / "snp" / "test-vcek.der").read_bytes())
        gpu = folder / "nvidia"
        self._gpu = (bytes.fromhex((gpu / "hopperAttestationReport.txt").read_text()), (gpu / "hopperCertChain.txt").read_bytes())
        self._tdx = ((PUBLIC / "tdx_quote").read_bytes(), (PUBLIC / "tdx_quote_collateral.json").read_bytes())
        self._rim = (gpu / "vbios_1010_0200_882_96005E0001.swidtag").read_bytes()

    def makers(self) -> list[Callable[[random.Random], Case]]:
        """Return one maker of cases for each part."""
        (report, chip), (gpu, chain), (quote, tables) = self._snp, self._gpu, self._tdx
        return [
            lambda dice: self._altered_tpm(dice, "message"),
            lambda dice: self._altered_tpm(dice, "signature"),
            lambda dice: Case("tpm", alter(dice, json.dumps(self._tpm).encode())),
            lambda dice: Case("sev-snp", alter(dice, report), {"chain": chip}),
            lambda dice: Case("sev-snp", report, {"chain": alter(dice, chip)}),
            lambda dice: Case("tdx", alter(dice, quote), {"collateral": tables}),
            lambda dice: Case("tdx", quote, {"collateral": alter(dice, tables)}),
            lambda dice: Case("nvidia-gpu", alter(dice, gpu), {"chain": chain}),
            lambda dice: Case("nvidia-gpu", gpu, {"chain": alter(dice, chain)}),
            lambda dice: Case("nvidia-gpu", gpu, {"chain": chain, "rims": [alter(dice, self._rim)]}),
        ]

    def _altered_tpm(self, dice: random.Random, part: str) -> Case:
        quote = dict(self._tpm["tpm_quote"])
        quote[part] = b64encode(alter(dice, b64decode(quote[part])))
        return Case("tpm", json.dumps(self._tpm | {"tpm_quote": quote}).encode())

    def good(self) -> list[object]:
        """Return the results of the samples as they are."""
        whole = Case("nvidia-gpu", self._gpu[0], {"chain": self._gpu[1]})
        return [
            Case("tpm", json.dumps(self._tpm).encode()).run(),
            Case("sev-snp", self._snp[0], {"chain": self._snp[1]}).run(),
            Case("tdx", self._tdx[0], {"collateral": self._tdx[1]}).run(),
            whole.run(),
        ]


def main() -> int:
    """Run for a while; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4), "big"))
    options = parser.parse_args()
    if not VECTORS.is_dir():
        print(f"the public vectors are not at {VECTORS}", file=sys.stderr)
        return 1
    warnings.simplefilter("error")
    dice, samples = random.Random(options.seed), Samples(VECTORS)  # noqa: S311  (cases must repeat by their seed)
    good, makers = samples.good(), samples.makers()
    count = same = 0
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        case = dice.choice(makers)(dice)
        count += 1
        began = time.monotonic()
        try:
            if case.run() not in good:
                print(f"seed {options.seed}, case {count}: {case.kind}: another result verifies", file=sys.stderr)
                return 1
            same += 1
        except AttestationError:
            pass
        except Exception as error:  # noqa: BLE001  (any other error is what is looked for)
            print(f"seed {options.seed}, case {count}: {case.kind}: {type(error).__name__}: {error}", file=sys.stderr)
            return 1
        if time.monotonic() - began > SLOW_SECONDS:
            print(f"seed {options.seed}, case {count}: {case.kind}: took {time.monotonic() - began:.1f} s", file=sys.stderr)
            return 1
    print(f"{count} cases, {same} with nothing changed that counts, seed {options.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
