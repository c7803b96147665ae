from __future__ import annotations

import json

import httpx
import pytest

from sandbox import errors
from sandbox.customer.client import Client
from sandbox.customer.http import Answer as HttpAnswer
from sandbox.customer.http import Connection, RemoteError, check_server, problem_error
from sandbox.errors import LimitError, NotFoundError, SealrigError, ServerError, UsageError
from sandbox.lifecycle import LeaseState
from tests.customer.fakes import URL, FakeControl, problem


@pytest.fixture
def control():
    return FakeControl()


@pytest.mark.parametrize("server", ["ftp://x", "http://example.org", "https://u:p@x", "x", "", "https://x/?q=1", "http://10.0.0.1:80"])
def test_unusable_and_unsafe_addresses_are_refused(server):
    with pytest.raises(UsageError):
        check_server(server)


@pytest.mark.parametrize(
    "server", ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "https://example.org/", "https://x:8443/sealrig"]
)
def test_loopback_and_tls_are_accepted(server):
    assert check_server(server) == server.rstrip("/")


@pytest.mark.parametrize("token", ["a\nb", "tök", "x\x00"])
def test_a_token_that_would_break_the_header_is_refused_without_being_shown(token):
    with pytest.raises(UsageError) as caught:
        Connection(URL, token)
    assert token not in str(caught.value.details)


def test_every_error_class_comes_back_as_itself():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SealrigError)]
    for kind in kinds:
        answer = problem(kind.http_status, kind.code, "why", rule="r", seen="s")
        back = problem_error(HttpAnswer(kind.http_status, {}, answer.content))
        assert type(back) is kind
        assert (back.message, back.details) == ("why", {"rule": "r", "seen": "s"})


def test_an_unknown_code_is_kept_and_a_hostile_one_is_not():
    assert problem_error(HttpAnswer(507, {}, problem(507, "storage-full").content)).code == "storage-full"
    hostile = problem_error(HttpAnswer(500, {}, problem(500, "\x1b[2J; DROP").content))
    assert isinstance(hostile, RemoteError)
    assert hostile.code == "server-refused"
    assert SealrigError("x").code == "internal"


def test_details_cannot_overwrite_the_error_itself():
    body = {"title": "x", "status": 404, "code": "not-found", "detail": "why", "details": {"message": "other", "self": 1, "seen": "s"}}
    error = problem_error(HttpAnswer(404, {}, json.dumps(body).encode()))
    assert (error.message, error.details) == ("why", {"seen": "s"})


def test_an_answer_without_a_problem_is_a_server_error():
    error = problem_error(HttpAnswer(500, {}, b"<html>nginx</html>"))
    assert isinstance(error, ServerError)
    assert error.details["status"] == 500


def flaky(control, failures):
    left = [failures]

    def fault(request):
        if left[0]:
            left[0] -= 1
            raise httpx.ReadError("reset", request=request)

    control.fault = fault


def test_what_is_safe_to_repeat_is_repeated_and_the_rest_is_not(control):
    flaky(control, 2)
    assert control.client().whoami().tenant == "lab"
    assert len(control.seen) == 3
    control.seen.clear()
    flaky(control, 1)
    with pytest.raises(ServerError):
        control.client().request("POST", "/v1/tokens", json={})
    assert len(control.seen) == 1


def test_a_connection_that_was_never_made_is_tried_again_even_for_a_post(control):
    left = [1]

    def fault(request):
        if left[0]:
            left[0] -= 1
            raise httpx.ConnectError("refused", request=request)
        return problem(403, "forbidden")

    control.fault = fault
    with pytest.raises(errors.AccessError):
        control.client().request("POST", "/v1/tokens", json={})
    assert len(control.seen) == 2


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_a_busy_server_is_asked_again_until_patience_ends(control, status):
    control.fault = lambda _request: problem(status, "storage-unavailable", "later")
    with pytest.raises(RemoteError) as caught:
        control.client(patience=0.3).whoami()
    assert caught.value.code == "storage-unavailable"
    assert len(control.seen) > 1


def test_a_server_that_is_away_is_a_server_error_that_names_it(control):
    def fault(request):
        raise httpx.ConnectError("refused", request=request)

    control.fault = fault
    with pytest.raises(ServerError) as caught:
        control.client(patience=0).whoami()
    assert URL in caught.value.message
    assert caught.value.details["fix"]


def test_an_endless_answer_is_cut_off(control):
    control.fault = lambda _request: httpx.Response(200, content=iter([b"x" * 1024] * 1000))
    with pytest.raises(LimitError):
        control.client().request("GET", "/x", max_bytes=4096)


def test_a_redirect_does_not_carry_the_token_away(control):
    hosts = []

    def fault(request):
        hosts.append(request.url.host)
        return httpx.Response(302, headers={"location": "http://evil.example/"})

    control.fault = fault
    with pytest.raises(ServerError):
        control.client().whoami()
    assert set(hosts) == {"127.0.0.1"}


@pytest.mark.parametrize("location", ["http://evil.example/u", "https://127.0.0.1:1/u", "//evil.example/u", "http://127.0.0.1:2/u"])
def test_a_location_elsewhere_is_refused(control, location):
    with pytest.raises(ServerError) as caught:
        control.client().same_origin(location)
    assert caught.value.details["rule"] == "same-origin"


def test_a_location_here_keeps_path_and_query(control):
    assert control.client().same_origin(f"{URL}/v1/uploads/a?b=c") == "/v1/uploads/a?b=c"
    assert control.client().same_origin("/v1/uploads/a") == "/v1/uploads/a"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b'{"token": "token-1", "role": "customer", "tenant": "x"}'])
def test_an_answer_of_another_shape_is_a_server_error(control, body):
    control.fault = lambda _request: httpx.Response(200, content=body)
    with pytest.raises(ServerError):
        control.client().whoami()
    with pytest.raises(ServerError):
        control.client().leases() if body != b"[]" else control.client().policy()


def test_a_name_never_becomes_another_path(control):
    paths = []

    def fault(request):
        paths.append(request.url.raw_path)
        return problem(404, "not-found")

    control.fault = fault
    for call in (Client.bundle, Client.lease, Client.node, Client.revoke_token, Client.receipt):
        with pytest.raises(NotFoundError):
            call(control.client(), "../../v1/tokens?x=1#y")
    assert all(path.count(b"/") == 3 + path.endswith(b"/receipt") for path in paths), paths


def test_long_polls_name_the_state_that_is_known(control):
    def fault(request):
        assert dict(request.url.params) == {"since": "placed", "wait": "30"}
        return problem(404, "not-found")

    control.fault = fault
    with pytest.raises(NotFoundError):
        control.client().lease("lease-" + "0" * 32, since=LeaseState.PLACED)
