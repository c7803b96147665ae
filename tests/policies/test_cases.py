import pytest

from policies.cases import load_cases, run_cases
from policies.errors import PolicyError
from policies.loader import load_policy
from policies.model import LaunchRequest

A = "sha256:" + "a" * 64
POLICY = load_policy(
    f"""
apiVersion: sealrig/v1
kind: Policy
metadata: {{name: mine}}
spec:
  images: {{allow: ["{A}"]}}
  rules: [{{name: named-n, expression: "job.name == 'n'", message: m}}]
""".encode()
)


def cases(body):
    return load_cases(f"apiVersion: sealrig/v1\nkind: PolicyCases\npolicy: mine.yaml\ncases: {body}\n".encode())


def request(spec, tenant):
    return LaunchRequest(tenant=tenant, **{"name": "n", "image": A, **spec})


def run(body):
    results, coverage = run_cases(POLICY, cases(body).cases, request)
    return results, {one.rule: (one.held, one.denied) for one in coverage}


def test_a_right_expectation_is_ok_and_counts_as_coverage():
    results, coverage = run("[{name: a, job: {}, expect: allowed}, {name: b, job: {name: x}, expect: denied, reasons: [rules.named-n]}]")
    assert all(result.ok for result in results)
    assert coverage["rules.named-n"] == (True, True)
    assert coverage["image-allowed"] == (True, False)
    assert coverage["attestation-minimum"] == (False, False)


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("{name: a, job: {name: x}, expect: allowed}", "expected allowed, got denied; denied too: rules.named-n"),
        ("{name: a, job: {}, expect: denied, reasons: [gpus-max]}", "expected denied, got allowed; did not deny: gpus-max"),
        ("{name: a, job: {name: x, gpus: 1}, expect: denied, reasons: [gpus-max]}", "denied too: rules.named-n"),
        ("{name: a, job: {name: x}, expect: denied, reasons: [gpus-max, rules.named-n]}", "did not deny: gpus-max"),
    ],
)
def test_a_wrong_expectation_is_named(case, problem):
    (result,), _ = run(f"[{case}]")
    assert (result.ok, result.problem) == (False, problem)


def test_node_facts_are_read():
    case = "{name: a, job: {gpus: 1, isolation: gvisor}, node: {level: 0}, expect: denied, reasons: [gpus-max, node-gpus, node-isolation]}"
    (result,), _ = run(f"[{case}]")
    assert result.ok


@pytest.mark.parametrize(
    ("body", "fix"),
    [
        ("[{name: a, job: {}, expect: denied, reasons: [gpu-max]}]", "did you mean 'gpus-max'?"),
        ("[{name: a, job: {}, node: {level: 0, postur: {}}, expect: allowed}]", "did you mean 'posture'?"),
        ("[{name: a, job: {}, node: {level: 9}, expect: allowed}]", ""),
        ("[{name: a, job: {}, expekt: allowed}]", "did you mean 'expect'?"),
        ("[{name: a, job: {}, expect: denied}]", ""),
        ("[{name: a, job: {}, expect: allowed, reasons: [gpus-max]}]", ""),
        ("[]", ""),
    ],
)
def test_mistakes_in_cases_are_named(body, fix):
    with pytest.raises(PolicyError) as caught:
        run(body)
    problems = caught.value.details.get("problems", [caught.value.details])
    assert any(fix in problem["fix"] for problem in problems)
