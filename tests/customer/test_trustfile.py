from __future__ import annotations

import pytest

from attestation.signing import SigningKey
from attestation.trust import Trust
from policies.strictyaml import load_yaml
from sandbox.customer.trustfile import draft_trust, explain_trust, load_trust
from sandbox.errors import InputError, NotFoundError
from tests.conftest import ROOT
from tests.customer.fakes import LOG_KEY, NODE, NODE_KEY, now_text, trust


def node(key=NODE_KEY.public.text, name=NODE):
    return {
        "id": name, "public_key": key, "version": "1", "state": "ready", "last_seen": now_text(), "inventory": {},
        "capacity": {"slots": 1, "cpus": 1, "memory": 1, "scratch": 1},
    }  # fmt: skip


def test_a_draft_accepts_what_the_server_shows_and_nothing_else(control, tmp_path):
    second = SigningKey.generate().public.text
    control.nodes = [node(), node(second, "node-" + "0d" * 16)]
    path = tmp_path / "TRUST.yaml"
    path.write_text(draft_trust(control.client(), "measured"))
    made = load_trust(path)
    assert dict(made.spec.nodes) == {NODE: NODE_KEY.public.text, "node-" + "0d" * 16: second}
    assert (made.spec.log.key, made.spec.log.origin) == (LOG_KEY, "log.example")
    assert (made.spec.level, made.spec.interlock) == ("measured", "log")
    assert "compare" in path.read_text()


def test_no_node_is_one_clear_error(control):
    with pytest.raises(NotFoundError):
        draft_trust(control.client(), "software")


@pytest.mark.parametrize("key", ['x"\n  level: software\n#', "ed25519:AAAA", "", 'ed25519:" }'])
def test_a_server_cannot_write_its_own_lines_into_the_file(control, key):
    control.nodes = [node(key)]
    with pytest.raises(Exception, match=r".") as caught:
        draft_trust(control.client(), "software")
    assert getattr(caught.value, "code", "") in {"bad-input", "bad-format", "bad-policy", "server-unreachable"}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "kind: Trust", "a: &x 1\nb: *x", "spec: {spec: 1, spec: 2}", "apiVersion: sealrig/v1\nkind: Trust\nspec: {nodez: {}}\n"],
)
def test_a_bad_file_says_where(tmp_path, text):
    path = tmp_path / "TRUST.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_trust(path)
    assert str(path) in caught.value.message


def test_a_missing_or_huge_file_is_one_clear_error(tmp_path):
    with pytest.raises(InputError) as caught:
        load_trust(tmp_path / "none")
    assert "trust init" in str(caught.value.details["fix"])
    (tmp_path / "huge").write_bytes(b"# " + b"x" * 2_000_000)
    with pytest.raises(InputError):
        load_trust(tmp_path / "huge")


def test_an_explanation_says_what_is_left_open():
    words = dict(explain_trust(trust()))
    assert "not against the node's root" in words["level"]
    assert "signed word alone" in words["previous wipe"]
    assert words["runner"].startswith("any")
    closed = dict(
        explain_trust(trust(interlock="log", runners=["sha256:" + "1" * 64], posture=["swap-off"], customers=[NODE_KEY.public.text]))
    )
    assert "audit log" in closed["previous wipe"]
    assert closed["runner"].startswith("1 accepted")
    assert "swap-off" in closed["posture"]
    assert closed["customers"].startswith("1 ")
    before = dict(explain_trust(trust(log={"origin": "x", "key": "x+00+AA", "retired": [{"key": "x+11+BB", "size": 7}]})))
    assert before["log"] == "x, checkpoints signed by x+00, up to 7 entries also by x+11"


def test_a_draft_is_what_the_verifier_reads(control):
    control.nodes = [node()]
    assert Trust.from_tree(load_yaml(draft_trust(control.client(), "software").encode())).level.label == "software"


def test_hardware_sections_are_told_in_words():
    value, pcr = "5a" * 48, "5a" * 32
    sections = {
        "tpm": {"keys": {NODE: "AAAA"}, "pcrs": {"4": [pcr]}, "runner": 23},
        "snp": {"measurements": [value], "hostData": [pcr], "crlMaxAge": "30d"},
        "tdx": {"measurements": [value], "rtmrs": {"1": [value]}},
        "gpu": {"drivers": ["590.12"], "statusMaxAge": "7d"},
    }
    words = dict(explain_trust(trust(**sections)))
    assert "judged: PCR 4" in words["tpm"]
    assert "runner in PCR 23" in words["tpm"]
    assert "host data" in words["snp"]
    assert "no older than" in words["snp"]
    assert "RTMR1" in words["tdx"]
    assert "590.12" in words["gpu"]
    assert dict(explain_trust(trust()))["gpu"].startswith("nothing is listed")


def test_the_documented_trust_file_is_one(tmp_path):
    """Every key that the documentation shows is a key of the format, and the other way round for what hardware must show."""
    text = (ROOT / "docs" / "attestation.md").read_text(encoding="utf-8")
    block = next(part for part in text.split("```yaml\n")[1:] if "kind: Trust" in part).partition("```")[0]
    spec = Trust.from_tree(load_yaml(block.encode())).spec
    assert spec.gpu.status_max_age
    for section in (spec.tpm, spec.snp, spec.tdx, spec.gpu):
        for name, field in type(section).model_fields.items():
            assert name in section.model_fields_set or str(field.alias) in text, name
