"""A machine with NVIDIA GPUs that are files: the real nvidia-ml-py and cuda-bindings on the stand-in libraries of ``driver/``."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

DRIVER = Path(__file__).parent / "driver"
LIBRARIES = {"libcuda.so.1": "cuda.c", "libnvidia-ml.so.1": "nvml.c"}
MIB = 2**20
CARD = {
    "name": "NVIDIA Stand-in",
    "memory": 17 * MIB,
    "reserved": MIB,
    "driver": "580.178.04",
    "units": 4,
    "minor": 0,
    "accounting": 1,
    "inforom": 0,
}


def uuid(number: int) -> str:
    return f"GPU-0000000{number}-0000-4000-8000-00000000000{number}"


def build(folder: Path) -> Path:
    """Compile the stand-ins; return the folder for LD_LIBRARY_PATH. Without a compiler there are none."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler is not None
    for library, source in LIBRARIES.items():
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", folder / library, DRIVER / source], check=True)
    return folder


class Machine:
    """The cards of one test. Everything that is not said of a card is "not supported"."""

    def __init__(self, folder: Path, monkeypatch, libraries: Path) -> None:
        import pynvml

        self.folder = folder
        self.folder.mkdir()
        monkeypatch.setenv("FAKE_GPUS", str(folder))
        monkeypatch.setenv("LD_LIBRARY_PATH", str(libraries))
        # In this process the library is handed over; in others the loader finds it.
        monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(libraries / "libnvidia-ml.so.1")))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    def card(self, number: int = 0, **values: object) -> str:
        """Put a card in, or change it; ``a_b=1`` is the line ``a-b 1``. Returns its uuid."""
        said = {**CARD, "uuid": uuid(number), "minor": number, **{name.replace("_", "-"): value for name, value in values.items()}}
        lines = (f"{name} {value}\n" for name, value in said.items() if value is not None)
        (self.folder / f"{number}.card").write_text("".join(lines))
        return uuid(number)

    def memory(self, number: int = 0) -> bytes:
        """Return what lies in a card's memory."""
        return (self.folder / f"{number}.vram").read_bytes()

    def local(self, number: int = 0) -> bytes:
        """Return what lies in the local memory of a card's multiprocessors."""
        return (self.folder / f"{number}.local").read_bytes()

    def python(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Python in a process of its own on this machine."""
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=dict(os.environ))
