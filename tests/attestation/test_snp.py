"""SEV-SNP reports: AMD's public one, and ones signed under roots made here for what no public sample shows."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.appraisal import Level, level_of
from attestation.errors import AttestationError, VerificationError
from attestation.evidence import TeeEvidence
from attestation.signing import b64encode
from attestation.steps import Steps
from attestation.verify import tee
from attestation.verify.single import verify_single
from attestation.verify.snp import SnpRules, verify_snp
from attestation.verify.snp_report import Tcb, parse_report
from tests.attestation.leases import evidence, trust
from tests.conftest import VECTORS

FOLDER = VECTORS / "snp"
AT = datetime(2024, 6, 1, tzinfo=UTC)
public = pytest.mark.skipif(not FOLDER.exists(), reason="the public SEV-SNP vectors are not here")


def check(report, chain, **changes):
    steps = Steps("the report")
    known = {"nonce": None, "rules": SnpRules(), "at": AT} | changes
    submod = verify_snp(report, chain, **known, steps=steps)
    steps.finish()
    return submod


def failed(report, chain, **changes):
    with pytest.raises(VerificationError) as caught:
        check(report, chain, **changes)
    return [step.step for step in caught.value.steps if not step.ok]


@pytest.fixture(scope="module")
def sample():
    if not FOLDER.exists():
        pytest.skip("the public SEV-SNP vectors are not here")
    return (FOLDER / "test-report.bin").read_bytes(), (FOLDER / "test-vcek.der").read_bytes()


def test_the_public_report_verifies_offline(sample):
    parsed = parse_report(sample[0], turin=False)
    assert parsed.version == 2
    rules = SnpRules(measurements=[parsed.measurement], floor=Tcb(3, 0, 8, 115))
    submod = check(*sample, nonce=parsed.report_data, rules=rules)
    assert level_of({"cpu0": submod}) is Level.CONFIDENTIAL
    assert level_of({"cpu0": check(*sample)}) is Level.SOFTWARE  # nothing compared, nothing claimed


def test_stand_alone_without_nonce_claims_nothing(sample):
    result = verify_single("sev-snp", sample[0], chain=sample[1], at=AT)
    assert result.level is Level.SOFTWARE
    assert "eat_nonce" not in result.ear
    nonce = parse_report(sample[0], turin=False).report_data[:32]
    assert verify_single("sev-snp", sample[0], chain=sample[1], at=AT, nonce=nonce).ear["eat_nonce"] == nonce.hex()


@public
@pytest.mark.parametrize("name", ["test-vcek-invalid-legacy.der", "test-vcek-invalid-new.der"])
def test_public_certificates_that_amd_did_not_issue_fail_at_the_chain(sample, name):
    assert failed(sample[0], (FOLDER / name).read_bytes()) == ["snp-chain"]


def test_each_flipped_byte_of_the_report_fails(sample):
    """Signed bytes at the signature (or earlier where they decide on the layout), the signature's own at itself."""
    report, chain = sample
    for position in range(0, len(report), 3):
        changed = report[:position] + bytes([report[position] ^ 0x01]) + report[position + 1 :]
        steps = failed(changed, chain)
        assert steps in (["snp-format"], ["snp-signature"]), position
        assert steps == ["snp-signature"] or position in {0, 1, 2, 3, 52, 53, 54, 55} or position >= 0x2A0 + 48


def test_flipped_bytes_of_the_certificate_fail(sample):
    report, chain = sample
    for position in random.Random(1).sample(range(len(chain)), 150):
        changed = chain[:position] + bytes([chain[position] ^ 0x01]) + chain[position + 1 :]
        assert failed(report, changed)[0] in {"snp-format", "snp-chain"}


def test_rules_that_the_report_does_not_meet(sample):
    assert failed(*sample, nonce=bytes(32)) == ["snp-nonce"]
    assert failed(*sample, rules=SnpRules(measurements=[bytes(48)])) == ["snp-measurement"]
    assert failed(*sample, rules=SnpRules(measurements=[])) == ["snp-measurement"]
    assert failed(*sample, rules=SnpRules(floor=Tcb(3, 0, 8, 116))) == ["snp-tcb"]
    assert failed(*sample, rules=SnpRules(smt=False)) == ["snp-policy"]


def test_certificates_have_their_time(sample):
    assert failed(*sample, at=datetime(2031, 1, 1, tzinfo=UTC)) == ["snp-chain"]
    assert failed(*sample, at=datetime(2023, 1, 1, tzinfo=UTC)) == ["snp-chain"]


def test_wrong_sizes_and_missing_chain(sample):
    assert failed(sample[0] + b"\0", sample[1]) == ["snp-format"]
    assert failed(sample[0][:-1], sample[1]) == ["snp-format"]
    assert failed(sample[0], b"") == ["snp-format"]


