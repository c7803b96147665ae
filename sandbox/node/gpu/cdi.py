"""A minimal CDI specification (Container Device Interface 0.6.0) for NVIDIA GPUs: one device a GPU or MIG instance, for computing only.

A container gets the node of its GPU, the control node and unified memory, and the few driver libraries that CUDA needs, read-only.
It gets no modeset, no uvm-tools, no persistenced or MPS socket, no display library and no program; nothing is run in the container's
name either (no hooks: they were the way in of CVE-2025-23266). Without a hook there is no ``ldconfig``, so libraries are mounted
under the names that programs load, in the two folders that every dynamic loader searches by itself.

A MIG instance is reached through its GPU's node together with two capability nodes, one of the GPU instance and one of the compute instance
in it; without them the GPU's node opens nothing (NVIDIA MIG User Guide, "Device Nodes and Capabilities").
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.errors import EngineError

if TYPE_CHECKING:
    from sandbox.node.gpu.model import Gpu

KIND = "sealrig.dev/gpu"
VERSION = "0.6.0"
SPEC_FOLDER = Path("/var/run/cdi")
SPEC_NAME = "sealrig.json"
LIBRARY_FOLDERS = tuple(Path(folder) for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"))
"""Where drivers put their libraries on Debian, Fedora, Arch and their kin."""
_IN_CONTAINER = ("/usr/lib/{triplet}", "/usr/lib64")
_TRIPLETS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
_NEEDED = {
    "libcuda.so": ("libcuda.so.1", "libcuda.so"),
    "libnvidia-ml.so": ("libnvidia-ml.so.1", "libnvidia-ml.so"),
    "libnvidia-ptxjitcompiler.so": ("libnvidia-ptxjitcompiler.so.1",),
}
"""File on the host, without its version → the names it is loaded by."""
_OPTIONAL = {
    "libnvidia-nvvm.so": ("libnvidia-nvvm.so.4",),
    "libnvidia-gpucomp.so": ("libnvidia-gpucomp.so.{driver}",),
    "libnvidia-pkcs11-openssl3.so": ("libnvidia-pkcs11-openssl3.so.{driver}",),
}
"""Present in some driver releases: compilers, and the key exchange of confidential computing."""
_SHARED_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm")
_UUID = re.compile(r"(?:GPU|MIG)-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MIG_MINORS = Path("/proc/driver/nvidia-caps/mig-minors")
_MIG_MINOR = re.compile(r"^(gpu\d{1,3}/gi\d{1,3}(?:/ci\d{1,3})?/access) (\d{1,4})$", re.MULTILINE)
_DRIVER = re.compile(r"\d{3,4}(?:\.\d{1,4}){1,3}")


def specification(
    gpus: Sequence[Gpu], libraries: Mapping[str, Path], *, machine: str = "x86_64", capabilities: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Return the specification for these GPUs.

    ``libraries`` is name in the container → file on the host, ``capabilities`` as ``mig_capabilities`` returns them.

    Raises ``EngineError`` for a GPU whose UUID or device numbers are not what they must be: a wrong one would hand out another GPU.
    """
    nodes = [_nodes_of(gpu, capabilities or {}) for gpu in gpus]
    for gpu, paths in zip(gpus, nodes, strict=True):
        if not _UUID.fullmatch(gpu.uuid) or paths is None or nodes.count(paths) != 1:
            raise EngineError("a GPU cannot be named safely", rule="cdi-device", seen=f"{gpu.uuid!r}, number {gpu.minor}",
                              wanted="its uuid and device numbers of its own", fix="look at 'nvidia-smi -q' on this node")  # fmt: skip
    if machine not in _TRIPLETS:
        raise EngineError("no GPU driver is known for this processor", rule="cdi-machine", seen=machine, wanted=", ".join(_TRIPLETS),
                          fix="run GPU nodes on one of these")  # fmt: skip
    folders = [folder.format(triplet=_TRIPLETS[machine]) for folder in _IN_CONTAINER]
    return {
        "cdiVersion": VERSION,
        "kind": KIND,
        "devices": [
            {"name": gpu.uuid, "containerEdits": {"deviceNodes": [_node(path) for path in paths or ()]}}
            for gpu, paths in zip(gpus, nodes, strict=True)
        ],
        "containerEdits": {
            "deviceNodes": [_node(path) for path in _SHARED_NODES],
            "mounts": [_mount(host, f"{folder}/{name}") for name, host in sorted(libraries.items()) for folder in folders],
        },
    }


