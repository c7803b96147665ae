import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import PolicyError, PolicyLimitError
from policies.expression import MAX_SUMS, SHAPE, check_expression
from policies.model import EXPRESSION_MAX_CHARS

JOB = {"lease": {"seconds": 10}, "inputs": [{"access": "copy"}], "name": "n", "env": {}, "command": ["a", "b"]}


@pytest.mark.parametrize(
    ("source", "holds"),
    [
        ("job.lease.seconds <= 3600", True),
        ("job.lease.seconds > 3600 || job.name == 'n'", True),
        ("job.inputs.all(i, i.access == 'copy')", True),
        ("job.inputs.exists(i, i.access == 'lazy')", False),
        ("size(job.command) == 2 && 'a' in job.command", True),
        ("has(job.env.BATCH) ? job.env.BATCH == '8' : true", True),
        ("job.name.matches('^[a-z]$') // a comment with [1].map(x, x)", True),
        ('job.name == "map(filter"', False),
        ("['n', 'o'].exists(x, job.name.startsWith(x)) && job.command.all(w, job.lease.seconds < 20 && w in ['a', 'b'])", True),
    ],
)
def test_expressions_hold_or_not(source, holds):
    assert check_expression(source).holds({"job": JOB}) is holds


def test_naming_the_node_is_noticed():
    assert check_expression("job.lease.seconds < 5 || node.attestation.level >= 1").needs_node
    assert not check_expression("job.name == 'node'").needs_node


@pytest.mark.parametrize(
    ("source", "rule", "fix"),
    [
        ("job.leese.seconds > 1", "cel-name", "did you mean 'lease'?"),
        ("job.lease.second > 1", "cel-name", "did you mean 'seconds'?"),
        ("node.attestaton.level > 1", "cel-name", "did you mean 'attestation'?"),
        ("jobs.name == 'x'", "cel-name", "did you mean 'job'?"),
        ("job.inputs.all(job, true)", "cel-name", "call it item"),
        ("job.name.startWith('x')", "cel-function", "did you mean 'startsWith'?"),
        ("job.name ==", "cel-syntax", "correct the syntax"),
        ("job.name == `x`", "cel-syntax", ""),
        ("{'a': 1}['a'] == 1", "cel-syntax", ""),
        ("r'\\' == 'x'", "cel-syntax", ""),
        ('"""a""" == job.name', "cel-syntax", ""),
        ("job.command.all(r, r'\\' == r)", "cel-syntax", ""),
    ],
)
def test_mistakes_are_named_at_load(source, rule, fix):
    with pytest.raises(PolicyError) as caught:
        check_expression(source)
    assert caught.value.details["rule"] == rule
    assert fix in str(caught.value.details["fix"])


@pytest.mark.parametrize(
    "source",
    [
        "true" + " && true" * EXPRESSION_MAX_CHARS,
        "job.inputs.all(a, job.inputs.all(b, true))",
        "job.inputs.all(a, a.access.matches('x'))",
        "job.command.all(x, job.command == job.command)",
        "job.command.all(x, [job] != [])",
        "job.command.all(x, job.env['A'] != x)",
        "(job.command + job.command).all(x, x != '')",
        "[job.command + job.command][0].all(x, x != '')",
        "job.command.all(x, " + "+".join(["x"] * 40) + " != '')",
        "[job.command].all(x, x == x)",
        "job.command[0, 1].all(x, true)",
        "node.gpus.all(g, g in node.gpus)",
        "job.name.matches(job.tenant)",
        "job.name.matches('a{1000}')",
        "job.name.matches('" + "a" * 200 + "')",
        " || ".join(["job.name.matches('a')"] * 5),
    ],
)
def test_what_could_cost_too_much_is_refused(source):
    with pytest.raises(PolicyLimitError):
        check_expression(source)


@pytest.mark.parametrize("macro", ["map", "filter"])
def test_growing_macros_are_refused_however_they_are_spelt(macro):
    for source in (f"[1].{macro}(x, x) == []", f"[1] . {macro} (x, x) == []", f"[1].{macro}//\n(x, x) == []"):
        with pytest.raises(PolicyError):
            check_expression(source)


@pytest.mark.parametrize(
    "source", ["job.env.MISSING == 'x'", "job.name", "job.name < 3", "9223372036854775807 + job.lease.seconds > 0", "job.command[7] == ''"]
)
def test_a_failure_or_no_truth_value_raises(source):
    with pytest.raises(PolicyError) as caught:
        check_expression(source).holds({"job": JOB})
    assert caught.value.details["rule"] == "cel-evaluation"


@pytest.mark.parametrize(
    "loop",
    [
        "job.command.all(w, w != w + w)",
        "job.command.all(w, string(w).contains(w + w) == false)",
        "job.command + job.command != []",
        "job == job",
        "job.command.all(w, " + "+".join(["w"] * 33) + " != '')",
    ],
)
@pytest.mark.parametrize("words", [["w" * 256] * 256, ["w" * 32_000] * 2 + ["w"] * 254], ids=["even", "uneven"])
def test_the_costliest_accepted_expression_is_quick(loop, words):
    # ``words``: as many as a job may have, together as long as a signed job may be.
    times = min(EXPRESSION_MAX_CHARS // (len(loop) + 4), MAX_SUMS // max(1, loop.count("+")))
    source = " && ".join([loop] * times)
    began = time.thread_time()
    assert check_expression(source).holds({"job": JOB | {"command": words}})
    assert time.thread_time() - began < 5  # seconds of the processor: what else runs here does not count


@pytest.mark.parametrize("source", ["(" * 400 + "true" + ")" * 400, "!" * 1000 + "true", "[" * 400 + "]" * 400 + " == []"])
def test_deep_nesting_does_not_end_the_process(source):
    try:
        check_expression(source)
    except PolicyError:
        return


def test_every_known_name_can_be_evaluated():
    def paths(prefix, inside):
        for name, below in inside.items():
            yield from [f"{prefix}.{name}"] if below is None else paths(f"{prefix}.{name}", below)

    from policies.engine import _variables
    from policies.model import LaunchRequest, NodeFacts

    request = LaunchRequest(tenant="t", name="n", image="sha256:" + "a" * 64, inputs=(("blake3:x", "copy"),))
    variables = _variables(request, NodeFacts(node="node-1", level=0))
    for root, inside in SHAPE.items():
        for path in paths(root, inside):
            source = path.replace("job.inputs.", "job.inputs[0].")
            assert check_expression(f"{source} == {source}").holds(variables)


WORDS = [
    "job", "node", "job.name", "job.command", "job.inputs", "x", "(", ")", "[", "]", "&&", "||", "!", "+", "==", "in", "?", ":", ",", ".",
    "'a'", '"b"', "1", "2.5", ".all(x, ", ".exists(x, ", "size(", ".matches('a+')", ".map(x, ", "r'\\'", "has(", "true", "//", "\n", "{",
    "}", "-", "%", "/",
]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=25))
def test_any_accepted_expression_answers_or_fails_cleanly(words):
    try:
        expression = check_expression(" ".join(words))
        assert expression.holds({"job": JOB, "node": {}}) in {True, False}
    except PolicyError:
        return


@given(st.text(max_size=60))
def test_any_text_is_accepted_or_refused(source):
    try:
        check_expression(source)
    except PolicyError:
        return
