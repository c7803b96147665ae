"""A log's stores together: opened, compared with each other, replayed, and committed to in the one safe order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from attestation.log.errors import LogStoreError
from attestation.log.note import MAX_NOTE_BYTES, Checkpoint, Note, NoteVerifier, open_checkpoint, sign_checkpoint
from attestation.log.places import LogPlaces
from attestation.log.store import EntryStore, Head, LockStore, PublicStore, TreeState
from attestation.log.tiles import MAX_TILE_BYTES, TILE_WIDTH, Tile, rotation_path, split_hashes
from attestation.log.tree import Growth, full_below
from attestation.merkle import EMPTY_ROOT, leaf_hash
from attestation.signing import SigningKey

CHECKPOINT = "checkpoint"
VKEY = "vkey"
REPLAY_STEP = 64 * TILE_WIDTH
"""How many entries a replay holds in memory: after days without witnesses there may be many that are not published."""


@dataclass(frozen=True)
class Signed:
    """A tree whose entries, tiles and signed checkpoint are durable. ``upper``: its edge, from which a replay starts."""

    note: str
    size: int
    root: bytes
    upper: bytes


class Stores:
    """An open log: the two stores, the public files, and the tree in memory. For one thread."""

    def __init__(self, entries: EntryStore, lock: LockStore, folder: PublicStore, signer: _Signer) -> None:
        """Use ``open_stores``."""
        self.entries, self._lock, self._folder, self._signer = entries, lock, folder, signer
        self.signed = self.published = Signed("", 0, EMPTY_ROOT, b"")
        self._tree = Growth.restore(0, b"", [])
        self._state = TreeState(signer.origin, 0)
        self._head = Head(0, "", "")
        self._full: list[str] = []

    @property
    def size(self) -> int:
        """How many entries are committed."""
        return self._state.size

    def close(self) -> None:
        """Close all stores."""
        with contextlib.ExitStack() as stack:
            for store in (self.entries, self._lock, self._folder):
                stack.callback(store.close)

    def leaf_hash_at(self, index: int) -> bytes:
        """Return the hash of a committed entry."""
        if index >= full_below(self._state.base_size):
            return leaf_hash(self.entries.leaves(index, index + 1)[0])
        path = Tile(0, index // TILE_WIDTH).path
        raw = self._folder.read(path, MAX_TILE_BYTES)
        if raw is None:
            raise LogStoreError(
                "a published tile is gone", rule="store-tile-missing", seen=path, wanted="the tile", fix="restore the log's folder"
            )
        return split_hashes(raw)[index % TILE_WIDTH]

    def commit(self, fresh: Sequence[tuple[bytes, bytes]]) -> None:
        """Append new (id, leaf) pairs: steps 1 to 4 of the writer. From here on they survive."""
        old, base = self._state, self.published
        leaves = [leaf for _, leaf in fresh]
        files = self._tree.grow(leaves)
        self._state = replace(
            old, size=self._tree.size, root=self._tree.root(), base_size=base.size, base_root=base.root, base_upper=base.upper
        )
        self.entries.commit(
            self._state,
            enumerate(leaves, start=old.size),
            # In order, so that the pages of the index fill up: ids of one batch are close to each other.
            sorted((id_, old.size + number) for number, (id_, _) in enumerate(fresh)),
            forget_below=full_below(base.size),
        )
        self._sign()
        self._write(files)

    def publish(self, signed: Signed, cosignatures: Sequence[str]) -> None:
        """Put a signed checkpoint, with witnesses' lines, where everybody reads it: step 6 of the writer."""
        note = signed.note + "".join(cosignatures)
        self._lock.while_owner(self._head.epoch, lambda: self._folder.replace(CHECKPOINT, note.encode()))
        self.published = replace(signed, note=note)
        self._folder.drop_partials(self._full)
        self._full = []

    def rotate(self, key: SigningKey, fresh: tuple[bytes, bytes], statement: str) -> None:
        """Log the leaf ``fresh`` under the old key, then hand the log over to ``key``; ``statement`` is the note of both.

        The swap in the lock store decides: before it the old key goes on, after it only the new one. What is signed here is published
        by whoever opens the log next.
        """
        self.commit([fresh])
        self._signer = _Signer(self._signer.origin, key)
        note = self._signer.sign(self._state.size, self._state.root)
        new = replace(self._head, note=note.whole, vkey=self._signer.vkey)
        self._lock.swap(self._head, new, rotation=statement)
        self._head = new
        self.signed = replace(self.signed, note=note.whole)
        self._show_keys()

    def replay(self) -> None:
        """Bring an opened log to the state that its entry store holds. Raises ``LogStoreError`` where the stores contradict each other."""
        state, head = self.entries.state(), self._lock.head()
        shown = self._folder.read(CHECKPOINT, MAX_NOTE_BYTES)
        if state is None and head is None and shown is None:
            state, head = self._create()
        if head is None and state is not None and state.size == 0 and shown is None:
            # Killed between the first two writes of a new log: nothing was ever acknowledged.
            head = self._create_head(state)
        _require_all(state, head, shown)
        if state is None or head is None:
            return
        published = self._compare(state, head, shown)
        self._take_over(state, head)
        self.signed = Signed(head.note, state.size, state.root, self._tree.upper())
        if self._signer.open(head.note).size != state.size:
            self._sign()
        for _, files in self._regrow(state, published.size):
            self._write(files)
        self.published = published
        self._show_keys()

    def _create(self) -> tuple[TreeState, Head]:
        state = TreeState(self._signer.origin, 1)
        self.entries.start(state)
        return state, self._create_head(state)

    def _create_head(self, state: TreeState) -> Head:
        head = Head(state.epoch, self._signer.sign(0, EMPTY_ROOT).whole, self._signer.vkey)
        self._lock.create(head)
        return head

    def _compare(self, state: TreeState, head: Head, shown: bytes | None) -> Signed:
        """Prove the stored tree from its entries, and that lock and public files tell of the same; return what is published."""
        if state.origin != self._signer.origin:
            raise LogStoreError(
                "this is another log", rule="store-origin", seen=state.origin, wanted=self._signer.origin, fix="name the log's own origin"
            )
        if head.vkey != self._signer.vkey:
            raise LogStoreError(
                "this key does not sign this log",
                rule="store-key",
                seen=self._signer.vkey,
                wanted=head.vkey,
                fix="use the log's newest key",
            )
        signed = self._signer.open(head.note)
        public = Checkpoint(state.origin, 0, EMPTY_ROOT) if shown is None else Checkpoint.parse(Note.parse(shown).text)
        _require_order(state, signed, public)
        seen = {state.base_size: (state.base_root, state.base_upper)}
        for tree, _ in self._regrow(state, signed.size, public.size):
            seen[tree.size] = (tree.root(), tree.upper())
        if seen[state.size][0] != state.root:
            raise _damaged("root", seen[state.size][0], state.root)
        _require_same("lock", signed, seen[signed.size][0])
        _require_same("folder", public, seen[public.size][0])
        return Signed(shown.decode() if shown else "", public.size, *seen[public.size])

    def _take_over(self, state: TreeState, head: Head) -> None:
        """Fence every earlier writer: both stores learn the new epoch before anything else is written."""
        epoch = max(state.epoch, head.epoch) + 1
        self._head = replace(head, epoch=epoch)
        self._lock.swap(head, self._head)
        self._state = replace(state, epoch=epoch)
        self.entries.start(self._state)

    def _regrow(self, state: TreeState, *sizes: int) -> Iterator[tuple[Growth, dict[str, bytes]]]:
        """Grow the tree anew from what was published at the last commit; stop at ``sizes`` and give the files that are new there."""
        start = full_below(state.base_size)
        tail = self.entries.leaves(start, state.base_size)
        self._tree = Growth.restore(state.base_size, state.base_upper, tail)
        if self._tree.root() != state.base_root:
            raise _damaged("root as it was published", self._tree.root(), state.base_root)
        stops = {*sizes, state.size, *range(start + REPLAY_STEP, state.size, REPLAY_STEP)}
        # The partial tiles of what was published may have been lost with the rest of the last batch.
        yield self._tree, self._tree.edge_files()
        for stop in sorted(stop for stop in stops if stop > state.base_size):
            yield self._tree, self._tree.grow(self.entries.leaves(self._tree.size, stop))

    def _sign(self) -> None:
        state = self._state
        note = self._signer.sign(state.size, state.root)
        new = replace(self._head, note=note.whole)
        self._lock.swap(self._head, new)
        self._head = new
        self.signed = Signed(note.whole, state.size, state.root, self._tree.upper())

    def _write(self, files: Mapping[str, bytes]) -> None:
        self._folder.write(files)
        self._full += Growth.replaced(files)

    def _show_keys(self) -> None:
        self._folder.write({rotation_path(number): text.encode() for number, text in enumerate(self._lock.rotations(), start=1)})
        self._folder.replace(VKEY, f"{self._signer.vkey}\n".encode())


