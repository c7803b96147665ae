"""One conformance suite for every bundle store."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from sandbox.control.settings import ControlSettings
from sandbox.control.store import CHUNK, BundleStore
from sandbox.control.store.folder import FolderStore
from sandbox.control.store.pieces import open_whole, piece_name
from sandbox.control.store.s3 import S3Store, part_sizes
from sandbox.control.store.url import CREDENTIALS, open_store
from sandbox.errors import InputError, SealrigError, UsageError
from tests.control.conftest import open_house

ONE, TWO = "blake3:" + "1" * 64, "blake3:" + "2" * 64


def s3_settings(folder: Path, endpoint: str) -> ControlSettings:
    bucket = f"bundles-{os.urandom(4).hex()}"
    assert httpx.put(f"{endpoint}/{bucket}", timeout=60).is_success
    credentials = folder / CREDENTIALS
    credentials.write_text('{"access_key_id": "key", "secret_access_key": "secret"}')
    credentials.chmod(0o600)
    return ControlSettings(data=folder, store=f"s3://{bucket}/some/prefix?region=us-east-1&endpoint={endpoint}")


@pytest.fixture(params=["folder", "other-filesystem", "s3"])
def store(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> tuple[BundleStore, Path]:
    """A store, and a folder to put from."""
    incoming = (tmp_path if request.param == "other-filesystem" else folder) / "incoming"
    incoming.mkdir()
    if request.param == "s3":
        return open_store(s3_settings(folder, request.getfixturevalue("s3_endpoint"))), incoming
    return FolderStore(folder / "bundles"), incoming


def source(folder: Path, data: bytes) -> Path:
    path = folder / "upload"
    path.write_bytes(data)
    return path


def in_pieces(folder: Path, data: bytes) -> Path:
    """Pieces of several sizes, the first of them empty and the second a single byte."""
    path = folder / "upload"
    path.mkdir()
    cuts = [0, 0, 1, *(len(data) * number // 3 for number in (1, 2, 3))]
    for number, (start, end) in enumerate(pairwise(cuts)):
        (path / piece_name(number)).write_bytes(data[start:end])
    return path


Source = Callable[[Path, bytes], Path]
as_file_or_pieces = pytest.mark.parametrize("source", [source, in_pieces])


@as_file_or_pieces
def test_put_read_delete(store: tuple[BundleStore, Path], source: Source) -> None:
    bundles, incoming = store
    data = os.urandom(9 * 2**20 + 17)  # more than one of the parts that S3 takes
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


@as_file_or_pieces
def test_putting_twice_is_once_and_a_source_that_is_gone_is_no_error_then(store: tuple[BundleStore, Path], source: Source) -> None:
    bundles, incoming = store
    bundles.put(ONE, in_pieces(incoming, b"data"))
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


@as_file_or_pieces
def test_what_is_closed_early_gives_no_more(store: tuple[BundleStore, Path], source: Source) -> None:
    bundles, incoming = store
    bundles.put(ONE, source(incoming, bytes(3 * CHUNK)))
    pieces, untouched = bundles.read(ONE, 0, 3 * CHUNK), bundles.read(ONE, 0, 3 * CHUNK)
    assert set(next(pieces)) == {0}
    for reading in (pieces, pieces, untouched):
        reading.close()
        assert list(reading) == []


@as_file_or_pieces
def test_a_reader_is_not_cut_by_a_deletion(store: tuple[BundleStore, Path], source: Source) -> None:
    bundles, incoming = store
    data = os.urandom(2 * CHUNK)
    bundles.put(ONE, source(incoming, data))
    pieces = bundles.read(ONE, 0, 2 * CHUNK)
    bundles.delete(ONE)
    assert bundles.size(ONE) is None
    bundles.put(ONE, source(incoming, data))
    assert b"".join(pieces) == data
    assert b"".join(bundles.read(ONE, 0, 2 * CHUNK)) == data


@pytest.mark.parametrize(
    "digest", ["", "../../etc/passwd", "blake3:..", "blake3:" + "G" * 64, "sha256:" + "1" * 64, ONE + "/x", ONE + "\n"]
)
def test_names_are_digests(store: tuple[BundleStore, Path], digest: str) -> None:
    bundles, incoming = store
    with pytest.raises((InputError, SealrigError)):
        bundles.put(digest, source(incoming, b"x"))
    with pytest.raises((InputError, SealrigError)):
        bundles.size(digest)


@pytest.mark.parametrize("size", [0, 1, 2**23, 2**30, 48 * 2**30, 2**41])
def test_a_bundle_of_any_size_fits_into_the_parts_that_s3_takes(size: int) -> None:
    part, at_once = part_sizes(size)
    assert part * 10_000 > size
    assert 5 * 2**20 <= part <= 5 * 2**30
    assert at_once >= 1
    assert at_once * part <= 256 * 2**20


def test_the_parts_are_those_that_are_sent(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, int]] = []
    monkeypatch.setattr("sandbox.control.store.s3.obstore.put", lambda *_, **how: sent.append(how))
    bundles = S3Store("bucket", "", region="us-east-1")
    sizes = iter([None, 5])
    monkeypatch.setattr(bundles, "size", lambda _: next(sizes))
    bundles.put(ONE, source(folder, b"bytes"))
    assert [(how["chunk_size"], how["max_concurrency"]) for how in sent] == [part_sizes(5)]


def test_it_can_be_checked(store: tuple[BundleStore, Path]) -> None:
    bundles, _ = store
    bundles.check()
    assert list(bundles.digests()) == []


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_half_written_copies_and_half_deleted_pieces_go_at_the_start(folder: Path) -> None:
    bundles = FolderStore(folder / "bundles")
    (folder / "bundles" / "put-1.part").write_bytes(b"half")
    bundles.put(ONE, in_pieces(folder, b"data"))
    reader = bundles.read(ONE, 0, 4)
    bundles.delete(ONE)
    assert len(files(folder)) == 6, "what is still read is there"
    FolderStore(folder / "bundles")
    assert files(folder) == []
    reader.close()


def test_deleted_pieces_go_with_their_last_reader(folder: Path) -> None:
    bundles = FolderStore(folder / "bundles")
    bundles.put(ONE, in_pieces(folder, b"data"))
    first, second = bundles.read(ONE, 0, 4), bundles.read(ONE, 0, 4)
    bundles.delete(ONE)
    first.close()
    first.close()
    assert b"".join(second) == b"data"
    assert files(folder) == []


def test_pieces_are_kept_as_they_are_and_bundles_of_before_as_they_were(folder: Path) -> None:
    bundles, path = FolderStore(folder / "bundles"), in_pieces(folder, b"data")
    inodes = [each.stat().st_ino for each in sorted(path.iterdir())]
    bundles.put(ONE, path)
    kept = folder / "bundles" / "11" / f"{ONE[7:]}.bundle"
    assert [each.stat().st_ino for each in sorted(kept.iterdir())] == inodes, "they were copied"
    assert b"".join(each.read_bytes() for each in sorted(kept.iterdir())) == b"data"
    before = folder / "bundles" / "22" / f"{TWO[7:]}.bundle"
    before.parent.mkdir()
    before.write_bytes(b"a file")
    again = FolderStore(folder / "bundles")
    assert sorted(again.digests()) == [ONE, TWO]
    assert [(again.size(each), b"".join(again.read(each, 1, 3))) for each in (ONE, TWO)] == [(4, b"at"), (6, b" f")]


def open_files(folder: Path) -> list[str]:
    """Name the files, not the folders, that this process has open below a folder."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            path = entry.readlink()
        except FileNotFoundError:
            continue
        if path.is_relative_to(folder) and path.is_file():
            found.append(path.name)
    return found


