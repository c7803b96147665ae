"""GPUs of both architectures, whole, up to encrypted memory: reports, references and revocation signed by keys of the tests."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from attestation.appraisal import Level, Submod, level_of
from attestation.errors import AttestationError, FormatError, VerificationError
from attestation.signing import b64encode
from attestation.steps import Steps
from attestation.verify.certificates import load_chain
from attestation.verify.nvidia import GpuRules, check_distinct, verify_gpu
from attestation.verify.nvidia_identity import gpu_identity
from attestation.verify.nvidia_report import parse_gpu_report
from attestation.verify.ocsp import load_ocsp
from attestation.verify.single import verify_single
from attestation.verify.statuses import StatusFiles, check_statuses
from tests.attestation.gpu_maker import AT, DRIVER, VBIOS, Maker

NONCE = b"\5" * 32
MEASURED = {index: bytes([index]) * 48 for index in range(1, 9)}
CPU = Submod({"hardware": 2, "executables": 2, "configuration": 2, "runtime-opaque": 2}, {})
NAMES = {"Hopper": "GH100", "Blackwell": "GB100"}


@pytest.fixture(scope="module")
def maker():
    return Maker()


@pytest.fixture(scope="module", params=["Hopper", "Blackwell"])
def chip(request, maker):
    chip = maker.chip(request.param)
    chip.name = NAMES[request.param]
    return chip


def references(maker, product, **golden):
    driver = {0: [MEASURED[1], b"\xee" * 48], 3: [MEASURED[4]]} | golden
    return [maker.rim(product, DRIVER, driver), maker.rim(product, VBIOS, {6: [MEASURED[7]]})]


def check(maker, report, chain, rims=(), **changes):
    steps = Steps("the report")
    rules = GpuRules(device_roots=[maker.root.certificate], rim_roots=[maker.rim_root.certificate])
    statuses = changes.pop("statuses", StatusFiles())
    rules = replace(rules, **changes)
    submod = verify_gpu(report, chain, rims, nonce=NONCE, rules=rules, at=AT, steps=steps, statuses=statuses)
    steps.finish()
    return submod, {step.step: step.seen for step in steps.all}


def failed(*arguments, **changes):
    with pytest.raises(VerificationError) as caught:
        check(*arguments, **changes)
    return [step.step for step in caught.value.steps if not step.ok]


def test_a_gpu_with_both_references_is_confidential(maker, chip):
    submod, seen = check(maker, chip.report(NONCE, MEASURED), chip.pem, references(maker, chip.name))
    assert submod.claims == {"hardware": 2, "executables": 2, "configuration": 2, "runtime-opaque": 2}
    assert (seen["gpu-mode"], seen["gpu-measurements"]) == ("single GPU", "3 of 3 match")
    assert submod.facts["chip"] == chip.name
    assert level_of({"cpu0": CPU, "gpu0": submod}) is Level.CONFIDENTIAL_GPU
    assert level_of({"cpu0": CPU, "gpu0": submod, "gpu1": Submod({}, {})}) is Level.CONFIDENTIAL  # every GPU counts


@pytest.mark.parametrize("left", [0, 1])
def test_one_reference_alone_proves_no_mode(maker, chip, left):
    submod, _ = check(maker, chip.report(NONCE, MEASURED), chip.pem, [references(maker, chip.name)[left]])
    assert (submod.claims["runtime-opaque"], submod.claims["executables"]) == (0, 0)


@pytest.mark.parametrize("fields", [{"f36": b"\2\0"}, {"f36": None, "f21": b"\xaa"}, {"f36": b"\x63\0"}])
def test_protected_pcie_and_unknown_modes_are_not_confidential_computing(maker, chip, fields):
    submod, _ = check(maker, chip.report(NONCE, MEASURED, **fields), chip.pem, references(maker, chip.name))
    assert submod.claims["runtime-opaque"] == 32
    assert level_of({"cpu0": CPU, "gpu0": submod}) is Level.CONFIDENTIAL


def test_debugging_or_other_software_shows_in_the_measurements(maker, chip):
    report = chip.report(NONCE, MEASURED | {4: b"\xdd" * 48})
    assert failed(maker, report, chip.pem, references(maker, chip.name)) == ["gpu-measurements"]
    gone = {index: value for index, value in MEASURED.items() if index != 4}
    assert failed(maker, chip.report(NONCE, gone), chip.pem, references(maker, chip.name)) == ["gpu-measurements"]


def test_the_video_decoders_measurement_counts_only_while_it_is_on(maker, chip):
    rims = [maker.rim(chip.name, DRIVER, {0: [MEASURED[1]], 35: [b"\1" * 48]}), maker.rim(chip.name, VBIOS, {6: [MEASURED[7]]})]
    assert check(maker, chip.report(NONCE, MEASURED), chip.pem, rims)[0].claims["runtime-opaque"] == 2
    assert failed(maker, chip.report(NONCE, MEASURED, f11=b"\xaa"), chip.pem, rims) == ["gpu-measurements"]


def test_overlapping_references_are_refused(maker, chip):
    rims = [maker.rim(chip.name, DRIVER, {6: [MEASURED[7]]}), maker.rim(chip.name, VBIOS, {6: [MEASURED[7]]})]
    assert failed(maker, chip.report(NONCE, MEASURED), chip.pem, rims) == ["gpu-measurements"]


def test_a_reference_of_another_chip_is_refused_and_says_which_to_fetch(maker, chip):
    with pytest.raises(VerificationError) as caught:
        check(maker, chip.report(NONCE, MEASURED), chip.pem, references(maker, "GB202"))
    assert caught.value.details["rule"] == "gpu-rim-0"
    wanted = f"NV_GPU_DRIVER_GH100_{DRIVER}" if chip.name == "GH100" else f"NV_GPU_CC_DRIVER_GB100_{DRIVER}"
    assert wanted in caught.value.details["fix"]
    assert "NV_GPU_VBIOS_G525_0220_886_970088000F" in caught.value.details["fix"]


def test_flipped_bytes_of_a_report_counts(maker, chip):
    """Each third here; 'bench/fuzz' flips every byte of every public sample."""
    report = chip.report(NONCE, {1: MEASURED[1]})
    for position in range(0, len(report), 3):
        changed = report[:position] + bytes([report[position] ^ 0x10]) + report[position + 1 :]
        assert failed(maker, changed, chip.pem) in (["gpu-signature"], ["gpu-format"]), position


def test_the_firmware_id_is_compared(maker, chip):
    assert failed(maker, chip.report(NONCE, MEASURED, f20=b"\6" * 48), chip.pem) == ["gpu-fwid"]
    without = chip.report(NONCE, MEASURED, f20=None)
    if chip.name == "GH100":  # its firmware before R550 does not report one
        assert check(maker, without, chip.pem)
    else:
        assert failed(maker, without, chip.pem) == ["gpu-fwid"]


def test_a_switch_is_no_gpu(maker):
    switch = maker.chip("Hopper", "LS_10")
    assert failed(maker, switch.report(NONCE, MEASURED), switch.pem) == ["gpu-device"]


def test_an_architectures_certificate_has_its_own_layout(maker):
    mixed = maker.chip("Hopper", "GB100")
    assert failed(maker, mixed.report(NONCE, MEASURED), mixed.pem) == ["gpu-device"]
    other = maker.chip("none", "GH100")
    assert failed(maker, other.report(NONCE, MEASURED), other.pem) == ["gpu-device"]


def test_one_chip_cannot_answer_for_two_however_its_chain_is_written(maker):
    first, second = maker.chip(), maker.chip()
    one, _ = check(maker, first.report(NONCE, MEASURED), first.pem)
    again, _ = check(maker, first.report(NONCE, MEASURED), b"the same\n" + first.pem)
    other, _ = check(maker, second.report(NONCE, MEASURED), second.pem)
    for gpus, good in (([one, other], True), ([one, again], False)):
        steps = Steps("the GPUs")
        check_distinct(gpus, steps)
        assert steps.all[0].ok is good


def test_a_damaged_firmware_extension_is_a_clear_error(maker, chip):
    chain = load_chain(chip.pem)
    for extension in chain[0].extensions:
        if not isinstance(extension.value, x509.UnrecognizedExtension):
            continue
        raw = extension.value.value
        for position in range(len(raw)):
            changed = raw[:position] + bytes([raw[position] ^ 0x81]) + raw[position + 1 :]
            leaf = maker.ica.issue("x", ca=False, extension=(extension.oid.dotted_string, changed)).certificate
            try:
                assert gpu_identity([leaf, *chain[1:]]).device == gpu_identity(chain).device
            except FormatError:
                continue


# ---- revocation


def chains(chip):
    """The authorities of a chip whose status somebody keeps, each with its issuer."""
    above = load_chain(chip.pem)
    return above[1:]


def statuses_of(maker, chip, **changes):
    rom, ica, identity = chains(chip)[:3]
    issuers = {"rom": maker.ica, "ica": maker.identity, "identity": maker.root}
    made = []
    for name, certificate in (("rom", rom), ("ica", ica), ("identity", identity)):
        authority = replace(maker.root, certificate=certificate)
        made.append(maker.answer(authority, issuers[name], **changes.get(name, {})))
    return StatusFiles(ocsp=made)


def test_known_statuses_of_the_whole_chain(maker, chip):
    report = chip.report(NONCE, MEASURED)
    week = timedelta(days=7)
    _, seen = check(maker, report, chip.pem, statuses=statuses_of(maker, chip), status_max_age=week)
    assert seen["gpu-revocation"].startswith("3 of 3 certificates good")
    _, seen = check(maker, report, chip.pem)
    assert seen["gpu-revocation"] == "not compared: no list or response was given"
    assert failed(maker, report, chip.pem, status_max_age=week) == ["gpu-revocation"]
    partly = StatusFiles(ocsp=statuses_of(maker, chip).ocsp[:2])
    assert failed(maker, report, chip.pem, statuses=partly, status_max_age=week) == ["gpu-revocation"]
    assert failed(maker, report, chip.pem, statuses=statuses_of(maker, chip), status_max_age=timedelta(minutes=5)) == ["gpu-revocation"]
    # the references' signers count too
    rims = references(maker, chip.name)
    assert failed(maker, report, chip.pem, rims, statuses=statuses_of(maker, chip), status_max_age=week) == ["gpu-revocation"]


@pytest.mark.parametrize("changes", [{"status": ocsp.OCSPCertStatus.REVOKED}, {"status": ocsp.OCSPCertStatus.UNKNOWN}, {"days": -0.01}])
def test_a_revoked_unknown_or_outdated_status_refuses(maker, chip, changes):
    statuses = statuses_of(maker, chip, ica=changes)
    assert failed(maker, chip.report(NONCE, MEASURED), chip.pem, statuses=statuses) == ["gpu-revocation"]


def test_who_may_answer(maker):
    """The issuer itself, or a responder that it certified for this; nobody else under the same root."""
    subject = maker.ica
    delegate = maker.identity.issue("responder", ca=False, purposes=[x509.ExtendedKeyUsageOID.OCSP_SIGNING])
    no_purpose = maker.identity.issue("responder", ca=False)
    elsewhere = maker.root.issue("responder", ca=False, purposes=[x509.ExtendedKeyUsageOID.OCSP_SIGNING])
    path = subject.chain

    def status(responder):
        files = StatusFiles(ocsp=[maker.answer(subject, maker.identity, responder=responder)])
        return check_statuses([path], files, at=AT, max_age=None, fix="")

    assert status(None).startswith("1 of 2")
    assert status(delegate).startswith("1 of 2")
    for other in (no_purpose, elsewhere, maker.rim_root):
        with pytest.raises(VerificationError):
            status(other)


def test_a_revocation_list_does_as_well(maker, chip):
    def crl(serials):
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=maker.identity.certificate.subject, last_update=AT - timedelta(days=1), next_update=AT + timedelta(days=1)
        )
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder(serial_number=serial, revocation_date=AT - timedelta(days=2)).build()
            builder = builder.add_revoked_certificate(revoked)
        return StatusFiles(crls=[builder.sign(maker.identity.key, hashes.SHA384()).public_bytes(Encoding.DER)])

    report = chip.report(NONCE, MEASURED)
    assert check(maker, report, chip.pem, statuses=crl([1]))[1]["gpu-revocation"].startswith("1 of 3")
    assert failed(maker, report, chip.pem, statuses=crl([maker.ica.certificate.serial_number])) == ["gpu-revocation"]


def test_damaged_statuses_are_clear_errors(maker, chip):
    raw = statuses_of(maker, chip).ocsp[0]
    for data in (b"", b"x", raw[:-3], b"\x30\x03\x0a\x01\x06", bytes(65 * 1024)):
        with pytest.raises(AttestationError):
            load_ocsp(data)
    for position in range(0, len(raw), 11):
        changed = raw[:position] + bytes([raw[position] ^ 0x04]) + raw[position + 1 :]
        try:
            check_statuses([chains(chip)], StatusFiles(ocsp=[changed]), at=AT, max_age=timedelta(days=7), fix="")
        except AttestationError:
            continue
        pytest.fail(f"a response changed at {position} was taken")


def test_reference_names_of_a_report(maker, chip):
    assert parse_gpu_report(chip.report(NONCE, MEASURED)).reference_ids == ("G525_0220_886", "970088000F")


def test_a_file_of_several_gpus(maker):
    """Each GPU of a file is judged; one bad report spoils all of it."""
    chips = [maker.chip("Hopper"), maker.chip("Blackwell"), maker.chip("Blackwell")]
    rows = [{"evidence": b64encode(chip.report(NONCE, MEASURED)), "certificate": b64encode(chip.pem)} for chip in chips]
    roots = [maker.root.certificate.public_bytes(Encoding.PEM)]
    result = verify_single("nvidia-gpu", json.dumps(rows).encode(), at=AT, nonce=NONCE, roots=roots)
    assert [submod["ear_verifier_claims"]["chip"] for submod in result.ear["submods"].values()] == ["GH100", "GB100", "GB100"]
    assert len({submod["ear_verifier_claims"]["device"] for submod in result.ear["submods"].values()}) == 3
    rows[1]["evidence"] = b64encode(chips[1].report(bytes(32), MEASURED))
    with pytest.raises(VerificationError) as caught:
        verify_single("nvidia-gpu", json.dumps(rows).encode(), at=AT, nonce=NONCE, roots=roots)
    assert caught.value.details["rule"] == "gpu-nonce"
