"""The file-system process of one mounted bundle: ``python -m sandbox.sealing.viewer``, started by ``sandbox.sealing.mount``.

It reads one order from stdin, a line of JSON with the data key, and tells events on stdout, one JSON document a line. One that gets no
order ends. Everything is imported before the order comes, so that a process kept waiting shows a view at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import sys
import threading
from pathlib import Path
from typing import Any

# libfuse where the loader finds it: looking for it, as the library does, starts a compiler. Where it is elsewhere, let the library look.
if "FUSE_LIBRARY_PATH" not in os.environ:
    with contextlib.suppress(OSError):
        ctypes.CDLL("libfuse3.so.3")
        os.environ["FUSE_LIBRARY_PATH"] = "libfuse3.so.3"

try:
    import mfusepy
except (ImportError, OSError) as error:
    sys.stdout.write(json.dumps({"event": "failed", "code": type(error).__name__, "message": str(error)[:200]}) + "\n")
    sys.exit(1)

from attestation.signing import VerifyKey, b64decode
from sandbox.errors import SealrigError
from sandbox.sealing.cache import CachedSource
from sandbox.sealing.keys import DataKey
from sandbox.sealing.mountinfo import source_name
from sandbox.sealing.reader import BundleReader
from sandbox.sealing.source import FileSource, Source
from sandbox.sealing.view import View

CACHED_SEGMENTS = 32
"""Decrypted segments kept in memory, 1 MiB each; the kernel's page cache keeps what was read besides."""
REMOTE_READ_AHEAD_SEGMENTS = 16
REMOTE_RUN_SEGMENTS = 8
"""Segments that one request asks for: answering a request costs a server as much as sending some of them."""
THREADS = 10
MAX_TOLD = 1000
"""Failed reads that are told; each segment once for each reason."""
_FOREVER = 86400
_MAX_ORDER_BYTES = 2**16


class _Operations(View, mfusepy.Operations):  # type: ignore[misc]  # the library has no types
    """The view, with the library's refusals for everything that writes."""

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Be there, so that the library asks for reads at all; ``_Fuse`` answers them."""
        raise NotImplementedError


class _Fuse(mfusepy.FUSE):  # type: ignore[misc]  # the library has no types
    """The library's file system, without its copy of what is read: bytes go from the decrypted segments straight into libfuse's reply."""

    def __init__(self, *words: Any, **options: Any) -> None:  # noqa: ANN401  (the library's)
        self._threads: set[int] = set()
        super().__init__(*words, **options)

    def read(self, path: bytes, reply: Any, size: int, offset: int, info: Any) -> int:  # noqa: ANN401  (ctypes' pointers)
        """Answer one read."""
        if (thread := threading.get_ident()) not in self._threads:
            # Once more than ctypes gives back: libfuse's threads then keep their Python state, and no call needs to make one anew.
            ctypes.pythonapi.PyGILState_Ensure()
            self._threads.add(thread)
        address = ctypes.cast(reply, ctypes.c_void_p).value or 0
        view: View = self.operations
        return view.read_into(path.decode(self.encoding, self.errors), address, size, offset, info.contents.fh)


class _Teller:
    """Tells events on stdout; an error that was told is not told again, so that a job cannot flood whoever listens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: set[tuple[object, object]] = set()

    def __call__(self, event: dict[str, Any]) -> None:
        with self._lock:
            if event["event"] == "error":
                what = (event.get("segment"), event.get("code"))
                if what in self._told or len(self._told) >= MAX_TOLD:
                    return
                self._told.add(what)
            with contextlib.suppress(BrokenPipeError):  # nobody listens any more: reads go on
                sys.stdout.write(json.dumps(event) + "\n")
                sys.stdout.flush()


def serve(order: dict[str, Any], tell: _Teller) -> None:
    """Serve one view until it is unmounted. Raises ``SealrigError`` for a bundle that does not verify, ``RuntimeError`` from libfuse."""
    with contextlib.ExitStack() as stack:
        source, cache, ahead, run = _source(order, stack)
        signers = None if order["signers"] is None else [VerifyKey.from_text(text) for text in order["signers"]]
        reader = BundleReader(
            source, DataKey(b64decode(order["key"])), signers=signers, header=order["header"], cached=CACHED_SEGMENTS, ahead=ahead,
            run=run, cache=cache,
        )  # fmt: skip
        stack.callback(reader.close)
        view = _Operations(reader, owner=(order["owner"][0], order["owner"][1]), tell=tell)
        tell({"event": "ready"})
        options: dict[str, Any] = {"allow_other": True} if order["allow_other"] else {}
        if (mfusepy.fuse_version_major, mfusepy.fuse_version_minor) >= (3, 12):
            # Both named, because libfuse 3.14 warns of its own defaults; and threads that stay need not be made anew.
            options |= {"max_threads": THREADS, "max_idle_threads": THREADS}
        _Fuse(
            view, order["folder"], foreground=True, ro=True, nosuid=True, nodev=True, default_permissions=True,
            fsname=source_name(os.getpid()),
            # What is sealed never changes, so the kernel may keep what it saw.
            kernel_cache=True, attr_timeout=_FOREVER, entry_timeout=_FOREVER, negative_timeout=_FOREVER, **options,
        )  # fmt: skip


def _source(order: dict[str, Any], stack: contextlib.ExitStack) -> tuple[Source, CachedSource | None, int, int]:
    """Return where the ciphertext comes from, what keeps it, how far to read ahead, and how much at once."""
    if "file" in order["source"]:
        return stack.enter_context(FileSource(Path(order["source"]["file"]))), None, 0, 1  # the kernel reads ahead
    from sandbox.sealing.remote import HttpSource, content_url

    remote = order["source"]
    source = HttpSource(content_url(remote["server"], remote["digest"]), remote["token"], remote["digest"], patience=remote["patience"])
    stack.callback(source.close)
    cached = CachedSource(source, Path(remote["cache"]), remote["limit"])
    stack.callback(cached.close)
    return source, cached, REMOTE_READ_AHEAD_SEGMENTS, REMOTE_RUN_SEGMENTS


def main() -> None:
    """Be the file-system process."""
    tell = _Teller()
    if not select.select([sys.stdin], [], [], 0)[0]:
        import sandbox.sealing.remote  # noqa: F401  (nobody waits yet: what only a bundle on a server needs is ready too)
    line = sys.stdin.readline(_MAX_ORDER_BYTES)
    if not line:
        return
    try:
        serve(json.loads(line), tell)
    except SealrigError as error:
        tell({"event": "failed", "code": error.code, "message": error.message})
        sys.exit(1)
    except (OSError, RuntimeError) as error:
        tell({"event": "failed", "code": type(error).__name__, "message": str(error)[:200]})
        sys.exit(1)


if __name__ == "__main__":
    main()