@dataclass(frozen=True)
class _Signer:
    origin: str
    key: SigningKey

    @property
    def vkey(self) -> str:
        return NoteVerifier(self.origin, self.key.public).text

    def sign(self, size: int, root: bytes) -> Note:
        return sign_checkpoint(Checkpoint(self.origin, size, root), self.origin, self.key)

    def open(self, note: str) -> Checkpoint:
        return open_checkpoint(note, [NoteVerifier(self.origin, self.key.public)])[0]


def open_stores(places: LogPlaces, origin: str, key: SigningKey) -> Stores:
    """Open or create the stores and replay; nothing is published yet. The caller holds the writer's file lock."""
    with contextlib.ExitStack() as stack:
        folder = places.open_public()
        stack.callback(folder.close)
        entries = places.open_entries()
        stack.callback(entries.close)
        lock = places.open_lock()
        stack.callback(lock.close)
        stores = Stores(entries, lock, folder, _Signer(origin, key))
        stores.replay()
        stack.pop_all()
        return stores


def _require_all(state: TreeState | None, head: Head | None, shown: bytes | None) -> None:
    if state is None:
        raise LogStoreError(
            "the entry store is gone",
            rule="store-entries-missing",
            seen="no entry store",
            wanted="the store of this log",
            fix="restore the newest copy of log-state; a new log needs an empty folder",
        )
    if head is None:
        raise LogStoreError(
            "the lock store is gone",
            rule="store-lock-missing",
            seen="no lock store",
            wanted="the store of this log",
            fix="restore the newest copy of log-lock; it keeps this log from signing two histories",
        )
    if shown is None and state.base_size > 0:
        raise LogStoreError(
            "the public folder is gone",
            rule="store-folder-missing",
            seen="no checkpoint",
            wanted="the tiles of this log",
            fix="restore a copy of the log folder",
        )


