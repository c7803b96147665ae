"""The node's way to the control plane: cuts are continued, wrong bytes refused, a no told apart from no answer."""

from __future__ import annotations

import os

import httpx
import pytest
from blake3 import blake3

from attestation.signing import SigningKey
from sandbox.errors import AccessError, BundleTamperedError, InputError, NotFoundError, ServerError, StateError
from sandbox.lifecycle import LeaseState
from sandbox.node import client as client_module
from sandbox.node import inputs, report
from sandbox.node.client import ControlClient
from sandbox.node.report import Reporter
from sandbox.sealing.keys import Identity
from sandbox.wire import PollRequest
from tests.node.fake_control import FakeControl
from tests.patience import LONG

NODE = "node-" + "0" * 32
LEASE = "lease-" + "0" * 32
DATA = bytes(range(256)) * 20_000


def _digest(data: bytes) -> str:
    return f"blake3:{blake3(data).hexdigest()}"


def _client(handle) -> ControlClient:
    return ControlClient("http://control", "secret", NODE, transport=httpx.MockTransport(handle))


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, AccessError), (403, AccessError), (404, NotFoundError), (409, StateError), (413, InputError), (422, InputError),
     (400, InputError),
     (408, ServerError), (423, ServerError), (425, ServerError),
     (429, ServerError), (500, ServerError), (503, ServerError), (302, ServerError)],
)  # fmt: skip
def test_a_no_is_told_apart_from_no_answer(status, error):
    with pytest.raises(error) as caught:
        _client(lambda _: httpx.Response(status, content=b"<html>")).poll(PollRequest())
    assert type(caught.value) is error
    assert "secret" not in str(caught.value.details)


def test_other_answers_than_agreed_are_no_answer():
    with pytest.raises(ServerError, match="something else than agreed"):
        _client(lambda _: httpx.Response(200, content=b'{"assignments": 3}')).poll(PollRequest())


def test_a_broken_connection_is_no_answer():
    def broken(request):
        raise httpx.ReadTimeout("slow", request=request)

    with pytest.raises(ServerError, match="did not answer"):
        _client(broken).poll(PollRequest())


class Store:
    """Serves one bundle with ranges, cutting the connection after ``cuts`` bytes, once each."""

    def __init__(self, data: bytes, cuts=()):
        self.data, self.cuts, self.asked = data, list(cuts), []

    def __call__(self, request):
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        self.asked.append(start)
        if start >= len(self.data):
            return httpx.Response(416)
        if not self.cuts:
            return httpx.Response(206 if start else 200, content=self.data[start:])
        cut = self.cuts.pop(0)

        def body():
            yield self.data[start:cut]
            raise httpx.ReadError("cut", request=request)

        return httpx.Response(206 if start else 200, content=body())


def test_a_cut_download_goes_on_where_it_stopped(tmp_path):
    store = Store(DATA, cuts=[3_000_000, 4_000_000])
    for _ in range(2):
        with pytest.raises(ServerError):
            inputs.fetch(_client(store), tmp_path, _digest(DATA), go_on=lambda: None)
    path = inputs.fetch(_client(store), tmp_path, _digest(DATA), go_on=lambda: None)
    assert path.read_bytes() == DATA
    assert store.asked[0] == 0
    assert 0 < store.asked[1] < store.asked[2], "the download began anew"
    inputs.fetch(_client(store), tmp_path, _digest(DATA), go_on=lambda: None)
    assert len(store.asked) == 3, "what is in the cache was fetched again"


def test_other_bytes_are_refused_and_not_kept(tmp_path):
    with pytest.raises(BundleTamperedError):
        inputs.fetch(_client(Store(DATA[:-1] + b"x")), tmp_path, _digest(DATA), go_on=lambda: None)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_half_download_is_begun_anew(tmp_path):
    (tmp_path / inputs.cached(tmp_path, _digest(DATA)).name).with_suffix(f".part-{os.getpid()}").write_bytes(b"junk")
    assert inputs.fetch(_client(Store(DATA)), tmp_path, _digest(DATA), go_on=lambda: None).read_bytes() == DATA


@pytest.mark.parametrize("bad", ["", "sha256:" + "0" * 64, "blake3:../../etc/passwd", "blake3:" + "0" * 63])
def test_only_digests_become_paths(tmp_path, bad):
    with pytest.raises(BundleTamperedError):
        inputs.cached(tmp_path, bad)


def test_the_cache_is_bounded_and_keeps_what_is_newest(tmp_path):

    for number in range(4):
        (tmp_path / f"{number:064x}").write_bytes(b"x" * 100)
        os.utime(tmp_path / f"{number:064x}", (number, number))
    inputs.prune(tmp_path, 250, {f"blake3:{0:064x}"})
    assert sorted(int(path.name, 16) for path in tmp_path.iterdir()) == [0, 2, 3]


def test_an_upload_asks_where_the_server_is(tmp_path, monkeypatch):
    monkeypatch.setattr(client_module, "UPLOAD_CHUNK_BYTES", 1_000_000)
    control = FakeControl(Identity.generate())
    refused = []

    def once_refused(request):
        if request.method == "PATCH" and len(refused) < 1:
            refused.append(request)
            control.handle(httpx.Request("PATCH", request.url, headers=request.headers, content=request.read()))
            return httpx.Response(409)  # it was taken, but the node did not hear
        return control.handle(request)

    (tmp_path / "result").write_bytes(DATA)
    steps = []
    _client(once_refused).upload(tmp_path / "result", _digest(DATA), LEASE, go_on=lambda: steps.append(1))
    assert control.bundles[_digest(DATA)] == DATA
    assert len(steps) == 6


def test_reports_are_sent_in_order_and_again_after_silence(monkeypatch):
    monkeypatch.setattr(report, "_RETRY_SECONDS", (0.01,))
    control = FakeControl(Identity.generate())
    lease = control.submit({"image": "sha256:" + "0" * 64, "command": ["x"]}, grant_at_once=False)
    key = SigningKey.generate()
    control.node_key = key.public
    answers = [503, 401, 502]

    def unsteady(request):
        return httpx.Response(answers.pop()) if answers else control.handle(request)

    reporter = Reporter(_client(unsteady), key, lease.id)
    reporter.send(LeaseState.ATTESTED)
    info = reporter.settled()
    assert info.state is LeaseState.ATTESTED
    reporter.send(LeaseState.RUNNING)  # not possible from here
    assert reporter.settled() is None
    assert "cannot go" in reporter.refused.message
    assert not reporter.finish(LONG)


def test_a_reporter_that_is_stopped_lets_go():
    reporter = Reporter(_client(lambda _: httpx.Response(503)), SigningKey.generate(), LEASE)
    reporter.send(LeaseState.WIPING)
    reporter.stop()
    assert reporter.settled() is None
    assert not reporter.finish(LONG)  # nobody has the report
    assert not reporter._thread.is_alive()
