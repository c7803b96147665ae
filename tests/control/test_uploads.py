"""tus 1.0.0: every header, every refusal, cuts at any byte, restarts, and disks that fail."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from sandbox.control.api.uploads import MAX_METADATA_CHARS
from sandbox.control.database.models import TenantRow
from sandbox.control.settings import Limits
from sandbox.control.upload_sweep import sweep_uploads
from sandbox.control.uploads import follow_quota
from tests.control.actors import TUS, Bundle, Customer, Person, code, make_bundle, ok
from tests.control.conftest import House, open_house


def place_of(person: Person, bundle: Bundle) -> str:
    answer = person.start_upload(bundle.digest, len(bundle.raw))
    assert answer.status_code == 201, answer.text
    return str(answer.headers["location"])


def offset_of(person: Person, place: str) -> int:
    answer = person.call("HEAD", place, headers=TUS)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    return int(answer.headers["upload-offset"])


def parts(house: House) -> list[Path]:
    return list(house.control.settings.uploads_folder.iterdir())


def bundle_of(house: House, customer: Customer, size: int = 40_000) -> Bundle:
    return make_bundle(house.folder, customer.identity, os.urandom(size))


def test_what_the_server_speaks(house: House) -> None:
    answer = house.http.options("/v1/uploads")
    assert answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["tus-extension"] == "creation,termination,checksum,expiration,concatenation"
    assert "sha1" in answer.headers["tus-checksum-algorithm"]
    assert int(answer.headers["tus-max-size"]) == house.control.settings.limits.bundle_bytes


def test_an_upload_in_pieces_becomes_a_bundle_once(house: House) -> None:
    customer = house.customer()
    bundle = bundle_of(house, customer)
    place = place_of(customer, bundle)
    for start in range(0, len(bundle.raw), 9_000):
        answer = customer.send(place, start, bundle.raw[start : start + 9_000])
        assert answer.status_code == 204
        assert "upload-expires" in answer.headers
    assert ok(customer.get(f"/v1/bundles/{bundle.digest}"))["size"] == len(bundle.raw)
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw
    assert offset_of(customer, place) == len(bundle.raw)
    assert parts(house) == []
    entries = ok(customer.get(f"/v1/log/entries?resource={bundle.digest}"))["entries"]
    assert [entry["type"] for entry in entries] == ["bundle.stored"]
    customer.upload(bundle.raw, bundle.digest)
    assert len(ok(customer.get("/v1/bundles"))) == 1
    assert len(list(house.control.store.digests())) == 1


def test_two_tenants_own_the_same_bundle_and_it_goes_with_the_last(house: House) -> None:
    lab, works = house.customer("lab"), house.customer("works")
    bundle = bundle_of(house, lab)
    for tenant in (lab, works):
        tenant.upload(bundle.raw, bundle.digest)
    assert lab.delete(f"/v1/bundles/{bundle.digest}").status_code == 204
    assert code(lab.get(f"/v1/bundles/{bundle.digest}")) == "not-found"
    assert works.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw
    assert works.delete(f"/v1/bundles/{bundle.digest}").status_code == 204
    assert list(house.control.store.digests()) == []


def test_a_bundle_that_a_lease_needs_stays(house: House) -> None:
    customer = house.customer()
    bundle = house.bundle(customer)
    lease = ok(customer.submit(customer.job(inputs=[bundle.digest])))["id"]
    assert code(customer.delete(f"/v1/bundles/{bundle.digest}")) == "invalid-state"
    ok(customer.post(f"/v1/leases/{lease}/cancel"))
    assert customer.delete(f"/v1/bundles/{bundle.digest}").status_code == 204


@pytest.mark.parametrize(
    ("header", "status", "content"),
    [
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=10-19", 206, slice(10, 20)),
        ("bytes=5-", 206, slice(5, None)),
        ("bytes=0-999999999", 206, slice(0, None)),
        ("bytes=-5", 206, slice(-5, None)),
        ("bytes=-999999999", 206, slice(0, None)),
        ("bytes=-", 200, slice(0, None)),
        ("bytes=-0", 416, slice(0, 0)),
        ("chunks=1-2", 200, slice(0, None)),
        ("bytes=1-2,4-5", 200, slice(0, None)),
        ("bytes=99999999-", 416, slice(0, 0)),
        ("bytes=9-3", 200, slice(0, None)),
    ],
)
def test_ranges(house: House, header: str, status: int, content: slice) -> None:
    customer = house.customer()
    bundle = house.bundle(customer)
    answer = customer.get(f"/v1/bundles/{bundle.digest}/content", headers={"Range": header})
    assert (answer.status_code, answer.content) == (status, bundle.raw[content])
    if status == 206:
        start = len(bundle.raw) - len(answer.content) if header.startswith("bytes=-") else content.start or 0
        assert answer.headers["content-range"] == f"bytes {start}-{start + len(answer.content) - 1}/{len(bundle.raw)}"


def test_a_range_of_another_bundle_than_was_thought_is_the_whole(house: House) -> None:
    customer = house.customer()
    bundle = house.bundle(customer)
    place = f"/v1/bundles/{bundle.digest}/content"
    etag = customer.get(place, headers={"Range": "bytes=0-0"}).headers["etag"]
    assert etag == f'"{bundle.digest}"'
    assert customer.get(place, headers={"Range": "bytes=2-5", "If-Range": etag}).content == bundle.raw[2:6]
    other = customer.get(place, headers={"Range": "bytes=2-5", "If-Range": '"other"'})
    assert (other.status_code, other.content) == (200, bundle.raw)
    gone = customer.get(place, headers={"Range": f"bytes={len(bundle.raw)}-"})
    assert (gone.status_code, gone.headers["content-range"]) == (416, f"bytes */{len(bundle.raw)}")


def test_head_of_a_bundles_content_says_what_get_does_and_opens_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    customer, stranger = house.customer(), house.customer("works")
    place = f"/v1/bundles/{house.bundle(customer).digest}/content"
    whole = customer.get(place)

    def read(*_: object) -> None:
        raise AssertionError("HEAD opened the bundle")

    monkeypatch.setattr(house.control.store, "read", read)
    answer = customer.call("HEAD", place)
    assert (answer.status_code, answer.content, answer.headers) == (200, b"", whole.headers)
    for name in ("content-length", "etag", "accept-ranges"):
        assert name in answer.headers
    # RFC 9110, section 14.2: ranges are defined for GET alone, and ignored elsewhere.
    assert customer.call("HEAD", place, headers={"Range": "bytes=0-4"}).headers == whole.headers
    assert stranger.call("HEAD", place).status_code == 404


@pytest.mark.parametrize("name", ["upload-zzz", "upload-" + "0" * 33, "upload-" + "A" * 32, "x" * 5000, "%00", "%0a"])
def test_what_is_no_uploads_id_is_not_found(house: House, name: str) -> None:
    customer, place = house.customer(), f"/v1/uploads/{name}"
    answers = [customer.call("HEAD", place, headers=TUS), customer.call("DELETE", place, headers=TUS), customer.send(place, 0, b"x")]
    assert [(answer.status_code, answer.headers.get("tus-resumable")) for answer in answers] == [(404, "1.0.0")] * 3
    assert [code(answer) for answer in answers[1:]] == ["not-found"] * 2
    assert parts(house) == []


def test_head_tells_what_the_client_stated_of_the_upload_as_it_came(house: House) -> None:
    customer = house.customer()
    raw = bundle_of(house, customer).raw
    digest = f"blake3:{blake3(raw).hexdigest()}"

    def begin(size: int | None, stated: str | None, **more: str) -> str:
        headers = {**TUS, **more} | ({} if size is None else {"Upload-Length": str(size)})
        answer = customer.call("POST", "/v1/uploads", headers=headers | ({} if stated is None else {"Upload-Metadata": stated}))
        assert answer.status_code == 201, answer.text
        return str(answer.headers["location"])

    def stated_of(place: str) -> str | None:
        return customer.call("HEAD", place, headers=TUS).headers.get("upload-metadata")

    named = f"digest {base64.b64encode(digest.encode()).decode()}"
    longest = f"{named},note {base64.b64encode(bytes(2000)).decode()}"
    longest += "," + "x" * (MAX_METADATA_CHARS - len(longest) - 1)
    whole = begin(len(raw), longest)
    assert stated_of(whole) == longest
    assert customer.send(whole, 0, raw[:9]).status_code == 204
    assert stated_of(whole) == longest
    for said, told in ((None, None), ("", None), ("kind cGFydA==, empty", "kind cGFydA==, empty")):
        assert stated_of(begin(3, said, **{"Upload-Concat": "partial"})) == told
    part = begin(len(raw), None, **{"Upload-Concat": "partial"})
    assert customer.send(part, 0, raw).status_code == 204
    final = begin(None, f"{named},of cGFydHM=", **{"Upload-Concat": f"final;{part}"})
    assert stated_of(final) == f"{named},of cGFydHM="


@pytest.mark.parametrize("stated", ["k\u00e4y YQ==", "key\tYQ==", "key\x00 YQ==", "a YQ==\n", "k " + "A" * MAX_METADATA_CHARS])
def test_what_could_not_be_sent_back_is_refused(house: House, stated: str) -> None:
    headers = [
        (b"Tus-Resumable", b"1.0.0"),
        (b"Upload-Length", b"5"),
        (b"Upload-Concat", b"partial"),
        (b"Upload-Metadata", stated.encode("latin-1")),
    ]
    answer = house.http.post("/v1/uploads", headers=[*headers, (b"Authorization", f"Bearer {house.token('customer', 'lab')}".encode())])
    assert (answer.status_code, code(answer)) == (400, "bad-upload")


def test_refusals_by_header(house: House) -> None:
    customer = house.customer()
    bundle = bundle_of(house, customer)
    place = place_of(customer, bundle)
    cases = [
        (customer.call("POST", "/v1/uploads"), 412, "bad-upload"),
        (customer.call("PATCH", place, headers={"Upload-Offset": "0"}), 412, "bad-upload"),
        (customer.call("POST", "/v1/uploads", headers={**TUS, "Upload-Length": "x"}), 400, "bad-upload"),
        (customer.call("POST", "/v1/uploads", headers={**TUS, "Upload-Length": "-1"}), 400, "bad-upload"),
        (customer.call("POST", "/v1/uploads", headers={**TUS, "Upload-Length": "1" * 30}), 400, "bad-upload"),
        (customer.call("POST", "/v1/uploads", headers={**TUS, "Upload-Length": "5"}), 422, "bad-input"),
        (customer.call("POST", "/v1/uploads", headers={**TUS, "Upload-Length": "5", "Upload-Metadata": "digest %%%"}), 400, "bad-upload"),
        (customer.call("POST", "/v1/uploads", headers={**TUS, "Upload-Length": "5", "Upload-Metadata": "d " * 4000}), 400, "bad-upload"),
        (customer.start_upload("sha256:" + "0" * 64, 5), 422, "bad-input"),
        (customer.start_upload(bundle.digest, 5, lease="../x"), 422, "bad-input"),
        (customer.start_upload(bundle.digest, house.control.settings.limits.bundle_bytes + 1), 413, "limit-exceeded"),
        (customer.send(place, 1, b"x"), 409, "offset-mismatch"),
        (customer.send(place, 0, b"x", **{"Content-Type": "text/plain"}), 415, "bad-upload"),
        (customer.send(place, 0, b"x", **{"Upload-Checksum": "crc32 AAAA"}), 400, "bad-upload"),
        (customer.send(place, 0, b"x", **{"Upload-Checksum": "sha1 %%"}), 400, "bad-upload"),
        (customer.send(place, 0, bundle.raw + b"x"), 413, "limit-exceeded"),
        (customer.send("/v1/uploads/upload-" + "0" * 32, 0, b"x"), 404, "not-found"),
    ]
    assert [(answer.status_code, code(answer)) for answer, *_ in cases] == [(status, word) for _, status, word in cases]
    # tus wants its version on every answer, and the versions that would do where another was asked for.
    assert {answer.headers.get("tus-resumable") for answer, *_ in cases} == {"1.0.0"}
    assert [answer.headers.get("tus-version") for answer, *_ in cases] == ["1.0.0" if s == 412 else None for _, s, _ in cases]
    assert house.http.head(place, headers=TUS).headers["tus-resumable"] == "1.0.0"  # without a token
    assert "tus-resumable" not in customer.get("/v1/bundles").headers


def test_methods_that_a_proxy_does_not_let_through_come_as_post(house: House) -> None:
    customer = house.customer()
    bundle = bundle_of(house, customer)
    place = place_of(customer, bundle)
    body = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}

    def post(method: str, **named: Any) -> httpx.Response:
        return customer.call("POST", place, headers={**TUS, "X-HTTP-Method-Override": method, **named.pop("headers", {})}, **named)

    assert post("PATCH", headers=body, content=bundle.raw[:5000]).headers["upload-offset"] == "5000"
    assert post("HEAD").headers["upload-offset"] == "5000"
    assert post("PUT").status_code == 405
    assert post("DELETE").status_code == 204
    assert customer.call("HEAD", place, headers=TUS).status_code == 404


def test_a_checksum_is_all_or_nothing(house: House) -> None:
    customer = house.customer()
    bundle = bundle_of(house, customer)
    place = place_of(customer, bundle)
    piece = bundle.raw[:20_000]
    for name in ("sha1", "sha256", "sha512"):
        wrong = base64.b64encode(hashlib.new(name, b"other").digest()).decode()
        answer = customer.send(place, 0, piece, **{"Upload-Checksum": f"{name} {wrong}"})
        assert (answer.status_code, code(answer)) == (460, "checksum-mismatch")
        assert offset_of(customer, place) == 0
    right = base64.b64encode(hashlib.sha256(piece).digest()).decode()
    assert customer.send(place, 0, piece, **{"Upload-Checksum": f"sha256 {right}"}).status_code == 204
    assert offset_of(customer, place) == len(piece)


def test_other_bytes_than_announced_end_the_upload(house: House) -> None:
    customer = house.customer()
    bundle = bundle_of(house, customer)
    place = place_of(customer, bundle)
    changed = bytearray(bundle.raw)
    changed[-1] ^= 1
    answer = customer.send(place, 0, bytes(changed))
    assert (answer.status_code, code(answer)) == (422, "bundle-tampered")
    assert answer.json()["details"]["wanted"] == bundle.digest
    assert customer.call("HEAD", place, headers=TUS).status_code == 404
    assert parts(house) == []
    assert ok(customer.get("/v1/bundles")) == []
    customer.upload(bundle.raw, bundle.digest)


@pytest.mark.parametrize("raw", [b"", b"not a bundle", b"sealrig.bundle/1" + b"\xff" * 64, b"PK\x03\x04" + bytes(5000)])
def test_what_is_no_bundle_is_not_kept(house: House, raw: bytes) -> None:
    customer = house.customer()
    answer = customer.start_upload(f"blake3:{blake3(raw).hexdigest()}", len(raw))
    if raw:
        answer = customer.send(answer.headers["location"], 0, raw)
    assert (answer.status_code, code(answer)) == (422, "bad-bundle")
    assert parts(house) == []
    assert list(house.control.store.digests()) == []


def test_a_bundle_that_was_cut_short_before_it_was_hashed(house: House) -> None:
    customer = house.customer()
    raw = bundle_of(house, customer).raw[:-100]
    place = customer.start_upload(f"blake3:{blake3(raw).hexdigest()}", len(raw)).headers["location"]
    answer = customer.send(place, 0, raw)
    assert answer.status_code == 422
    assert code(answer) in {"bad-bundle", "bundle-tampered"}


def test_termination_expiry_and_strangers(house: House) -> None:
    lab, works = house.customer("lab"), house.customer("works")
    bundle = bundle_of(house, lab)
    gone, late = place_of(lab, bundle), place_of(lab, bundle)
    assert works.call("HEAD", gone, headers=TUS).status_code == 404
    assert lab.call("DELETE", gone, headers=TUS).status_code == 204
    assert lab.call("HEAD", gone, headers=TUS).status_code == 404
    house.clock.ahead += timedelta(days=8)
    answer = lab.send(late, 0, b"x")
    assert (answer.status_code, code(answer)) == (410, "upload-expired")
    sweep_uploads(house.control)
    assert parts(house) == []
    assert lab.call("HEAD", late, headers=TUS).status_code == 404


def test_quota_and_number_of_uploads(folder: Path) -> None:
    with ExitStack() as stack:
        house = open_house(stack, folder, Limits(tenant_quota_bytes=100_000, uploads_per_tenant=2))
        customer, other = house.customer(), house.customer("works")
        bundle = bundle_of(house, customer)
        customer.upload(bundle.raw, bundle.digest)
        answer = customer.start_upload("blake3:" + "1" * 64, 90_000)
        assert (answer.status_code, code(answer)) == (413, "limit-exceeded")
        assert answer.json()["details"]["rule"] == "tenant-quota"
        assert other.start_upload("blake3:" + "1" * 64, 90_000).status_code == 201
        for number in range(2):
            assert customer.start_upload("blake3:" + f"{number}" * 64, 10).status_code == 201
        assert customer.start_upload("blake3:" + "5" * 64, 10).json()["details"]["rule"] == "uploads-per-tenant"


def test_another_quota_counts_from_the_next_start_for_tenants_from_before(folder: Path) -> None:
    with ExitStack() as stack:
        house = open_house(stack, folder)
        customer, other = house.customer(), house.customer("works")
        bundle = bundle_of(house, customer)
        customer.upload(bundle.raw, bundle.digest)
        with house.control.database.read() as session:
            gone = session.get_one(TenantRow, other.tenant).ref
        ok(house.person("operator").post(f"/v1/subjects/{gone}/erase"))
    with ExitStack() as stack:
        house = open_house(stack, folder, Limits(tenant_quota_bytes=10_000))
        follow_quota(house.control)
        customer.http = house.http
        details = customer.start_upload("blake3:" + "1" * 64, 1).json()["details"]
        assert (details["rule"], details["wanted"]) == ("tenant-quota", "at most 10000 bytes in all")
        assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw
        with house.control.database.read() as session:
            assert session.scalars(select(TenantRow.quota).where(TenantRow.ref == gone)).one() == 0


def test_a_result_is_bounded_by_its_job(house: House) -> None:
    customer, node = house.customer(), house.node()
    lease = ok(customer.submit(customer.job()))["id"]
    node.poll()
    answer = node.start_upload("blake3:" + "1" * 64, 200 * 2**20, lease=lease)
    assert answer.json()["details"]["rule"] == "result-size"
    assert code(node.start_upload("blake3:" + "1" * 64, 10)) == "not-found"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 12_000), max_size=6))
def test_a_cut_anywhere_resumes_at_the_exact_byte(house: House, cuts: list[int]) -> None:
    customer = house.customer()
    bundle = bundle_of(house, customer, 3000)
    place = place_of(customer, bundle)
    for cut in [*sorted(min(cut, len(bundle.raw)) for cut in cuts), len(bundle.raw)]:
        start = offset_of(customer, place)
        if cut > start:
            assert customer.send(place, start, bundle.raw[start:cut]).headers["upload-offset"] == str(cut)
            assert offset_of(customer, place) == cut
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw


def test_an_upload_goes_on_after_a_restart_of_the_server(folder: Path) -> None:
    with ExitStack() as stack:
        house = open_house(stack, folder)
        customer = house.customer()
        bundle = bundle_of(house, customer)
        place = place_of(customer, bundle)
        customer.send(place, 0, bundle.raw[:12_345])
    with ExitStack() as stack:
        house = open_house(stack, folder)
        customer.http = house.http
        assert offset_of(customer, place) == 12_345
        assert customer.send(place, 12_345, bundle.raw[12_345:]).status_code == 204
        assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw


class Faults:
    """A store around the real one that fails, or fails after it has done its work."""

    def __init__(self, house: House) -> None:
        self.inner, self.before, self.after = house.control.store, 0, 0
        object.__setattr__(house.control, "store", self)

    def put(self, digest: str, source: Path) -> None:
        if self.before:
            self.before -= 1
            raise OSError(errno.EIO, "no answer")
        self.inner.put(digest, source)
        if self.after:
            self.after -= 1
            raise OSError(errno.EIO, "an answer that got lost")

    def __getattr__(self, name: str):
        return getattr(self.inner, name)


@pytest.mark.parametrize("fault", ["before", "after"])
@pytest.mark.parametrize("mend", ["head", "sweep"])
def test_a_store_that_fails_or_fails_but_stored(house: House, fault: str, mend: str) -> None:
    customer = house.customer()
    bundle = bundle_of(house, customer)
    place = place_of(customer, bundle)
    setattr(Faults(house), fault, 1)
    answer = customer.send(place, 0, bundle.raw)
    assert (answer.status_code, code(answer)) == (503, "storage-unavailable")
    assert code(customer.get(f"/v1/bundles/{bundle.digest}")) == "not-found"
    if mend == "head":
        assert offset_of(customer, place) == len(bundle.raw)
    else:
        sweep_uploads(house.control)
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw


def test_a_full_disk_is_told_and_the_upload_goes_on_once_there_is_room(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    customer = house.customer()
    bundle = bundle_of(house, customer)
    place = place_of(customer, bundle)
    real, room = os.write, 7_000

    def write(fd: int, data: memoryview) -> int:
        nonlocal room
        if isinstance(data, memoryview):
            if room == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            data = data[:room]
            room -= len(data)
        return real(fd, data)

    monkeypatch.setattr("sandbox.control.receiving.os.write", write)
    answer = customer.send(place, 0, bundle.raw)
    assert (answer.status_code, code(answer)) == (507, "storage-full")
    monkeypatch.setattr("sandbox.control.receiving.os.write", real)
    assert offset_of(customer, place) == 7_000
    assert customer.send(place, 7_000, bundle.raw[7_000:]).status_code == 204
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw


def test_nothing_is_spooled(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def spool(*_: object, **__: object) -> None:
        raise AssertionError("a request body was spooled to a temporary file")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.__init__", spool)
    monkeypatch.setattr("tempfile.NamedTemporaryFile", spool)
    customer = house.customer()
    bundle = bundle_of(house, customer, 3 * 2**20)
    customer.upload(bundle.raw, bundle.digest)
