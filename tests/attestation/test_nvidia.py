"""NVIDIA GPU reports: public Hopper samples and their references, whole and altered."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.appraisal import Submod
from attestation.canonical import canonical_json
from attestation.errors import AttestationError, FormatError, VerificationError
from attestation.evidence import DeviceCounts, GpuFact, TeeEvidence
from attestation.signing import b64decode, b64encode
from attestation.steps import Steps
from attestation.verify.nvidia import GpuRules, verify_gpu
from attestation.verify.nvidia_report import parse_gpu_report
from attestation.verify.rim import verify_rim
from attestation.verify.single import verify_single
from attestation.verify.tee import check_tee
from tests.attestation.leases import evidence, trust
from tests.conftest import VECTORS

FOLDER = VECTORS / "nvidia"
AT = datetime(2024, 6, 1, tzinfo=UTC)
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the public NVIDIA vectors are not here")
RIM = FOLDER / "vbios_1010_0200_882_96005E0001.swidtag"
MISMATCH = FOLDER / "vbios_1010_0200_882_96005E0001_mismatch.xml"


@pytest.fixture(scope="module")
def sample():
    report = bytes.fromhex((FOLDER / "hopperAttestationReport.txt").read_text())
    return report, (FOLDER / "hopperCertChain.txt").read_bytes()


def check(report, chain, rims=(), **changes):
    steps = Steps("the report")
    known = {"nonce": None, "rules": GpuRules(), "at": AT} | changes
    submod = verify_gpu(report, chain, [path.read_bytes() if hasattr(path, "read_bytes") else path for path in rims], **known, steps=steps)
    steps.finish()
    return submod, steps.all


def failed(*arguments, **changes):
    with pytest.raises(VerificationError) as caught:
        check(*arguments, **changes)
    return [step.step for step in caught.value.steps if not step.ok]


def test_the_public_report_matches_its_reference(sample):
    nonce = parse_gpu_report(sample[0]).nonce
    submod, steps = check(*sample, [RIM], nonce=nonce)
    seen = {step.step: step.seen for step in steps}
    assert seen["gpu-measurements"] == "12 of 12 match"
    assert seen["gpu-versions"] == "driver 535.86.09, VBIOS 96.00.5E.00.01"
    assert submod.claims == {
        "hardware": 2,
        "executables": 0,
        "configuration": 0,
        "runtime-opaque": 0,
    }  # the driver's reference is not there


def test_the_mismatching_reference_names_index_9(sample):
    assert failed(*sample, [MISMATCH]) == ["gpu-measurements"]
    with pytest.raises(VerificationError, match="wrong: 9;"):
        check(*sample, [MISMATCH])


def test_the_public_report_with_an_invalid_signature(sample):
    report = bytes.fromhex((FOLDER / "hopperAttestationReportInvalidSignature.txt").read_text())
    assert failed(report, sample[1]) == ["gpu-signature"]


def test_flipped_bytes_fail_at_their_step(sample):
    report, chain = sample
    for position in random.Random(2).sample(range(len(report)), 120):
        changed = report[:position] + bytes([report[position] ^ 0x01]) + report[position + 1 :]
        assert failed(changed, chain) in (["gpu-signature"], ["gpu-format"]), position


def test_flipped_bytes_of_the_chain_fail(sample):
    report, chain = sample
    for position in random.Random(3).sample(range(len(chain)), 150):
        if (
            chain[position : position + 1] in b"-\n ABCDEFGHIJKLMNOPQRSTUVWXYZ"
            and b"CERTIFICATE" in chain[max(0, position - 30) : position + 30]
        ):
            continue  # the frame around a certificate carries nothing
        changed = chain[:position] + (b"A" if chain[position : position + 1] != b"A" else b"B") + chain[position + 1 :]
        try:
            steps = failed(report, changed)
        except pytest.fail.Exception:
            assert b64decode_pem(changed) == b64decode_pem(chain)
            continue
        assert steps[0] in {"gpu-format", "gpu-chain", "gpu-device", "gpu-signature", "gpu-fwid"}, (position, steps)


def b64decode_pem(chain):
    return [line for line in chain.split(b"\n") if line and not line.startswith(b"-")]


def test_flipped_bytes_of_a_reference_fail(sample):
    """Every change of a digit, a letter or an attribute is caught by the XML signature or its certificates."""
    raw = RIM.read_bytes()
    for position in random.Random(4).sample(range(len(raw)), 60):
        old = raw[position : position + 1]
        if not old.isalnum():
            continue
        changed = raw[:position] + (b"7" if old != b"7" else b"8") + raw[position + 1 :]
        assert failed(*sample, [changed])[0] == "gpu-rim-0", position


def test_a_reference_outside_its_signers_time_is_refused(sample):
    assert failed(*sample, [RIM], at=datetime(2025, 7, 1, tzinfo=UTC)) == ["gpu-rim-0"]


def test_a_reference_for_other_firmware_is_refused():
    item = json.loads((FOLDER / "hopper_evidence.json").read_text())[0]
    assert failed(b64decode(item["evidence"]), b64decode(item["certificate"]), [RIM]) == ["gpu-rim-0"]


def test_the_same_reference_twice_is_refused(sample):
    assert failed(*sample, [RIM, RIM]) == ["gpu-rim-1"]


def test_nonce_versions_and_chain(sample):
    assert failed(*sample, nonce=bytes(32)) == ["gpu-nonce"]
    assert failed(*sample, rules=GpuRules(drivers=["590.12"])) == ["gpu-versions"]
    assert failed(*sample, rules=GpuRules(vbios=["96.00.5E.00.02"])) == ["gpu-versions"]
    pieces = sample[1].split(b"-----END CERTIFICATE-----\n")
    assert failed(sample[0], b"-----END CERTIFICATE-----\n".join(pieces[:3]) + b"-----END CERTIFICATE-----\n") == ["gpu-chain"]
    assert failed(sample[0], b"") == ["gpu-format"]


def test_protected_pcie_is_seen():
    """This public report's GPU was set to protect the bus only, whatever references it would match."""
    raw = (FOLDER / "hopper_evidence.json").read_bytes()
    assert verify_single("nvidia-gpu", raw, at=AT).ear["submods"]["gpu0"]["ear_verifier_claims"]["mode"] == "protected PCIe"


