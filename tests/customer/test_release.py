from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import httpx
import pytest

from attestation.canonical import canonical_json, sha256_digest
from attestation.errors import LogError
from attestation.grant import GRANT_PAYLOAD_TYPE, Grant, grant_info
from attestation.signing import Envelope, SigningKey, b64decode, b64encode
from attestation.verify import NodeHistory
from policies.loader import load_profile
from sandbox.customer import release as module
from sandbox.customer.release import RateLimit, ReleaseAgent, refusal_error
from sandbox.customer.state import State
from sandbox.errors import ReleaseError, ServerError
from sandbox.sealing.bundle import BundleReader, FileSource
from sandbox.sealing.keys import DataKey, LeaseKey
from sandbox.wire import LeaseInfo
from tests.customer.fakes import NODE, POLICY, make_evidence, plan_bytes, sign, sign_evidence, statement, trust


class Lease:
    """One lease of one customer up to where the agent decides; parts can be changed before ``attested``."""

    def __init__(self, control, state, identity, bundles=(), **spec):
        self.control, self.state, self.identity = control, state, identity
        self.statement = statement(identity, bundles, **spec)
        self.id = self.statement.lease
        self.job = sign(self.statement, identity)
        self.lease_key = LeaseKey.generate()
        self.policy = POLICY
        self.plan = plan_bytes(self.statement)
        self.node_key = None
        self.changes = {}
        state.remember(self.id, "job", self.job.to_bytes())
        control.leases[self.id] = control.info(self.id, "placed", self.job)

    def agent(self, **options):
        options = {"history": lambda _evidence: None, **options}
        accepted = options.pop("trust", trust())
        return ReleaseAgent(
            self.control.client(), options.pop("identity", self.identity), accepted, options.pop("state", self.state), **options
        )

    @property
    def info(self):
        return LeaseInfo.model_validate(self.control.leases[self.id])

    def attested(self, agent):
        """Let the agent ask and the node answer; return the lease as it stands then."""
        assert agent.attend(self.info) is None
        nonce = self.control.nonces[self.id]
        fields = {"nonce": nonce, "plan": self.plan, **self.changes}
        evidence = make_evidence(self.statement, self.job, fields.pop("nonce"), self.lease_key, fields.pop("plan"), **fields)
        envelope = sign_evidence(evidence, self.node_key) if self.node_key else sign_evidence(evidence)
        self.control.evidence[self.id] = {
            "lease": self.id,
            "nonce": nonce,
            "evidence": envelope.to_json(),
            "plan": b64encode(self.plan),
            "policy": b64encode(self.policy),
        }
        self.control.leases[self.id]["state"] = "attested"
        self.evidence = envelope
        return self.info

    def decide(self, **options):
        agent = self.agent(**options)
        return agent.attend(self.attested(agent))


@pytest.fixture
def pushed(control, state, sealed):
    """A bundle that is on the server and was pushed from here."""

    def make(content=b"weights", **options):
        path, digest = sealed(content, **options)
        control.bundles[digest] = path.read_bytes()
        state.remember_header(digest, path.read_bytes()[:65536])
        return path, digest

    return make


@pytest.fixture
def lease(control, state, identity):
    return Lease(control, state, identity)


def failed(decision):
    return {reason.rule for reason in decision.reasons}


def test_good_evidence_gets_keys_that_open_for_this_lease_only(control, state, identity, pushed):
    path, digest = pushed(b"the weights")
    lease = Lease(control, state, identity, (digest,))
    decision = lease.decide()
    assert (decision.granted, decision.level) == (True, "software")
    assert all(step.ok for step in decision.steps)
    [sent] = control.grants[lease.id]
    payload = Envelope.from_json(sent).verify(GRANT_PAYLOAD_TYPE, [identity.public.verify_key])
    grant = Grant.from_payload(payload)
    assert grant.lease == lease.id
    assert grant.evidence_digest == lease.evidence.digest
    assert grant.lease_public_key_digest == sha256_digest(lease.lease_key.public)
    assert timedelta() < grant.expires_at - grant.issued_at <= timedelta(minutes=10)
    [key] = grant.keys
    secret = lease.lease_key.unwrap(b64decode(key.wrapped), grant_info(lease.id, lease.evidence.digest, digest))
    with FileSource(path) as source:
        assert b"".join(BundleReader(source, DataKey(secret)).read("file")) == b"the weights"
    assert control.refusals == {}


