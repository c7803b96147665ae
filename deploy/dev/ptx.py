"""Make the PTX that nodes load: ``python deploy/dev/ptx.py`` (needs nvcc; nodes and tests need only what it made).

The ISA version is set to the oldest that has the instructions, so that older drivers take it, and the digest of the source stands in the
first line, so that a test notices PTX that was not made anew.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILDS = (
    ("sandbox/node/gpu/kernels.cl", "sandbox/node/gpu/kernels.ptx", 75, "6.3"),
    ("sandbox/node/gpu/matmul.cl", "sandbox/node/gpu/matmul.ptx", 75, "6.3"),
    ("sandbox/node/gpu/matmul.cl", "sandbox/node/gpu/matmul_80.ptx", 80, "7.0"),
    ("bench/leak/leak.cl", "bench/leak/leak.ptx", 75, "6.3"),
)
"""Source, result, compute capability, PTX ISA version."""


def first_line(source: Path) -> str:
    """Return the line that binds PTX to the source it was made from."""
    return f"// made by deploy/dev/ptx.py from {source.name} sha256:{hashlib.sha256(source.read_bytes()).hexdigest()}\n"


def build(source: Path, capability: int, version: str) -> str:
    """Compile one source and check that ptxas accepts the result."""
    with tempfile.TemporaryDirectory() as place:
        made = Path(place) / "made.ptx"
        subprocess.run(["nvcc", "-ptx", "-x", "cu", f"-arch=compute_{capability}", "-O3", source, "-o", made], check=True)
        text = re.sub(r"^//.*\n", "", made.read_text("ascii"), flags=re.MULTILINE)
        text = first_line(source) + re.sub(r"^\.version .*$", f".version {version}", text, flags=re.MULTILINE)
        made.write_text(text, "ascii")
        subprocess.run(["ptxas", f"-arch=sm_{capability}", made, "-o", "/dev/null"], check=True)
    return text


if __name__ == "__main__":
    for source, target, capability, version in BUILDS:
        (ROOT / target).write_text(build(ROOT / source, capability, version), "ascii")
        sys.stdout.write(f"{target}\n")
