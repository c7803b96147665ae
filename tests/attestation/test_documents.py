"""Trust file, wipe report, certificate, run record, grant, runner digest, appraisal: what each accepts and refuses."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from attestation.appraisal import Level, Submod, level_of
from attestation.canonical import canonical_json
from attestation.certificate import CERTIFICATE_PAYLOAD_TYPE, Certificate, build_certificate, verify_certificate
from attestation.collect import collect, runner
from attestation.collect.runner import PACKAGES, distribution_digest, lock_digest, package_root, runner_digest, tree_digest
from attestation.errors import AttestationError, FormatError, SignatureError, VerificationError
from attestation.grant import Grant, grant_info
from attestation.run import RunRecord
from attestation.signing import Envelope, sign_envelope
from attestation.steps import Steps
from attestation.trust import Trust
from attestation.verify import verify_evidence
from attestation.verify.certificates import packaged_roots
from attestation.wipe import GpuWipe, WipeReport
from tests.attestation.leases import (
    AT,
    IMAGE,
    LEASE,
    NODE,
    NODE_KEY,
    OTHER_KEY,
    RUNNER,
    documents,
    evidence,
    expected,
    trust,
    trust_tree,
    wipe_report,
)

# ---- trust file


def test_the_trust_file_has_a_digest_that_names_its_values():
    assert trust().digest == trust().digest != trust(freshness="11m").digest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"levl": "software"}, "did you mean 'level'"),
        ({"level": "high"}, "software"),
        ({"nodes": {}}, "at least 1"),
        ({"nodes": {"node-1": "ed25519:" + "A" * 43 + "="}}, "pattern"),
        ({"nodes": {NODE: "ed25519:AAAA"}}, "32 bytes"),
        ({"freshness": "10"}, "duration"),
        ({"freshness": "0s"}, "duration"),
        ({"log": {"origin": "x"}}, "Field required"),
        ({"log": {"origin": "x", "key": "x", "retired": [{"key": "x"}]}}, "Field required"),
        ({"log": {"origin": "x", "key": "x", "retired": [{"key": "x", "size": 0}]}}, "greater than or equal to 1"),
        ({"interlock": "none"}, "claimed"),
        ({"witnessQuorum": 1}, "more witnesses"),
        ({"snp": {"measurements": []}}, "at least 1"),
        ({"snp": {"measurements": ["00"]}}, "pattern"),
        ({"tpm": {"pcrs": {"24": ["00" * 32]}}}, "pattern"),
        ({"customers": ["sealrig1:AAAA"]}, "public key"),
    ],
)
def test_what_a_trust_file_refuses_is_named(change, words):
    with pytest.raises(FormatError) as caught:
        trust(**change)
    assert words in f"{caught.value.message} {caught.value.details}"
    assert {"rule", "seen", "wanted", "fix"} <= set(caught.value.details)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_tree_gives_a_clear_error(tree):
    with pytest.raises(AttestationError):
        Trust.from_tree(tree)


def test_all_sections_are_read():
    whole = trust(
        level="confidential-gpu",
        witnesses=["w+00000000+AAAA"],
        witnessQuorum=1,
        customers=[OTHER_KEY.public.text],
        posture=["swap-off"],
        tpm={"keys": {NODE: "AAAA"}, "pcrs": {"14": ["00" * 32]}},
        snp={"measurements": ["00" * 48], "tcb": {"snp": 8}},
        gpu={"drivers": ["590.12"]},
    )
    assert whole.level is Level.CONFIDENTIAL_GPU
    assert (whole.spec.snp.tcb.snp, whole.spec.freshness) == (8, timedelta(minutes=10))
    assert whole.node_key(NODE) == NODE_KEY.public
    assert whole.node_key("node-" + "1" * 32) is None


def test_another_kind_of_file_is_refused():
    with pytest.raises(FormatError, match="kind"):
        Trust.from_tree(trust_tree() | {"kind": "Policy"})


# ---- wipe report and certificate


def test_proven_follows_from_the_steps():
    assert wipe_report().proven
    assert not wipe_report(ok=False).proven
    assert [step.step for step in wipe_report(ok=False).failed] == ["key"]
    nothing = wipe_report().model_copy(update={"steps": ()})
    assert not nothing.proven
    assert not wipe_report().model_copy(update={"gpus": (gpu_wipe(ok=False),)}).proven


def gpu_wipe(**changes):
    known = {
        "uuid": "GPU-1",
        "name": "x",
        "backend": "cuda",
        "total_bytes": 100,
        "reserved_bytes": 10,
        "written_bytes": 90,
        "verified_bytes": 88,
        "mismatches": 0,
        "residue_words_before": 0,
        "local_memory_scrubbed": True,
        "seconds": 1,
        "ok": True,
    }
    return GpuWipe.model_validate(known | changes)


def test_a_gpus_record_tells_all_and_one_from_before_it_told_less_is_read_as_it_is():
    before = wipe_report().model_copy(update={"gpus": (gpu_wipe(),)})
    raw = before.to_payload()
    assert not any(name in raw for name in (b"coverage", b"rest_bytes", b"gb_per_s", b"local_memory_proven", b"detail"))
    assert WipeReport.from_payload(raw) == before
    more = {"coverage": 0.977777, "rest_bytes": 2, "fill_gb_per_s": 4321.5, "compare_gb_per_s": 4000.25, "local_memory_proven": False}
    now = wipe_report().model_copy(update={"gpus": (gpu_wipe(residue_words_before=None, detail="coverage", ok=False, **more),)})
    assert WipeReport.from_payload(now.to_payload()) == now
    spelled = json.loads(raw)
    spelled["gpus"][0]["detail"] = None
    with pytest.raises(FormatError, match="canonical"):  # what is left out has no second spelling
        WipeReport.from_payload(canonical_json(spelled))


def test_a_claim_of_proven_is_checked_against_the_steps():
    raw = wipe_report(ok=False).to_payload()
    assert WipeReport.from_payload(raw) == wipe_report(ok=False)
    assert b'"proven":false' in raw
    for lie in (b'"proven":true', b'"proven":0', b'"proven":null'):
        with pytest.raises(FormatError):
            WipeReport.from_payload(raw.replace(b'"proven":false,"started', lie + b',"started'))
    with pytest.raises(ValidationError):
        WipeReport(lease=LEASE, node=NODE, started_at=AT, ended_at=AT, steps=(), proven=True)


def certificate(*, ok=True, key=NODE_KEY, **changes):
    known = {
        "lease": LEASE,
        "node": NODE,
        "documents": {"wipe": RUNNER},
        "wipe": wipe_report(ok=ok),
        "tool_version": "0.1.0",
        "at": AT,
    } | changes
    return sign_envelope(build_certificate(**known), CERTIFICATE_PAYLOAD_TYPE, key)


def test_a_certificate_is_an_in_toto_statement_with_the_fields_of_the_standard():
    envelope = certificate()
    tree = json.loads(envelope.payload)
    assert tree["_type"] == "https://in-toto.io/Statement/v1"
    assert tree["subject"] == [{"name": "wipe", "digest": {"sha256": RUNNER.removeprefix("sha256:")}}]
    medium = tree["predicate"]["media"][0]
    assert {"manufacturer", "model", "serialNumber", "mediaType", "source", "method", "technique", "verificationMethod"} <= set(medium)
    assert tree["predicate"]["standard"] == "NIST SP 800-88 Rev. 2"
    assert tree["predicate"]["performedBy"]["name"] == NODE
    assert tree["predicate"]["validatedBy"] is None
    assert verify_certificate(envelope, NODE_KEY.public).documents == {"wipe": RUNNER}


def test_an_independent_dsse_implementation_reads_it():
    from securesystemslib.dsse import Envelope as Independent
    from securesystemslib.signer import SSlibKey

    envelope = certificate()
    key = SSlibKey(NODE_KEY.public.key_id, "ed25519", "ed25519", {"public": NODE_KEY.public.raw.hex()})
    read = Independent.from_dict(envelope.to_json())
    assert read.verify([key], 1)
    assert read.payload == envelope.payload


def test_in_totos_own_library_reads_the_statement():
    from google.protobuf import json_format
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as Message

    payload = certificate().payload
    read = json_format.Parse(payload, Message())
    Statement.copy_from_pb(read).validate()
    assert [(each.name, dict(each.digest)) for each in read.subject] == [("wipe", {"sha256": RUNNER.removeprefix("sha256:")})]
    assert read.predicate_type == json.loads(payload)["predicateType"]
    assert json_format.MessageToDict(read.predicate) == json.loads(payload)["predicate"]
    with pytest.raises(json_format.ParseError):
        json_format.Parse(payload.replace(b'"predicateType"', b'"predicateKind"'), Message())


def test_no_gpu_claims_nothing_and_a_gpu_says_what_was_reached():
    assert "nothing is claimed" in json.loads(certificate().payload)["predicate"]["gpus"]
    gpu = gpu_wipe()
    tree = json.loads(certificate(wipe=wipe_report().model_copy(update={"gpus": (gpu,)})).payload)
    medium = tree["predicate"]["media"][1]
    assert (medium["mediaType"], medium["writtenBytes"], medium["method"]) == ("GPU memory", 90, "clear")
    assert medium["verificationMethod"] == (
        "88 of 100 bytes read back after writing; 12 bytes were not reached, of which the driver reserves 10"
    )


def test_a_failed_wipe_certifies_its_failure():
    assert verify_certificate(certificate(ok=False), NODE_KEY.public).predicate.result == "not-proven"


def test_a_certificate_that_says_more_than_its_steps_is_refused():
    payload = certificate(ok=False).payload.replace(b'"not-proven"', b'"sanitized"')
    with pytest.raises(VerificationError, match="does not follow"):
        verify_certificate(sign_envelope(payload, CERTIFICATE_PAYLOAD_TYPE, NODE_KEY), NODE_KEY.public)


def test_a_certificate_needs_its_node_and_type():
    with pytest.raises(SignatureError):
        verify_certificate(certificate(key=OTHER_KEY), NODE_KEY.public)
    with pytest.raises(SignatureError):
        verify_certificate(sign_envelope(certificate().payload, "application/json", NODE_KEY), NODE_KEY.public)
    with pytest.raises(FormatError, match="another lease"):
        certificate(lease="lease-" + "1" * 32)
    with pytest.raises(FormatError, match="documents"):
        certificate(documents={"job": RUNNER})
    with pytest.raises(FormatError, match="documents"):
        certificate(documents={"wipe": RUNNER, "diary": RUNNER})


def test_a_certificate_over_two_documents_of_one_kind_is_refused():
    tree = json.loads(certificate().payload)
    tree["subject"] *= 2
    with pytest.raises(VerificationError, match="wrong documents"):
        verify_certificate(sign_envelope(canonical_json(tree), CERTIFICATE_PAYLOAD_TYPE, NODE_KEY), NODE_KEY.public)


@pytest.mark.parametrize("model", [WipeReport, RunRecord, Grant, Certificate])
@given(raw=st.binary(max_size=200))
def test_any_bytes_are_refused(model, raw):
    with pytest.raises(AttestationError):
        model.from_payload(raw)


@pytest.mark.parametrize(("kind", "model"), [("wipe", WipeReport), ("run", RunRecord), ("grant", Grant), ("certificate", Certificate)])
def test_each_document_has_one_spelling(kind, model):
    payload = Envelope.from_bytes(documents()[kind]).payload
    assert model.from_payload(payload).to_payload() == payload
    for other in (payload + b" ", b" " + payload, payload.replace(b":", b": ", 1)):
        with pytest.raises(FormatError, match="canonical"):
            model.from_payload(other)


def test_grant_info_tells_lease_evidence_and_bundle_apart():
    assert len({grant_info("a", "b", "c"), grant_info("ab", "", "c"), grant_info("a", "bc", ""), grant_info("a", "b", "d")}) == 4


def test_a_run_record_refuses_an_unpinned_image():
    with pytest.raises(ValidationError):
        RunRecord(lease=LEASE, node=NODE, image="python:3", plan_digest=RUNNER, ended_at=AT, outcome="failed")
    assert RunRecord(lease=LEASE, node=NODE, image=IMAGE, plan_digest=RUNNER, ended_at=AT, outcome="failed").started_at is None


# ---- runner


def test_the_runner_digest_covers_every_installed_file():
    digest, version = runner_digest()
    assert digest.startswith("sha256:")
    assert version != "unversioned"
    assert runner_digest() == (digest, version)
    assert all((package_root(package) / "__init__.py").is_file() for package in PACKAGES)
    with pytest.raises(AttestationError, match="not installed"):
        package_root("no_such_package")


def test_the_lock_file_beside_the_packages_counts(tmp_path):
    assert lock_digest(tmp_path) == b""
    (tmp_path / "uv.lock").write_bytes(b"version = 1\n")
    assert lock_digest(tmp_path) == hashlib.sha256(b"version = 1\n").digest()
    with_one = runner_digest.__wrapped__()
    assert with_one == runner_digest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "LOCK_FILE", "none.lock")
        assert runner.runner_digest.__wrapped__() != with_one


def test_names_contents_and_places_change_the_tree_digest(tmp_path):
    def make(files):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return tree_digest(folder)

    first = make({"a.py": "1", "b/c.py": "2"})
    assert make({"b/c.py": "2", "a.py": "1", "b/__pycache__/c.pyc": "cache"}) == first
    others = [
        make({"a.py": "2", "b/c.py": "2"}),
        make({"a.py": "1", "c.py": "2"}),
        make({"a.py": "1"}),
        make({"a.py": "1", "b/c.py": "2", "data.yaml": ""}),
    ]
    assert len({first, *others}) == 5


def test_a_dependencys_files_count_wherever_it_is_installed(tmp_path):
    def installed(place, **files):
        root, info = tmp_path / place, tmp_path / place / "thing-1.0.dist-info"
        known = {"thing.py": "1", "thing-1.0.dist-info/METADATA": "Name: thing\nVersion: 1.0\n", "thing-1.0.dist-info/INSTALLER": place}
        known |= {"thing/__pycache__/x.pyc": place, "../bin/thing": f"#!/{place}"} | {
            name.replace("__", "/"): text for name, text in files.items()
        }
        for name, text in known.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in known))
        return PathDistribution(info)

    first = distribution_digest(installed("one/site"))
    assert distribution_digest(installed("two/site")) == first
    assert distribution_digest(installed("three/site", **{"thing.py": "2"})) != first
    assert distribution_digest(installed("four/site", **{"more.py": ""})) != first
    broken = installed("five/site")
    (tmp_path / "five" / "site" / "thing.py").unlink()
    with pytest.raises(AttestationError, match="thing cannot be read"):
        distribution_digest(broken)


# ---- appraisal and steps


def test_levels_have_labels_both_ways():
    assert [Level.from_label(level.label) for level in Level] == list(Level)
    assert Level.CONFIDENTIAL_GPU.label == "confidential-gpu"
    with pytest.raises(FormatError, match="assurance level"):
        Level.from_label("secret")


FULL = {"hardware": 2, "executables": 2, "configuration": 2, "runtime-opaque": 2}


@pytest.mark.parametrize(
    ("submods", "level"),
    [
        ({}, Level.SOFTWARE),
        ({"node": {"instance-identity": 2, "hardware": 2, "executables": 3}}, Level.MEASURED),
        ({"node": {"instance-identity": 2, "hardware": 2}}, Level.SOFTWARE),
        ({"node": {"instance-identity": 2, "hardware": 97, "executables": 3}}, Level.SOFTWARE),
        ({"cpu0": FULL}, Level.CONFIDENTIAL),
        ({"cpu0": FULL | {"runtime-opaque": 32}}, Level.SOFTWARE),
        ({"cpu0": FULL | {"sourced-data": 96}}, Level.SOFTWARE),
        ({"cpu0": FULL, "gpu0": FULL}, Level.CONFIDENTIAL_GPU),
        ({"cpu0": FULL, "gpu0": FULL, "gpu1": FULL | {"runtime-opaque": 32}}, Level.CONFIDENTIAL),
        ({"gpu0": FULL}, Level.SOFTWARE),
    ],
)
def test_the_level_follows_from_the_claims(submods, level):
    assert level_of({name: Submod(claims, {}) for name, claims in submods.items()}) is level


@pytest.mark.parametrize("missing", sorted(FULL))
def test_each_claim_is_needed(missing):
    claims = {name: value for name, value in FULL.items() if name != missing}
    assert level_of({"cpu0": Submod(claims, {})}) is Level.SOFTWARE
    assert level_of({"cpu0": Submod(FULL, {}), "gpu0": Submod(claims, {})}) is Level.CONFIDENTIAL


def test_a_status_is_the_worst_of_its_claims():
    assert Submod({}, {}).status == "none"
    assert Submod({"hardware": 2, "runtime-opaque": 32}, {}).status == "warning"
    assert Submod({"hardware": 96, "runtime-opaque": 32}, {}).status == "contraindicated"
    with pytest.raises(FormatError, match="trustworthiness claim"):
        Submod({"colour": 2}, {})


def test_no_step_is_no_pass():
    with pytest.raises(VerificationError, match="no step was made"):
        Steps("nothing").finish()


def test_an_error_without_a_way_out_gets_one():
    steps = Steps("it")
    steps.note("bare", FormatError("broken", seen="x", wanted="y"))
    steps.note("own", FormatError("broken", fix="mend it"))
    assert [bool(step.fix) for step in steps.all] == [True, True]
    assert steps.all[1].fix == "mend it"


ROOTS = {
    "amd_milan.pem": ("67d303bd3905fd38", "69d063b45344d26a", "c5e081f59b7efab1"),
    "amd_genoa.pem": ("5464738c1546aed5", "4c6598d19c18719c", "197e610743a917d6"),
    "amd_turin.pem": ("5b77ef5fe7a7a004", "1f084161a44bb6d9", "104e10a8bd060a3c"),
    "intel_sgx.pem": ("44a0196b2b99f889",),
    "nvidia_device.pem": ("102bf659d5419614",),
    "nvidia_rim.pem": ("12977b5115acb038",),
}


@pytest.mark.parametrize("name", sorted(ROOTS))
def test_packaged_roots_are_the_pinned_ones(name):
    from cryptography.hazmat.primitives import hashes

    assert tuple(root.fingerprint(hashes.SHA256()).hex()[:16] for root in packaged_roots(name)) == ROOTS[name]


# ---- documentation

PAGE = Path(__file__).resolve().parents[2] / "docs" / "attestation.md"


def test_the_trust_file_in_the_documentation_is_accepted():
    example = PAGE.read_text().split("```yaml\n")[1].split("```")[0]
    assert Trust.from_tree(yaml.safe_load(example)).level is Level.SOFTWARE


def test_the_documentation_names_every_step_of_verification():
    page = PAGE.read_text()
    envelope = collect(evidence(), NODE_KEY)
    for step in verify_evidence(envelope, trust=trust(), expected=expected(), at=AT).steps:
        name = step.step.partition("-")[0] if step.step.startswith("interlock") else step.step
        assert f"`{name}" in page or step.step == "tee-targets", step.step