def test_the_evidence_file_format():
    raw = (FOLDER / "hopper_evidence.json").read_bytes()
    nonce = bytes.fromhex(json.loads(raw)[0]["nonce"])
    assert verify_single("nvidia-gpu", raw, at=AT, nonce=nonce).ear["submods"]["gpu0"]["ear_verifier_claims"]["driver"] == "590.12"
    twice = canonical_json(json.loads(raw) * 2)
    with pytest.raises(VerificationError) as caught:
        verify_single("nvidia-gpu", twice, at=AT, nonce=nonce)
    assert caught.value.details["rule"] == "gpu-distinct"  # one GPU cannot answer for two


def test_hex_and_binary_reports_are_accepted(sample):
    text = (FOLDER / "hopperAttestationReport.txt").read_bytes()
    assert verify_single("nvidia-gpu", text, chain=sample[1], at=AT)
    assert verify_single("nvidia-gpu", text + b"\n", chain=sample[1], at=AT)
    assert verify_single("nvidia-gpu", sample[0], chain=sample[1], at=AT)


@pytest.mark.parametrize("raw", [b"", b"[]", b"[1]", b"{}", b"[{}]", b"[" * 100_000, b"00", b"\xff" * 10])
def test_other_files_fail_at_the_format(raw, sample):
    with pytest.raises(VerificationError) as caught:
        verify_single("nvidia-gpu", raw, chain=sample[1], at=AT)
    assert caught.value.details["rule"] == "gpu-format"


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_a_clear_error(raw):
    for data in (raw, b"\x11\xe0\x01\xff" + bytes(33) + b"\x11\x60\0\0" + raw):
        with pytest.raises(AttestationError):
            parse_gpu_report(data)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<a/>",
        b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
        b"<SoftwareIdentity xmlns='http://standards.iso.org/iso/19770/-2/2015/schema.xsd'/>",
        b"\0" * 50,
    ],
)
def test_other_xml_is_refused(raw):
    with pytest.raises(FormatError):
        verify_rim(raw, AT)


def test_a_document_type_is_refused_even_around_a_good_reference():
    raw = b"<!DOCTYPE SoftwareIdentity>" + RIM.read_bytes()
    with pytest.raises(FormatError, match="RIM file"):
        verify_rim(raw, AT)


def test_inside_evidence_each_gpu_has_its_own(sample):
    gpu = GpuFact(uuid="GPU-1", name="H100", memory=1)
    piece = TeeEvidence(kind="nvidia-gpu", target="GPU-1", parts={"report": b64encode(sample[0]), "chain": b64encode(sample[1])})
    document = evidence(
        gpus=(gpu,), device_counts=DeviceCounts(pci=1, driver=1), previous_wipes={"node": None, "GPU-1": None}, tee=(piece,)
    )

    def run(rules, changed=document):
        steps = Steps("the evidence")
        submods = check_tee(changed, Submod({}, {}), rules, AT, steps)
        return submods, [step.step for step in steps.all if not step.ok], [step.step for step in steps.all]

    submods, wrong, made = run(trust())
    assert (wrong, submods["gpu0"].claims) == ([], {})
    assert "nvidia-gpu-trust" in made
    assert run(trust(gpu={}))[1] == ["gpu-nonce"]  # a public report answers another question
    foreign = piece.model_copy(update={"target": "GPU-2"})
    assert run(trust(gpu={}), document.model_copy(update={"tee": (foreign,)}))[1] == ["tee-targets"]
    assert run(trust(gpu={}), document.model_copy(update={"tee": (piece, piece)}))[1] == ["tee-targets"]
    misplaced = piece.model_copy(update={"target": "node"})
    assert run(trust(gpu={}), document.model_copy(update={"tee": (misplaced,)}))[1] == ["tee-targets"]
    with pytest.raises(VerificationError):
        run(trust(gpu={}), document.model_copy(update={"tee": (piece.model_copy(update={"parts": {"report": "AAAA"}}),)}))
