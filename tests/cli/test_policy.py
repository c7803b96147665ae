import json
from contextlib import nullcontext
from pathlib import Path

import pytest

import policies
from attestation.signing import b64encode
from policies.loader import load_policy
from sandbox.cli import main
from sandbox.wire import PolicyInfo

SHIPPED = Path(policies.__file__).parent / "profiles"
A = "sha256:" + "a" * 64
JOB = f'apiVersion: sealrig/v1\nkind: Job\nmetadata: {{name: j}}\nspec: {{image: "{A}", command: [run]}}\n'
POLICY = f"""apiVersion: sealrig/v1
kind: Policy
metadata: {{name: mine}}
spec:
  images: {{allow: ["{A}"]}}
  rules:
    - {{name: short, expression: "job.lease.seconds <= 1800", message: half an hour at most}}
"""
CASES = """apiVersion: sealrig/v1
kind: PolicyCases
policy: mine.yaml
cases:
  - {name: a modest job, job: {image: "IMAGE"}, expect: allowed}
""".replace("IMAGE", A)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.yaml").write_text(POLICY)
    (tmp_path / "cases.yaml").write_text(CASES)
    (tmp_path / "job.yaml").write_text(JOB)
    return tmp_path


def call(capsys, *words):
    code = main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_check_tells_digest_and_remarks(folder, capsys):
    code, told = call(capsys, "policy", "check", folder / "mine.yaml")
    assert code == 0
    assert (told["name"], told["rules"]) == ("mine", ["short"])
    assert told["digest"].startswith("sha256:")
    assert told["remarks"]


def test_check_names_every_problem(folder, capsys):
    (folder / "mine.yaml").write_text(POLICY.replace("images", "imagez").replace("expression", "expresion"))
    assert main(["policy", "check", str(folder / "mine.yaml")]) == 1
    told = capsys.readouterr().err
    assert "did you mean 'images'?" in told
    assert "did you mean 'expression'?" in told


def test_show_prints_a_profile_as_it_is(capsys):
    assert main(["policy", "show", "profile:strict"]) == 0
    assert capsys.readouterr().out == (SHIPPED / "strict.yaml").read_text(encoding="utf-8")


def test_explain_allows(folder, capsys):
    code, told = call(capsys, "policy", "explain", folder / "job.yaml", "--policy", folder / "mine.yaml")
    assert (code, told["allowed"]) == (0, True)
    assert "attestation-minimum" in told["deferred"]


def test_explain_denies_with_every_reason(folder, capsys):
    (folder / "node.yaml").write_text("{node: node-1, level: 0}")
    code, told = call(capsys, "policy", "explain", folder / "job.yaml", "--policy", "profile:strict", "--node", folder / "node.yaml")
    assert (code, told["allowed"], told["error"]["code"]) == (1, False, "denied")
    assert {"image-allowed", "attestation-minimum", "posture-required"} == {reason["rule"] for reason in told["reasons"]}
    assert all(reason["seen"] and reason["wanted"] and reason["fix"] for reason in told["reasons"])


def test_explain_prints_a_line_a_rule(folder, capsys):
    assert main(["policy", "explain", str(folder / "job.yaml"), "--policy", str(folder / "mine.yaml")]) == 0
    told = capsys.readouterr().out
    assert "rules.short" in told
    assert "waits for a node" in told


def test_the_shipped_cases_hold(capsys):
    code, told = call(capsys, "policy", "test", SHIPPED / "cases", "--require-coverage")
    assert (code, told["ok"]) == (0, True)
    assert {Path(one["file"]).stem for one in told["files"]} == {"strict", "standard", "development"}


def test_a_case_that_differs_fails(folder, capsys):
    (folder / "cases.yaml").write_text(CASES.replace("allowed", "denied, reasons: [gpus-max]"))
    code, told = call(capsys, "policy", "test", folder)
    assert (code, told["ok"], told["error"]["details"]["rule"]) == (1, False, "policy-test")
    assert told["files"][0]["cases"][0]["problem"]


def test_coverage_can_be_demanded(folder, capsys):
    assert call(capsys, "policy", "test", folder)[0] == 0
    code, told = call(capsys, "policy", "test", folder, "--require-coverage")
    assert (code, told["error"]["details"]["rule"]) == (1, "policy-coverage")
    assert "rules.short" in told["error"]["details"]["seen"]


def test_an_image_signature_meets_the_policy_that_demands_it(folder, capsys):
    assert main(["key", "new", str(folder / "me"), "--json"]) == 0
    capsys.readouterr()
    code, told = call(capsys, "policy", "sign-image", f"reg.example/app@{A}", "--key", folder / "me")
    assert (code, told["image"]) == (0, A)
    (folder / "mine.yaml").write_text(POLICY.replace("images: {", f'images: {{signatures: {{keys: ["{told["key"]}"]}}, '))
    denied, why = call(capsys, "policy", "explain", folder / "job.yaml", "--policy", folder / "mine.yaml")
    assert (denied, [reason["rule"] for reason in why["reasons"]]) == (1, ["image-signed"])
    (folder / "job.yaml").write_text(JOB.replace("command:", f'imageSignatures: ["{told["signature"]}"], command:'))
    assert call(capsys, "policy", "explain", folder / "job.yaml", "--policy", folder / "mine.yaml")[0] == 0


def test_a_tag_cannot_be_signed(capsys):
    assert call(capsys, "policy", "sign-image", "app:latest")[0] == 2


class FakeServer:
    def __init__(self, raw, digest=None):
        loaded = load_policy(raw)
        self.info = PolicyInfo(tenant="acme", name=loaded.name, digest=digest or loaded.digest, raw=b64encode(raw))

    def policy(self, tenant):
        assert tenant == "acme"
        return self.info


@pytest.mark.parametrize(("digest", "code"), [(None, 0), ("sha256:" + "0" * 64, 1)])
def test_the_servers_policy_is_shown_if_its_digest_is_true(monkeypatch, capsys, digest, code):
    monkeypatch.setattr("sandbox.cli.policy.client", lambda _: nullcontext(FakeServer(POLICY.encode(), digest)))
    assert main(["policy", "show", "--tenant", "acme"]) == code
    assert (capsys.readouterr().out == POLICY) == (code == 0)


def test_a_folder_without_cases_is_refused(tmp_path, capsys):
    code, told = call(capsys, "policy", "test", tmp_path)
    assert (code, told["error"]["details"]["rule"]) == (1, "policy-test")


def test_a_huge_file_is_refused_without_reading_it_all(tmp_path, capsys):
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(2**40)
    code, told = call(capsys, "policy", "check", tmp_path / "huge.yaml")
    assert (code, told["error"]["code"]) == (1, "policy-too-large")


def test_people_see_cases_and_coverage(folder, capsys):
    assert main(["policy", "test", str(folder / "cases.yaml")]) == 0
    told = capsys.readouterr().out
    assert "a modest job" in told
    assert "rules.short" in told
    assert "1 case, all as expected" in told
