from __future__ import annotations

import os
import time

import httpx
import pytest

from sandbox.customer import upload as module
from sandbox.customer.upload import push
from sandbox.errors import BundleError, BundleTamperedError, InputError, ServerError
from tests.customer.fakes import URL, problem

CONTENT = os.urandom(3_000_000)


@pytest.fixture
def bundle(sealed):
    return sealed(CONTENT)


def test_a_bundle_arrives_whole_and_once(control, state, bundle):
    path, digest = bundle
    done = push(control.client(), path, state)
    assert (done.digest, done.size, done.sent) == (digest, path.stat().st_size, path.stat().st_size)
    assert control.bundles[digest] == path.read_bytes()
    assert push(control.client(), path, state).sent == 0
    assert len(control.uploads) == 1
    assert state.upload(URL, digest) is None
    assert state.header(digest) is not None


@pytest.mark.parametrize("cut", [0, 1, 4095, 1024 * 1024, 2_500_001])
def test_a_cut_upload_goes_on_at_the_exact_byte(control, state, bundle, cut):
    path, digest = bundle
    control.cut_after = cut
    push(control.client(), path, state)
    assert control.bundles[digest] == path.read_bytes()
    assert control.received == path.stat().st_size, "a byte was taken twice"


def test_a_later_push_goes_on_where_an_earlier_one_gave_up(control, state, bundle):
    path, digest = bundle

    def away(request):
        if request.method in {"PATCH", "HEAD"} and control.received:
            raise httpx.ConnectError("refused", request=request)

    control.cut_after, control.fault = 1_234_567, away
    with pytest.raises(ServerError):
        push(control.client(patience=0), path, state, patience=0)
    assert state.upload(URL, digest) is not None
    control.fault = None
    done = push(control.client(), path, state)
    assert done.sent == path.stat().st_size - 1_234_567
    assert control.received == path.stat().st_size
    assert len(control.uploads) == 1


def test_a_restarting_server_is_waited_for(control, state, bundle):
    path, digest = bundle
    left = [5]

    def restarting(request):
        if request.method in {"PATCH", "HEAD"} and control.received and left[0]:
            left[0] -= 1
            raise httpx.ConnectError("refused", request=request)

    control.cut_after, control.fault = 999_999, restarting
    push(control.client(patience=0), path, state, patience=30)
    assert control.bundles[digest] == path.read_bytes()
    assert control.slept


@pytest.mark.parametrize("status", [403, 404, 410])
def test_an_upload_that_the_server_forgot_starts_again(control, state, bundle, status):
    path, digest = bundle
    state.remember_upload(URL, digest, "/v1/uploads/gone")
    control.fault = lambda request: httpx.Response(status) if request.url.path.endswith("gone") else None
    push(control.client(), path, state)
    assert control.bundles[digest] == path.read_bytes()


def test_a_server_at_work_is_waited_for_beyond_all_patience(control, state, bundle):
    path, digest = bundle
    state.remember_upload(URL, digest, "/v1/uploads/u0")
    hidden, left = {}, [20]

    def at_work(request):
        if request.method == "PATCH":
            control.fault = None
            control.handle(request)
            hidden.update(control.bundles)
            control.bundles.clear()
            control.fault = at_work
            raise httpx.ReadTimeout("no answer yet", request=request)
        if request.method == "HEAD" and hidden and left[0]:
            left[0] -= 1
            if not left[0]:
                control.bundles.update(hidden)
            return httpx.Response(423)
        return None

    control.fault = at_work
    client = control.client(patience=0)
    client.sleep = lambda seconds: (control.slept.append(seconds), time.sleep(0.1))
    done = push(client, path, state, patience=1.5)
    assert (done.sent, left) == (path.stat().st_size, [0])
    assert control.received == path.stat().st_size


def test_an_upload_that_ends_without_a_bundle_is_not_sent_again(control, state, bundle):
    path, _ = bundle

    def refused_unheard(request):
        if request.method == "PATCH":
            control.fault = None
            control.handle(request)
            control.bundles.clear()
            control.uploads.clear()
            control.fault = refused_unheard
            raise httpx.ReadTimeout("no answer", request=request)

    control.fault = refused_unheard
    with pytest.raises(BundleTamperedError):
        push(control.client(), path, state)
    assert control.received == path.stat().st_size


