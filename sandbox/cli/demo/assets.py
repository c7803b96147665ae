"""What the demo's customer owns: real weights, real code, real files; and what the model must say about them.

The weights are the ONNX model that the package ``magika`` ships (a file-type classifier). The files come from this machine, under names
that say nothing, so that only their content can be judged.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
import struct
import sysconfig
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path

from sandbox.errors import InputError

JOB = """\
apiVersion: sealrig/v1
kind: Job
metadata: {{name: name-file-types}}
spec:
  image: {image}
  command: [python3, /in/code/run.py, /in/weights, /in/data, /out]
  env: {{ORT_DISABLE_TELEMETRY: "1"}}
  inputs:
    - {{bundle: "{weights}", path: /in/weights, access: lazy}}
    - {{bundle: "{code}", path: /in/code}}
    - {{bundle: "{data}", path: /in/data}}
  output: {{path: /out, maxSize: 16Mi}}
  resources: {{gpus: 0, gpuMemory: 0, cpus: 1, memory: 1Gi, scratch: 256Mi, shm: 64Mi, pids: 128}}
  lease: {{duration: 5m}}
  network: none
  isolation: container
  attestation: {{minimum: software}}
"""

POLICY = """\
apiVersion: sealrig/v1
kind: Policy
metadata: {{name: demo}}
spec:
  images: {{allow: ["{image}"]}}
  resources:
    cpus: {{max: 2}}
    memory: {{max: 2Gi}}
    scratch: {{max: 1Gi}}
    shm: {{max: 256Mi}}
    pids: {{max: 512}}
    output: {{max: 64Mi}}
    inputs: {{max: 8}}
  lease: {{maxDuration: 10m}}
  isolation: {{minimum: container}}
  attestation: {{minimum: software}}
  wipe: {{vram: required-if-gpu, verify: true}}
"""


@dataclass(frozen=True)
class Answer:
    """What the model said about one file, and what it must say."""

    file: str
    origin: str
    wanted: str
    seen: str
    score: float

    @property
    def ok(self) -> bool:
        """Whether the model named the type that the file has."""
        return self.seen == self.wanted


@dataclass(frozen=True)
class _Sample:
    origin: str
    kind: str
    write: Callable[[Path], object]


def write_weights(folder: Path) -> None:
    """Copy the model into ``folder``. Raises ``InputError`` where its package is not installed."""
    folder.mkdir(parents=True)
    for name in ("model.onnx", "config.min.json"):
        shutil.copyfile(_installed("magika", f"standard_v3_3/{name}"), folder / name)


def write_code(folder: Path) -> None:
    """Copy the job's program into ``folder``."""
    folder.mkdir(parents=True)
    (folder / "run.py").write_bytes(files("sandbox.cli.demo").joinpath("job/run.py").read_bytes())


def write_data(folder: Path) -> None:
    """Write the files to judge into ``folder``."""
    folder.mkdir(parents=True)
    for number, sample in enumerate(_SAMPLES, 1):
        sample.write(folder / _name(number))


def check_result(path: Path) -> list[Answer]:
    """Compare the opened ``result.json`` with what each file is. Raises ``InputError`` where it is not a result of this job."""
    try:
        said = json.loads(path.read_bytes())["files"]
        return [
            Answer(_name(number), sample.origin, sample.kind, str(said[_name(number)]["type"]), float(said[_name(number)]["score"]))
            for number, sample in enumerate(_SAMPLES, 1)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "the opened result is not an answer of the demo's job",
            rule="demo-result",
            seen=f"{type(error).__name__}: {error}"[:200],
            wanted=f"result.json with {len(_SAMPLES)} files",
            fix="look at the job's log: sealrig lease logs LEASE",
        ) from error


def _name(number: int) -> str:
    return f"attachment-{number:02d}"


def _installed(name: str, end: str) -> Path:
    try:
        for file in distribution(name).files or []:
            if str(file).endswith(end):
                return Path(str(file.locate()))
    except PackageNotFoundError:
        pass
    raise InputError(
        f"the demo needs {end} of the package {name}",
        rule="demo-assets",
        seen="not installed",
        wanted=f"{name} installed",
        fix="run './dev demo', or: pip install magika onnxruntime",
    )


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib")) / "json" / "decoder.py"


def _copy(name: str, end: str) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(_installed(name, end).read_bytes())


def _write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(_library(), "decoder.py")


def _write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(_library(), "decoder.py")


def _write_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE invoice (number INTEGER PRIMARY KEY, customer TEXT, cents INTEGER)")
    connection.executemany("INSERT INTO invoice (customer, cents) VALUES (?, ?)", [(f"customer {n}", 100 * n) for n in range(200)])
    connection.commit()
    connection.close()


def _write_picture(path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(value for x in range(64) for value in (x * 4, y * 4, 128)) for y in range(64))
    header = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)  # PNG 1.2, 11.2.2: width, height, depth, truecolour
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


_SAMPLES = (
    _Sample("Python's json/decoder.py", "python", lambda path: path.write_bytes(_library().read_bytes())),
    _Sample("NumPy's arrayobject.h", "c", _copy("numpy", "numpy/arrayobject.h")),
    _Sample("a shared library of ONNX Runtime", "elf", _copy("onnxruntime", "libonnxruntime_providers_shared.so")),
    _Sample("the model's table of types", "json", _copy("magika", "content_types_kb.min.json")),
    _Sample("the model's README", "markdown", _copy("magika", "standard_v3_3/README.md")),
    _Sample("the certificates of certifi", "pem", _copy("certifi", "cacert.pem")),
    _Sample("an operator policy", "yaml", lambda path: path.write_bytes(files("policies").joinpath("profiles/standard.yaml").read_bytes())),
    _Sample("NumPy's licence", "txt", _copy("numpy", "LICENSE.txt")),
    _Sample("a ZIP archive", "zip", _write_zip),
    _Sample("a tar archive", "tar", _write_tar),
    _Sample("a gzip file", "gzip", lambda path: path.write_bytes(gzip.compress(_library().read_bytes()))),
    _Sample("an SQLite database", "sqlite", _write_database),
    _Sample("a PNG picture", "png", _write_picture),
)
