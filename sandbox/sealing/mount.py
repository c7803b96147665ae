"""A read-only view of a bundle as a folder (FUSE) that decrypts on demand. Needs the ``mount`` extra and the system's libfuse.

The file system runs in a process of its own (``viewer``), because libfuse takes over signals and because a killed server must harm nobody
else: readers then get an error, never a hang. ``Mount`` starts it, hands it the key through a pipe, and ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attestation.signing import VerifyKey, b64encode
from sandbox.errors import InputError, ServerError
from sandbox.sealing.keys import DataKey
from sandbox.sealing.mountinfo import is_mounted

PATIENCE_SECONDS = 15.0
READ_AHEAD_KIB = 2048
"""How far the kernel reads ahead in a view: one request of 1 MiB, the most there is, while another is used up."""
PROGRAM = "sandbox.sealing.viewer"
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(64 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20), "MALLOC_ARENA_MAX": "2"}
"""libfuse and we allocate and free a buffer a request: keep them, since mapping fresh pages each time costs more than decrypting."""
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_END_SECONDS = 1.0

Problem = dict[str, Any]
"""A read that failed: ``path``, ``segment``, ``code``, ``message``."""


@dataclass(frozen=True)
class Remote:
    """A bundle that a server has: its address, a token that may read it, and where its ciphertext is kept, ``limit`` bytes at most."""

    server: str
    token: str
    digest: str
    cache: Path
    limit: int
    patience: float = PATIENCE_SECONDS
    """Seconds that a read waits for a server that does not answer."""

    def __str__(self) -> str:
        return self.digest

    def order(self) -> dict[str, Any]:
        """Return what the file-system process needs to know."""
        return {
            "server": self.server,
            "token": self.token,
            "digest": self.digest,
            "cache": str(self.cache.resolve()),
            "limit": self.limit,
            "patience": self.patience,
        }


class Spare:
    """A file-system process that waits for its order with everything imported. Safe for use by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Start one, if none waits."""
        with self._lock:
            if self._waiting is None or self._waiting.poll() is not None:
                self._waiting = _spawn()

    def take(self) -> subprocess.Popen[bytes]:
        """Return the one that waits, or else a fresh one."""
        with self._lock:
            found, self._waiting = self._waiting, None
        return found if found is not None and found.poll() is None else _spawn()

    def close(self) -> None:
        """End the one that waits."""
        with self._lock:
            found, self._waiting = self._waiting, None
        if found is not None:
            found.kill()
            found.communicate()


@dataclass
class Mount:
    """A mounted bundle. Use it in a ``with`` statement, or call ``stop``. ``problems`` lists reads that failed, as they happen."""

    bundle: Path | Remote
    folder: Path
    process: subprocess.Popen[bytes]
    problems: list[Problem] = field(default_factory=list)
    _tell: Callable[[Problem], None] | None = None
    _listener: threading.Thread | None = None

    @classmethod
    def start(
        cls,
        bundle: Path | Remote,
        folder: Path,
        key: DataKey,
        *,
        signers: Collection[VerifyKey] | None = None,
        header: str | None = None,
        owner: tuple[int, int] | None = None,
        allow_other: bool = False,
        spare: Spare | None = None,
        tell: Callable[[Problem], None] | None = None,
    ) -> Self:
        """Mount ``bundle`` on ``folder``; when this returns, its files are there.

        ``header`` is the ``Header.digest`` to insist on, which a remote bundle needs: nobody has checked its whole digest. ``owner`` is who
        the files seem to belong to; ``allow_other`` lets other users in (root, or ``user_allow_other`` in /etc/fuse.conf). ``spare`` makes
        it quicker. ``tell`` hears of each read that failed, from a thread of its own.

        Raises ``InputError`` with the reason when it cannot be mounted, such as a bundle that does not verify, and ``ServerError`` where
        the server of a remote one does not answer.
        """
        order = {
            "source": bundle.order() if isinstance(bundle, Remote) else {"file": str(bundle.resolve())}, "folder": str(folder.resolve()),
            "key": b64encode(key.raw), "allow_other": allow_other, "header": header, "owner": owner or (os.getuid(), os.getgid()),
            "signers": None if signers is None else [signer.text for signer in signers],
        }  # fmt: skip
        process = spare.take() if spare is not None else _spawn()
        mounted = cls(bundle, folder, process, _tell=tell)
        try:
            mounted._begin(order)
        except BaseException:  # a command that is told to end, too: its view must not outlive it
            mounted.stop()
            raise
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

    def crash(self) -> str:
        """Say how the server ended by itself; empty while it runs, and where somebody unmounted it."""
        return "" if self.process.poll() in {None, 0} else _end_of(self.process)

    def _begin(self, order: dict[str, Any]) -> None:
        said = self._hand_over(order)
        if said.get("event") == "ready" and not self._wait_until_there():
            said = self._next_event() if self.process.poll() is not None else {}
        if said.get("event") != "ready":
            why = said.get("message") or _end_of(self.process)
            if said.get("code") == ServerError.code:
                raise ServerError(f"{self.bundle} cannot be mounted yet: {why}", rule="mount", seen=ServerError.code,
                                  wanted="a server that answers", fix="check the network and the server")  # fmt: skip
            raise InputError(f"{self.bundle} cannot be mounted: {why}", rule="mount", seen=str(said.get("code", "no mount")),
                             wanted="a readable bundle, libfuse, and the right to mount",
                             fix="install fuse3, or open the bundle instead")  # fmt: skip
        _widen_read_ahead(self.folder)
        self._listener = threading.Thread(target=self._listen, daemon=True, name="mount-events")
        self._listener.start()

    def _hand_over(self, order: dict[str, Any]) -> dict[str, Any]:
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
            time.sleep(0.002)
        return False

    def _listen(self) -> None:
        while event := self._next_event():
            if event.get("event") == "error":
                self.problems.append(event)
                if self._tell is not None:
                    self._tell(event)


def _widen_read_ahead(folder: Path) -> None:
    """Let the kernel ask for 1 MiB at once and for the next one before that is used up. Only root may; nothing depends on it."""
    with contextlib.suppress(OSError):
        device = folder.stat().st_dev  # answered only once kernel and server have agreed on the connection, which sets it anew
        place = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
        place.write_text(str(READ_AHEAD_KIB), encoding="ascii")


def _spawn() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, env=os.environ | _MALLOC
    )


def _end_of(process: subprocess.Popen[bytes]) -> str:
    """Say how a server ended that gave no reason of its own."""
    try:
        code = process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        return f"libfuse did not mount it within {_START_SECONDS:.0f} s"
    return f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"its process ended with exit code {code}"
