"""Uploads whose line breaks, whose disk fails, whose store is slow, or whom two attend to at once."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from blake3 import blake3

from sandbox.control import finishing, receiving, sweeper
from sandbox.control.bundles import collect_garbage
from sandbox.control.database.models import UploadRow
from sandbox.control.sweeper import Sweeper
from sandbox.control.upload_sweep import sweep_uploads
from sandbox.customer.client import Client
from sandbox.customer.state import State
from sandbox.customer.upload import push
from sandbox.errors import BundleTamperedError
from tests.control.actors import TUS, Bundle, Customer, code, make_bundle, ok
from tests.control.conftest import House
from tests.control.serving import served
from tests.patience import LONG, eventually


@pytest.fixture
def customer(house: House) -> Customer:
    return house.customer()


@pytest.fixture
def bundle(house: House, customer: Customer) -> Bundle:
    return make_bundle(house.folder, customer.identity, os.urandom(600_000))


@pytest.fixture
def address(house: House) -> Iterator[str]:
    with served(house) as url:
        yield url


def start(customer: Customer, bundle: Bundle, **metadata: str) -> str:
    return str(customer.start_upload(bundle.digest, len(bundle.raw), **metadata).headers["location"])


def head(customer: Customer, place: str) -> httpx.Response:
    return customer.call("HEAD", place, headers=TUS)


def row_of(house: House, place: str) -> UploadRow | None:
    with house.control.database.read() as session:
        return session.get(UploadRow, place.rpartition("/")[2])


class Store:
    """A store around the real one whose ``put`` waits to be let through, or fails."""

    def __init__(self, house: House) -> None:
        self.inner, self.broken = house.control.store, False
        self.came, self.go = threading.Event(), threading.Event()
        object.__setattr__(house.control, "store", self)

    def put(self, digest: str, source: Path) -> None:
        self.came.set()
        if self.broken:
            raise OSError(errno.EIO, "no answer")
        assert self.go.wait(LONG)
        self.inner.put(digest, source)

    def __getattr__(self, name: str):
        return getattr(self.inner, name)


# ---- a line that breaks


def half(address: str, customer: Customer, place: str, bundle: Bundle, count: int) -> socket.socket:
    """Announce the whole bundle in one PATCH, and send its first ``count`` bytes."""
    parts = urlsplit(address)
    line = socket.create_connection((parts.hostname, parts.port))
    lines = [
        f"PATCH {place} HTTP/1.1", "Host: server", f"Authorization: Bearer {customer.token}", "Tus-Resumable: 1.0.0", "Upload-Offset: 0",
        "Content-Type: application/offset+octet-stream", f"Content-Length: {len(bundle.raw)}", "", "",
    ]  # fmt: skip
    line.sendall("\r\n".join(lines).encode() + bundle.raw[:count])
    return line


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the size of each piece that the server takes over, and by 0 before it asks for one."""
    sizes: list[int] = []

    async def counted(pieces: AsyncIterator[bytes], take: Callable = receiving._next) -> bytes | None:
        sizes.append(0)
        piece = await take(pieces)
        sizes.append(len(piece or b""))
        return piece

    monkeypatch.setattr(receiving, "_next", counted)
    return sizes


@pytest.mark.parametrize("count", [0, 1, 300_000])
def test_every_byte_that_came_before_a_cut_is_kept(
    house: House, customer: Customer, bundle: Bundle, address: str, handed: list[int], *, count: int
) -> None:
    place = start(customer, bundle)
    with half(address, customer, place, bundle, count):
        # uvicorn throws away what it has read and not yet handed over when it sees the end
        eventually(lambda: handed and sum(handed) == count)
    eventually(lambda: head(customer, place).headers["upload-offset"] == str(count))
    eventually(lambda: house.control.uploading.hash_at(place.rpartition("/")[2], count) is not None)
    eventually(lambda: customer.send(place, count, bundle.raw[count:]).status_code == 204)  # locked until the server has seen the cut
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw


