from sandbox.node.engine import EngineFacts
from sandbox.node.posture import posture_facts


def test_the_doctors_checks_become_evidence():
    facts = posture_facts()
    assert {"swap-off", "runc-version"} <= {fact.id for fact in facts}
    assert not [fact for fact in facts if fact.id.startswith("engine-")]


def test_the_engines_checks_are_told_where_it_answered():
    facts = {fact.id: fact.result for fact in posture_facts(EngineFacts("28.0", "1.48", ("runc",), "2", ("name=seccomp",), cdi=True))}
    assert (facts["engine-answers"], facts["engine-seccomp"]) == ("pass", "pass")