def test_a_bundle_named_twice_is_wrapped_once(control, state, identity, pushed):
    _, digest = pushed()
    lease = Lease(control, state, identity, (digest, digest))
    lease.decide()
    assert len(Grant.from_payload(Envelope.from_json(control.grants[lease.id][0]).payload).keys) == 1


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"nonce": "0" * 64}, "nonce"),
        ({"lease": "lease-" + "0" * 32}, "lease"),
        ({"job_digest": "sha256:" + "0" * 64}, "job"),
        ({"image": "sha256:" + "0" * 64}, "image"),
        ({"policy_digest": "sha256:" + "0" * 64}, "policy"),
        ({"plan": b"{}"}, "plan"),
        ({"made_at": datetime(2020, 1, 1, tzinfo=UTC)}, "freshness"),
        ({"made_at": datetime.now(UTC) + timedelta(hours=1)}, "freshness"),
        ({"lease_public_key": b64encode(b"short")}, "lease-key"),
        ({"node": "node-" + "0c" * 16}, "node"),
    ],
)
def test_evidence_for_something_else_is_refused(control, lease, change, rule):
    lease.changes = change
    decision = lease.decide()
    assert not decision.granted
    assert rule in failed(decision)
    assert control.grants == {}
    [refusal] = control.refusals[lease.id]
    assert rule in {reason["rule"] for reason in refusal["reasons"]}
    assert all(reason["seen"] and reason["wanted"] for reason in refusal["reasons"])


def test_evidence_by_an_unlisted_key_is_refused(control, lease):
    lease.node_key = SigningKey.generate()
    assert failed(lease.decide()) == {"signature"}
    assert control.grants == {}


def test_changed_evidence_is_refused(control, lease):
    agent = lease.agent()
    info = lease.attested(agent)
    payload = json.loads(lease.evidence.payload) | {"runner_version": "9.9.9"}
    forged = replace(lease.evidence, payload=canonical_json(payload))
    control.evidence[lease.id]["evidence"] = forged.to_json()
    assert failed(agent.attend(info)) == {"signature"}


def test_evidence_of_an_earlier_lease_cannot_be_replayed(control, state, identity):
    first = Lease(control, state, identity)
    first.decide()
    second = Lease(control, state, identity)
    agent = second.agent()
    info = second.attested(agent)
    control.evidence[second.id] |= {"evidence": first.evidence.to_json()}
    assert {"lease", "nonce", "job"} <= failed(agent.attend(info))


def test_a_policy_that_changed_after_signing_is_refused(control, lease):
    lease.policy = POLICY + b"# laxer now\n"
    assert "policy" in failed(lease.decide())
    assert control.grants == {}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"command": ["/bin/sh"]}, "plan-command"),
        ({"network": "host"}, "plan-network"),
        ({"env": ["PATH=/bin", "BATCH=9"]}, "plan-env"),
        ({"read_only": False}, "plan-hardening"),
        ({"cap_drop": []}, "plan-hardening"),
        ({"image_reference": "sha256:" + "0" * 64}, "plan-image"),
    ],
)
def test_a_plan_that_is_not_the_job_is_refused(control, lease, change, rule):
    lease.plan = plan_bytes(lease.statement, **change)
    assert failed(lease.decide()) == {rule}
    assert control.grants == {}


def test_the_job_s_own_minimum_counts(control, state, identity):
    lease = Lease(control, state, identity, attestation={"minimum": "measured"})
    assert failed(lease.decide()) == {"job-level"}


def test_the_trust_file_s_level_and_customers_count(lease, other):
    accepted = trust(level="confidential", customers=[other.public.verify_key.text])
    assert {"level", "customer"} <= failed(lease.decide(trust=accepted))


def test_the_log_s_history_counts(lease):
    past = NodeHistory(NODE, 10, {}, unproven=(7,))
    assert "interlock-unproven" in failed(lease.decide(trust=trust(interlock="log"), history=lambda _e: past))


def _growing(sizes, seen):
    """Return histories of a log that has published so many entries each time it is read; entry 5 ends a lease with a proven wipe."""

    def history(_evidence):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        seen.append(size)
        return NodeHistory(NODE, size, {5: datetime.now(UTC)} if size > 5 else {}, unproven=())

    return history