def test_of_many_pieces_a_reader_has_one_open(folder: Path) -> None:
    path = folder / "upload"
    path.mkdir()
    for number in range(64):
        (path / piece_name(number)).write_bytes(bytes([number]) * 100_000)
    bundles = FolderStore(folder / "bundles")
    bundles.put(ONE, path)
    seen, at = set(), 5_000_000 - 7
    for piece in bundles.read(ONE, at, 64 * 100_000):
        opened = open_files(folder)
        assert len(opened) <= 1
        seen.update(opened)
        assert piece == b"".join(bytes([place // 100_000]) for place in range(at, at + len(piece)))
        at += len(piece)
    assert at == 64 * 100_000
    assert seen
    assert open_files(folder) == []


@pytest.mark.parametrize(("start", "whence", "count"), [(0, 0, 1), (3, 0, 4), (-2, 2, 2), (9, 0, 1), (100, 0, 3)])
def test_pieces_read_as_a_file_does(folder: Path, start: int, whence: int, count: int) -> None:
    data = b"0123456789"
    with open_whole(in_pieces(folder, data)) as whole, (folder / "file").open("w+b") as file:
        file.write(data)
        assert whole.seek(start, whence) == file.seek(start, whence)
        assert (whole.read(count), whole.tell()) == (file.read(count), file.tell())
        assert whole.seek(-whole.tell(), 1) == 0
        assert whole.read() == data


def test_a_piece_that_was_cut_is_an_error_and_no_short_bundle(folder: Path) -> None:
    with open_whole(in_pieces(folder, b"0123456789")) as whole:
        (folder / "upload" / piece_name(3)).write_bytes(b"")
        with pytest.raises(OSError, match="shorter than it was"):
            whole.read()


@pytest.mark.parametrize("source", [source, in_pieces])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("number", range(7))
def test_a_crash_at_any_step_of_a_put_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: Source, name: str, number: int, *, after: bool
) -> None:
    """The bundle is whole under its name, or whole where it came from, and putting again makes it so."""
    bundles, path, real = FolderStore(folder / "bundles"), source(folder, b"0123456789"), getattr(os, name)
    left = number

    def crash(*arguments: object) -> None:
        nonlocal left
        left -= 1
        if left >= 0 or after:
            real(*arguments)
        if left < 0:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, name, crash)
        try:
            bundles.put(ONE, path)
        except KeyboardInterrupt:
            assert left == -1
        else:
            assert left >= 0
    bundles = FolderStore(folder / "bundles")
    if bundles.size(ONE) is None:
        with open_whole(path) as whole:
            assert whole.read() == b"0123456789"
    bundles.put(ONE, path)
    assert b"".join(bundles.read(ONE, 0, 10)) == b"0123456789"
    assert not path.exists()


def test_every_step_is_synced_before_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr("os.fsync", lambda fd: (told.append(f"sync {Path(f'/proc/self/fd/{fd}').readlink().name}"), real_sync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (told.append("rename"), real_replace(self, target))[1])
    FolderStore(folder / "bundles").put(ONE, source(folder, b"data"))
    assert told == ["sync bundles", "sync upload", "rename", "sync 11"]


def test_two_mounts_of_one_disk_are_two_file_systems_to_a_rename(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def replace(old: Path, new: Path) -> None:
        if not old.is_relative_to(folder / "bundles"):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    bundles, path = FolderStore(folder / "bundles"), source(folder, b"data")
    bundles.put(ONE, path)
    assert b"".join(bundles.read(ONE, 0, 4)) == b"data"
    assert [each.name for each in folder.rglob("*") if each.is_file()] == [f"{ONE[7:]}.bundle"]


def test_what_a_crash_left_named_is_durable_before_its_source_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rename that was not synced can still be lost with the power: putting again must not take it for done."""
    bundles, path = FolderStore(folder / "bundles"), source(folder, b"data")
    real = os.fsync

    def sync(fd: int) -> None:
        if Path(f"/proc/self/fd/{fd}").readlink().name == "11":
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output error"):
                bundles.put(ONE, path)
            path = source(folder, b"data")
    bundles.put(ONE, path)
    assert not path.exists()


def test_which_store_a_url_means(folder: Path) -> None:
    def opened(url: str) -> BundleStore:
        return open_store(ControlSettings(data=folder, store=url))

    assert isinstance(opened(""), FolderStore)
    assert isinstance(opened(f"file://{folder}/elsewhere"), FolderStore)
    for wrong in ("file://host/x", "ftp://x", "s3:", "folder", "file:x", "s3://key:secret@bucket/x", "s3://bucket?more=1"):
        with pytest.raises(UsageError) as raised:
            opened(wrong)
        assert "secret" not in f"{raised.value} {raised.value.details}"


@pytest.mark.parametrize(("text", "mode"), [("{}", 0o644), ("{", 0o600), ('{"more": "x"}', 0o600), ('{"access_key_id": 1}', 0o600)])
def test_credentials_are_a_private_file(folder: Path, text: str, mode: int) -> None:
    path = folder / CREDENTIALS
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(UsageError):
        open_store(ControlSettings(data=folder, store="s3://bucket"))


def test_an_s3_server_that_does_not_answer_is_a_storage_fault(folder: Path) -> None:
    credentials = folder / CREDENTIALS
    credentials.write_text('{"access_key_id": "key", "secret_access_key": "secret"}')
    credentials.chmod(0o600)
    bundles = S3Store("bucket", "", endpoint="http://127.0.0.1:9", region="x", access_key_id="key", secret_access_key="secret",
                      client_options={"allow_http": True}, retry_config={"max_retries": 0})  # fmt: skip
    with pytest.raises(OSError) as raised:
        bundles.check()
    assert "secret" not in str(raised.value)


def test_a_lease_server_on_s3(folder: Path, s3_endpoint: str) -> None:
    folder.joinpath("data").mkdir()
    settings = s3_settings(folder / "data", s3_endpoint)
    with ExitStack() as stack:
        house = open_house(stack, folder, store=settings.store)
        customer = house.customer()
        bundle = house.bundle(customer, os.urandom(3 * CHUNK))
        answer = customer.get(f"/v1/bundles/{bundle.digest}/content", headers={"Range": "bytes=5000-1999999"})
        assert answer.content == bundle.raw[5000:2_000_000]
        assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw
        assert customer.delete(f"/v1/bundles/{bundle.digest}").status_code == 204
        assert list(house.control.store.digests()) == []
        assert house.http.get("/readyz").status_code == 200
