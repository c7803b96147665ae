import re
from pathlib import Path

import pytest

from policies import expression
from policies.cases import load_cases
from policies.loader import load_policy
from policies.model import Policy

TEXT = (Path(__file__).parents[2] / "docs" / "policies.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


def keys(model, prefix=""):
    for name, field in model.model_fields.items():
        yield field.alias or name
        inner = field.annotation if isinstance(field.annotation, type) else None
        if inner is not None and hasattr(inner, "model_fields"):
            yield from keys(inner)


def test_the_documented_policy_loads_and_has_every_key():
    assert load_policy(BLOCKS[0].encode()).name == "everything"
    assert [key for key in keys(Policy) if f"{key}:" not in BLOCKS[0]] == []


def test_the_documented_cases_load():
    assert load_cases(BLOCKS[1].encode()).cases[0].reasons == ("posture-required",)


@pytest.mark.parametrize("function", sorted(expression._FUNCTIONS))
def test_every_function_is_documented(function):
    assert f"`{function}`" in TEXT.replace("\n", " ")


@pytest.mark.parametrize("root", sorted(expression.SHAPE))
def test_every_name_is_documented(root):
    for name in expression.SHAPE[root]:
        assert re.search(rf"`\.?{name}[`.]", TEXT), name