@settings(max_examples=100, deadline=None)
@given(raw=st.binary(min_size=0x4A0, max_size=0x4A0), version=st.integers(2, 5))
def test_any_report_parses_or_gives_a_clear_error(raw, version):
    for data in (raw, version.to_bytes(4, "little") + raw[4:52] + b"\1\0\0\0" + raw[56:0x330] + bytes(0x4A0 - 0x330)):
        try:
            parse_report(data, turin=False)
        except AttestationError:
            continue


# ---- what no public sample shows: other versions, Turin, VLEK, debug; under roots that exist here only


class Maker:
    """A miniature AMD: one root, one intermediate, chip certificates, signed reports."""

    def __init__(self):
        self.root_key, self.middle_key = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 2048)
        self.chip_key = ec.generate_private_key(ec.SECP384R1())
        self.root = self._issue("ARK", self.root_key.public_key(), "ARK", self.root_key, ca=True)
        self.middle = self._issue("ASK", self.middle_key.public_key(), "ARK", self.root_key, ca=True)
        self.roots = [self.middle, self.root]

    @staticmethod
    def _issue(name, key, issuer, by, *, ca=False, extensions=()):
        def named(text):
            return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

        builder = x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(issuer)).public_key(key).serial_number(1)
        builder = builder.not_valid_before(AT - timedelta(days=1)).not_valid_after(AT + timedelta(days=1))
        if ca:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        for oid, value in extensions:
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.3704.1." + oid), value), critical=False
            )
        return builder.sign(by, hashes.SHA384(), rsa_padding=padding.PSS(padding.MGF1(hashes.SHA384()), 48))

    def certificate(self, product=b"Milan-B0", *, chip=b"\7" * 64, fmc=None, parts=(3, 0, 8, 115), by=None):
        extensions = [("2", bytes([0x16, len(product)]) + product)]
        for oid, part in zip(("3.1", "3.2", "3.3", "3.8"), parts, strict=True):
            extensions.append((oid, bytes([2, 1, part])))
        if fmc is not None:
            extensions.append(("3.9", bytes([2, 1, fmc])))
        if chip:
            extensions.append(("4", chip))
        return self._issue("CHIP", self.chip_key.public_key(), "ASK", by or self.middle_key, extensions=extensions).public_bytes(
            Encoding.DER
        )

    def report(
        self,
        *,
        version=3,
        tcb=bytes([3, 0, 0, 0, 0, 0, 8, 115]),
        family=0x19,
        chip=b"\7" * 64,
        signer=0,
        policy=0x30000,
        vmpl=0,
        data=bytes(64),
    ):
        body = bytearray(0x2A0)
        body[0:4], body[8:16], body[0x30:0x34], body[0x34:0x38] = (
            version.to_bytes(4, "little"), policy.to_bytes(8, "little"), vmpl.to_bytes(4, "little"), b"\1\0\0\0",
        )  # fmt: skip
        body[0x38:0x40] = body[0x180:0x188] = body[0x1E0:0x1E8] = body[0x1F0:0x1F8] = tcb
        body[0x48:0x4C] = (signer << 2).to_bytes(4, "little")
        body[0x50:0x90], body[0x188], body[0x1A0:0x1E0] = data, family, chip.ljust(64, b"\0")
        r, s = decode_dss_signature(self.chip_key.sign(bytes(body), ec.ECDSA(hashes.SHA384())))
        return bytes(body) + r.to_bytes(72, "little") + s.to_bytes(72, "little") + bytes(512 - 144)


@pytest.fixture(scope="module")
def maker():
    return Maker()


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_versions_2_to_5(maker, version):
    assert check(maker.report(version=version), maker.certificate(), roots=maker.roots)


@pytest.mark.parametrize("version", [1, 6])
def test_other_versions_are_refused(maker, version):
    assert failed(maker.report(version=version), maker.certificate(), roots=maker.roots) == ["snp-format"]


def test_turin_has_its_own_layout(maker):
    tcb, chip = bytes([1, 3, 0, 8, 0, 0, 0, 115]), b"\7" * 8
    certificate = maker.certificate(b"Turin-B0", chip=b"\4\x08" + chip, fmc=1)
    report = maker.report(tcb=tcb, family=0x1A, chip=chip)
    assert check(report, certificate, roots=maker.roots, rules=SnpRules(floor=Tcb(3, 0, 8, 115, 1)))
    assert failed(report, certificate, roots=maker.roots, rules=SnpRules(floor=Tcb(3, 0, 8, 115, 2))) == ["snp-tcb"]
    assert failed(maker.report(tcb=tcb, family=0x19, chip=chip), certificate, roots=maker.roots) == ["snp-key-tcb"]


def test_a_vlek_stands_for_no_chip(maker):
    certificate = maker.certificate(chip=b"")
    assert check(maker.report(signer=1, chip=b""), certificate, roots=maker.roots)
    assert failed(maker.report(signer=0), certificate, roots=maker.roots) == ["snp-key"]
    assert failed(maker.report(signer=1), maker.certificate(), roots=maker.roots) == ["snp-key"]


