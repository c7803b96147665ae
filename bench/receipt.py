"""How long a receipt takes to verify offline: the check alone, which has a goal, and the whole command, of which most is Python's start.

``python -m bench.receipt [--json]``. The receipt is of a lease that ran, with all its documents, and entries of a log with witnesses.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from attestation.log.note import NoteVerifier, cosign
from attestation.log.reader import LogExtract
from attestation.receipt import verify_receipt
from attestation.signing import SigningKey
from bench.report import Row, main
from tests.attestation.leases import STORY, Story, append, documents, extract, receipt_of, trust, trust_tree

GOAL_MS = 100.0
ROUNDS = 20
WITNESSES = {f"witness.example/{number}": SigningKey(bytes([number]) * 32) for number in (1, 2)}
OTHER_LEASES = 1000


def measure() -> Sequence[Row]:
    """Return the rows: medians of ``ROUNDS``."""
    with tempfile.TemporaryDirectory(prefix="sealrig-bench-") as name:
        folder = Path(name)
        witnesses = [NoteVerifier(each, key.public, kind=4).text for each, key in WITNESSES.items()]
        changes = {"witnesses": witnesses, "witnessQuorum": len(witnesses)}
        raw, rules = make_receipt(folder / "log"), trust(**changes)
        (folder / "receipt.json").write_bytes(raw)
        (folder / "TRUST.yaml").write_text(yaml.safe_dump(trust_tree(**changes)))
        result = verify_receipt(raw, rules)
        assert result.ok, [step for step in result.steps if not step.ok]
        checked = f"{len(result.steps)} steps, {len(raw) / 1000:.0f} kB"
        command = ["-m", "sandbox.cli", "receipt", "verify", str(folder / "receipt.json"), "--trust", str(folder / "TRUST.yaml")]
        alone = _median(lambda: verify_receipt(raw, rules))
        _python(folder, *command)  # compiles
        start = _median(lambda: _python(folder, "-c", "pass"))
        whole = _median(lambda: _python(folder, *command))
        return [
            Row(f"verify a receipt ({checked})", alone, "ms", at_most=GOAL_MS),
            Row("sealrig receipt verify, the whole command", whole, "ms", "a Python that does nothing", start),
        ]


def make_receipt(folder: Path) -> bytes:
    """Return the receipt of a lease whose entries stand behind those of many others, under a checkpoint that all witnesses cosigned."""
    found = documents()
    _, indexes = append(folder, Story(found, STORY * OTHER_LEASES, resource="lease-" + "99" * 16), Story(found))
    return receipt_of(found, _cosigned(extract(folder, indexes)))


def _cosigned(log: LogExtract) -> LogExtract:
    text = log.checkpoint.split("\n\n")[0] + "\n"
    signed = log.checkpoint + "".join(cosign(text, name, key, int(time.time())).line for name, key in WITNESSES.items())
    entries = tuple(entry._replace(proof=entry.proof.replace(log.checkpoint, signed)) for entry in log.entries)
    return replace(log, checkpoint=signed, entries=entries)


def _python(home: Path, *words: str) -> None:
    """Run Python as an installed program runs: modules compiled before, nothing in its home."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "PYTHON", "SEALRIG_"))}
    environment |= {"HOME": str(home), "PYTHONPYCACHEPREFIX": str(home / "compiled")}
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=environment)


def _median(work: Callable[[], object]) -> float:
    """Return milliseconds."""
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * 1000)
    return statistics.median(taken)


if __name__ == "__main__":
    raise SystemExit(main("receipt", measure, sys.argv[1:], about=__doc__))
