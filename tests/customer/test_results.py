from __future__ import annotations

import httpx
import pytest

from attestation.signing import SigningKey
from sandbox.customer.results import download, open_results, read_logs
from sandbox.errors import BundleTamperedError, NotFoundError, ServerError, StateError, WrongKeyError
from sandbox.sealing.bundle import seal
from sandbox.sealing.keys import LeaseKey
from sandbox.sealing.logs import LogSealer
from tests.customer.fakes import NODE, NODE_KEY, make_evidence, plan_bytes, sign, sign_evidence, statement, trust


@pytest.fixture
def lease(control, identity):
    job = statement(identity)
    envelope = sign(job, identity)
    control.leases[job.lease] = control.info(job.lease, "closed", envelope) | {"outcome": "succeeded", "node": NODE}
    return job


@pytest.fixture
def accepted(state, lease, identity):
    """Remember the evidence, as the release agent does with a grant."""
    envelope = sign(lease, identity)
    evidence = make_evidence(lease, envelope, "0" * 64, LeaseKey.generate(), plan_bytes(lease))
    state.remember(lease.lease, "evidence", sign_evidence(evidence).to_bytes())


@pytest.fixture
def result(control, lease, tmp_path, identity):
    """Seal results to a customer as a node does: ``result(key)`` puts them on the server."""

    def make(key=NODE_KEY, to=identity):
        folder = tmp_path / "out"
        folder.mkdir()
        (folder / "answer.txt").write_bytes(b"42")
        path = tmp_path / "result.sealed"
        done = seal([folder], path, recipients=[to.public], signer=key)
        control.bundles[done.digest] = path.read_bytes()
        control.leases[lease.lease]["result"] = done.digest
        return done.digest

    return make


@pytest.fixture
def fetch(control, state, lease, tmp_path):
    return lambda who, **options: open_results(control.client(), who, state, lease.lease, tmp_path / "res", **options)


def test_results_of_the_accepted_node_open(accepted, fetch, result, identity, tmp_path):
    digest = result()
    found, opened = fetch(identity)
    assert (found, opened.files) == (digest, 1)
    assert (tmp_path / "res" / "answer.txt").read_bytes() == b"42"
    assert {path.name for path in tmp_path.iterdir()} == {"out", "result.sealed", "res", "state"}


def test_results_that_another_sealed_are_refused(accepted, fetch, result, identity, tmp_path):
    result(SigningKey.generate())
    with pytest.raises(BundleTamperedError) as caught:
        fetch(identity)
    assert caught.value.details["rule"] == "bundle-signer"
    assert not (tmp_path / "res").exists()


def test_a_trust_file_names_the_sealer_where_nothing_is_remembered(fetch, result, identity):
    result()
    with pytest.raises(StateError):
        fetch(identity)
    fetch(identity, trust=trust)


def test_another_identity_gets_nothing(accepted, fetch, result, other):
    result()
    with pytest.raises(WrongKeyError):
        fetch(other)


@pytest.mark.parametrize("state_name", ["running", "closed"])
def test_no_results_says_whether_to_wait(control, lease, fetch, identity, state_name):
    control.leases[lease.lease]["state"] = state_name
    with pytest.raises(NotFoundError) as caught:
        fetch(identity)
    assert ("watch" in str(caught.value.details["fix"])) == (state_name == "running")


def test_a_download_goes_on_where_it_broke_off(control, result, tmp_path):
    digest = result()
    starts = []

    def broken(request):
        if not request.url.path.endswith("/content"):
            return None
        starts.append(request.headers.get("range"))
        raw = control.bundles[digest]
        start = int(starts[-1][6:-1]) if starts[-1] else 0

        def some():
            yield raw[start : start + 700]
            raise httpx.ReadError("reset", request=request)

        return httpx.Response(206 if start else 200, content=some()) if len(starts) < 4 else None

    control.fault = broken
    download(control.client(), digest, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == control.bundles[digest]
    assert starts == [None, "bytes=700-", "bytes=1400-", "bytes=2100-"]


def test_other_bytes_are_refused_and_leave_nothing(control, result, tmp_path):
    digest = result()
    control.bundles[digest] = bytes([control.bundles[digest][0] ^ 1]) + control.bundles[digest][1:]
    before = set(tmp_path.iterdir())
    with pytest.raises(BundleTamperedError):
        download(control.client(), digest, tmp_path / "got")
    assert set(tmp_path.iterdir()) == before


def test_a_download_that_gives_nothing_more_ends(control, result, tmp_path):
    digest = result()

    def dead(request):
        if request.url.path.endswith("/content"):
            raise httpx.ReadError("reset", request=request)

    control.fault = dead
    with pytest.raises(ServerError):
        download(control.client(), digest, tmp_path / "got")
    assert len(control.slept) < 10


@pytest.fixture
def log(control, lease, identity):
    sealer = LogSealer(lease.lease, identity.public)
    control.logs = [sealer.header, sealer.seal(b"one\n"), sealer.seal(b"two\n"), sealer.seal(b"", final=True)]
    control.log_final = True
    return control.logs


def test_logs_open_in_order(control, lease, log, identity):
    assert b"".join(read_logs(control.client(), identity, lease.lease, follow=True)) == b"one\ntwo\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda log: log[:-1],
        lambda log: log[:1],
        lambda log: [log[0], log[2], log[1], log[3]],
        lambda log: [log[0], log[1], log[1], log[3]],
        lambda log: [log[0], log[1][:-1] + bytes([log[1][-1] ^ 1]), *log[2:]],
        lambda log: [log[0], log[3]],
    ],
)
def test_a_log_that_was_cut_or_changed_is_an_error(control, lease, log, identity, damage):
    control.logs = damage(log)
    with pytest.raises(BundleTamperedError):
        list(read_logs(control.client(), identity, lease.lease, follow=True))


def test_without_follow_what_is_there_is_enough(control, lease, log, identity):
    control.logs, control.log_final = log[:2], False
    assert list(read_logs(control.client(), identity, lease.lease, follow=False)) == [b"one\n"]


def test_somebody_else_reads_nothing(control, lease, log, other):
    with pytest.raises(WrongKeyError):
        list(read_logs(control.client(), other, lease.lease, follow=True))


@pytest.mark.parametrize("state_name", ["denied", "cancelled", "expired"])
def test_following_a_lease_that_never_ran_ends(control, lease, identity, state_name):
    control.leases[lease.lease]["state"] = state_name
    assert list(read_logs(control.client(), identity, lease.lease, follow=True)) == []
