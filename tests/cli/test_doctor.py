import json

from sandbox.cli import main


def call(capsys, *words):
    code = main(["node", "doctor", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_every_check_is_told_in_full(capsys):
    code, told = call(capsys, "--docker", "tcp://127.0.0.1:9")
    assert code == 0
    assert all(set(check) == {"id", "seen", "wanted", "result", "fix"} for check in told["checks"])
    assert {check["id"]: check["result"] for check in told["checks"]}["engine-answers"] == "fail"
    assert sum(told["counts"].values()) == len(told["checks"])


def test_what_a_policy_demands_decides_the_exit_code(tmp_path, capsys):
    policy = tmp_path / "p.yaml"
    policy.write_text("apiVersion: sealrig/v1\nkind: Policy\nmetadata: {name: p}\nspec: {posture: {require: [engine-answers]}}\n")
    code, told = call(capsys, "--docker", "tcp://127.0.0.1:9", "--policy", policy)
    assert (code, told["ok"]) == (1, False)
    assert "engine-answers: fail" in told["error"]["details"]["seen"]


def test_people_get_a_table_and_the_fixes(capsys):
    assert main(["node", "doctor", "--docker", "tcp://127.0.0.1:9"]) == 0
    told = capsys.readouterr()
    assert "swap-off" in told.out
    assert "engine-answers: start it" in told.err
