"""The part of a log that was read and proven, kept between runs: reading goes on where it ended, and no log can go back behind it.

A small database holds the last proven checkpoint, the edge of its tree, and what the reader noted of the entries. Everything in it was
proven against a signed checkpoint before it was committed; whoever can write to the file can already decide in its owner's name.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from attestation.log.errors import HistoryError, LogStoreError, NoteError, TileError
from attestation.log.history import require_extends
from attestation.log.keychain import KeyChain
from attestation.log.note import Checkpoint, NoteVerifier
from attestation.log.reader import LogReader
from attestation.log.tiles import Edge, split_hashes
from attestation.merkle import leaf_hash

BUSY_SECONDS = 30.0
_VERSION = 1
_SCHEMA = """
create table held(one integer primary key check (one = 1), note text not null, size integer not null, upper blob not null,
                  lowest blob not null);
create table fact(position integer primary key, subject text not null, kind text not null, at text not null);
create index fact_by_subject on fact(subject, position);
"""


class Fact(NamedTuple):
    """What a reader noted of one entry: its index in the log, whom it is about, what it says, and its time (RFC 3339)."""

    position: int
    subject: str
    kind: str
    at: str


Noted = Callable[[int, bytes], Fact | None]


@dataclass(frozen=True)
class _Held:
    note: str = ""
    size: int = 0
    upper: bytes = b""
    lowest: bytes = b""


class KeptPrefix:
    """The proven prefix of one log. Safe for several threads, and for several processes on one file."""

    def __init__(self, path: Path | None, keys: Sequence[NoteVerifier], *, origin: str) -> None:
        """Open or make the database; without ``path`` it lives in memory. Raises ``LogStoreError`` for a damaged or newer one."""
        self._keys, self._origin, self._path = tuple(keys), origin, path
        self._lock = threading.Lock()
        if path is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._damage():
            self._base = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS)
            with contextlib.suppress(FileNotFoundError):
                if path is not None:
                    path.chmod(0o600)
            self._prepare()

    def close(self) -> None:
        """Close the database."""
        self._base.close()

    def follow(self, reader: LogReader, noted: Noted) -> tuple[Checkpoint, str]:
        """Read every entry since the last time; return the published checkpoint and its note once both lead to the same tree.

        ``noted`` is asked about each new entry. A key that the trusted one handed over to is followed. Raises ``LogError``: for a log that
        shrank or forked (with evidence for everybody), that another key signed, or whose entries do not lead to what it signed. Then
        nothing is kept.
        """
        with self._lock, self._damage():
            while True:
                chain = KeyChain.follow(reader, self._keys)
                note = reader.checkpoint()
                head, _ = chain.open(note)
                if head.origin != self._origin:
                    raise NoteError("the checkpoint is another log's", rule="note-origin", seen=head.origin[:200], wanted=self._origin)
                held = self._held()
                fresh, facts = self._read(reader, held, head, note, keys=chain.keys, noted=noted)
                chain.require_logged(reader, head.size)
                if fresh is held or self._commit(held, fresh, facts):
                    return head, note

    def facts(self, subject: str) -> Iterator[Fact]:
        """Yield what was noted about one subject, in the order of the log."""
        with self._lock, self._damage():
            rows = self._base.execute(
                "select position, subject, kind, at from fact where subject = ? order by position", (subject,)
            ).fetchall()
        yield from (Fact(*row) for row in rows)

    def _prepare(self) -> None:
        self._base.execute("begin immediate")
        [version] = self._base.execute("pragma user_version").fetchone()
        if version == 0:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                self._base.execute(statement)
            self._base.execute(f"pragma user_version = {_VERSION}")
        self._base.execute("commit")
        if version not in {0, _VERSION}:
            raise LogStoreError("the kept log is of another version", rule="prefix-version", seen=str(version), wanted=str(_VERSION),
                                fix=f"use the newer program, or remove {self._path}: the log is then read anew")  # fmt: skip

    def _held(self) -> _Held:
        row = self._base.execute("select note, size, upper, lowest from held").fetchone()
        return _Held(*row) if row else _Held()

    def _read(
        self, reader: LogReader, held: _Held, head: Checkpoint, note: str, *, keys: Sequence[NoteVerifier], noted: Noted
    ) -> tuple[_Held, list[Fact]]:
        """Return what to hold from now on, ``held`` itself where nothing is new."""
        if head.size < held.size:
            raise HistoryError("the log shrank", rule="history-shrunk", seen=f"{head.size} entries", wanted=f"≥ {held.size} entries",
                               fix="keep both checkpoints, and ask the operator and an auditor what happened to the log", held=held.note,
                               shown=note)  # fmt: skip
        edge = Edge.restore(held.size, held.upper, split_hashes(held.lowest))
        facts: list[Fact] = []
        new = reader.entries(held.size, head.size, size=head.size) if head.size > held.size else ()
        for index, raw in new:
            edge.append(leaf_hash(raw))
            if (fact := noted(index, raw)) is not None:
                facts.append(fact)
        if (edge.size, edge.root()) != (head.size, head.root):
            if held.note:
                require_extends(reader, held.note, note, keys)
            raise TileError(
                "the entries do not lead to the signed root",
                rule="prefix-root",
                seen=edge.root().hex(),
                wanted=head.root.hex(),
                fix="read the log again; if it stays so, the log is not to be trusted",
            )
        if head.size == held.size and held.note:
            return held, []
        return _Held(note, edge.size, edge.upper(), b"".join(edge.rows[0] if edge.rows else ())), facts

    def _commit(self, before: _Held, fresh: _Held, facts: Sequence[Fact]) -> bool:
        """Keep ``fresh`` in the place of ``before``; False where another process was faster, and this one must look again."""
        self._base.execute("begin immediate")
        try:
            if self._held() != before:
                self._base.execute("rollback")
                return False
            self._base.execute("insert or replace into held values (1, ?, ?, ?, ?)", (fresh.note, fresh.size, fresh.upper, fresh.lowest))
            self._base.executemany("insert into fact values (?, ?, ?, ?)", facts)
            self._base.execute("commit")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._base.execute("rollback")
            raise
        return True

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise LogStoreError(
                "the kept log cannot be used",
                rule="prefix-store",
                seen=str(error)[:200],
                wanted="a sound database",
                fix=f"remove {self._path}: the log is then read anew, and what was seen before is not known any more",
            ) from error
