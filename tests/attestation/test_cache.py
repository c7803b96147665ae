"""Collateral in a folder: kept while its own signed dates allow, verified again at each use, and of use without any network."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import AttestationError, VerificationError
from attestation.steps import Steps
from attestation.verify.cache import NOTHING, Cached, CollateralCache, describe
from attestation.verify.nvidia import GpuRules, verify_gpu
from attestation.verify.tdx import TdxRules, verify_tdx
from tests.attestation import gpu_maker
from tests.attestation.gpu_maker import DRIVER, VBIOS, Maker
from tests.conftest import VECTORS
from tests.rig import run

SAMPLES = Path(__file__).parent / "samples"
TDX = (SAMPLES / "tdx_quote_collateral.json").read_bytes()
QUOTE = (SAMPLES / "tdx_quote").read_bytes()
AT = datetime(2025, 6, 25, tzinfo=UTC)
LATER = datetime(2025, 9, 1, tzinfo=UTC)
RIM = VECTORS / "nvidia" / "vbios_1010_0200_882_96005E0001.swidtag"


def crl(*, days=30, at=AT, name="A maker of TPMs"):
    key, issuer = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    made = x509.CertificateRevocationListBuilder(issuer, at - timedelta(days=1), at + timedelta(days=days)).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.DER)


def test_what_is_kept_says_what_it_is_and_until_when(tmp_path):
    cache = CollateralCache(tmp_path / "cache")
    assert (cache.load(), cache.items(AT)) == (NOTHING, [])
    item = cache.add(TDX, AT)
    assert (item.kind, item.signer, item.since <= AT <= item.until) == ("tdx", "Intel SGX Root CA", True)
    assert item.until < AT + timedelta(days=31)
    assert cache.add(TDX, AT) == item
    assert cache.load().tdx == (TDX,)
    [(listed, problem)] = cache.items(AT)
    assert (listed, problem) == (item, "")
    [(_, problem)] = cache.items(LATER)
    assert problem.startswith("expired")
    assert "api.trustedservices.intel.com" in item.fix
    cache.remove(item)
    assert cache.load() == NOTHING


def test_what_expired_or_was_altered_is_not_taken(tmp_path):
    cache = CollateralCache(tmp_path)
    with pytest.raises(VerificationError) as caught:
        cache.add(TDX, LATER)
    assert "fmspc=" in caught.value.details["fix"]
    tree = json.loads(TDX)
    for member in ("tcb_info", "qe_identity"):
        changed = json.dumps(tree | {member: tree[member].replace("UpToDate", "Revoked ", 1)}).encode()
        with pytest.raises(AttestationError):
            cache.add(changed, AT)
    for raw in (b"", b"hello", b"{}", b"<a/>", b"\x30\x03\x02\x01\x01", bytes(5 * 1024 * 1024)):
        with pytest.raises(AttestationError):
            cache.add(raw, AT)
    assert cache.load() == NOTHING


def test_a_list_of_an_unknown_issuer_says_when_it_is_checked(tmp_path):
    item = CollateralCache(tmp_path).add(crl(), AT)
    assert (item.kind, item.about) == ("crl", "CN=A maker of TPMs")
    assert "used for" in item.signer
    with pytest.raises(VerificationError, match="expired"):
        CollateralCache(tmp_path).add(crl(), AT + timedelta(days=31))


def test_a_forged_list_of_a_pinned_issuer_is_refused(tmp_path):
    from attestation.verify.certificates import packaged_roots

    ark = next(each for each in packaged_roots("amd_milan.pem") if each.subject == each.issuer)
    key = ec.generate_private_key(ec.SECP256R1())
    forged = x509.CertificateRevocationListBuilder(ark.subject, AT, AT + timedelta(days=9)).sign(key, hashes.SHA256())
    with pytest.raises(VerificationError):
        CollateralCache(tmp_path).add(forged.public_bytes(Encoding.DER), AT)


def test_a_damaged_file_in_the_folder_is_shown_and_harms_nothing(tmp_path):
    cache = CollateralCache(tmp_path)
    item = cache.add(TDX, AT)
    place = tmp_path / "tdx" / item.digest.removeprefix("sha256:")
    place.write_bytes(place.read_bytes()[:-40])
    [(shown, problem)] = cache.items(AT)
    assert (shown.about, bool(problem)) == ("damaged", True)
    assert tdx(None, cached=cache.load().tdx)["tdx-collateral"] == "none"


def tdx(collateral, *, cached=(), at=AT):
    steps = Steps("the quote")
    verify_tdx(QUOTE, collateral, nonce=None, rules=TdxRules(), at=at, steps=steps, cached=cached)
    steps.finish()
    return {step.step: step.seen for step in steps.all}


def test_a_quote_without_collateral_is_judged_by_ones_own():
    assert tdx(None)["tdx-collateral"] == "none"
    assert tdx(None, cached=[TDX])["tdx-collateral"].startswith("valid until")
    assert tdx(b"{}", cached=[b"{}", TDX])["tdx-collateral"].startswith("valid until")
    assert tdx(None, cached=[TDX], at=LATER)["tdx-collateral"] == "none"
    with pytest.raises(VerificationError):
        tdx(b"{}", cached=[])


@pytest.mark.skipif(not RIM.exists(), reason="the public NVIDIA vectors are not here")
def test_a_reference_is_kept_as_long_as_its_signers_live(tmp_path):
    at = datetime(2024, 6, 1, tzinfo=UTC)
    item = CollateralCache(tmp_path).add(RIM.read_bytes(), at)
    assert (item.kind, item.about) == ("rim", "NVIDIA GH100 96.00.5E.00.01")
    assert "rim.attestation.nvidia.com" in item.fix
    with pytest.raises(VerificationError, match="expired"):
        CollateralCache(tmp_path).add(RIM.read_bytes(), item.until + timedelta(days=1))


def test_a_gpu_is_judged_by_ones_own_references():
    maker = Maker()
    chip, nonce, measured = maker.chip(), b"\1" * 32, {1: b"\1" * 48, 7: b"\7" * 48}
    rims = [maker.rim("GB100", DRIVER, {0: [measured[1]]}), maker.rim("GB100", VBIOS, {6: [measured[7]]})]
    others = [maker.rim("GB100", "1.2.3", {0: [b"\2" * 48]}), b"<not a reference/>", DRIVER.encode()]

    def check(given, own):
        steps = Steps("the report")
        rules = GpuRules(device_roots=[maker.root.certificate], rim_roots=[maker.rim_root.certificate])
        report = chip.report(nonce, measured)
        submod = verify_gpu(report, chip.pem, given, nonce=nonce, rules=rules, at=gpu_maker.AT, steps=steps, cached=own)
        steps.finish()
        return submod.claims["runtime-opaque"]

    assert check([], [*others, *rims]) == 2
    assert check(rims[:1], rims[1:]) == 2
    assert check(rims, rims) == 2
    assert check([], others) == 0


@pytest.mark.parametrize("raw", [TDX, crl()])
def test_truncated_files_are_clear_errors(raw):
    for end in range(0, len(raw), max(1, len(raw) // 40)):
        with pytest.raises(AttestationError):
            describe(raw[:end])


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_a_clear_error(raw):
    for data in (raw, b"{" + raw, b"<a>" + raw, b"-----BEGIN X509 CRL-----\n" + raw):
        with pytest.raises(AttestationError):
            describe(data)


def test_the_cache_is_safe_to_load_where_there_is_none(tmp_path):
    assert CollateralCache(tmp_path / "no" / "such").load() == Cached()


# ---- the commands


def test_import_list_check_and_use(tmp_path):
    cache, at, later = ["--cache", tmp_path / "cache"], ["--at", AT.isoformat()], ["--at", LATER.isoformat()]
    collateral = ["evidence", "collateral"]
    [row] = run(*collateral, "import", SAMPLES / "tdx_quote_collateral.json", *cache, *at, "--json").ok().json["collateral"]
    assert (row["kind"], row["signer"]) == ("tdx", "Intel SGX Root CA")
    assert run(*collateral, "list", *cache, *at, "--json").ok().json["collateral"][0]["problem"] == ""
    assert run(*collateral, "check", *cache, *at, "--json").ok().json["ok"] is True
    used = run("evidence", "verify", SAMPLES / "tdx_quote", "--kind", "tdx", *cache, *at, "--json").ok().json
    assert next(step for step in used["steps"] if step["step"] == "tdx-collateral")["seen"].startswith("valid until")
    without = run("evidence", "verify", SAMPLES / "tdx_quote", "--kind", "tdx", "--cache", tmp_path / "none", *at, "--json").ok().json
    assert next(step for step in without["steps"] if step["step"] == "tdx-collateral")["seen"] == "none"
    old = run(*collateral, "check", *cache, *later, "--json")
    assert (old.code, old.json["ok"], old.error["code"]) == (1, False, "not-verified")
    assert "api.trustedservices.intel.com" in old.error["details"]["fix"]
    assert run(*collateral, "check", "--remove", *cache, *later, "--json").ok().json["removed"] == 1
    assert run(*collateral, "list", *cache, *at, "--json").ok().json["collateral"] == []
    refused = run(*collateral, "import", SAMPLES / "tdx_quote", *cache, *at, "--json")
    assert (refused.code, refused.error["code"]) == (1, "bad-format")
