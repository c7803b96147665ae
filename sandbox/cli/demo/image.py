"""The demo's container image, built from this machine's own Python: no registry, no Dockerfile, no download.

What goes in: the interpreter with its standard library, the shared libraries it loads (as ``ldd`` names them), busybox for a shell,
and the installed packages that run the model. The model itself stays out: it travels sealed.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath

from sandbox.errors import ImageError
from sandbox.node.engine import Engine

REPOSITORY = "sealrig-demo"
RUNTIME = ("magika", "onnxruntime", "numpy", "click", "flatbuffers", "packaging", "protobuf")
"""Distributions that running the model needs."""
LDD_SECONDS = 600
_LAYOUT = "1"  # part of the tag: a change of what goes in gives another image
_PREFIX = "usr/local"
_LEFT_OUT = {"__pycache__", "ensurepip", "idlelib", "lib2to3", "site-packages", "dist-packages", "test", "tests", "tkinter", "turtledemo"}
_LEFT_OUT_OF_RUNTIME = ("magika/models/", "onnxruntime/tools/", "onnxruntime/transformers/", "onnxruntime/datasets/", "numpy/f2py/")
_USERS = b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
_GROUPS = b"root:x:0:\nnogroup:x:65534:\n"
_CHANGES = ["ENV PATH=/usr/local/bin:/usr/bin:/bin", "WORKDIR /"]


@dataclass(frozen=True)
class _File:
    """One file of the image: where it goes (relative to /) and where its bytes are."""

    target: str
    source: Path


def ensure_image(engine: Engine) -> str:
    """Return the id of the demo image, building and importing it where the engine does not have it.

    Raises ``ImageError`` where a part is not installed, ``EngineError`` where the engine refuses.
    """
    files = list(_files())
    name = f"{REPOSITORY}:{_digest(files)}"
    found = engine.find_image(name)
    if found:
        return found
    with tempfile.TemporaryFile() as out:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            _write(tar, files)
        out.seek(0)
        return engine.import_image(out, name=name, changes=_CHANGES)


def _files() -> Iterator[_File]:
    """Name every file that goes in, each target once."""
    seen: set[str] = set()
    programs: list[Path] = []
    for item in (*_interpreter(), *_runtime()):
        if item.target not in seen:
            seen.add(item.target)
            if item.source.suffix == ".so" or ".so." in item.source.name or item.target.startswith(f"{_PREFIX}/bin/"):
                programs.append(item.source)
            yield item
    for item in _libraries(programs):
        if item.target not in seen:
            seen.add(item.target)
            yield item
    busybox = shutil.which("busybox")
    if busybox:
        yield _File("bin/busybox", Path(busybox))


def _interpreter() -> Iterator[_File]:
    """Name the interpreter and its standard library, moved to one prefix: Python finds its library from where it stands itself."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    yield _File(f"{_PREFIX}/bin/{version}", Path(sys._base_executable).resolve())  # type: ignore[attr-defined]  # noqa: SLF001  (the interpreter under the venv)
    library = Path(sysconfig.get_path("stdlib"))
    for path in _walk(library):
        if "_tkinter" not in path.name and path.suffix not in {".a", ".o"}:
            yield _File(f"{_PREFIX}/lib/{version}/{path.relative_to(library)}", path)


