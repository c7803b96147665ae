"""What a node is about to do with a lease, written durably before it is done.

One JSON line an event, appended and fsynced. After a crash the lines say how far the lease may have come; because the intent
is written first, the lines can be ahead of the world but never behind it. A torn last line is an intent whose deed had not begun.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from attestation.errors import FormatError
from sandbox.lifecycle import ON_NODE, LeaseState, Outcome
from sandbox.model import timestamp
from sandbox.node.layout import LeaseFolder, fsync_folder, write_durably

if TYPE_CHECKING:
    from sandbox.wire import DocumentKind

MAX_JOURNAL_BYTES = 4 * 2**20
_BEFORE_WIPE = frozenset(state.value for state in ON_NODE - {LeaseState.WIPING})
_OUTCOMES = frozenset(outcome.value for outcome in Outcome)


@dataclass(frozen=True)
class Recalled:
    """What a journal still tells after a crash. ``state`` is the last one before wiping; ``outcome`` is None where none was set."""

    state: LeaseState
    outcome: Outcome | None
    exit_code: int | None
    facts: dict[str, Any]
    torn: bool


class Journal:
    """The journal of one lease. Not for use by two threads at once."""

    def __init__(self, folder: LeaseFolder) -> None:
        """Open a lease's journal; ``create`` makes a new one."""
        self.folder = folder

    @classmethod
    def create(cls, folder: LeaseFolder) -> Self:
        """Make the lease's folder and an empty journal, durably."""
        folder.documents.mkdir(parents=True, mode=0o700, exist_ok=True)
        folder.root.chmod(0o700)
        folder.journal.touch(mode=0o600)
        fsync_folder(folder.root)
        fsync_folder(folder.root.parent)
        return cls(folder)

    def write(self, event: str, **facts: object) -> None:
        """Append one event and return only when it is durable. ``facts`` hold JSON values and never a secret."""
        line = json.dumps({"at": timestamp(datetime.now(UTC)), "event": event, **facts}, sort_keys=True).encode() + b"\n"
        fd = os.open(self.folder.journal, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if _ends_torn(fd):
                line = b"\n" + line
            os.write(fd, line)
            os.fsync(fd)
        finally:
            os.close(fd)

    def keep(self, kind: DocumentKind, data: bytes) -> None:
        """Keep a document's exact bytes until the lease has ended."""
        write_durably(self.folder.documents / kind, data)

    def documents(self) -> dict[str, bytes]:
        """Return the kept documents."""
        if not self.folder.documents.exists():
            return {}
        return {path.name: path.read_bytes() for path in sorted(self.folder.documents.iterdir()) if not path.name.startswith(".")}

    def events(self) -> list[dict[str, Any]]:
        """Return all whole events in order; a torn line is left out."""
        return self._read()[0]

    def recall(self) -> Recalled:
        """Return what the journal tells of a lease that this process did not start."""
        events, torn = self._read()
        state, outcome, exit_code = LeaseState.PLACED, None, None
        facts: dict[str, Any] = {}
        for event in events:
            facts.update({key: value for key, value in event.items() if key not in ("at", "event", "state", "outcome", "exit_code")})
            if event["event"] == "state" and event.get("state") in _BEFORE_WIPE:
                state = LeaseState(event["state"])
            if event.get("outcome") in _OUTCOMES:
                outcome = Outcome(event["outcome"])
                exit_code = event.get("exit_code")
        return Recalled(state, outcome, exit_code if isinstance(exit_code, int) else None, facts, torn)

    def _read(self) -> tuple[list[dict[str, Any]], bool]:
        try:
            raw = self.folder.journal.read_bytes()[:MAX_JOURNAL_BYTES]
        except FileNotFoundError:
            return [], True
        events: list[dict[str, Any]] = []
        torn = bool(raw) and not raw.endswith(b"\n")
        for line in raw.splitlines():
            if not line.strip():
                continue
            try:
                event = _event(line)
            except FormatError:
                torn = True
                continue
            events.append(event)
        return events, torn


def _event(line: bytes) -> dict[str, Any]:
    try:
        tree = json.loads(line)
    except ValueError as error:
        raise FormatError("a torn journal line", seen=f"{len(line)} bytes", wanted="one JSON object") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("event"), str):
        raise FormatError("not a journal line", seen=type(tree).__name__, wanted="one JSON object with an event")
    return tree


def _ends_torn(fd: int) -> bool:
    size = os.fstat(fd).st_size
    return size > 0 and os.pread(fd, 1, size - 1) != b"\n"