def test_the_address_of_an_upload_is_kept_through_a_server_error(control, state, bundle):
    path, digest = bundle
    state.remember_upload(URL, digest, "/v1/uploads/u0")
    control.fault = lambda request: httpx.Response(500) if request.method == "HEAD" else None
    with pytest.raises(ServerError):
        push(control.client(patience=0), path, state, patience=0)
    assert state.upload(URL, digest) == "/v1/uploads/u0"


def test_the_bytes_never_go_to_another_host(control, state, bundle):
    path, digest = bundle
    control.fault = lambda r: httpx.Response(201, headers={"location": "http://evil.example/u"}) if r.method == "POST" else None
    with pytest.raises(ServerError):
        push(control.client(patience=0), path, state, patience=0)
    assert not control.received
    assert state.upload(URL, digest) is None


@pytest.mark.parametrize("offset", [None, "-1", "x", "99999999999", "²", "1e3"])
def test_an_offset_that_makes_no_sense_is_refused(control, state, bundle, offset):
    path, digest = bundle
    state.remember_upload(URL, digest, "/v1/uploads/u0")
    headers = {} if offset is None else {"upload-offset": offset.encode("latin-1", "replace")}
    control.fault = lambda r: httpx.Response(200, headers=headers) if r.method == "HEAD" else None
    with pytest.raises(ServerError):
        push(control.client(patience=0), path, state, patience=0)
    assert not control.received


def test_a_server_that_takes_nothing_does_not_hold_us_for_ever(control, state, bundle):
    path, _ = bundle
    control.fault = lambda r: httpx.Response(204, headers={"upload-offset": "0"}) if r.method == "PATCH" else None
    with pytest.raises(ServerError):
        push(control.client(patience=0), path, state, patience=0.2)


@pytest.mark.parametrize("content", [b"", b"plain text that must not leave this machine", b"sealrig.bundle/1" + bytes(100)])
def test_what_is_no_bundle_is_never_uploaded(control, state, tmp_path, content):
    path = tmp_path / "secret.txt"
    path.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        push(control.client(), path, state)
    assert "sealrig seal" in str(caught.value.details["fix"])
    assert not control.seen


def test_the_server_s_refusal_comes_back_as_itself(control, state, bundle):
    path, _ = bundle
    control.fault = lambda r: problem(413, "limit-exceeded", "over the quota") if r.method == "POST" else None
    with pytest.raises(InputError) as caught:
        push(control.client(), path, state)
    assert caught.value.code == "limit-exceeded"


def test_a_file_that_changes_on_the_way_is_refused_by_digest(control, state, bundle, monkeypatch):
    path, digest = bundle
    hashed = module.bundle_digest

    def change_after(file, progress):
        found = hashed(file, progress)
        raw = bytearray(path.read_bytes())
        raw[-1] ^= 1
        path.write_bytes(raw)
        return found

    monkeypatch.setattr(module, "bundle_digest", change_after)
    with pytest.raises(BundleTamperedError):
        push(control.client(), path, state)
    assert digest not in control.bundles


def test_a_file_that_shrinks_on_the_way_is_an_error(control, state, bundle, monkeypatch):
    path, _ = bundle
    hashed = module.bundle_digest

    def cut_after(file, progress):
        found = hashed(file, progress)
        os.truncate(path, 1_500_000)
        return found

    monkeypatch.setattr(module, "bundle_digest", cut_after)
    with pytest.raises(InputError) as caught:
        push(control.client(), path, state)
    assert caught.value.details["rule"] == "bundle-stable"


def test_progress_goes_from_nothing_to_all(control, state, bundle):
    path, _ = bundle
    sent, hashed = [], []
    push(control.client(), path, state, progress=lambda done, _: sent.append(done), hashing=lambda done, _: hashed.append(done))
    size = path.stat().st_size
    assert (sent[0], sent[-1], hashed[-1]) == (0, size, size)
    assert sent == sorted(sent)