def test_an_entry_that_is_acknowledged_and_not_published_yet_is_waited_for(lease, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    lease.changes, seen = {"previous_wipes": {"node": 5}}, []
    decision = lease.decide(trust=trust(interlock="log"), history=_growing([4, 5, 6, 7], seen))
    assert decision.granted
    assert seen == [4, 5, 6]


@pytest.mark.parametrize("elsewhere", [{"changes": {"nonce": "0" * 64}}, {"policy": POLICY + b"# laxer now\n"}])
def test_no_entry_is_waited_for_where_the_evidence_is_refused_anyway(lease, monkeypatch, elsewhere):
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.0)
    for name, value in elsewhere.items():
        setattr(lease, name, value)
    lease.changes, seen = {**lease.changes, "previous_wipes": {"node": 5}}, []
    decision = lease.decide(trust=trust(interlock="log"), history=_growing([4, 5, 6], seen))
    assert failed(decision) - {"interlock-wipes"}
    assert seen == [4]


def test_an_entry_that_never_comes_is_not_waited_for_without_end(lease):
    lease.changes, seen = {"previous_wipes": {"node": 5}}, []
    decision = lease.decide(trust=trust(interlock="log"), history=_growing([5], seen), patience=0.0)
    assert failed(decision) == {"interlock-wipes"}
    assert decision.reasons[0].seen == "not in the log of 5 entries: 5"


def test_a_log_that_is_not_the_trusted_one_refuses_and_one_that_is_away_decides_nothing(control, state, lease):
    def away(_evidence):
        raise ServerError("the log does not answer")

    agent = lease.agent(trust=trust(interlock="log"), history=away)
    info = lease.attested(agent)
    with pytest.raises(ServerError):
        agent.attend(info)
    assert control.refusals == {}
    assert state.document(lease.id, "refusal") is None

    def forged(_evidence):
        raise LogError("another log", rule="log-root", seen="x", wanted="y")

    assert failed(lease.agent(trust=trust(interlock="log"), history=forged).attend(info)) == {"log-root"}


def test_a_person_can_say_no(control, lease):
    asked = []
    decision = lease.decide(confirm=lambda candidate: asked.append(candidate.evidence.node) or False)
    assert asked == [NODE]
    assert failed(decision) == {"confirm"}
    assert control.grants == {}


def test_nobody_is_asked_about_evidence_that_does_not_hold(lease):
    lease.changes = {"nonce": "0" * 64}
    lease.decide(confirm=lambda _c: pytest.fail("asked"))


def test_a_bundle_sealed_to_somebody_else_is_refused(control, state, identity, other, pushed):
    _, digest = pushed(to=other)
    lease = Lease(control, state, identity, (digest,))
    assert failed(lease.decide()) == {"wrong-key"}
    assert control.grants == {}


def test_first_bytes_from_the_server_count_only_with_the_whole_digest(control, state, identity, sealed):
    wanted, digest = sealed(b"the public model")
    secret, _ = sealed(b"the crown jewels")
    control.bundles[digest] = secret.read_bytes()
    lease = Lease(control, state, identity, (digest,))
    decision = lease.decide()
    assert failed(decision) == {"bundle-tampered"}, "the key of another bundle was released"
    assert control.grants == {}
    assert state.header(digest) is None
    control.bundles[digest] = wanted.read_bytes()
    assert Lease(control, state, identity, (digest,)).decide().granted
    assert state.header(digest) is not None


def test_one_grant_for_one_lease_even_after_a_crash_in_between(control, state, identity, pushed):
    _, digest = pushed()
    lease = Lease(control, state, identity, (digest,))
    agent = lease.agent()
    info = lease.attested(agent)

    def lost(request):
        if request.url.path.endswith("/grant"):
            raise httpx.ReadError("reset", request=request)

    control.fault = lost
    with pytest.raises(ServerError):
        agent.attend(info)
    control.fault = None
    again = lease.agent().attend(info)
    third = lease.agent().attend(info)
    assert (again.granted, again.again, third.again) == (True, True, True)
    first, second = control.grants[lease.id]
    assert first == second
    assert state.document(lease.id, "grant") == Envelope.from_json(first).to_bytes()


def test_a_refusal_stays_a_refusal(control, lease):
    lease.changes = {"nonce": "0" * 64}
    lease.decide()
    lease.changes = {}
    decision = lease.agent().attend(lease.info)
    assert (decision.granted, decision.again) == (False, True)
    assert control.grants == {}


def test_the_nonce_is_fresh_for_each_lease_and_the_same_after_a_crash(control, state, identity):
    first, second = Lease(control, state, identity), Lease(control, state, identity)
    for lease in (first, second):
        lease.agent().attend(lease.info)
        lease.agent().attend(lease.info)
    assert control.nonces[first.id] != control.nonces[second.id]
    assert all(len(nonce) == 64 for nonce in control.nonces.values())


