from __future__ import annotations

import httpx
import pytest

from attestation.canonical import sha256_digest
from attestation.signing import Envelope
from policies.loader import load_policy, load_profile
from sandbox.customer.jobs import check_job, denied, submit_job
from sandbox.errors import ServerError
from sandbox.job import JOB_PAYLOAD_TYPE, parse_statement
from tests.customer.fakes import IMAGE, POLICY, problem, statement

BUNDLE = "blake3:" + "1" * 64
ALLOWS = b"""\
apiVersion: sealrig/v1
kind: Policy
metadata: {name: test}
spec:
  images: {allow: ["sha256:*"]}
  resources: {memory: {max: 4Gi}, cpus: {max: 2}}
"""


def job(identity, **spec):
    return statement(identity, (BUNDLE,), **spec).job


def test_a_check_names_what_stands_against_a_job(control, identity):
    found = check_job(job(identity, resources={"gpus": 9}), load_policy(ALLOWS), "lab", control.client())
    assert not found.ok
    assert found.missing == (BUNDLE,)
    reasons = denied(found).details["reasons"]
    assert {"job-inputs"} < {reason["rule"] for reason in reasons}
    assert all(reason["fix"] for reason in reasons)


def test_a_check_defers_what_a_node_decides_and_warns_of_secrets(identity):
    found = check_job(job(identity, env={"API_TOKEN": "x"}), load_policy(ALLOWS), "lab", None)
    assert found.ok
    assert "posture-required" in found.decision.deferred
    assert "API_TOKEN" in found.warnings[0]
    assert check_job(job(identity), None, "lab", None).decision is None
    assert not check_job(job(identity), load_profile("strict"), "lab", None).ok


def test_a_job_is_signed_remembered_and_sent(control, state, identity):
    info = submit_job(control.client(), identity, state, job(identity))
    [sent] = control.jobs
    signed = parse_statement(sent.verify(JOB_PAYLOAD_TYPE, [identity.public.verify_key]))
    assert (signed.lease, signed.tenant, signed.customer) == (info.id, "lab", identity.public.text)
    assert signed.policy_digest == sha256_digest(POLICY)
    assert signed.job.spec.image == IMAGE
    assert Envelope.from_bytes(state.document(info.id, "job")) == sent


def test_a_submission_that_is_cut_off_is_repeated_as_it_was(control, state, identity):
    left = [1]

    def lost(request):
        if request.method == "POST" and request.url.path == "/v1/leases" and left[0]:
            left[0] -= 1
            control.submit(request)
            raise httpx.ReadError("reset", request=request)

    control.fault = lost
    submit_job(control.client(), identity, state, job(identity))
    assert len(control.jobs) == 2
    assert control.jobs[0] == control.jobs[1]
    assert len(control.leases) == 1


def test_a_later_submission_of_the_same_lease_sends_the_same_bytes(control, state, identity):
    control.fault = lambda request: problem(500, "internal") if request.url.path == "/v1/leases" else None
    with pytest.raises(Exception, match="no"):
        submit_job(control.client(), identity, state, job(identity))
    [lease] = state.leases()
    control.fault = None
    control.policy = POLICY + b"# another"
    submit_job(control.client(), identity, state, job(identity), lease=lease)
    assert control.jobs[0].to_bytes() == state.document(lease, "job")


def test_nothing_is_signed_while_the_server_is_away(control, state, identity):
    def away(request):
        raise httpx.ConnectError("refused", request=request)

    control.fault = away
    with pytest.raises(ServerError):
        submit_job(control.client(patience=0), identity, state, job(identity))
    assert state.leases() == []