def _runtime() -> Iterator[_File]:
    """Name the files of the packages that run the model. Raises ``ImageError`` where one is not installed."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for name in RUNTIME:
        try:
            files = distribution(name).files or []
        except PackageNotFoundError as error:
            raise ImageError(
                f"the demo needs the package {name}",
                rule="demo-image",
                seen="not installed",
                wanted=", ".join(RUNTIME),
                fix="run './dev demo', or: pip install magika onnxruntime",
            ) from error
        for file in files:
            text = str(file)
            if ".." in file.parts or _LEFT_OUT & set(file.parts) or text.startswith(_LEFT_OUT_OF_RUNTIME):
                continue
            yield _File(f"{_PREFIX}/lib/{version}/site-packages/{text}", Path(str(file.locate())))


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in _LEFT_OUT or path.name.startswith("config-"):
            continue
        if path.is_dir():
            yield from _walk(path)
        elif path.is_file():
            yield path


def _libraries(programs: list[Path]) -> Iterator[_File]:
    """Name the shared libraries that programs load, as the dynamic loader resolves them.

    Libraries outside the system's own folders (a Python built apart) go next to libc, where the loader looks without being told.
    """
    try:
        done = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, timeout=LDD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _no_libraries(type(error).__name__) from error
    found: dict[str, Path] = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if "=>" in words and len(words) > 2 and words[2].startswith("/"):
            found[words[0]] = Path(words[2])
        elif words and words[0].startswith("/") and not words[0].endswith(":"):
            found[words[0]] = Path(words[0])
    libc = found.get("libc.so.6")
    if libc is None:
        raise _no_libraries((done.stderr or "nothing")[:200])
    for name, path in sorted(found.items()):
        system = str(path).startswith(("/lib", "/usr/lib"))
        if system:
            yield _File(str(path).lstrip("/"), path.resolve())
        elif "site-packages" not in path.parts:
            yield _File(f"{str(libc.parent).lstrip('/')}/{PurePosixPath(name).name}", path.resolve())


def _no_libraries(seen: str) -> ImageError:
    return ImageError(
        "the libraries of this Python cannot be named",
        rule="demo-image",
        seen=seen,
        wanted=f"ldd naming libc.so.6 (glibc) within {LDD_SECONDS} s",
        fix="use a Python that is linked against glibc",
    )


def _digest(files: list[_File]) -> str:
    """Return a name for this content: targets, sizes and times, which is enough to notice another Python or package."""
    state = hashlib.sha256(_LAYOUT.encode())
    for item in sorted(files, key=lambda file: file.target):
        facts = item.source.stat()
        state.update(f"{item.target}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
    return state.hexdigest()[:16]


def _write(tar: tarfile.TarFile, files: list[_File]) -> None:
    """Write the image's root: folders, the files, and the links that make ``python3`` and ``sh`` work."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    folders = {"etc", "dev", "proc", "sys", "root", "in", "out", "usr/bin", "bin"}
    for item in files:
        folders.update(str(parent) for parent in PurePosixPath(item.target).parents if str(parent) != ".")
    folders.update({"usr", "usr/local"})
    for folder in sorted(folders):
        _folder(tar, folder, 0o755)
    _folder(tar, "tmp", 0o1777)
    for item in files:
        info = tar.gettarinfo(str(item.source), item.target)
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mode = 0o755 if info.mode & stat.S_IXUSR else 0o644
        info.type = tarfile.REGTYPE  # two names for one inode are two files here
        info.size = item.source.stat().st_size
        with item.source.open("rb") as source:
            tar.addfile(info, source)
    for name, data in (("etc/passwd", _USERS), ("etc/group", _GROUPS)):
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        tar.addfile(info, io.BytesIO(data))
    _link(tar, f"{_PREFIX}/bin/python3", version)
    _link(tar, "usr/bin/python3", f"/{_PREFIX}/bin/{version}")
    # Debian's own Python looks for packages under this name.
    _link(tar, f"{_PREFIX}/lib/{version}/dist-packages", "site-packages")
    if any(item.target == "bin/busybox" for item in files):
        for applet in ("sh", "cat", "ls", "sleep", "true", "false", "echo", "id", "dd", "cp", "mkdir", "head", "wc", "kill", "yes", "env"):
            _link(tar, f"bin/{applet}", "busybox")


def _folder(tar: tarfile.TarFile, name: str, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, mode
    tar.addfile(info)


def _link(tar: tarfile.TarFile, name: str, target: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
    tar.addfile(info)