def test_evidence_that_answers_another_agent_is_not_decided_on(control, lease, tmp_path):
    agent = lease.agent()
    info = lease.attested(agent)
    elsewhere = State(tmp_path / "elsewhere")
    elsewhere.remember(lease.id, "job", lease.job.to_bytes())
    assert failed(lease.agent(state=elsewhere).attend(info)) == {"question"}
    assert control.grants == {}


def test_a_job_of_somebody_else_is_left_alone(control, lease, other):
    with pytest.raises(ReleaseError) as caught:
        lease.agent(identity=other).attend(lease.info)
    assert caught.value.details["rule"] == "job-signature"
    assert (control.nonces, control.refusals) == ({}, {})


def test_a_job_that_the_server_made_up_is_left_alone(control, state, identity, other, tmp_path):
    lease = Lease(control, state, identity)
    forged = sign(statement(other, lease=lease.id), other)
    document = {"documents": {"job": {"data": b64encode(forged.to_bytes())}}}
    control.receipts[lease.id] = canonical_json(document)
    with pytest.raises(ReleaseError):
        lease.agent(state=State(tmp_path / "empty")).attend(lease.info)
    assert control.nonces == {}


def test_the_server_s_copy_of_our_own_signed_job_will_do(control, state, identity, tmp_path):
    lease = Lease(control, state, identity)
    control.receipts[lease.id] = canonical_json({"documents": {"job": {"data": b64encode(lease.job.to_bytes())}}})
    elsewhere = State(tmp_path / "empty")
    assert lease.decide(state=elsewhere).granted
    assert elsewhere.document(lease.id, "job") == lease.job.to_bytes()


def test_our_job_for_another_lease_is_left_alone(control, state, identity, tmp_path):
    lease, second = Lease(control, state, identity), Lease(control, state, identity)
    elsewhere = State(tmp_path / "empty")
    elsewhere.remember(lease.id, "job", second.job.to_bytes())
    with pytest.raises(ReleaseError) as caught:
        lease.agent(state=elsewhere).attend(lease.info)
    assert caught.value.details["rule"] == "job-lease"


def test_without_a_copy_of_the_job_there_is_no_decision(control, lease, tmp_path):
    with pytest.raises(ReleaseError) as caught:
        lease.agent(state=State(tmp_path / "empty")).attend(lease.info)
    assert caught.value.details["rule"] == "job-copy"


@pytest.mark.parametrize("state_name", ["submitted", "admitted", "unlocked", "running", "wiping", "closed", "denied"])
def test_other_states_need_nothing(control, lease, state_name):
    control.leases[lease.id]["state"] = state_name
    control.seen.clear()
    assert lease.agent().attend(lease.info) is None
    assert control.seen == []


def test_a_lease_that_another_agent_holds_is_left_to_it(control, state, lease):
    with state.locked(lease.id) as mine:
        assert mine
        assert lease.agent().attend(lease.info) is None
    assert control.nonces == {}


def test_every_decision_is_written_down_before_it_is_sent(control, state, identity):
    good, bad = Lease(control, state, identity), Lease(control, state, identity)
    bad.changes = {"nonce": "0" * 64}
    good.decide()
    bad.decide()
    lines = [json.loads(line) for line in (state.folder / "decisions.jsonl").read_text().splitlines()]
    assert [(line["lease"], line["decision"]) for line in lines] == [(good.id, "granted"), (bad.id, "refused")]
    assert lines[0]["level"] == "software"
    assert lines[1]["reasons"][0]["rule"] == "nonce"


def test_a_flood_of_decisions_waits(control, state, identity):
    leases = [Lease(control, state, identity) for _ in range(3)]
    agent = leases[0].agent(limit=RateLimit(2))
    decisions = [agent.attend(lease.attested(agent)) for lease in leases]
    assert [decision is not None for decision in decisions] == [True, True, False]


def test_a_refusal_error_says_all_of_it(lease):
    lease.changes = {"nonce": "0" * 64}
    error = refusal_error(lease.decide())
    assert error.code == "release-refused"
    assert error.details["rule"] == "nonce"
    assert any(not step["ok"] for step in error.details["steps"])


@pytest.mark.parametrize("unsafe", [False, True])
def test_a_decision_under_an_unsafe_policy_is_marked(unsafe):
    from attestation.steps import Steps

    name = "development" if unsafe else "standard"
    steps = Steps("the evidence")
    module._mark_unsafe(load_profile(name).raw, steps)
    module._mark_unsafe(b"no policy", steps)
    assert [step.step for step in steps.all] == (["policy-unsafe"] if unsafe else [])