def mig_capabilities(minors: Path = MIG_MINORS) -> dict[str, int]:
    """Return capability → number of its device node, for example ``gpu0/gi1/access`` → 12; empty where the driver has no MIG."""
    try:
        return {name: int(number) for name, number in _MIG_MINOR.findall(minors.read_text("ascii", "replace"))}
    except OSError:
        return {}


def _nodes_of(gpu: Gpu, capabilities: Mapping[str, int]) -> tuple[str, ...] | None:
    """Return the device nodes that are this GPU's alone; None where one of them is not known."""
    if gpu.minor is None or not 0 <= gpu.minor < 256 or gpu.uuid.startswith("MIG-") != (gpu.instance is not None):
        return None
    if gpu.instance is None:
        return (f"/dev/nvidia{gpu.minor}",)
    whole, part = gpu.instance
    wanted = (f"gpu{gpu.minor}/gi{whole}/access", f"gpu{gpu.minor}/gi{whole}/ci{part}/access")
    if any(name not in capabilities for name in wanted):
        return None
    return (f"/dev/nvidia{gpu.minor}", *(f"/dev/nvidia-caps/nvidia-cap{capabilities[name]}" for name in wanted))


def find_libraries(driver: str, folders: Iterable[Path] = LIBRARY_FOLDERS) -> dict[str, Path]:
    """Return name in the container → file on the host for this very driver version. Raises ``EngineError`` if one is missing."""
    if not _DRIVER.fullmatch(driver):
        raise EngineError(
            "the driver's version is not one", rule="cdi-driver", seen=driver[:50], wanted="such as 580.178.04", fix="load NVIDIA's driver"
        )
    places = tuple(folders)
    found: dict[str, Path] = {}
    for name, targets in (_NEEDED | _OPTIONAL).items():
        file = next((folder / f"{name}.{driver}" for folder in places if (folder / f"{name}.{driver}").is_file()), None)
        if file is not None:
            found.update({target.format(driver=driver): file for target in targets})
        elif name in _NEEDED:
            raise EngineError("a library of NVIDIA's driver is missing", rule="cdi-library", seen=f"no {name}.{driver}",
                              wanted=f"it in one of {', '.join(map(str, places))}", fix="install the driver's libraries")  # fmt: skip
    return found


def prepare(gpus: Sequence[Gpu], *, machine: str, folder: Path = SPEC_FOLDER) -> Path | None:
    """Describe the node's NVIDIA GPUs to the engine, or take an old description away where there are none.

    Raises ``EngineError`` where they cannot be described; then none may be handed out.
    """
    try:
        if not gpus:
            (folder / SPEC_NAME).unlink(missing_ok=True)
            return None
        return write_specification(
            specification(gpus, find_libraries(gpus[0].driver), machine=machine, capabilities=mig_capabilities()), folder
        )
    except OSError as error:
        raise EngineError("the GPUs' description cannot be written", rule="cdi-file", seen=str(error), wanted=f"a folder {folder}",
                          fix=f"make {folder} writable for the node") from error  # fmt: skip


def write_specification(spec: Mapping[str, Any], folder: Path = SPEC_FOLDER) -> Path:
    """Write it where the engine looks, in one step, so that the engine never reads half of it. Returns the file."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    target = folder / SPEC_NAME
    handle, name = tempfile.mkstemp(dir=folder, prefix=".sealrig-", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(spec, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return target


def _node(path: str) -> dict[str, str]:
    return {"path": path, "permissions": "rw"}  # without m: no device of its own making


def _mount(host: Path, container: str) -> dict[str, Any]:
    return {"hostPath": str(host), "containerPath": container, "options": ["ro", "nosuid", "nodev", "bind"]}
