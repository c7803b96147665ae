"""A TPM's enrolment: offers, challenges and answers between a software TPM and the pure-Python verifier."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.canonical import sha256_digest
from attestation.collect.enrolment import TpmEnrolment
from attestation.collect.tpm import Tools
from attestation.enrolment import Answer, Offer, Pending
from attestation.errors import AttestationError, FormatError, VerificationError
from attestation.signing import b64decode, b64encode
from attestation.verify.enrolment import accept_answer, ek_digest, make_challenge
from attestation.verify.statuses import StatusFiles
from attestation.verify.tpm import parse_quote, verify_signature
from attestation.verify.tpm_public import DECRYPT, FIXED_TPM, RESTRICTED, parse_public
from tests.attestation.leases import AT, NODE
from tests.attestation.software_tpm import HANDLE, Tpm, software_tpm
from tests.rig import run

OTHER_HANDLE = "0x81010003"


@pytest.fixture(scope="module")
def tpm(tmp_path_factory):
    device = Tpm(tmp_path_factory.mktemp("tpm"))
    device.start()
    yield device
    device.stop()


@pytest.fixture(scope="module")
def enrolled(tpm):
    """One TPM with an ECC attestation key, and its offer."""
    device = TpmEnrolment(HANDLE, "ecc", Tools(tpm.tcti))
    return device, device.offer(NODE)


def approved(offer):
    return {ek_digest(parse_public(b64decode(offer.ek)))}


def failed(call, *arguments, **named):
    with pytest.raises(VerificationError) as caught:
        call(*arguments, **named)
    return [step.step for step in caught.value.steps if not step.ok]


def certificate(key, issuer, issuer_key, name, *, purpose="2.23.133.8.1", ca=False):
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(AT - timedelta(days=1))
        .not_valid_after(AT + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([x509.ObjectIdentifier(purpose)]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


@software_tpm
@pytest.mark.parametrize("algorithm", ["ecc", "rsa"])
def test_a_tpm_opens_the_challenge_and_its_key_signs_quotes(tpm, algorithm):
    device = TpmEnrolment(OTHER_HANDLE, algorithm, Tools(tpm.tcti))
    offer = device.offer(NODE)
    try:
        challenge, pending, steps = make_challenge(offer.to_payload(), at=AT, approved=approved(offer))
        assert [step.step for step in steps.all] == ["tpm-offer", "tpm-ek", "tpm-ek-basis", "tpm-ak"]
        found = accept_answer(device.answer(challenge, offer.to_payload()).to_payload(), pending)
        assert (found.node, found.ak) == (NODE, b64encode(parse_public(b64decode(offer.ak)).der))
        quote = tpm.quote(b"\5" * 32, handle=OTHER_HANDLE)
        assert b64decode(quote.parts["key"]) == b64decode(found.ak)
        verify_signature(b64decode(found.ak), b64decode(quote.parts["signature"]), b64decode(quote.parts["quote"]))
        assert parse_quote(b64decode(quote.parts["quote"])).nonce == b"\5" * 32
    finally:
        tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", OTHER_HANDLE)


@software_tpm
def test_the_endorsement_key_is_the_same_each_time(tpm, enrolled):
    again = TpmEnrolment(OTHER_HANDLE, "ecc", Tools(tpm.tcti)).offer(NODE)
    tpm.tool("tpm2_evictcontrol", "-C", "o", "-c", OTHER_HANDLE)
    assert again.ek == enrolled[1].ek
    assert again.ak != enrolled[1].ak


@software_tpm
def test_another_tpm_cannot_open_the_challenge(tpm, enrolled, tmp_path):
    _, offer = enrolled
    challenge, _, _ = make_challenge(offer.to_payload(), at=AT, approved=approved(offer))
    other = Tpm(tmp_path)
    other.start()
    try:
        thief = TpmEnrolment(HANDLE, "ecc", Tools(other.tcti))
        thief.offer(NODE)
        with pytest.raises(AttestationError) as caught:
            thief.answer(challenge, offer.to_payload())
        assert caught.value.details["rule"] == "tpm-refused"
    finally:
        other.stop()


@software_tpm
def test_a_key_that_is_not_in_the_tpm_opens_nothing(tpm, enrolled):
    """An honest endorsement key offered with an attestation key that lives elsewhere: the TPM refuses the credential."""
    device, offer = enrolled
    foreign = Offer.model_validate(offer.model_dump() | {"ak": b64encode(_with_other_point(b64decode(offer.ak)))})
    challenge, _, _ = make_challenge(foreign.to_payload(), at=AT, approved=approved(offer))
    with pytest.raises(AttestationError) as caught:
        device.answer(challenge, foreign.to_payload())
    assert caught.value.details["rule"] == "tpm-refused"


def _with_other_point(area):
    point = ec.generate_private_key(ec.SECP256R1()).public_key().public_numbers()
    return area[:-68] + b"\0\x20" + point.x.to_bytes(32, "big") + b"\0\x20" + point.y.to_bytes(32, "big")


@software_tpm
def test_an_altered_challenge_is_refused_by_the_tpm(enrolled):
    device, offer = enrolled
    challenge, _, _ = make_challenge(offer.to_payload(), at=AT, approved=approved(offer))
    raw = bytearray(b64decode(challenge.credential))
    raw[20] ^= 1
    with pytest.raises(AttestationError):
        device.answer(challenge.model_copy(update={"credential": b64encode(bytes(raw))}), offer.to_payload())
    with pytest.raises(FormatError):
        device.answer(challenge.model_copy(update={"offer": sha256_digest(b"another")}), offer.to_payload())


@software_tpm
def test_a_replayed_or_guessed_answer_fails(enrolled):
    device, offer = enrolled
    first, _, _ = make_challenge(offer.to_payload(), at=AT, approved=approved(offer))
    _, later, _ = make_challenge(offer.to_payload(), at=AT, approved=approved(offer))
    answer = device.answer(first, offer.to_payload())
    assert failed(accept_answer, answer.to_payload(), later) == ["tpm-answer"]
    assert failed(accept_answer, Answer(node=NODE, offer=later.offer, proof="0" * 64).to_payload(), later) == ["tpm-answer"]
    assert failed(accept_answer, b"{}", later) == ["tpm-answer"]


@software_tpm
def test_the_endorsement_key_needs_a_basis(enrolled):
    raw = enrolled[1].to_payload()
    assert failed(make_challenge, raw, at=AT) == ["tpm-ek-basis"]
    assert failed(make_challenge, raw, at=AT, approved={"sha256:" + "0" * 64}) == ["tpm-ek-basis"]


@software_tpm
def test_a_certificate_leads_to_a_given_root(enrolled):
    _, offer = enrolled
    ek = parse_public(b64decode(offer.ek)).key
    root_key, middle_key, stranger = (ec.generate_private_key(ec.SECP384R1()) for _ in range(3))
    root = certificate(root_key.public_key(), None, root_key, "maker root", ca=True)
    middle = certificate(middle_key.public_key(), root, root_key, "maker issuing", ca=True)
    good = certificate(ek, middle, middle_key, "ek")

    def offered(leaf):
        return Offer.model_validate(offer.model_dump() | {"ek_certificate": b64encode(leaf.public_bytes(Encoding.DER))}).to_payload()

    known = {"at": AT, "roots": [root], "intermediates": [middle]}
    _, pending, _ = make_challenge(offered(good), **known)
    assert pending.basis.endswith("certified under maker root")
    assert failed(make_challenge, offered(good), at=AT) == ["tpm-ek-basis"]
    assert failed(make_challenge, offered(good), **known | {"intermediates": []}) == ["tpm-ek-basis"]
    assert failed(make_challenge, offered(good), **known | {"at": AT + timedelta(days=2)}) == ["tpm-ek-basis"]

    def listed(by, issuer, *serials):
        builder = x509.CertificateRevocationListBuilder(issuer.subject, AT - timedelta(hours=2), AT + timedelta(days=2))
        for serial in serials:
            builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder(serial, AT - timedelta(hours=3)).build())
        return builder.sign(by, hashes.SHA384()).public_bytes(Encoding.DER)

    day, both = timedelta(days=1), [listed(root_key, root), listed(middle_key, middle)]
    assert make_challenge(offered(good), **known, statuses=StatusFiles(crls=both), status_max_age=day)
    assert failed(make_challenge, offered(good), **known, status_max_age=day) == ["tpm-ek-revocation"]
    assert failed(make_challenge, offered(good), **known, statuses=StatusFiles(crls=both[:1]), status_max_age=day) == ["tpm-ek-revocation"]
    hour = timedelta(hours=1)
    assert failed(make_challenge, offered(good), **known, statuses=StatusFiles(crls=both), status_max_age=hour) == ["tpm-ek-revocation"]
    hit = StatusFiles(crls=[listed(middle_key, middle, good.serial_number)])
    assert failed(make_challenge, offered(good), **known, statuses=hit) == ["tpm-ek-revocation"]
    other_root = certificate(stranger.public_key(), None, stranger, "maker root", ca=True)
    assert failed(make_challenge, offered(good), **known | {"roots": [other_root]}) == ["tpm-ek-basis"]
    wrong_purpose = certificate(ek, middle, middle_key, "ek", purpose="1.3.6.1.5.5.7.3.1")
    assert failed(make_challenge, offered(wrong_purpose), **known) == ["tpm-ek-basis"]
    for_another = certificate(stranger.public_key(), middle, middle_key, "ek")
    assert failed(make_challenge, offered(for_another), **known) == ["tpm-ek"]


@software_tpm
@pytest.mark.parametrize("bit", [FIXED_TPM, RESTRICTED, DECRYPT])
def test_a_key_of_other_attributes_is_no_attestation_key(enrolled, bit):
    """A key that can leave its TPM, or signs whatever it is given, proves nothing of a TPM."""
    _, offer = enrolled
    area = bytearray(b64decode(offer.ak))
    attributes = int.from_bytes(area[6:10], "big") ^ bit
    area[6:10] = attributes.to_bytes(4, "big")
    changed = Offer.model_validate(offer.model_dump() | {"ak": b64encode(bytes(area))})
    assert failed(make_challenge, changed.to_payload(), at=AT, approved=approved(offer)) == ["tpm-ak"]


@software_tpm
def test_an_attestation_key_is_no_endorsement_key(enrolled):
    _, offer = enrolled
    changed = Offer.model_validate(offer.model_dump() | {"ek": offer.ak})
    assert failed(make_challenge, changed.to_payload(), at=AT, approved=approved(changed)) == ["tpm-ek"]


@software_tpm
def test_a_public_area_is_parsed_whole_or_not_at_all(enrolled):
    raw = b64decode(enrolled[1].ek)
    for end in range(len(raw)):
        with pytest.raises(AttestationError):
            parse_public(raw[:end])
    with pytest.raises(AttestationError):
        parse_public(raw + b"\0")
    assert parse_public(raw).name[:2] == b"\0\x0b"
    assert replace(parse_public(raw), attributes=0).is_storage_key is False


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120))
def test_any_bytes_give_a_clear_error(raw):
    with pytest.raises(AttestationError):
        parse_public(len(raw).to_bytes(2, "big") + raw)
    with pytest.raises(AttestationError):
        parse_public(raw)


@software_tpm
def test_the_commands_enrol_a_tpm(tpm, tmp_path):
    """Offer, challenge, activate, accept: as an operator and a customer type them."""
    data = tmp_path / "node"
    assert run("node", "init", "--server", "http://127.0.0.1:1", "--data", data).code == 0
    offer, challenge, pending, answer = (tmp_path / name for name in ("offer", "challenge", "pending", "answer"))
    tcti = ("--tcti", tpm.tcti, "--handle", OTHER_HANDLE)
    made = run("node", "attest", "offer", "--data", data, "-o", offer, *tcti, "--json")
    assert made.code == 0, made.err
    refused = run("trust", "tpm", "challenge", offer, "-o", challenge, "--pending", pending)
    assert refused.code != 0
    assert not challenge.exists()
    assert run("trust", "tpm", "challenge", offer, "-o", challenge, "--pending", pending, "--ek", made.json["ek"]).code == 0
    assert pending.stat().st_mode & 0o777 == 0o600
    kept = Pending.from_payload(pending.read_bytes())
    assert kept.secret not in challenge.read_text()
    assert run("node", "attest", "activate", challenge, "--offer", offer, "-o", answer, *tcti).code == 0
    accepted = run("trust", "tpm", "accept", answer, "--pending", pending, "--json")
    assert accepted.json["trust"]["tpm"]["keys"] == {made.json["node"]: kept.ak}
    assert not pending.exists()
    assert run("node", "attest", "offer", "--data", data, "-o", offer, *tcti).code != 0  # nothing is overwritten
