"""A large bundle on several lines: cut, resumed, refused, interrupted."""

from __future__ import annotations

import os
import threading

import httpx
import pytest

from sandbox.customer import sending
from sandbox.customer import upload as module
from sandbox.customer.upload import push
from sandbox.errors import BundleTamperedError, InputError, ServerError
from tests.customer.fakes import URL, problem
from tests.patience import LONG

CONTENT = os.urandom(3_000_000)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """What is large in these tests."""
    monkeypatch.setattr(module, "PARALLEL_BYTES", 1_000_000)
    monkeypatch.setattr(module, "ALIGNMENT", 4096)
    monkeypatch.setattr(sending, "PIECE_BYTES", 300_000)
    monkeypatch.setattr(sending, "CHUNK_BYTES", 50_000)


@pytest.fixture
def bundle(sealed):
    return sealed(CONTENT)


def patched(control):
    return [path for method, path in control.seen if method == "PATCH"]


def test_a_large_bundle_travels_on_several_lines_at_once(control, state, bundle):
    path, digest = bundle
    together = threading.Barrier(module.LINES, timeout=LONG)
    left = [module.LINES]

    def meet(request):
        if request.method == "PATCH" and left[0] > 0:
            left[0] -= 1
            together.wait()

    control.fault = meet
    done = push(control.client(), path, state)
    assert control.bundles[digest] == path.read_bytes()
    assert (done.sent, control.received) == (path.stat().st_size, path.stat().st_size)
    assert set(patched(control)) == {f"/v1/uploads/u{number}" for number in range(4)}
    assert state.upload(URL, digest) is None


def test_a_small_one_and_one_for_a_server_that_cannot_join_travel_on_one(control, state, bundle, sealed):
    path, digest = bundle
    push(control.client(), sealed(b"small")[0], state)
    control.extensions = "creation"
    push(control.client(), path, state)
    assert control.bundles[digest] == path.read_bytes()
    assert len(set(patched(control))) == 2


@pytest.mark.parametrize("cut", [0, 1, 123_456])
def test_a_cut_line_goes_on_at_the_exact_byte(control, state, bundle, cut):
    path, digest = bundle
    control.cut_after = cut
    push(control.client(), path, state)
    assert control.bundles[digest] == path.read_bytes()
    assert control.received == path.stat().st_size


def test_a_later_push_goes_on_with_every_part(control, state, bundle):
    path, digest = bundle

    def away(request):
        if request.method in {"PATCH", "HEAD"} and control.received > 1_500_000:
            raise httpx.ConnectError("refused", request=request)

    control.fault = away
    with pytest.raises(ServerError):
        push(control.client(patience=0), path, state, patience=0)
    control.fault = None
    before = control.received
    assert before < path.stat().st_size
    assert push(control.client(), path, state).sent == path.stat().st_size - before
    assert control.bundles[digest] == path.read_bytes()
    assert control.received == path.stat().st_size


def test_a_join_whose_answer_got_lost_is_asked_for_again(control, state, bundle):
    path, digest = bundle
    left = [1]

    def unheard(request):
        if request.headers.get("upload-concat", "").startswith("final") and left[0]:
            left[0] = 0
            control.handle(request)
            raise httpx.ReadTimeout("no answer", request=request)

    control.fault = unheard
    done = push(control.client(patience=0), path, state, patience=5)
    assert (done.sent, control.received) == (path.stat().st_size, path.stat().st_size)
    assert control.bundles[digest] == path.read_bytes()


def test_a_join_that_nobody_waited_for_is_found_by_the_next_push(control, state, bundle):
    path, digest = bundle
    joining = [True]

    def unheard(request):
        if request.headers.get("upload-concat", "").startswith("final") and joining:
            joining.clear()
            control.handle(request)
            control.hidden = control.bundles.pop(digest)
            raise KeyboardInterrupt

    control.fault = unheard
    with pytest.raises(KeyboardInterrupt):
        push(control.client(), path, state)

    def still_at_it(request):
        if request.headers.get("upload-concat", "").startswith("final") and len(control.slept) < 3:
            return problem(423, "upload-locked", "somebody is at work on it")
        if request.headers.get("upload-concat", "").startswith("final"):
            control.bundles[digest] = control.hidden
        return None

    control.fault = still_at_it
    done = push(control.client(), path, state, patience=0)
    assert (done.sent, control.received) == (0, path.stat().st_size)


def test_parts_that_the_server_forgot_are_sent_again(control, state, bundle):
    path, digest = bundle
    state.remember_upload(URL, digest, " ".join(f"/v1/uploads/gone{number}" for number in range(4)))
    push(control.client(), path, state)
    assert control.bundles[digest] == path.read_bytes()
    assert control.received == path.stat().st_size


def test_what_was_joined_and_given_up_is_not_sent_again(control, state, bundle):
    path, _ = bundle

    def given_up(request):
        if request.headers.get("upload-concat", "").startswith("final"):
            return problem(404, "not-found", "no such upload")
        return None

    control.fault = given_up
    with pytest.raises(BundleTamperedError):
        push(control.client(), path, state)
    assert control.received == path.stat().st_size


def test_parts_that_were_begun_are_given_up_where_another_is_refused(control, state, bundle):
    path, digest = bundle
    given_up = []

    def third_too_many(request):
        if request.method == "POST" and len(control.uploads) == 2:
            return problem(413, "limit-exceeded", "the tenant's space is used up")
        if request.method == "DELETE":
            given_up.append(request.url.path)
            return httpx.Response(204)
        return None

    control.fault = third_too_many
    with pytest.raises(InputError, match="used up"):
        push(control.client(), path, state)
    assert given_up == ["/v1/uploads/u0", "/v1/uploads/u1"]
    assert state.upload(URL, digest) is None


def test_a_refusal_on_one_line_ends_all(control, state, bundle):
    path, _ = bundle
    refused = threading.Event()
    line: list[threading.Thread] = []

    def refuse(request):
        if request.method == "PATCH" and request.url.path.endswith("u2"):
            line.append(threading.current_thread())
            refused.set()
            return problem(413, "limit-exceeded", "no")
        if request.method == "PATCH":
            assert refused.wait(LONG)
            line[0].join(LONG)  # the refusal has arrived and its line has ended
        return None

    control.fault = refuse
    with pytest.raises(InputError) as caught:
        push(control.client(), path, state)
    assert caught.value.code == "limit-exceeded"
    assert not [line for line in threading.enumerate() if line.name == "push"]
    # The other three may each have had a piece under way, which this transport reads whole before it asks.
    assert control.received <= 3 * sending.PIECE_BYTES, "the other lines went on"


def test_a_file_that_shrinks_on_the_way_is_an_error(control, state, bundle, monkeypatch):
    path, _ = bundle
    hashed = module.bundle_digest
    monkeypatch.setattr(module, "bundle_digest", lambda *args: (hashed(*args), os.truncate(path, 1_500_000))[0])
    with pytest.raises(InputError) as caught:
        push(control.client(), path, state)
    assert caught.value.details["rule"] == "bundle-stable"


def test_progress_is_that_of_all_lines_together(control, state, bundle):
    path, _ = bundle
    shown = []
    push(control.client(), path, state, progress=lambda done, total: shown.append((done, total)))
    size = path.stat().st_size
    assert (shown[0], shown[-1]) == ((0, size), (size, size))
    assert [done for done, _ in shown] == sorted(done for done, _ in shown)
