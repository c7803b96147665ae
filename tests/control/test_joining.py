"""Parts sent side by side and joined: every refusal, crashes at every step, and what they take of quota, time and disk."""

from __future__ import annotations

import errno
import os
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import httpx
import pytest

from sandbox.control.assembling import assemble
from sandbox.control.settings import Limits
from sandbox.control.store import folder as folder_store
from sandbox.control.store.pieces import open_whole
from sandbox.control.upload_sweep import sweep_uploads
from tests.control.actors import TUS, Bundle, Customer, code, make_bundle, ok
from tests.control.conftest import House, open_house
from tests.patience import LONG


@pytest.fixture
def customer(house: House) -> Customer:
    return house.customer()


@pytest.fixture
def bundle(house: House, customer: Customer) -> Bundle:
    return make_bundle(house.folder, customer.identity, os.urandom(60_000))


def begin(customer: Customer, size: int) -> str:
    answer = customer.call("POST", "/v1/uploads", headers={**TUS, "Upload-Length": str(size), "Upload-Concat": "partial"})
    assert answer.status_code == 201, answer.text
    return str(answer.headers["location"])


def send_parts(customer: Customer, bundle: Bundle, count: int = 3) -> list[str]:
    """Send a bundle in parts, the last one first."""
    step = -(-len(bundle.raw) // count)
    places = [begin(customer, len(bundle.raw[start : start + step])) for start in range(0, len(bundle.raw), step)]
    for number in reversed(range(count)):
        assert customer.send(places[number], 0, bundle.raw[number * step : (number + 1) * step]).status_code == 204
    return places


def join(customer: Customer, digest: str, places: list[str], **headers: str) -> httpx.Response:
    metadata = f"digest {b64encode(digest.encode()).decode()}"
    sent = {**TUS, "Upload-Concat": f"final;{' '.join(places)}", "Upload-Metadata": metadata, **headers}
    return customer.call("POST", "/v1/uploads", headers=sent)


def files(house: House) -> list[Path]:
    return list(house.control.settings.uploads_folder.iterdir())


def test_parts_become_one_bundle(house: House, customer: Customer, bundle: Bundle) -> None:
    places = send_parts(customer, bundle)
    head = customer.call("HEAD", places[1], headers=TUS)
    assert (head.status_code, head.headers["upload-concat"]) == (200, "partial")
    answer = join(customer, bundle.digest, places)
    assert answer.status_code == 201
    final = answer.headers["location"]
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw
    head = customer.call("HEAD", final, headers=TUS)
    assert head.headers["upload-offset"] == head.headers["upload-length"] == str(len(bundle.raw))
    assert head.headers["upload-concat"] == f"final;{' '.join(places)}"
    assert files(house) == []
    assert customer.call("HEAD", places[0], headers=TUS).status_code == 404
    again = join(customer, bundle.digest, [f"https://elsewhere{place}" for place in places])
    assert (again.status_code, again.headers["location"]) == (201, final), "a client that did not hear the answer asks again"
    assert customer.send(final, len(bundle.raw), b"").status_code == 403
    assert [entry["type"] for entry in ok(customer.get(f"/v1/log/entries?resource={bundle.digest}"))["entries"]] == ["bundle.stored"]


def test_parts_in_another_order_are_another_bundle(house: House, customer: Customer, bundle: Bundle) -> None:
    places = send_parts(customer, bundle)
    answer = join(customer, bundle.digest, places[::-1])
    assert (answer.status_code, code(answer)) == (422, "bundle-tampered")
    assert files(house) == []
    assert code(join(customer, bundle.digest, places)) == "not-found"


def test_what_cannot_be_joined(house: House, customer: Customer, bundle: Bundle) -> None:
    places, works = send_parts(customer, bundle), house.customer("works")
    half, whole = begin(customer, 10), str(customer.start_upload(bundle.digest, 10).headers["location"])
    cases = [
        (join(works, bundle.digest, places), 404, "not-found"),
        (join(customer, bundle.digest, [*places, half]), 409, "offset-mismatch"),
        (join(customer, bundle.digest, [places[0], places[0]]), 422, "bad-input"),
        (join(customer, bundle.digest, [places[0], whole]), 422, "bad-input"),
        (join(customer, bundle.digest, []), 400, "bad-upload"),
        (join(customer, bundle.digest, ["/v1/uploads/../x"]), 400, "bad-upload"),
        (join(customer, bundle.digest, [f"upload-{number:032x}" for number in range(65)]), 400, "bad-upload"),
        (join(customer, bundle.digest, places, **{"Upload-Concat": "finally"}), 400, "bad-upload"),
        (join(customer, "sha256:" + "0" * 64, places), 422, "bad-input"),
    ]
    assert [(answer.status_code, code(answer)) for answer, *_ in cases] == [(status, word) for _, status, word in cases]
    with house.control.uploading.hold(places[1].rpartition("/")[2]):
        assert code(join(customer, bundle.digest, places)) == "upload-locked"
    assert join(customer, bundle.digest, places).status_code == 201


def test_a_node_sends_no_parts(house: House) -> None:
    answer = house.node().call("POST", "/v1/uploads", headers={**TUS, "Upload-Length": "5", "Upload-Concat": "partial"})
    assert code(answer) == "not-found"


def test_parts_count_for_the_quota_and_so_does_what_they_become(folder: Path) -> None:
    with ExitStack() as stack:
        house = open_house(stack, folder, Limits(tenant_quota_bytes=100_000, bundle_bytes=90_000, uploads_per_tenant=4))
        customer = house.customer()
        bundle = make_bundle(house.folder, customer.identity, os.urandom(60_000))
        places = send_parts(customer, bundle)
        refused = {**TUS, "Upload-Length": "90000", "Upload-Concat": "partial"}
        assert customer.call("POST", "/v1/uploads", headers=refused).json()["details"]["rule"] == "tenant-quota"
        begin(customer, 10)
        refused["Upload-Length"] = "10"
        assert customer.call("POST", "/v1/uploads", headers=refused).json()["details"]["rule"] == "uploads-per-tenant"
        assert join(customer, bundle.digest, places).status_code == 201
        assert customer.start_upload("blake3:" + "1" * 64, 90_000).json()["details"]["rule"] == "tenant-quota"
        assert customer.start_upload("blake3:" + "1" * 64, 10_000).status_code == 201


def test_parts_together_are_bounded_like_one_bundle(folder: Path) -> None:
    with ExitStack() as stack:
        house = open_house(stack, folder, Limits(bundle_bytes=50_000))
        customer = house.customer()
        bundle = make_bundle(house.folder, customer.identity, os.urandom(60_000))
        assert join(customer, bundle.digest, send_parts(customer, bundle)).json()["details"]["rule"] == "bundle-size"


def test_parts_expire_and_so_does_what_could_not_be_made_of_them(house: House, customer: Customer, bundle: Bundle, monkeypatch) -> None:
    send_parts(customer, bundle)
    places = send_parts(customer, bundle)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        answer = join(customer, bundle.digest, places)
    assert (answer.status_code, code(answer)) == (507, "storage-full")
    for path in files(house):
        os.utime(path, (0, 0))
    sweep_uploads(house.control)
    assert len(files(house)) == 7, "a part of what is still to be joined was taken for a stray"
    house.clock.ahead += timedelta(days=8)
    sweep_uploads(house.control)
    assert files(house) == []


def test_a_full_disk_is_told_and_joining_goes_on_once_there_is_room(
    house: House, customer: Customer, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = send_parts(customer, bundle)
    real, room = Path.rename, [2]

    def rename(source: Path, target: Path) -> None:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= 1
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        assert code(join(customer, bundle.digest, places)) == "storage-full"
    assert join(customer, bundle.digest, places).status_code == 201
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw


def test_joining_copies_nothing_and_hashes_once(house: House, customer: Customer, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    places = send_parts(customer, bundle)
    sent = {path.stat().st_ino for path in files(house)}
    hashed, real = [], house.control.uploading.digest
    monkeypatch.setattr(house.control.uploading, "digest", lambda *what: (hashed.append(what), real(*what))[1])
    assert join(customer, bundle.digest, places).status_code == 201
    assert join(customer, bundle.digest, places).status_code == 201
    kept = house.control.settings.data / "bundles"
    assert {path.stat().st_ino for path in kept.rglob("*") if path.is_file()} == sent
    assert len(hashed) == 1


def test_the_same_bundle_joined_twice_at_once_is_kept_once(
    house: House, customer: Customer, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [send_parts(customer, bundle), send_parts(customer, bundle)]
    met, real = threading.Barrier(2, timeout=LONG), folder_store._sync

    def sync(source: Path) -> None:
        real(source)
        met.wait()  # neither has a name in the store when the other one looks

    monkeypatch.setattr(folder_store, "_sync", sync)
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda places: join(customer, bundle.digest, places), both))
    assert [answer.status_code for answer in answers] == [201, 201]
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw
    assert files(house) == []
    assert len(list((house.control.settings.data / "bundles").glob("*/*"))) == 1


# ---- the files


class _Crash(BaseException):
    """The power went."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(7))
def test_a_crash_at_any_step_is_mended_by_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool) -> None:
    steps, sizes = 0, [3000, 0, 5000, 4096]
    parts = [f"part{each}" for each in range(len(sizes))]
    for part, size in zip(parts, sizes, strict=True):
        (tmp_path / part).write_bytes(part.encode() * size)

    def planted(real):
        def call(*arguments: object, **more: object):
            nonlocal steps
            steps += 1
            if steps - 1 == number and not after:
                raise _Crash
            answer = real(*arguments, **more)
            if steps - 1 == number:
                raise _Crash
            return answer

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", planted(os.fsync))
        patch.setattr(Path, "mkdir", planted(Path.mkdir))
        patch.setattr(Path, "rename", planted(Path.rename))
        with pytest.raises(_Crash):
            assemble(tmp_path, "whole", parts)
    assemble(tmp_path, "whole", parts)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]
    with open_whole(tmp_path / "whole") as whole:
        assert whole.read() == b"".join(part.encode() * size for part, size in zip(parts, sizes, strict=True))


@pytest.mark.parametrize(("name", "number"), [("mkdir", 0), ("rename", 0), ("rename", 2), ("mkdir", 1), ("replace", 0)])
def test_a_server_that_dies_while_it_joins_has_the_parts_or_the_bundle(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int
) -> None:
    steps, real = 0, getattr(Path, name)

    def crash(*arguments: object, **more: object) -> object:
        nonlocal steps
        answer = real(*arguments, **more)
        steps += 1
        if steps == number + 1:
            raise OSError(errno.EIO, "Input/output error")  # and nothing more of this server's is asked for
        return answer

    with ExitStack() as stack:
        house = open_house(stack, folder)
        customer = house.customer()
        bundle = make_bundle(house.folder, customer.identity, os.urandom(60_000))
        places = send_parts(customer, bundle)
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, crash)
            assert join(customer, bundle.digest, places).status_code == 503
    with ExitStack() as stack:
        house = open_house(stack, folder)
        customer.http = house.http
        assert join(customer, bundle.digest, places).status_code == 201
        assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw
        assert files(house) == []
