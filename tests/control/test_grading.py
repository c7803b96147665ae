"""Which level policies see: what the operator's own trust file makes of verified evidence, else ``software``."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from attestation.canonical import canonical_json, sha256_digest
from attestation.collect import collect
from attestation.collect.tpm import TpmSource
from attestation.log.note import NoteVerifier
from attestation.signing import Envelope, SigningKey, b64encode
from attestation.trust import Trust
from attestation.verify.tee import tpm_evidence
from sandbox.control.grading import grade
from tests.attestation.leases import AT, NODE, NODE_KEY, evidence, expected
from tests.attestation.software_tpm import HANDLE, Tpm, software_tpm
from tests.control.actors import POLICY, nonce, ok
from tests.control.conftest import House, open_house

MEASURED = POLICY + b"  attestation: {minimum: measured}\n"
LEVEL_RULE = POLICY + b'  rules: [{name: measured-only, expression: "node.attestation.level >= 1", message: "measured nodes only"}]\n'


def operators_trust(node: str, key: SigningKey, **sections: object) -> Trust:
    vkey = NoteVerifier("log.example/x", SigningKey.generate().public).text
    spec = {"level": "measured", "nodes": {node: key.public.text}, "log": {"origin": "log.example/x", "key": vkey}, **sections}
    return Trust.from_tree({"apiVersion": "sealrig/v1", "kind": "Trust", "spec": spec})


def attested(house: House, raw: bytes) -> tuple:
    """Take a lease under a policy up to its evidence."""
    customer, node = house.customer(), house.node()
    ok(house.person("operator").put("/v1/policies/lab", {"raw": b64encode(raw)}))
    lease = ok(customer.submit(customer.job(policyDigest=sha256_digest(raw))))["id"]
    node.poll()
    ok(nonce(customer, lease))
    ok(node.attest(lease))
    return customer, node, lease


@pytest.mark.parametrize(("raw", "rule"), [(MEASURED, "attestation-minimum"), (LEVEL_RULE, "rules.measured-only")])
def test_without_a_trust_file_every_node_is_software_and_the_denial_ends_in_a_wipe(house: House, raw: bytes, rule: str) -> None:
    customer, node, lease = attested(house, raw)
    info = customer.lease(lease)
    assert (info["state"], info["level"]) == ("attested", "software")
    assert [each["rule"] for each in info["denials"]] == [rule]
    assert node.assignment(lease)["end"] == "denied"
    refused = customer.unlock(lease)  # no key is taken any more, whatever the customer says
    assert refused.status_code == 403
    assert refused.json()["details"]["reasons"][0]["rule"] == rule
    ok(node.report(lease, "wiping", outcome="denied"))
    info = ok(node.report(lease, "denied", documents=node.wipe(lease)))
    assert (info["state"], info["outcome"]) == ("denied", "denied")
    assert info["denials"][0]["rule"] == rule
    assert customer.get(f"/v1/leases/{lease}/receipt").status_code == 200


def test_evidence_that_does_not_verify_for_the_operator_says_why(folder: Path) -> None:
    with ExitStack() as stack:
        house = open_house(stack, folder)
        strange = operators_trust("node-" + "0" * 32, SigningKey.generate())
        object.__setattr__(house.control, "settings", replace(house.control.settings, trust=strange))
        customer, _, lease = attested(house, MEASURED)
        rules = [each["rule"] for each in customer.lease(lease)["denials"]]
        assert rules == ["attestation-minimum", "evidence-signature"]


def test_an_allowed_lease_goes_on(house: House) -> None:
    customer, node, lease = attested(house, POLICY)
    assert node.assignment(lease)["end"] is None
    assert ok(customer.unlock(lease))["state"] == "unlocked"


@software_tpm
def test_a_measured_node_gets_its_level_from_the_operators_file_only(tmp_path: Path) -> None:
    tpm = Tpm(tmp_path)
    tpm.start()
    try:
        tpm.make_key()
        source = TpmSource(HANDLE, (0, 16), tpm.tcti)
        envelope = collect(evidence(), NODE_KEY, devices=[source])
        probe = tpm_evidence(source.quote(bytes(32)))
    finally:
        tpm.stop()
    section = {"keys": {NODE: b64encode(probe.key)}, "pcrs": {"16": [probe.pcrs[16].hex()]}}
    assert grade(operators_trust(NODE, NODE_KEY, tpm=section), envelope, expected(), at=AT).level.label == "measured"
    assert grade(operators_trust(NODE, NODE_KEY), envelope, expected(), at=AT).level.label == "software"
    assert grade(None, envelope, expected(), at=AT).level.label == "software"
    wrong = operators_trust(NODE, NODE_KEY, tpm=section | {"pcrs": {"16": ["ff" * 32]}})
    graded = grade(wrong, envelope, expected(), at=AT)
    assert (graded.level.label, [each.rule for each in graded.reasons]) == ("software", ["evidence-tpm-pcr-16"])
    forged = Envelope.from_json(envelope.to_json() | {"payload": b64encode(canonical_json({"level": 3}))})
    assert grade(operators_trust(NODE, NODE_KEY), forged, expected(), at=AT).level.label == "software"