def _require_order(state: TreeState, signed: Checkpoint, public: Checkpoint) -> None:
    """Require published ≤ signed ≤ committed, and neither older than what the last commit knew to be published."""
    if signed.size > state.size:
        raise LogStoreError(
            "the entry store is behind the lock store",
            rule="store-entries-behind",
            seen=f"{state.size} entries",
            wanted=f"{signed.size} entries",
            fix="an old copy of the entry store was restored: restore the newest one; never start a log from an old copy",
        )
    if signed.size < state.base_size:
        raise _lock_behind(signed.size, state.base_size)
    if public.size > signed.size:
        raise _lock_behind(signed.size, public.size)
    if public.size < state.base_size:
        raise LogStoreError(
            "the public folder is behind the stores",
            rule="store-folder-behind",
            seen=f"{public.size} entries",
            wanted=f"≥ {state.base_size} entries",
            fix="an old copy of the log folder was restored: restore the newest one",
        )


def _require_same(place: str, told: Checkpoint, root: bytes) -> None:
    """Require that a checkpoint is that of the stored tree at its size."""
    if told.root == root:
        return
    if place == "lock":
        raise LogStoreError(
            "the entry store and the lock store hold different histories",
            rule="store-contradiction",
            seen=f"{told.size} entries, {root.hex()}",
            wanted=f"{told.size} entries, {told.root.hex()}",
            fix="restore both from the same, newest copy",
        )
    raise LogStoreError(
        "the published checkpoint is of another history",
        rule="store-folder-contradiction",
        seen=told.root.hex(),
        wanted=root.hex(),
        fix="restore the log folder, log-state and log-lock of the same log",
    )


def _lock_behind(seen: int, wanted: int) -> LogStoreError:
    return LogStoreError(
        "the lock store is behind",
        rule="store-lock-behind",
        seen=f"{seen} entries",
        wanted=f"≥ {wanted} entries",
        fix="an old copy of the lock store was restored: restore the newest one",
    )


def _damaged(what: str, seen: bytes, wanted: bytes) -> LogStoreError:
    return LogStoreError(
        f"the entry store is damaged: its entries lead to another {what}",
        rule="store-damaged",
        seen=seen.hex(),
        wanted=wanted.hex(),
        fix="restore the newest copy of the entry store",
    )
