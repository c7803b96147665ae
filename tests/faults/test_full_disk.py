"""Disks that are really full: a file system of 8 MiB, of which nothing is left in the middle of the work."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sandbox.control.store.folder import FolderStore
from sandbox.errors import InputError
from sandbox.sealing.bundle import open_bundle, seal
from sandbox.sealing.keys import Identity
from tests.control.actors import TUS, code, make_bundle
from tests.control.conftest import folder, open_house

__all__ = ["folder"]
pytestmark = pytest.mark.root
DISK_BYTES = 8 * 2**20
PAGE = 4096


@pytest.fixture
def mounted() -> Iterator[Callable[[Path], Path]]:
    """Put a file system of 8 MiB at a folder."""
    places: list[Path] = []

    def mount(place: Path) -> Path:
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "small", place], check=True)
        places.append(place)
        return place

    yield mount
    for place in reversed(places):
        subprocess.run(["umount", place], check=True)


def grow(place: Path) -> None:
    """Make room."""
    subprocess.run(["mount", "-o", f"remount,size={4 * DISK_BYTES}", place], check=True)


def names(place: Path) -> list[str]:
    """Return what is in a folder."""
    return sorted(path.name for path in place.iterdir())


@pytest.fixture(scope="module")
def who() -> Identity:
    return Identity.generate()


def test_sealing(tmp_path: Path, mounted: Callable[[Path], Path], who: Identity) -> None:
    disk = mounted(tmp_path / "disk")
    (tmp_path / "weights").write_bytes(os.urandom(5 * 2**20))

    def fill(_done: int, _total: int) -> None:
        if not (disk / "others").exists():
            (disk / "others").write_bytes(bytes(6 * 2**20))

    with pytest.raises(InputError, match="b cannot be written: No space left on device"):
        seal([tmp_path / "weights"], disk / "b", recipients=[who.public], signer=who.signing_key, progress=fill)
    assert names(disk) == ["others"]
    (disk / "others").unlink()
    seal([tmp_path / "weights"], disk / "b", recipients=[who.public], signer=who.signing_key)
    assert names(disk) == ["b"]


@pytest.mark.parametrize("inside", [False, True])
def test_opening(tmp_path: Path, mounted: Callable[[Path], Path], who: Identity, inside: bool) -> None:  # noqa: FBT001
    """Every file takes a page, however small it is: what fits by the bytes does not fit."""
    disk, source = mounted(tmp_path / "disk"), tmp_path / "src"
    source.mkdir()
    for number in range(DISK_BYTES // PAGE + 100):
        (source / str(number)).write_bytes(b"x")
    seal([source], tmp_path / "b", recipients=[who.public], signer=who.signing_key)
    dest = disk if inside else disk / "out"
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        open_bundle(tmp_path / "b", dest, key=who)
    assert names(disk) == []
    grow(disk)
    open_bundle(tmp_path / "b", dest, key=who)
    assert names(dest) == names(source)


def test_uploading(folder: Path, mounted: Callable[[Path], Path]) -> None:
    with ExitStack() as stack:
        house = open_house(stack, folder)
        disk = mounted(house.control.settings.uploads_folder)
        customer = house.customer()
        bundle = make_bundle(folder, customer.identity, os.urandom(DISK_BYTES + 2**20))
        place = customer.start_upload(bundle.digest, len(bundle.raw)).headers["location"]
        answer = customer.send(place, 0, bundle.raw)
        assert (answer.status_code, code(answer)) == (507, "storage-full")
        kept = int(customer.call("HEAD", place, headers=TUS).headers["upload-offset"])
        assert DISK_BYTES - 2 * 2**20 < kept <= DISK_BYTES
        assert code(customer.send(place, kept, bundle.raw[kept:])) == "storage-full"
        grow(disk)
        kept = int(customer.call("HEAD", place, headers=TUS).headers["upload-offset"])
        assert customer.send(place, kept, bundle.raw[kept:]).status_code == 204
        assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw
        assert names(disk) == []


def test_storing(tmp_path: Path, mounted: Callable[[Path], Path]) -> None:
    disk, data, digest = mounted(tmp_path / "disk"), os.urandom(DISK_BYTES + 2**20), "blake3:" + "1" * 64
    (tmp_path / "upload").write_bytes(data)
    store = FolderStore(disk)
    with pytest.raises(OSError, match="No space left on device"):
        store.put(digest, tmp_path / "upload")
    assert (store.size(digest), list(store.digests())) == (None, [])
    assert [path for path in disk.rglob("*") if path.is_file()] == []
    grow(disk)
    store.put(digest, tmp_path / "upload")
    assert b"".join(store.read(digest, 0, len(data))) == data
    assert not (tmp_path / "upload").exists()
