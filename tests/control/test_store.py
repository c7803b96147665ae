"""One conformance suite for every bundle store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.control.settings import ControlSettings
from sandbox.control.store import CHUNK, BundleStore
from sandbox.control.store.folder import FolderStore
from sandbox.control.store.url import open_store
from sandbox.errors import InputError, SealrigError, UsageError

ONE, TWO = "blake3:" + "1" * 64, "blake3:" + "2" * 64


@pytest.fixture(params=["folder", "other-filesystem"])
def store(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[tuple[BundleStore, Path]]:
    """A store, and a folder to put from."""
    incoming = (tmp_path if request.param == "other-filesystem" else folder) / "incoming"
    incoming.mkdir()
    yield FolderStore(folder / "bundles"), incoming


def source(folder: Path, data: bytes) -> Path:
    path = folder / "upload"
    path.write_bytes(data)
    return path


def test_put_read_delete(store: tuple[BundleStore, Path]) -> None:
    bundles, incoming = store
    data = os.urandom(2 * CHUNK + 17)
    path = source(incoming, data)
    bundles.put(ONE, path)
    assert not path.exists()
    assert bundles.size(ONE) == len(data)
    assert b"".join(bundles.read(ONE, 0, len(data))) == data
    assert b"".join(bundles.read(ONE, CHUNK - 3, CHUNK + 3)) == data[CHUNK - 3 : CHUNK + 3]
    assert all(len(piece) <= CHUNK for piece in bundles.read(ONE, 0, len(data)))
    assert list(bundles.digests()) == [ONE]
    bundles.delete(ONE)
    bundles.delete(ONE)
    assert bundles.size(ONE) is None
    assert list(bundles.digests()) == []


def test_putting_twice_is_once_and_a_source_that_is_gone_is_no_error_then(store: tuple[BundleStore, Path]) -> None:
    bundles, incoming = store
    bundles.put(ONE, source(incoming, b"data"))
    bundles.put(ONE, source(incoming, b"data"))
    bundles.put(ONE, incoming / "gone")
    assert b"".join(bundles.read(ONE, 0, 4)) == b"data"
    with pytest.raises(OSError, match="gone"):
        bundles.put(TWO, incoming / "gone")
    assert bundles.size(TWO) is None


def test_reading_what_is_not_there(store: tuple[BundleStore, Path]) -> None:
    bundles, _ = store
    with pytest.raises(OSError):
        list(bundles.read(ONE, 0, 1))


def test_a_reader_is_not_cut_by_a_deletion(store: tuple[BundleStore, Path]) -> None:
    bundles, incoming = store
    bundles.put(ONE, source(incoming, bytes(2 * CHUNK)))
    pieces = bundles.read(ONE, 0, 2 * CHUNK)
    bundles.delete(ONE)
    assert sum(map(len, pieces)) == 2 * CHUNK


@pytest.mark.parametrize(
    "digest", ["", "../../etc/passwd", "blake3:..", "blake3:" + "G" * 64, "sha256:" + "1" * 64, ONE + "/x", ONE + "\n"]
)
def test_names_are_digests(store: tuple[BundleStore, Path], digest: str) -> None:
    bundles, incoming = store
    with pytest.raises((InputError, SealrigError)):
        bundles.put(digest, source(incoming, b"x"))
    with pytest.raises((InputError, SealrigError)):
        bundles.size(digest)


def test_it_can_be_checked(store: tuple[BundleStore, Path]) -> None:
    bundles, _ = store
    bundles.check()
    assert list(bundles.digests()) == []


def test_half_written_copies_go_at_the_start(folder: Path) -> None:
    FolderStore(folder / "bundles")
    (folder / "bundles" / "put-1.part").write_bytes(b"half")
    FolderStore(folder / "bundles")
    assert list((folder / "bundles").iterdir()) == []


def test_every_step_is_synced_before_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr("os.fsync", lambda fd: (told.append(f"sync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}"), real_sync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (told.append("rename"), real_replace(self, target))[1])
    FolderStore(folder / "bundles").put(ONE, source(folder, b"data"))
    assert told == ["sync bundles", "sync upload", "rename", "sync 11"]


def test_which_store_a_url_means(folder: Path) -> None:
    def opened(url: str) -> BundleStore:
        return open_store(ControlSettings(data=folder, store=url))

    assert isinstance(opened(""), FolderStore)
    assert isinstance(opened(f"file://{folder}/elsewhere"), FolderStore)
    for wrong in ("file://host/x", "ftp://x", "s3:", "folder", "file:x"):
        with pytest.raises(UsageError):
            opened(wrong)
