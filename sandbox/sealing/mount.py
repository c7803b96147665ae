"""A read-only view of a bundle as a folder (FUSE) that decrypts on demand. Needs the ``mount`` extra and the system's libfuse.

The file system runs in a process of its own, because libfuse takes over signals and because a killed server must harm nobody else: readers
then get an error, never a hang. ``Mount`` starts it, hands it the key through a pipe, and ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attestation.signing import VerifyKey, b64decode, b64encode
from sandbox.errors import InputError, SealrigError
from sandbox.sealing.entries import Entry, Kind
from sandbox.sealing.keys import DataKey
from sandbox.sealing.reader import BundleReader
from sandbox.sealing.source import FileSource
from sandbox.sealing.stream import segment_at

CACHED_SEGMENTS = 24
"""Decrypted segments kept in memory, 1 MiB each; the kernel's page cache keeps what was read besides."""
READ_AHEAD_SEGMENTS = 4
READ_AHEAD_KIB = 512
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(64 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20), "MALLOC_ARENA_MAX": "2"}
"""libfuse and we allocate and free a buffer a request: keep them, since mapping fresh pages each time costs more than decrypting."""
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_END_SECONDS = 1.0
_FOREVER = 86400
_BLOCK = 4096


class View:
    """Answers the kernel's questions about a bundle. Paths come as text with surrogate escapes."""

    use_ns = True

    def __init__(self, reader: BundleReader, *, owner: tuple[int, int], tell: Callable[[dict[str, Any]], None]) -> None:
        """Show everything as ``owner``'s; ``tell`` is called with what went wrong with a read."""
        self._reader = reader
        self._owner = owner
        self._tell = tell
        self._entries = reader.entries()
        self._children: dict[bytes, list[str]] = {b"": []}
        for path, entry in self._entries.items():
            parent, _, name = path.rpartition(b"/")
            self._children[parent].append(os.fsdecode(name))
            if entry.kind is Kind.DIR:
                self._children[path] = []
        self._files: dict[int, Entry] = {}
        self._lock = threading.Lock()
        self._next = 1

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:  # noqa: ARG002  (FUSE's signature)
        """Return the attributes of ``path``."""
        name = _inside(path)
        if not name:
            return self._attributes(stat.S_IFDIR | 0o755, 0, 0, 2)
        entry = self._find(name)
        kind = {Kind.FILE: stat.S_IFREG, Kind.DIR: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}[entry.kind]
        size = len(entry.target) if entry.kind is Kind.SYMLINK else entry.size
        return self._attributes(kind | entry.mode, size, entry.mtime_ns, 2 if entry.kind is Kind.DIR else 1)

    def readdir(self, path: str, fh: int) -> list[str]:  # noqa: ARG002
        """Return the names in a folder."""
        found = self._children.get(_inside(path))
        if found is None:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return [".", "..", *found]

    def readlink(self, path: str) -> str:
        """Return where a symlink points to."""
        return os.fsdecode(self._find(_inside(path)).target)

    def open(self, path: str, flags: int) -> int:
        """Open a file for reading; anything else is refused."""
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        entry = self._find(_inside(path))
        with self._lock:
            handle, self._next = self._next, self._next + 1
            self._files[handle] = entry
        return handle

    def release(self, path: str, fh: int) -> int:  # noqa: ARG002
        """Close a file."""
        with self._lock:
            self._files.pop(fh, None)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes | ctypes.Array[ctypes.c_char]:
        """Return bytes of an open file. A segment that does not verify is an I/O error, and is told."""
        entry = self._files[fh]
        position, stop = entry.offset + offset, entry.offset + min(offset + size, entry.size)
        if position >= stop:
            return b""
        try:
            index, place = segment_at(position)
            segment = self._reader.segment(index)
            if place + stop - position <= len(segment):
                # The usual case: libfuse copies straight out of the cached segment.
                return (ctypes.c_char * (stop - position)).from_buffer(segment, place)
            return b"".join(self._reader.pieces(position, stop))
        except SealrigError as error:
            self._tell({"event": "error", "path": path, "offset": offset, "code": error.code, "message": error.message})
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error

    def statfs(self, path: str) -> dict[str, int]:  # noqa: ARG002
        """Return the size of the view; nothing is free."""
        blocks = self._reader.payload.plain_size // _BLOCK
        return {"f_bsize": _BLOCK, "f_frsize": _BLOCK, "f_blocks": blocks, "f_files": len(self._entries), "f_namemax": 255}

    def _find(self, name: bytes) -> Entry:
        entry = self._entries.get(name)
        if entry is not None and entry.kind is Kind.LINK:
            entry = self._entries.get(entry.target)
        if entry is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return entry

    def _attributes(self, mode: int, size: int, mtime_ns: int, links: int) -> dict[str, int]:
        return {
            "st_mode": mode, "st_size": size, "st_nlink": links, "st_uid": self._owner[0], "st_gid": self._owner[1],
            "st_mtime": mtime_ns, "st_atime": mtime_ns, "st_ctime": mtime_ns, "st_blocks": -(-size // 512), "st_blksize": _BLOCK,
        }  # fmt: skip


def _inside(path: str) -> bytes:
    return os.fsencode(path).strip(b"/")


@dataclass
class Mount:
    """A mounted bundle. Use it in a ``with`` statement, or call ``stop``. ``problems`` lists reads that failed, as they happen."""

    bundle: Path
    folder: Path
    process: subprocess.Popen[bytes]
    problems: list[dict[str, Any]] = field(default_factory=list)
    _listener: threading.Thread | None = None

    @classmethod
    def start(
        cls,
        bundle: Path,
        folder: Path,
        key: DataKey,
        *,
        signers: Collection[VerifyKey] | None = None,
        owner: tuple[int, int] | None = None,
        allow_other: bool = False,
    ) -> Self:
        """Mount ``bundle`` on ``folder``; when this returns, its files are there.

        ``owner`` is who the files seem to belong to; ``allow_other`` lets other users in (root, or ``user_allow_other`` in /etc/fuse.conf).
        Raises ``InputError`` with the reason when it cannot be mounted, such as a bundle that does not verify.
        """
        order = {
            "bundle": str(bundle.resolve()), "folder": str(folder.resolve()), "key": b64encode(key.raw), "allow_other": allow_other,
            "signers": None if signers is None else [signer.text for signer in signers], "owner": owner or (os.getuid(), os.getgid()),
        }  # fmt: skip
        process = subprocess.Popen([sys.executable, "-m", "sandbox.sealing.mount"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   start_new_session=True, env=os.environ | _MALLOC)  # fmt: skip
        mounted = cls(bundle, folder, process)
        said = mounted._begin(order)
        if said.get("event") == "ready" and not mounted._wait_until_there():
            said = mounted._next_event() if process.poll() is not None else {}
        if said.get("event") != "ready":
            why = said.get("message") or _end_of(process)
            mounted.stop()
            raise InputError(f"{bundle} cannot be mounted: {why}", rule="mount", seen=str(said.get("code", "no mount")),
                             wanted="a readable bundle, libfuse, and the right to mount",
                             fix="install fuse3, or open the bundle instead")  # fmt: skip
        mounted._listener = threading.Thread(target=mounted._listen, daemon=True, name="mount-events")
        mounted._listener.start()
        return mounted

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Unmount, which drops the kernel's cached pages, and end the server. Raises ``InputError`` if it is still mounted afterwards."""
        if is_mounted(self.folder):
            tool = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
            subprocess.run([*tool, str(self.folder)], check=False, capture_output=True)
        try:
            self.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()  # ends every read still waiting with an error
            self.process.wait()
        if self._listener is not None:
            self._listener.join()
        if self.process.stdout is not None:
            self.process.stdout.close()
        if is_mounted(self.folder):
            raise InputError(f"{self.folder} is still mounted", rule="mount", seen="a mount", wanted="none", fix=f"umount {self.folder}")

    def _begin(self, order: dict[str, Any]) -> dict[str, Any]:
        if self.process.stdin is None:
            return {}
        # The key goes through a pipe: never in argv, the environment or a file.
        with contextlib.suppress(BrokenPipeError):  # it ended before it read: there is no event then, and its end tells why
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.close()
        return self._next_event()

    def _next_event(self) -> dict[str, Any]:
        """Wait for what the server says next; nothing once it has ended."""
        line = self.process.stdout.readline() if self.process.stdout is not None else b""
        found = json.loads(line) if line.endswith(b"\n") else {}
        return found if isinstance(found, dict) else {}

    def _wait_until_there(self) -> bool:
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            if is_mounted(self.folder):
                return True
            time.sleep(0.005)
        return False

    def _listen(self) -> None:
        if self.process.stdout is not None:
            for line in self.process.stdout:
                self.problems.append(json.loads(line))


def _end_of(process: subprocess.Popen[bytes]) -> str:
    """Say how a server ended that gave no reason of its own."""
    try:
        code = process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        return f"libfuse did not mount it within {_START_SECONDS:.0f} s"
    return f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"its process ended with exit code {code}"


def is_mounted(folder: Path) -> bool:
    """Say whether something is mounted on exactly ``folder``, as the kernel lists it; also when its server is dead."""
    wanted = os.fsencode(folder.resolve(strict=False))
    octal = {b"\\040": b" ", b"\\011": b"\t", b"\\012": b"\n", b"\\134": b"\\"}
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        place = line.split()[4]
        for spelled, char in octal.items():
            place = place.replace(spelled, char)
        if place == wanted:
            return True
    return False


def serve(order: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Serve one view until it is unmounted. Raises ``SealrigError`` for a bundle that does not verify, ``RuntimeError`` from libfuse."""
    import mfusepy

    class Operations(View, mfusepy.Operations):  # type: ignore[misc]  # the library has no types
        """The view, with the library's refusals for everything that writes."""

    signers = None if order["signers"] is None else [VerifyKey.from_text(text) for text in order["signers"]]
    with FileSource(Path(order["bundle"])) as source:
        reader = BundleReader(source, DataKey(b64decode(order["key"])), signers=signers, cached=CACHED_SEGMENTS, ahead=READ_AHEAD_SEGMENTS)
        view = Operations(reader, owner=(order["owner"][0], order["owner"][1]), tell=tell)
        tell({"event": "ready"})
        threading.Thread(target=_widen_read_ahead, args=(Path(order["folder"]),), daemon=True).start()
        options: dict[str, Any] = {"allow_other": True} if order["allow_other"] else {}
        mfusepy.FUSE(
            view, order["folder"], foreground=True, ro=True, nosuid=True, nodev=True, default_permissions=True, fsname="sealrig",
            # What is sealed never changes, so the kernel may keep what it saw.
            kernel_cache=True, attr_timeout=_FOREVER, entry_timeout=_FOREVER, negative_timeout=_FOREVER, **options,
        )  # fmt: skip
        reader.close()


def _widen_read_ahead(folder: Path) -> None:
    # The kernel's default of 128 KiB a request costs a third of the speed; only root may change it, and nothing depends on it.
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end:
        if is_mounted(folder):
            try:
                device = folder.stat().st_dev
                Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text(
                    str(READ_AHEAD_KIB), encoding="ascii"
                )
            except OSError:
                pass
            return
        time.sleep(0.01)


def main() -> None:
    """Be the file-system process: read the order from stdin, tell events on stdout, one JSON document a line."""
    lock = threading.Lock()

    def tell(event: dict[str, Any]) -> None:
        with lock:
            sys.stdout.write(json.dumps(event) + "\n")
            sys.stdout.flush()

    try:
        serve(json.loads(sys.stdin.readline()), tell)
    except SealrigError as error:
        tell({"event": "failed", "code": error.code, "message": error.message})
        sys.exit(1)
    except (OSError, ImportError, RuntimeError) as error:
        tell({"event": "failed", "code": type(error).__name__, "message": str(error)[:200]})
        sys.exit(1)


if __name__ == "__main__":
    main()