def test_a_client_that_fell_silent_does_not_keep_its_successor_out(
    house: House, customer: Customer, bundle: Bundle, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox.control.receiving.IDLE_SECONDS", 0.3)
    place = start(customer, bundle)
    with half(address, customer, place, bundle, 300_000):  # stays open, as a line does whose other end lost its power
        eventually(lambda: head(customer, place).headers["upload-offset"] == "300000")
        eventually(lambda: customer.send(place, 300_000, bundle.raw[300_000:]).status_code == 204)
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw


# ---- a server that takes its time


def pushing(house: House, customer: Customer, bundle: Bundle, address: str) -> tuple[threading.Thread, list[object]]:
    """Push in a thread; what it returned or raised comes into the list."""
    (house.folder / "bundle").write_bytes(bundle.raw)
    said: list[object] = []

    def work() -> None:
        try:
            with Client(address, customer.token) as client:
                said.append(push(client, house.folder / "bundle", State(house.folder / "state"), patience=1))
        except Exception as error:  # noqa: BLE001  (looked at below)
            said.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, said


def test_a_push_is_done_when_the_bundle_is_stored_and_not_before(
    house: House, customer: Customer, bundle: Bundle, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox.customer.http.ANSWER_SECONDS", 0.5)
    store = Store(house)
    thread, said = pushing(house, customer, bundle, address)
    assert store.came.wait(LONG)
    thread.join(3)  # longer than an answer may take, and than its patience
    assert (thread.is_alive(), said) == (True, [])
    store.go.set()
    thread.join(LONG)
    assert [(done.digest, done.sent) for done in said] == [(bundle.digest, len(bundle.raw))]
    assert ok(customer.get(f"/v1/bundles/{bundle.digest}"))["size"] == len(bundle.raw)


def test_a_push_whose_answer_came_too_late_still_hears_that_its_bytes_were_others(
    house: House, customer: Customer, bundle: Bundle, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox.customer.http.ANSWER_SECONDS", 0.5)
    hashing = threading.Event()
    monkeypatch.setattr(house.control.uploading, "digest", lambda *_: (hashing.wait(LONG), "blake3:" + "0" * 64)[1])
    thread, said = pushing(house, customer, bundle, address)
    thread.join(2)
    assert (thread.is_alive(), said) == (True, [])
    hashing.set()
    thread.join(LONG)
    assert [type(error) for error in said] == [BundleTamperedError]


def test_nobody_is_told_of_all_bytes_before_they_are_a_bundle(house: House, customer: Customer, bundle: Bundle) -> None:
    store = Store(house)
    place = start(customer, bundle)
    sending = threading.Thread(target=lambda: customer.send(place, 0, bundle.raw))
    sending.start()
    assert store.came.wait(LONG)
    assert head(customer, place).status_code == 423
    assert customer.call("DELETE", place, headers=TUS).status_code == 423
    sweep_uploads(house.control)  # leaves it alone
    store.go.set()
    sending.join()
    assert head(customer, place).headers["upload-offset"] == str(len(bundle.raw))


# ---- hashing on arrival


def test_bytes_are_hashed_as_they_come(house: House, customer: Customer, bundle: Bundle) -> None:
    place = start(customer, bundle)
    upload = place.rpartition("/")[2]
    wrong = "sha256 " + b64encode(hashlib.sha256(b"other").digest()).decode()
    for offset, more, status in ((0, {}, 204), (200_000, {"Upload-Checksum": wrong}, 460), (200_000, {}, 204)):
        assert customer.send(place, offset, bundle.raw[offset : offset + 200_000], **more).status_code == status
    state = house.control.uploading.hash_at(upload, 400_000)
    assert state.hexdigest() == blake3(bundle.raw[:400_000]).hexdigest()
    assert house.control.uploading.hash_at(upload, 399_999) is None
    assert customer.send(place, 400_000, bundle.raw[400_000:]).status_code == 204
    assert house.control.uploading.hash_at(upload, len(bundle.raw)) is None, "it is still remembered"


def test_what_was_hashed_is_not_read_again(house: House, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(bytes(1000) + b"rest")
    house.control.uploading.keep_hash("upload", blake3(b"x" * 1000), 1000)
    assert house.control.uploading.digest("upload", path) == f"blake3:{blake3(b'x' * 1000 + b'rest').hexdigest()}"
    house.control.uploading.forget("upload")
    assert house.control.uploading.digest("upload", path) == f"blake3:{blake3(bytes(1000) + b'rest').hexdigest()}"


# ---- disks that fail


def test_what_could_not_be_synced_does_not_count(house: House, customer: Customer, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    place = start(customer, bundle)
    assert customer.send(place, 0, bundle.raw[:1000]).status_code == 204

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("sandbox.control.receiving.os.fsync", full)
        answer = customer.send(place, 1000, bundle.raw[1000:5000])
    assert (answer.status_code, code(answer)) == (507, "storage-full")
    assert head(customer, place).headers["upload-offset"] == "1000"
    assert customer.send(place, 1000, bundle.raw[1000:]).status_code == 204
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw


@pytest.mark.parametrize("when", ["hashing", "reading the header"])
def test_a_disk_that_cannot_be_read_does_not_end_the_upload(
    house: House, customer: Customer, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    place = start(customer, bundle)

    def unreadable(*_: object) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        part, name = (house.control.uploading, "digest") if when == "hashing" else (finishing, "read_header")
        patch.setattr(part, name, unreadable)
        answer = customer.send(place, 0, bundle.raw)
    assert (answer.status_code, code(answer)) == (503, "storage-unavailable")
    assert head(customer, place).headers["upload-offset"] == str(len(bundle.raw))
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw


def test_an_upload_that_lost_its_file_is_no_upload(house: House, customer: Customer, bundle: Bundle) -> None:
    place = start(customer, bundle)
    (house.control.settings.uploads_folder / place.rpartition("/")[2]).unlink()
    answer = customer.send(place, 0, bundle.raw)
    assert (answer.status_code, code(answer)) == (404, "not-found")
    assert row_of(house, place) is None
    assert head(customer, place).status_code == 404


# ---- who goes on with it


def test_a_renewed_token_goes_on_with_its_tenants_uploads(house: House, customer: Customer, bundle: Bundle) -> None:
    place = start(customer, bundle)
    customer.send(place, 0, bundle.raw[:1000])
    renewed = Customer(house.http, house.token("customer", customer.tenant), customer.tenant, customer.identity)
    assert head(renewed, place).headers["upload-offset"] == "1000"
    assert renewed.send(place, 1000, bundle.raw[1000:]).status_code == 204
    assert head(house.customer("works"), place).status_code == 404


def test_a_node_that_asks_again_goes_on_with_the_same_upload(house: House, customer: Customer, bundle: Bundle) -> None:
    node = house.node()
    lease = ok(customer.submit(customer.job(spec={"output": {"path": "/out", "maxSize": 2**30}})))["id"]
    node.poll()
    place = start(node, bundle, lease=lease)
    node.send(place, 0, bundle.raw[:1000])
    assert head(customer, place).status_code == 404, "a customer has no part in a node's upload"
    for offset in (1000, len(bundle.raw)):
        again = node.start_upload(bundle.digest, len(bundle.raw), lease=lease)
        assert (again.headers["location"], again.headers["upload-offset"]) == (place, str(offset))
        if offset < len(bundle.raw):
            node.send(place, offset, bundle.raw[offset:])
    assert node.start_upload("blake3:" + "1" * 64, 10, lease=lease).headers["location"] != place
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw


# ---- sweeping


@pytest.fixture
def sweeping(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    monkeypatch.setattr(sweeper, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(sweeper, "STORE_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(sweeper, "STOP_SECONDS", 0.1)
    running = Sweeper(house.control)
    yield running.start
    running.stop()


def test_half_uploads_expire_by_themselves_beside_one_that_always_fails(
    house: House, customer: Customer, bundle: Bundle, sweeping: Callable[[], None]
) -> None:
    store = Store(house)
    store.broken = True
    stuck = start(customer, bundle)
    assert customer.send(stuck, 0, bundle.raw).status_code == 503
    late = [start(customer, bundle) for _ in range(4)]
    house.clock.ahead += timedelta(days=8)
    sweeping()
    eventually(lambda: [row_of(house, place) for place in late] == [None] * 4)
    eventually(lambda: [path.name for path in house.control.settings.uploads_folder.iterdir()] == [stuck.rpartition("/")[2]])
    store.broken = False
    store.go.set()
    eventually(lambda: list(house.control.store.digests()) == [bundle.digest])


def test_a_slow_store_does_not_keep_leases_from_expiring(
    house: House, customer: Customer, bundle: Bundle, sweeping: Callable[[], None]
) -> None:
    store = Store(house)
    store.broken = True
    assert customer.send(start(customer, bundle), 0, bundle.raw).status_code == 503
    store.broken = False
    store.came.clear()
    lease = ok(customer.submit(customer.job()))["id"]
    sweeping()
    assert store.came.wait(LONG)
    house.clock.ahead += timedelta(days=2)
    eventually(lambda: customer.lease(lease)["state"] == "expired")
    store.go.set()


def test_an_upload_lives_on_while_it_makes_progress(house: House, customer: Customer, bundle: Bundle) -> None:
    place = start(customer, bundle)
    for day in range(4):
        house.clock.ahead += timedelta(days=5)
        sweep_uploads(house.control)
        answer = customer.send(place, day * 1000, bundle.raw[day * 1000 : day * 1000 + 1000])
        assert answer.status_code == 204
        assert answer.headers["upload-expires"] == head(customer, place).headers["upload-expires"]
    house.clock.ahead += timedelta(days=8)
    with house.control.uploading.hold(place.rpartition("/")[2]):
        sweep_uploads(house.control)
        assert row_of(house, place) is not None, "it went while somebody was at work on it"
    sweep_uploads(house.control)
    assert row_of(house, place) is None


def test_a_bundle_whose_upload_was_erased_while_it_was_stored_is_collected(house: House, customer: Customer, bundle: Bundle) -> None:
    store = Store(house)
    place = start(customer, bundle)
    sending = threading.Thread(target=lambda: customer.send(place, 0, bundle.raw))
    sending.start()
    assert store.came.wait(LONG)
    with house.control.database.write() as session:
        session.delete(session.get_one(UploadRow, place.rpartition("/")[2]))
    store.go.set()
    sending.join()
    collect_garbage(house.control)
    assert list(house.control.store.digests()) == []


def test_uploads_that_begin_while_the_sweep_stores_another_are_left_alone(house: House, customer: Customer, bundle: Bundle) -> None:
    """Storing a large bundle may take longer than the age at which a file that nobody knows is removed."""
    store = Store(house)
    store.broken = True
    assert customer.send(start(customer, bundle), 0, bundle.raw).status_code == 503
    store.broken = False
    store.came.clear()
    sweeping = threading.Thread(target=sweep_uploads, args=(house.control,))
    sweeping.start()
    assert store.came.wait(LONG)
    place = start(customer, bundle)
    assert customer.send(place, 0, bundle.raw[:1000]).status_code == 204
    os.utime(house.control.settings.uploads_folder / place.rpartition("/")[2], (0, 0))
    store.go.set()
    sweeping.join()
    assert head(customer, place).headers["upload-offset"] == "1000"