def test_debugging_migration_host_reports_and_downgrades_are_refused(maker):
    good = maker.certificate()
    assert failed(maker.report(policy=0x30000 | 1 << 19), good, roots=maker.roots) == ["snp-policy"]
    assert failed(maker.report(policy=0x30000 | 1 << 18), good, roots=maker.roots) == ["snp-policy"]
    assert check(maker.report(policy=0x30000 | 1 << 18), good, roots=maker.roots, rules=SnpRules(migration=True))
    assert failed(maker.report(vmpl=0xFFFFFFFF), good, roots=maker.roots) == ["snp-vmpl"]
    assert failed(maker.report(), maker.certificate(parts=(3, 0, 8, 116)), roots=maker.roots) == ["snp-key-tcb"]
    assert failed(maker.report(chip=b"\10" * 64), good, roots=maker.roots) == ["snp-key-chip"]


def test_an_issuer_of_the_right_name_with_another_key_is_refused(maker):
    assert failed(maker.report(), maker.certificate(by=maker.root_key), roots=maker.roots) == ["snp-chain"]
    assert failed(maker.report(), maker.certificate()) == ["snp-chain"]  # AMD's own roots do not know it


def test_inside_evidence_it_carries_the_binding_and_makes_the_level(maker, monkeypatch):
    monkeypatch.setattr("attestation.verify.snp.packaged_roots", lambda name: tuple(maker.roots))
    rules = trust(level="confidential", snp={"measurements": ["00" * 48]})
    binding = evidence().binding()

    def submods(data):
        piece = TeeEvidence(
            kind="sev-snp", target="cpu0", parts={"report": b64encode(maker.report(data=data)), "chain": b64encode(maker.certificate())}
        )
        steps = Steps("the evidence")
        found = tee.check_tee(evidence(tee=(piece,)), tee.Submod({}, {}), rules, AT, steps)
        steps.finish()
        return found

    assert level_of(submods(binding + bytes(32))) is Level.CONFIDENTIAL
    with pytest.raises(VerificationError) as caught:
        submods(bytes(64))
    assert caught.value.details["rule"] == "snp-nonce"


# ---- revocation


def revoked(maker, *serials, by=None, issuer=None, days=0):
    at = AT - timedelta(days=days)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer or "ARK")])
    builder = x509.CertificateRevocationListBuilder().issuer_name(name).last_update(at).next_update(at + timedelta(days=30))
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
        builder = builder.add_revoked_certificate(entry)
    pad = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
    return builder.sign(by or maker.root_key, hashes.SHA384(), rsa_padding=pad).public_bytes(Encoding.DER)


def test_a_current_list_that_names_nobody_passes(maker):
    rules = SnpRules(crl_max_age=timedelta(days=10))
    assert check(maker.report(), maker.certificate(), roots=maker.roots, rules=rules, crl=revoked(maker, 7))


def test_a_missing_old_forged_or_hitting_list_fails(maker):
    report, chain, rules = maker.report(), maker.certificate(), SnpRules(crl_max_age=timedelta(days=10))
    for crl in (
        None,
        b"no list",
        revoked(maker, 1),  # the issuer of the chip's certificate
        revoked(maker, days=11),  # older than allowed
        revoked(maker, days=31),  # over by its own word
        revoked(maker, days=-1),  # not yet
        revoked(maker, by=maker.middle_key),
        revoked(maker, issuer="somebody"),
    ):
        assert failed(report, chain, roots=maker.roots, rules=rules, crl=crl) == ["snp-revocation"]
    # without an age limit a list is not demanded, but one that is given counts
    assert check(report, chain, roots=maker.roots)
    assert failed(report, chain, roots=maker.roots, crl=revoked(maker, 1)) == ["snp-revocation"]
    assert check(report, chain, roots=maker.roots, crl=revoked(maker, days=11))


@pytest.mark.parametrize(
    ("name", "field", "place"), [("host-data", "host_data", 0xC0), ("id-key", "id_keys", 0xE0), ("author-key", "author_keys", 0x110)]
)
def test_what_was_bound_to_the_guest_at_its_launch_must_be_accepted(maker, name, field, place):
    report = maker.report(version=3)
    seen = report[place : place + (32 if name == "host-data" else 48)]
    assert check(report, maker.certificate(), roots=maker.roots, rules=SnpRules(**{field: [seen]}))
    assert failed(report, maker.certificate(), roots=maker.roots, rules=SnpRules(**{field: [b"\x77" * len(seen)]})) == [f"snp-{name}"]


def test_ones_own_list_counts_beside_the_nodes(maker):
    """A node may send a list from before its key was revoked."""
    silent, naming = revoked(maker, 7), revoked(maker, 1)
    report, chip = maker.report(), maker.certificate()
    assert check(report, chip, roots=maker.roots, crl=silent, cached=[silent, revoked(maker, 1, issuer="somebody")])
    assert failed(report, chip, roots=maker.roots, crl=silent, cached=[naming]) == ["snp-revocation"]
    assert failed(report, chip, roots=maker.roots, cached=[naming]) == ["snp-revocation"]
