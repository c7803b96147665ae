"""TDX quotes: a public one with Intel's collateral of its time, and ones signed under a root planted here."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.appraisal import Level, level_of
from attestation.collect import collect
from attestation.collect.snp import TdxSource
from attestation.errors import AttestationError, VerificationError
from attestation.evidence import TeeEvidence
from attestation.signing import b64encode
from attestation.steps import Steps
from attestation.verify import tee, verify_evidence
from attestation.verify.certificates import packaged_roots
from attestation.verify.tdx import TdxRules, parse_platform, verify_tdx
from attestation.verify.tdx_quote import parse_tdx_quote
from tests.attestation.leases import AT as LEASE_AT
from tests.attestation.leases import NODE_KEY, evidence, expected, trust
from tests.rig import run

SAMPLES = Path(__file__).parent / "samples"
QUOTE, COLLATERAL = (SAMPLES / "tdx_quote").read_bytes(), (SAMPLES / "tdx_quote_collateral.json").read_bytes()
AT = datetime(2025, 6, 25, tzinfo=UTC)
INTEL_ROOT = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"


def check(raw, collateral=COLLATERAL, **changes):
    steps = Steps("the quote")
    submod = verify_tdx(raw, collateral, **({"nonce": None, "rules": TdxRules(), "at": AT} | changes), steps=steps)
    steps.finish()
    return submod


def failed(raw, collateral=COLLATERAL, **changes):
    with pytest.raises(VerificationError) as caught:
        check(raw, collateral, **changes)
    return [step.step for step in caught.value.steps if not step.ok]


def flip(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_the_pinned_root_is_intels():
    (root,) = packaged_roots("intel_sgx.pem")
    assert hashlib.sha256(root.public_bytes(Encoding.DER)).hexdigest() == INTEL_ROOT


def test_the_public_quote_verifies_offline():
    quote = parse_tdx_quote(QUOTE)
    rules = TdxRules(measurements=[quote.measurement])
    assert level_of({"cpu0": check(QUOTE, nonce=quote.report_data, rules=rules)}) is Level.CONFIDENTIAL
    assert level_of({"cpu0": check(QUOTE, nonce=quote.report_data)}) is Level.SOFTWARE  # the guest was not compared
    assert level_of({"cpu0": check(QUOTE, None, nonce=quote.report_data, rules=rules)}) is Level.SOFTWARE  # nor was the firmware
    assert failed(QUOTE, nonce=bytes(32)) == ["tdx-nonce"]
    assert failed(QUOTE, rules=TdxRules(measurements=[bytes(48)])) == ["tdx-measurement"]


def test_collateral_and_certificates_have_their_time():
    assert failed(QUOTE, at=datetime(2025, 8, 1, tzinfo=UTC)) == ["tdx-collateral"]
    assert failed(QUOTE, at=datetime(2025, 6, 1, tzinfo=UTC)) == ["tdx-collateral"]
    assert failed(QUOTE, at=datetime(2033, 1, 1, tzinfo=UTC)) == ["tdx-chain"]


def test_each_flipped_byte_of_the_quote_fails():
    end = len(QUOTE.rstrip(b"\0"))
    chain = QUOTE.index(b"-----BEGIN")
    for position in range(0, chain, 7):
        steps = failed(flip(QUOTE, position))
        assert steps in (["tdx-format"], ["tdx-enclave"], ["tdx-key"], ["tdx-signature"]), position
    whole = parse_tdx_quote(QUOTE)
    for position in range(chain, end - 40, 97):
        steps = []
        try:
            check(flip(QUOTE, position))
        except VerificationError as error:
            steps = [step.step for step in error.steps if not step.ok]
        # PEM's line ends and the padding bits of base64 are not signed; the certificate in them is.
        assert steps in ([], ["tdx-format"], ["tdx-chain"], ["tdx-enclave"], ["tdx-collateral"])
        assert steps or parse_tdx_quote(flip(QUOTE, position)).signed == whole.signed


@pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
def test_altered_tables_fail(name):
    tree = json.loads(COLLATERAL)
    for changed in (
        tree | {name: tree[name].replace("OutOfDate", "UpToDate").replace("2025-07", "2035-07")},
        tree | {f"{name}_signature": "00" * 64},
        tree | {f"{name}_signature": "00"},
        tree | {f"{name}_issuer_chain": tree["pck_crl_issuer_chain"]},
        tree | {name: 1},
        {key: value for key, value in tree.items() if key != name},
        tree | {"pck_crl": tree["root_ca_crl"]},
        tree | {"root_ca_crl": "00"},
    ):
        assert failed(QUOTE, json.dumps(changed).encode()) == ["tdx-collateral"]


def test_the_command_verifies_the_public_files():
    words = ("evidence", "verify", SAMPLES / "tdx_quote", "--kind", "tdx", "--json")
    done = run(*words, "--collateral", SAMPLES / "tdx_quote_collateral.json", "--at", "2025-06-25T00:00:00Z")
    assert (done.code, done.json["ok"], done.json["level"]) == (0, True, "software")
    assert run(*words, "--collateral", SAMPLES / "tdx_quote_collateral.json", "--at", "2027-01-01T00:00:00Z").code != 0


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=300), keep=st.integers(0, len(QUOTE)))
def test_any_bytes_give_a_clear_error_or_a_quote(raw, keep):
    for data in (raw, QUOTE[:keep] + raw):
        try:
            parse_tdx_quote(data)
        except AttestationError:
            continue


# ---- what the public sample does not show: version 5, debugging, old firmware, revocation; under a root that exists here only


def _name(text):
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _der(tag, value):
    size = bytes([len(value)]) if len(value) < 128 else b"\x82" + len(value).to_bytes(2, "big")
    return bytes([tag]) + size + value


def _member(path, value):
    return _der(0x30, _der(0x06, bytes.fromhex("2a864886f84d010d01") + bytes(path)) + value)


def _raw(key, data):
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


class Maker:
    """A miniature Intel: a root, a platform CA, one platform, its quoting enclave, and the signed tables about them."""

    def __init__(self):
        self.keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("root", "ca", "pck", "tcb", "quote")}
        self.root = self._issue("root", "root", serial=1, ca=True)
        self.ca = self._issue("ca", "root", serial=2, ca=True)
        components = b"".join(_member([2, number], _der(2, b"\x03")) for number in range(1, 18))
        sgx = _der(0x30, _member([2], _der(0x30, components)) + _member([3], _der(4, b"\0\0")) + _member([4], _der(4, b"FMSPC1")))
        self.pck = self._issue("pck", "ca", serial=3, extension=sgx)
        self.tcb = self._issue("tcb", "root", serial=4)

    def _issue(self, name, by, *, serial, ca=False, extension=None):
        builder = x509.CertificateBuilder().subject_name(_name(name)).issuer_name(_name(by)).public_key(self.keys[name].public_key())
        builder = builder.serial_number(serial).not_valid_before(AT - timedelta(days=999)).not_valid_after(AT + timedelta(days=999))
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        if extension is not None:
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.840.113741.1.13.1"), extension), critical=False
            )
        return builder.sign(self.keys[by], hashes.SHA256())

    def quote(
        self, *, version=4, kind=2, data=bytes(64), attributes=bytes(8), tee=bytes([3]) + bytes(15), svn=4, signer=b"\x51" * 32, key="quote"
    ):
        body = bytearray(584 if kind == 2 else 648)
        body[0:16], body[120:128], body[136:184], body[520:584] = tee, attributes, b"\x0d" * 48, data
        head = version.to_bytes(2, "little") + b"\2\0" + b"\x81\0\0\0" + bytes(40)
        head += (kind.to_bytes(2, "little") + len(body).to_bytes(4, "little")) if version == 5 else b""
        point = self.keys["quote"].public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        enclave = bytearray(384)
        enclave[128:160], enclave[256:258], enclave[258:260] = signer, b"\2\0", svn.to_bytes(2, "little")
        enclave[320:352] = hashlib.sha256(point + b"auth").digest()
        chain = b"".join(item.public_bytes(Encoding.PEM) for item in (self.pck, self.ca, self.root))
        inner = bytes(enclave) + _raw(self.keys["pck"], bytes(enclave)) + b"\4\0auth" + b"\5\0" + len(chain).to_bytes(4, "little") + chain
        own = _raw(self.keys[key], head + bytes(body)) + point + b"\6\0" + len(inner).to_bytes(4, "little") + inner
        return head + bytes(body) + len(own).to_bytes(4, "little") + own

    def crl(self, by, *serials):
        builder = x509.CertificateRevocationListBuilder().issuer_name(_name(by)).last_update(AT).next_update(AT + timedelta(days=30))
        for serial in serials:
            builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(AT).build())
        return builder.sign(self.keys[by], hashes.SHA256()).public_bytes(Encoding.DER).hex()

    def collateral(self, *, status="UpToDate", svn=3, revoked=(), root_revoked=(), module="UpToDate", fmspc="464d53504331", at=AT):
        dates = {"issueDate": at.strftime("%Y-%m-%dT%H:%M:%SZ"), "nextUpdate": (at + timedelta(days=30)).strftime("%Y-%m-%dT%H:%M:%SZ")}
        level = {"sgxtcbcomponents": [{"svn": svn}] * 16, "tdxtcbcomponents": [{"svn": 3}] + [{"svn": 0}] * 15, "pcesvn": 3}
        low = {"sgxtcbcomponents": [{"svn": 0}] * 16, "tdxtcbcomponents": [{"svn": 0}] * 16, "pcesvn": 0}
        plain = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "ff" * 8}
        info = {"id": "TDX", "version": 3, "fmspc": fmspc, "pceId": "0000", "tdxModule": plain, **dates,
                "tdxModuleIdentities": [{"id": "TDX_01", **plain, "tcbLevels": [{"tcb": {"isvsvn": 3}, "tcbStatus": module}]}],
                "tcbLevels": [{"tcb": level, "tcbStatus": status}, {"tcb": low, "tcbStatus": "OutOfDate"}]}  # fmt: skip
        rows = [{"tcb": {"isvsvn": 4}, "tcbStatus": "UpToDate"}, {"tcb": {"isvsvn": 1}, "tcbStatus": "OutOfDate"}]
        enclave = {"id": "TD_QE", "version": 2, "miscselect": "00" * 4, "miscselectMask": "ff" * 4, "attributes": "00" * 16,
                   "attributesMask": "ff" * 16, "mrsigner": "51" * 32, "isvprodid": 2, **dates, "tcbLevels": rows}  # fmt: skip
        chain = b"".join(item.public_bytes(Encoding.PEM) for item in (self.tcb, self.root)).decode()
        tree = {"root_ca_crl": self.crl("root", *root_revoked), "pck_crl": self.crl("ca", *revoked)}
        for name, value in (("tcb_info", info), ("qe_identity", enclave)):
            text = json.dumps(value)
            tree |= {name: text, f"{name}_signature": _raw(self.keys["tcb"], text.encode()).hex(), f"{name}_issuer_chain": chain}
        return json.dumps(tree).encode()


@pytest.fixture(scope="module")
def maker():
    return Maker()


@pytest.mark.parametrize(("version", "kind"), [(4, 2), (5, 2), (5, 3)])
def test_versions_and_report_types(maker, version, kind):
    rules = TdxRules(measurements=[b"\x0d" * 48])
    submod = check(maker.quote(version=version, kind=kind), maker.collateral(), roots=[maker.root], nonce=bytes(64), rules=rules)
    assert level_of({"cpu0": submod}) is Level.CONFIDENTIAL
    assert parse_platform(maker.pck).fmspc == b"FMSPC1"


def test_other_roots_versions_and_keys_are_refused(maker):
    good, tables = maker.quote(), maker.collateral()
    assert failed(good, tables) == ["tdx-chain"]  # Intel did not sign this
    assert failed(QUOTE, roots=[maker.root]) == ["tdx-chain"]
    assert failed(maker.quote(version=3), tables, roots=[maker.root]) == ["tdx-format"]
    assert failed(maker.quote(version=5, kind=2)[:-40], tables, roots=[maker.root]) == ["tdx-format"]
    assert failed(good + b"\1", tables, roots=[maker.root]) == ["tdx-format"]
    assert check(good + bytes(9), tables, roots=[maker.root])
    assert failed(maker.quote(key="tcb"), tables, roots=[maker.root]) == ["tdx-signature"]


def test_debugging_is_refused(maker):
    assert failed(maker.quote(attributes=b"\1" + bytes(7)), maker.collateral(), roots=[maker.root]) == ["tdx-policy"]


def test_old_firmware_is_refused_unless_it_is_accepted(maker):
    quote, known = maker.quote(), {"roots": [maker.root]}
    assert failed(quote, maker.collateral(svn=4), **known) == ["tdx-tcb"]
    assert failed(quote, maker.collateral(status="SWHardeningNeeded"), **known) == ["tdx-tcb"]
    accepted = TdxRules(statuses=["UpToDate", "SWHardeningNeeded"])
    assert check(quote, maker.collateral(status="SWHardeningNeeded"), **known, rules=accepted)
    assert failed(quote, maker.collateral(fmspc="000000000000"), **known) == ["tdx-tcb"]
    assert failed(maker.quote(svn=3), maker.collateral(), **known) == ["tdx-qe"]
    assert failed(maker.quote(signer=bytes(32)), maker.collateral(), **known) == ["tdx-qe"]


def test_the_module_is_judged_by_its_own_table(maker):
    known = {"roots": [maker.root]}
    assert check(maker.quote(tee=bytes([3, 1]) + bytes(14)), maker.collateral(), **known)
    assert failed(maker.quote(tee=bytes([2, 1]) + bytes(14)), maker.collateral(), **known) == ["tdx-module"]
    assert failed(maker.quote(tee=bytes([3, 1]) + bytes(14)), maker.collateral(module="Revoked"), **known) == ["tdx-module"]
    assert failed(maker.quote(tee=bytes([3, 9]) + bytes(14)), maker.collateral(), **known) == ["tdx-module"]


def test_revoked_platforms_and_issuers_are_refused(maker):
    known = {"roots": [maker.root]}
    for tables in (maker.collateral(revoked=[3]), maker.collateral(root_revoked=[2]), maker.collateral(root_revoked=[4])):
        assert failed(maker.quote(), tables, **known) == ["tdx-collateral"]
    assert check(maker.quote(), maker.collateral(revoked=[9], root_revoked=[9]), **known)


# ---- inside a node's evidence


def test_a_guest_reaches_confidential_through_the_kernels_own_file(maker, tmp_path, monkeypatch):
    """The node's code asks configfs; the customer's code appraises what came of it."""
    (tmp_path / "collateral.json").write_bytes(maker.collateral(at=LEASE_AT))
    monkeypatch.setattr("attestation.verify.tdx.packaged_roots", lambda _name: [maker.root])
    monkeypatch.setattr(maker, "crl", lambda by, *serials: _crl_at(maker, by, LEASE_AT, *serials))
    (tmp_path / "collateral.json").write_bytes(maker.collateral(at=LEASE_AT))
    asked = []

    def kernel(_root, provider, binding):
        asked.append(provider)
        return maker.quote(data=binding.ljust(64, b"\0")), b""

    monkeypatch.setattr("attestation.collect.snp.ask_kernel", kernel)
    signed = collect(evidence(), NODE_KEY, devices=[TdxSource(tmp_path / "collateral.json")])
    assert asked == ["tdx_guest"]
    accepted = trust(level="confidential", tdx={"measurements": ["0d" * 48]})
    assert verify_evidence(signed, trust=accepted, expected=expected(), at=LEASE_AT).level is Level.CONFIDENTIAL
    other = trust(level="confidential", tdx={"measurements": ["0e" * 48]})
    with pytest.raises(VerificationError) as caught:
        verify_evidence(signed, trust=other, expected=expected(), at=LEASE_AT)
    assert "tdx-measurement" in [step.step for step in caught.value.steps if not step.ok]


def _crl_at(maker, by, at, *serials):
    builder = x509.CertificateRevocationListBuilder().issuer_name(_name(by)).last_update(at).next_update(at + timedelta(days=30))
    return builder.sign(maker.keys[by], hashes.SHA256()).public_bytes(Encoding.DER).hex()


def test_two_kinds_of_cpu_evidence_are_refused():
    pieces = tuple(TeeEvidence(kind=kind, target="cpu0", parts={"report": b64encode(b"x")}) for kind in ("sev-snp", "tdx"))
    steps = Steps("the evidence")
    said = evidence().model_copy(update={"tee": pieces})
    tee.check_tee(said, None, trust(), AT, steps)
    assert [step.step for step in steps.all if not step.ok] == ["tee-targets"]


def test_a_missing_collateral_file_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr("attestation.collect.snp.ask_kernel", lambda *_: (b"", b""))
    with pytest.raises(AttestationError) as caught:
        replace(TdxSource(tmp_path / "missing")).quote(bytes(32))
    assert caught.value.details["rule"] == "tdx-quote"


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        ("rtmr0", lambda quote: {"rtmrs": {0: [quote.rtmrs[0]]}}),
        ("rtmr3", lambda quote: {"rtmrs": {3: [bytes(47) + b"\1", quote.rtmrs[3]]}}),
        ("mrseam", lambda quote: {"modules": [quote.seam]}),
        ("config-id", lambda quote: {"config_ids": [quote.config_id]}),
        ("owner", lambda quote: {"owners": [quote.owner]}),
        ("owner-config", lambda quote: {"owner_configs": [quote.owner_config]}),
    ],
)
def test_what_else_the_trust_file_lists_of_a_guest_must_be_there(name, rules):
    quote = parse_tdx_quote(QUOTE)
    good = rules(quote)
    assert check(QUOTE, rules=TdxRules(**good))
    [(field, value)] = good.items()
    other = {next(iter(value)): [b"\x77" * 48]} if field == "rtmrs" else [b"\x77" * 48]
    assert failed(QUOTE, rules=TdxRules(**{field: other})) == [f"tdx-{name}"]


def test_the_trust_files_lists_reach_the_verifier():
    from attestation.verify.tee import tdx_rules
    from tests.attestation.leases import trust

    text = "5a" * 48
    section = {
        "measurements": [text],
        "rtmrs": {"2": [text]},
        "modules": [text],
        "configIds": [text],
        "owners": [text],
        "ownerConfigs": [text],
    }
    value = [bytes.fromhex(text)]
    assert tdx_rules(trust(tdx=section).spec.tdx) == TdxRules(value, ("UpToDate",), {2: value}, value, value, value, value)
