"""A job's stdout and stderr: sealed to the customer as they come, bounded, and sent while the job runs.

Bytes beyond the bound are read and dropped, so that a flood neither fills this node nor blocks the job; the last chunk says how many.
Sealed chunks are ciphertext: they may wait in memory for a server that does not answer, also after the lease's plaintext is gone.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from typing import TYPE_CHECKING, Protocol

from sandbox.errors import AccessError, SealrigError, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_LOG_BYTES = 32 * 2**20
"""What of a job's output is kept, in bytes."""
CHUNK_BYTES = 64 * 1024
CHUNK_SECONDS = 0.25
_RETRY_SECONDS = (0.5, 1.0, 2.0, 5.0)


class Sealer(Protocol):
    """Makes sealed chunks, in order."""

    @property
    def header(self) -> bytes:
        """Chunk 0, with the wrapped key."""
        ...

    def seal(self, data: bytes, *, final: bool = False) -> bytes:
        """Seal the next chunk."""
        ...


class LogStream:
    """Takes the container's output from one thread and sends it from another."""

    def __init__(self, sealer: Sealer, send: Callable[[int, bytes], None]) -> None:
        """``send(seq, chunk)`` raises ``ServerError`` to be called again with the same chunk."""
        self._sealer = sealer
        self._send = send
        self._queue: queue.Queue[tuple[int, bytes] | None] = queue.Queue()
        self._digest = hashlib.sha256()
        self._lock = threading.Lock()
        self._buffer = bytearray()
        self._taken = 0
        self.dropped = 0
        self.chunks = 0
        self.failed: str = ""
        self._gave_up = threading.Event()
        self._put(sealer.header)
        self._sender = threading.Thread(target=self._run, name="logs-send", daemon=True)
        self._flusher_stop = threading.Event()
        self._flusher = threading.Thread(target=self._flush_often, name="logs-flush", daemon=True)
        self._sender.start()
        self._flusher.start()

    def take(self, frames: Iterator[bytes]) -> None:
        """Read a container's output to its end."""
        for piece in frames:
            with self._lock:
                room = MAX_LOG_BYTES - self._taken
                kept = piece[:room] if room > 0 else b""
                self.dropped += len(piece) - len(kept)
                self._taken += len(kept)
                self._buffer += kept
                while len(self._buffer) >= CHUNK_BYTES:
                    self._seal(CHUNK_BYTES)

    def note(self, text: str) -> None:
        """Add a line of the node's own after what the job said, also beyond the bound."""
        with self._lock:
            self._buffer += f"\n[sealrig: {text}]\n".encode()

    def finish(self) -> None:
        """Seal what is left and the final chunk; once is enough. The sending goes on; see ``sent``."""
        if self._flusher_stop.is_set():
            return
        self._flusher_stop.set()
        self._flusher.join()
        with self._lock:
            while self._buffer:
                self._seal(CHUNK_BYTES)
            notice = f"\n[sealrig: {self.dropped} bytes of output beyond {MAX_LOG_BYTES} were dropped]\n" if self.dropped else ""
            self._put(self._sealer.seal(notice.encode(), final=True))
        self._queue.put(None)

    def sent(self, seconds: float) -> bool:
        """Wait until everything has been sent; say whether it has."""
        self._sender.join(seconds)
        return not self._sender.is_alive() and not self.failed

    def give_up(self) -> None:
        """Stop trying to send."""
        self._gave_up.set()

    @property
    def digest(self) -> str:
        """``sha256:…`` over all sealed chunks in order."""
        return f"sha256:{self._digest.hexdigest()}"

    def _seal(self, count: int) -> None:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        self._put(self._sealer.seal(data))

    def _put(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self._queue.put((self.chunks, chunk))
        self.chunks += 1

    def _flush_often(self) -> None:
        while not self._flusher_stop.wait(CHUNK_SECONDS):
            with self._lock:
                if self._buffer:
                    self._seal(CHUNK_BYTES)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            attempt = 0
            while not self._gave_up.is_set():
                try:
                    self._send(*item)
                    break
                except (ServerError, AccessError):
                    time.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                    attempt += 1
                except SealrigError as error:
                    # The server understood and said no: logs are lost, the job is not. The run record still has their digest.
                    self.failed = error.message
                    return
