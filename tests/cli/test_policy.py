import json
from pathlib import Path

import pytest

import policies
from sandbox.cli import main

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


def test_a_folder_without_cases_is_refused(tmp_path, capsys):
    code, told = call(capsys, "policy", "test", tmp_path)
    assert (code, told["error"]["details"]["rule"]) == (1, "policy-test")


def test_a_huge_file_is_refused_without_reading_it_all(tmp_path, capsys):
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(2**40)
    code, told = call(capsys, "policy", "check", tmp_path / "huge.yaml")
    assert (code, told["error"]["code"]) == (1, "policy-too-large")
