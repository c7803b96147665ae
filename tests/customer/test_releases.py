"""Signed releases in a trust file on disk: added once, in whichever way the file is written, with everything else kept."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
import yaml

from attestation.errors import SignatureError
from attestation.runners import RELEASE_PAYLOAD_TYPE, build_release
from attestation.signing import SigningKey, sign_envelope
from sandbox.cli import main
from sandbox.customer.releases import add_release, explain_releases
from sandbox.customer.trustfile import load_trust
from sandbox.errors import InputError
from sandbox.sealing.keys import Identity
from tests.customer.fakes import LOG_KEY, NODE, NODE_KEY

KEY = SigningKey(b"\x55" * 32)
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
RUNNER = "sha256:" + "d" * 64
HEAD = f"""\
# mine
apiVersion: sealrig/v1
kind: Trust
spec:
  level: software  # the least
  nodes: {{{NODE}: "{NODE_KEY.public.text}"}}
  log: {{origin: log.example, key: "{LOG_KEY}"}}
"""
TAIL = "  posture: [swap-off]  # stays\n"
SPELLINGS = {
    "block": f'  releases:\n    keys:\n      - "{KEY.public.text}"\n',
    "flow": f'  releases: {{keys: ["{KEY.public.text}"]}}\n',
    "empty list": f'  releases:\n    accepted: []\n    keys: ["{KEY.public.text}"]\n',
    "flow list": f'  releases: {{accepted: [], keys: ["{KEY.public.text}"]}}\n',
    "last": f'  releases:\n    keys: ["{KEY.public.text}"]\n    # none yet\n',
    "CRLF": f'  releases:\r\n    keys: ["{KEY.public.text}"]\r\n',
}


def release(version="0.2.0", key=KEY, at=AT, **runners):
    return sign_envelope(
        build_release(version, "sha256:" + "1" * 64, runners or {"linux": RUNNER}, at), RELEASE_PAYLOAD_TYPE, key
    ).to_bytes()


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "TRUST.yaml"
    file.write_text(HEAD + SPELLINGS["block"] + TAIL)
    file.chmod(0o640)
    return file


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_any_spelling_takes_releases_and_keeps_the_rest(path, spelling):
    path.write_bytes((HEAD + SPELLINGS[spelling] + TAIL).encode())
    before = load_trust(path).spec
    assert add_release(path, release(), older=False).new
    assert add_release(path, release("0.3.0", at=AT + timedelta(days=1), linux="sha256:" + "e" * 64), older=False).new
    spec = load_trust(path).spec
    assert [known.version for known in spec.releases.accepted] == ["0.3.0", "0.2.0"]
    assert spec.accepted_runners == {RUNNER, "sha256:" + "e" * 64}
    assert spec.model_copy(update={"releases": before.releases}) == before
    assert [comment in path.read_text() for comment in ("# mine", "# the least", "# stays")] == [True] * 3
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]


def test_adding_again_changes_nothing(path):
    add_release(path, release(), older=False)
    before = path.read_bytes()
    assert not add_release(path, release(), older=False).new
    assert path.read_bytes() == before


def test_an_older_release_is_refused_unless_it_is_wanted(path):
    add_release(path, release(), older=False)
    before, old = path.read_bytes(), release("0.1.0", at=AT - timedelta(days=9), linux="sha256:" + "e" * 64)
    with pytest.raises(InputError) as caught:
        add_release(path, old, older=False)
    assert "0.1.0" in caught.value.details["seen"]
    assert "0.2.0" in caught.value.details["wanted"]
    assert "--older" in caught.value.details["fix"]
    assert path.read_bytes() == before
    added = add_release(path, old, older=True)
    assert (added.new, added.older) == (True, True)
    assert "sha256:" + "e" * 64 in load_trust(path).spec.accepted_runners


def test_an_unknown_key_changes_nothing(path):
    before = path.read_bytes()
    with pytest.raises(SignatureError) as caught:
        add_release(path, release(key=SigningKey.generate()), older=False)
    assert {"seen", "wanted", "fix"} <= set(caught.value.details)
    assert path.read_bytes() == before
    path.write_text(HEAD)
    with pytest.raises(InputError, match="no release key"):
        add_release(path, release(), older=False)


def test_an_explanation_tells_where_each_digest_comes_from(path):
    add_release(path, release(), older=False)
    told = dict(explain_releases(load_trust(path)))
    [line] = [words for name, words in told.items() if name.startswith("release 0.2.0 of 2026-03-01")]
    assert RUNNER in line
    assert KEY.public.key_id in line
    assert KEY.public.text in told["release keys"]


def test_commands_from_the_publisher_to_the_customer(tmp_path, capsys):
    def call(*words):
        code = main([*map(str, words), "--json"])
        return code, json.loads(capsys.readouterr().out)

    publisher = Identity.generate()
    publisher.save(tmp_path / "publisher")
    lock, signed, trust = tmp_path / "uv.lock", tmp_path / "release.json", tmp_path / "TRUST.yaml"
    lock.write_text("version = 1\n")
    shown = call("trust", "runners", "show")[1]
    other = f"other=sha256:{'7' * 64}"
    sign = ("trust", "runners", "sign", "--lock", lock, "-o", signed, "--key", tmp_path / "publisher")
    code, made = call(*sign, "--runner", f"{shown['kind']}={shown['runner']}", "--runner", other)
    assert (code, made["version"], made["runners"][shown["kind"]]) == (0, shown["version"], shown["runner"])
    assert call(*sign)[1]["error"]["details"]["rule"] == "file-overwrite"
    trust.write_text(HEAD + f'  releases: {{keys: ["{made["key"]}"]}}\n')
    code, added = call("trust", "runners", "add", signed, "--trust", trust)
    assert (code, added["added"], added["older"], added["key"]) == (0, True, False, publisher.public.verify_key.text)
    assert yaml.safe_load(trust.read_text())["spec"]["releases"]["accepted"][0]["runners"] == added["runners"]
    assert any(shown["runner"] in words for words in call("trust", "explain", trust)[1].values())
    trust.write_text(HEAD + SPELLINGS["flow"])
    code, refused = call("trust", "runners", "add", signed, "--trust", trust)
    assert (code, refused["error"]["details"]["rule"]) == (1, "release-key")
    for bad in ("x", "=sha256:" + "7" * 64, "k=sha256:77", "k=" + "7" * 64):
        assert call(*sign, "--runner", bad)[0] == 2
