"""A log's stores together: opened, compared with each other, replayed, and committed to in the one safe order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attestation.log.errors import LogStoreError
from attestation.log.files import PublicFolder, sync_folder
from attestation.log.note import Checkpoint, Note, NoteVerifier, open_checkpoint, sign_checkpoint
from attestation.log.store import EntryStore, Head, LockStore, TreeState
from attestation.log.tiles import TILE_WIDTH, Tile, rotation_path, split_hashes
from attestation.log.tree import Growth, full_below
from attestation.merkle import EMPTY_ROOT, leaf_hash
from attestation.signing import SigningKey

CHECKPOINT = "checkpoint"
VKEY = "vkey"


@dataclass(frozen=True)
class Published:
    """What stands in ``checkpoint``: the note and its tree's size."""

    note: str
    size: int


class Stores:
    """An open log: the two stores, the public folder, and the tree in memory. For one thread."""

    def __init__(
        self,
        entries: EntryStore,
        lock: LockStore,
        folder: PublicFolder,
        signer: _Signer,
        cosign: Callable[[str, int], Sequence[str]] | None,
    ) -> None:
        """Use ``open_stores``."""
        self.entries, self._lock, self._folder, self._signer, self._cosign = entries, lock, folder, signer, cosign
        self.published = Published("", 0)
        self._tree = Growth.restore(0, b"", [])
        self._state = TreeState(signer.origin, 0)
        self._head = Head(0, "", "")

    def close(self) -> None:
        """Close both stores."""
        try:
            self.entries.close()
        finally:
            self._lock.close()

    def leaf_hash_at(self, index: int) -> bytes:
        """Return the hash of a published entry."""
        start = full_below(index)
        if start >= full_below(self.published.size):
            return leaf_hash(self.entries.leaves(index, index + 1)[0])
        path = Tile(0, index // TILE_WIDTH).path
        raw = self._folder.read(path)
        if raw is None:
            raise LogStoreError(
                "a published tile is gone", rule="store-tile-missing", seen=path, wanted="the tile", fix="restore the log's folder"
            )
        return split_hashes(raw)[index - start]

    def commit(self, fresh: Sequence[tuple[bytes, bytes]]) -> None:
        """Append new (id, leaf) pairs: steps 1 to 6 of the writer."""
        before, old = self._tree.upper(), self._state
        leaves = [leaf for _, leaf in fresh]
        files = self._tree.grow(leaves)
        self._state = replace(old, size=self._tree.size, root=self._tree.root(), base_size=old.size, base_root=old.root, base_upper=before)
        self.entries.commit(
            self._state,
            enumerate(leaves, start=old.size),
            # In order, so that the pages of the index fill up: ids of one batch are close to each other.
            sorted((id_, old.size + number) for number, (id_, _) in enumerate(fresh)),
            forget_below=full_below(old.size),
        )
        self._sign()
        self._publish(files)

    def rotate(self, key: SigningKey, fresh: tuple[bytes, bytes], statement: str) -> None:
        """Log the leaf ``fresh`` under the old key, then hand the log over to ``key``; ``statement`` is the note of both.

        The swap in the lock store decides: before it the old key goes on, after it only the new one.
        """
        self.commit([fresh])
        self._signer = _Signer(self._signer.origin, key)
        note = self._signer.sign(self._state.size, self._state.root)
        new = replace(self._head, note=note.whole, vkey=self._signer.vkey)
        self._lock.swap(self._head, new, rotation=statement)
        self._head = new
        self._publish({})
        self._show_key()

    def _show_key(self) -> None:
        self._folder.replace(VKEY, f"{self._signer.vkey}\n".encode())

    def replay(self) -> None:
        """Bring an opened log to the state that its entry store holds. Raises ``LogStoreError`` where the stores contradict each other."""
        state, head = self.entries.state(), self._lock.head()
        shown = self._folder.read(CHECKPOINT)
        if state is None and head is None and shown is None:
            state, head = self._create()
        if head is None and state is not None and state.size == 0 and shown is None:
            # Killed between the first two writes of a new log: nothing was ever acknowledged.
            head = self._create_head(state)
        _require_all(state, head, shown)
        if state is None or head is None:
            return
        self._compare(state, head, shown)
        self._take_over(state, head)
        files = self._rebuild()
        if self._signer.open(self._head.note).size != self._state.size:
            self._sign()
        self._publish(files)
        self._show_key()

    def _create(self) -> tuple[TreeState, Head]:
        state = TreeState(self._signer.origin, 1)
        self.entries.start(state)
        return state, self._create_head(state)

    def _create_head(self, state: TreeState) -> Head:
        head = Head(state.epoch, self._signer.sign(0, EMPTY_ROOT).whole, self._signer.vkey)
        self._lock.create(head)
        return head

    def _compare(self, state: TreeState, head: Head, shown: bytes | None) -> None:
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
        _require_pair(state, signed)
        if shown is not None:
            _require_folder(state, signed, Checkpoint.parse(Note.parse(shown).text))

    def _take_over(self, state: TreeState, head: Head) -> None:
        """Fence every earlier writer: both stores learn the new epoch before anything else is written."""
        epoch = max(state.epoch, head.epoch) + 1
        self._head = replace(head, epoch=epoch)
        self._lock.swap(head, self._head)
        self._state = replace(state, epoch=epoch)
        self.entries.start(self._state)

    def _rebuild(self) -> dict[str, bytes]:
        """Return the files of the last batch, from the entries that step 1 stored; proves the stored tree on the way."""
        state = self._state
        start = full_below(state.base_size)
        leaves = self.entries.leaves(start, state.size)
        self._tree = Growth.restore(state.base_size, state.base_upper, leaves[: state.base_size - start])
        if self._tree.root() != state.base_root:
            raise _damaged("root before the last commit", self._tree.root(), state.base_root)
        files = self._tree.grow(leaves[state.base_size - start :])
        if self._tree.root() != state.root:
            raise _damaged("root", self._tree.root(), state.root)
        return files

    def _sign(self) -> None:
        note = self._signer.sign(self._state.size, self._state.root)
        new = replace(self._head, note=note.whole)
        self._lock.swap(self._head, new)
        self._head = new

    def _publish(self, files: dict[str, bytes]) -> None:
        self._folder.write(files)
        self._folder.write({rotation_path(number): text.encode() for number, text in enumerate(self._lock.rotations(), start=1)})
        note = self._head.note
        if self._cosign is not None:
            note += "".join(self._cosign(note, self.published.size))
        self._lock.while_owner(self._head.epoch, lambda: self._folder.replace(CHECKPOINT, note.encode()))
        self.published = Published(note, self._state.size)
        self._folder.drop_partials(Growth.replaced(files))


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


def open_stores(data: Path, lock: Path, origin: str, key: SigningKey, cosign: Callable[[str, int], Sequence[str]] | None) -> Stores:
    """Open or create the stores under ``data`` and ``lock`` and replay. The caller holds the writer's file lock."""
    signer = _Signer(origin, key)
    for folder in (data / "log-state", lock):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        sync_folder(folder.parent)
    public = PublicFolder(data / "log")
    entries = EntryStore(data / "log-state" / "entries.db")
    try:
        stores = Stores(entries, LockStore(lock / "lock.db"), public, signer, cosign)
    except BaseException:
        entries.close()
        raise
    try:
        stores.replay()
    except BaseException:
        stores.close()
        raise
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


def _require_pair(state: TreeState, signed: Checkpoint) -> None:
    """Require that the lock store's checkpoint is that of the stored tree, or of the tree one commit earlier."""
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
    if (signed.size, signed.root) not in {(state.size, state.root), (state.base_size, state.base_root)}:
        raise LogStoreError(
            "the entry store and the lock store hold different histories",
            rule="store-contradiction",
            seen=f"{state.size} entries, {state.root.hex()}",
            wanted=f"{signed.size} entries, {signed.root.hex()}",
            fix="restore both from the same, newest copy",
        )


def _require_folder(state: TreeState, signed: Checkpoint, public: Checkpoint) -> None:
    """Require the signed checkpoint or the one before it in public: a commit is published before the next one starts."""
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
    if (public.size, public.root) not in {(state.size, state.root), (state.base_size, state.base_root)}:
        raise LogStoreError(
            "the published checkpoint is of another history",
            rule="store-folder-contradiction",
            seen=public.root.hex(),
            wanted=state.root.hex(),
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
