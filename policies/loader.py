"""Policies from bytes: strict YAML, every problem named, digest over the raw bytes. The only I/O is reading the shipped profiles."""

from __future__ import annotations

import hashlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from pydantic import BaseModel, ValidationError

from policies.errors import PolicyError, PolicyLimitError
from policies.expression import Expression, check_expression
from policies.model import Policy
from policies.shape import place_of, shape, unknown_key
from policies.strictyaml import load_yaml, nearest

POLICY_MAX_BYTES = 128 * 1024
PROFILES = ("strict", "standard", "development")
"""The shipped profiles; ``strict`` is the default."""


_ModelT = typing.TypeVar("_ModelT", bound=BaseModel)


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy, the exact bytes it came from, their digest (``sha256:…``) and its checked expressions by rule name."""

    policy: Policy
    raw: bytes
    digest: str
    expressions: Mapping[str, Expression]

    @property
    def name(self) -> str:
        """The policy's own name."""
        return self.policy.metadata.name


def load_policy(raw: bytes) -> LoadedPolicy:
    """Load a policy of at most ``POLICY_MAX_BYTES``.

    Raises ``PolicyError`` for the first problem, with all of them in ``details['problems']``.
    """
    policy = validate(Policy, load_yaml(raw, max_bytes=POLICY_MAX_BYTES))
    problems: list[PolicyError] = []
    expressions: dict[str, Expression] = {}
    for rule in policy.spec.rules:
        try:
            expressions[rule.name] = check_expression(rule.expression)
        except PolicyError as error:
            kind = PolicyLimitError if isinstance(error, PolicyLimitError) else PolicyError
            problems.append(kind(f"spec.rules.{rule.name}: {error.message}", **error.details))
    if problems:
        raise _first_of(problems)
    return LoadedPolicy(policy, raw, f"sha256:{hashlib.sha256(raw).hexdigest()}", types.MappingProxyType(expressions))


def load_profile(name: str) -> LoadedPolicy:
    """Load a shipped profile by name. Raises ``PolicyError`` for an unknown name."""
    if name not in PROFILES:
        raise PolicyError(f"there is no profile {name!r}", rule="profile", seen=name, wanted=", ".join(PROFILES),
                          fix=nearest(name, PROFILES))  # fmt: skip
    return load_policy(files("policies").joinpath("profiles", f"{name}.yaml").read_bytes())


def validate(model: type[_ModelT], tree: object) -> _ModelT:
    """Build ``model`` from parsed YAML. Raises ``PolicyError`` as ``load_policy`` does."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = [_problem(model, item) for item in error.errors(include_url=False, include_context=False)]
        raise _first_of(problems) from None  # the cause would show keys and values


def _first_of(problems: list[PolicyError]) -> PolicyError:
    first = problems[0]
    first.details["problems"] = [{"message": one.message, **one.details} for one in problems]
    return first


def _problem(model: type[BaseModel], item: typing.Any) -> PolicyError:  # noqa: ANN401  (pydantic's ErrorDetails is not public in all versions)
    place = place_of(model, item["loc"]) or "the document"
    text = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        key = str(item["loc"][-1])
        known = _keys_at(model, item["loc"][:-1])
        place = place_of(model, item["loc"], nearly=known)
        return PolicyError(f"{place}: unknown key", rule="policy-schema", seen=unknown_key(key, known), wanted="a key of the policy format",
                           fix=nearest(key, known))  # fmt: skip
    return PolicyError(f"{place}: {text}"[:500], rule="policy-schema", seen=shape(item["input"]), wanted=text[:300], fix=f"correct {place}")


def _keys_at(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    for part in place:
        for name, field in model.model_fields.items():
            if part in {name, field.alias}:
                model = _model_in(field.annotation) or model
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _model_in(part)) is not None), None)
