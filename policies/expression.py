"""CEL expressions of policy rules: checked when a policy is loaded, so that evaluating one can neither hang nor fill memory.

What bounds the cost, since the library has no budget of its own:

* length (``EXPRESSION_MAX_CHARS``) and the library's own limit on nesting;
* only names, functions and macros that are listed here; ``map`` and ``filter`` are not, because chained they grow values without end;
* no loop (``all``, ``exists``, ``exists_one``) inside a loop, each over a list of the job or node as it is or one written out, and
  inside it no other list, map or text of any length (``MANY``): work is at most length times the longest list;
* at most ``MAX_SUMS`` times ``+``: each copies the text or list so far, so that many would cost the square of their number;
* ``matches`` takes a short literal pattern without counted repetition, outside loops (the engine is linear; compiling is the cost).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from policies.errors import PolicyError, PolicyLimitError
from policies.model import EXPRESSION_MAX_CHARS
from policies.strictyaml import nearest

if TYPE_CHECKING:
    import cel

PATTERN_MAX_CHARS = 128
MAX_MATCHES = 4
MAX_SUMS = 32
_LOOPS = frozenset({"all", "exists", "exists_one"})
_FUNCTIONS = frozenset({"size", "contains", "startsWith", "endsWith", "matches", "has", "int", "double", "string"}) | _LOOPS
_WORDS = frozenset({"true", "false", "null", "in"})
_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
      |(?P<string>(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"))
      |(?P<number>0x[0-9a-fA-F]+u?|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?u?)
      |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
      |(?P<mark>&&|\|\||[<>=!]=|[-+*/%!<>?:.,()\[\]])""",
    re.VERBOSE,
)

SHAPE: Mapping[str, object] = {
    "job": {
        "tenant": None, "name": None, "image": {"reference": None, "repository": None, "digest": None},
        "command": None, "env": None, "inputs": {"bundle": None, "access": None}, "output": {"maxSize": None},
        "resources": {"gpus": None, "gpuMemory": None, "cpus": None, "memory": None, "scratch": None, "shm": None, "pids": None},
        "lease": {"seconds": None}, "egress": None, "isolation": None, "attestation": {"minimum": None},
    },
    "node": {"id": None, "attestation": {"level": None}, "posture": None, "gpus": None, "isolation": None, "scratch": None, "engine": None},
}  # fmt: skip
"""What a rule can name. None ends what is known: a name below it (``job.env.BATCH``, ``node.posture["swap-off"]``) may be absent,
and then the rule fails and denies."""
MANY = frozenset({"job.command", "job.env", "job.inputs", "job.egress", "node.posture", "node.gpus", "node.isolation", "node.scratch",
                  "node.engine"})  # fmt: skip
"""Names that hold more than one value: a loop runs over one, and names none inside, where each would cost its length every time."""


@dataclass(frozen=True)
class Expression:
    """A checked expression; ``needs_node`` says that it names ``node``."""

    source: str
    needs_node: bool
    program: cel.Program = field(repr=False, compare=False)

    def holds(self, variables: Mapping[str, object]) -> bool:
        """Evaluate. Raises ``PolicyError`` for any failure and for any result other than true or false."""
        try:
            result: object = self.program.execute(dict(variables))
        except Exception as error:
            raise PolicyError(f"the expression failed: {type(error).__name__}: {error}"[:300], rule="cel-evaluation",
                              seen=self.source[:200], wanted="an expression that evaluates for every job",
                              fix="guard optional parts with has(…) or 'in'") from error  # fmt: skip
        if result is True or result is False:
            return result
        raise PolicyError("the expression gave no truth value", rule="cel-evaluation", seen=type(result).__name__,
                          wanted="true or false", fix="end the expression in a comparison")  # fmt: skip


def check_expression(source: str) -> Expression:
    """Return a checked expression. Raises ``PolicyError`` (syntax, unknown names) or ``PolicyLimitError`` (cost)."""
    if len(source) > EXPRESSION_MAX_CHARS:
        raise PolicyLimitError("the expression is too long", rule="cel-size", seen=f"{len(source)} characters",
                               wanted=f"≤ {EXPRESSION_MAX_CHARS}", fix="split it into several rules")  # fmt: skip
    tokens = _tokens(source)
    if (sums := tokens.count(("mark", "+"))) > MAX_SUMS:
        raise PolicyLimitError("the expression adds too often", rule="cel-cost", seen=f"{sums} times +", wanted=f"≤ {MAX_SUMS}",
                               fix="split it into several rules")  # fmt: skip
    loop_names, inside_loops = _check_calls(tokens)
    roots = _check_names(tokens, loop_names, inside_loops)
    # Imported here: the package's __init__ loads a whole REPL (half a second) that only policies with rules should pay for.
    import cel

    try:
        program = cel.compile(source)
    except Exception as error:
        raise PolicyError(f"not valid CEL: {error}"[:300], rule="cel-syntax", seen=source[:200], wanted="a CEL expression",
                          fix="correct the syntax") from error  # fmt: skip
    return Expression(source=source, needs_node="node" in roots, program=program)


def _tokens(source: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    place = 0
    while place < len(source):
        match = _TOKEN.match(source, place)
        # Text after text or after a name is a triple quote or a prefix (r, b): there this tokenizer and the library could
        # disagree on where the text ends, and code could hide in it.
        glued = match is not None and match.lastgroup == "string" and tokens and (tokens[-1][0] == "string" or _is_plain_name(tokens[-1]))
        if match is None or glued:
            raise PolicyError(f"column {place + 1}: not accepted in a rule", rule="cel-syntax", seen=source[place : place + 20],
                              wanted="names, numbers, quoted text, operators and listed functions",
                              fix="map literals, prefixed text and triple quotes are not accepted; rewrite this part")  # fmt: skip
        if match.lastgroup != "space":
            tokens.append((str(match.lastgroup), match.group()))
        place = match.end()
    return tokens


def _is_plain_name(token: tuple[str, str]) -> bool:
    return token[0] == "name" and token[1] not in _WORDS


def _check_calls(tokens: list[tuple[str, str]]) -> tuple[frozenset[str], frozenset[int]]:
    """Check functions, loops and patterns; return the names that loops bind, and which tokens stand inside loops."""
    open_calls: list[str] = []
    bound: set[str] = set()
    inside: set[int] = set()
    patterns = 0
    for index, (kind, text) in enumerate(tokens):
        looping = any(name in _LOOPS for name in open_calls)
        if looping:
            inside.add(index)
        if text == "(" and kind == "mark":
            before = tokens[index - 1] if index else ("mark", "")
            call = before[1] if before[0] == "name" and before[1] not in _WORDS else ""
            if call and call not in _FUNCTIONS:
                raise PolicyError(f"the function {call!r} is not accepted", rule="cel-function", seen=call,
                                  wanted=", ".join(sorted(_FUNCTIONS)), fix=nearest(call, _FUNCTIONS))  # fmt: skip
            if call in _LOOPS:
                if looping:
                    raise PolicyLimitError("a loop stands inside a loop", rule="cel-cost", seen=call, wanted="loops side by side",
                                           fix="split it into several rules")  # fmt: skip
                _check_range(tokens[: index - 1])
                bound.add(tokens[index + 1][1] if index + 1 < len(tokens) else "")
            if call == "matches":
                patterns += 1
                _check_pattern(tokens[index + 1 : index + 3], looping=looping, count=patterns)
            open_calls.append(call)
        elif text == ")" and kind == "mark" and open_calls:
            open_calls.pop()
    return frozenset(bound), frozenset(inside)


def _check_range(before: list[tuple[str, str]]) -> None:
    """Check what a loop runs over: ``before`` ends with the dot in front of ``all``. Sums of lists could be of any length."""
    rest = before[:-1]
    if rest and rest[-1] == ("mark", "]"):
        rest.pop()
        while rest and (rest[-1][0] in {"string", "number"} or rest[-1] == ("mark", ",")):
            rest.pop()
        fine = bool(rest) and rest[-1] == ("mark", "[") and (len(rest) < 2 or (rest[-2][0] == "mark" and rest[-2][1] not in {")", "]"}))
    else:
        fine = bool(rest) and rest[-1][0] == "name"
    if not fine:
        raise PolicyLimitError("a loop runs over something that was put together", rule="cel-cost", seen=rest[-1][1] if rest else "nothing",
                               wanted="a list of job or node as it is, or one of numbers and texts written out",
                               fix="write a loop for each list, joined by && or ||")  # fmt: skip


def _check_pattern(after: list[tuple[str, str]], *, looping: bool, count: int) -> None:
    literal = len(after) == 2 and after[0][0] == "string" and after[1] == ("mark", ")")
    if not literal or looping or count > MAX_MATCHES or "{" in after[0][1] or len(after[0][1]) > PATTERN_MAX_CHARS:
        seen = after[0][1][:80] if after else "nothing"
        raise PolicyLimitError("this use of matches() could cost too much", rule="cel-cost", seen=seen,
                               wanted=f"≤ {MAX_MATCHES} literal patterns of ≤ {PATTERN_MAX_CHARS} characters, no {{…}}, outside loops",
                               fix="use startsWith, endsWith or contains")  # fmt: skip


def _check_names(tokens: list[tuple[str, str]], bound: frozenset[str], inside_loops: frozenset[int]) -> frozenset[str]:
    """Check every name and every path below ``job`` and ``node`` against ``SHAPE``; return the roots in use."""
    roots: set[str] = set()
    for index, (kind, text) in enumerate(tokens):
        member = index > 0 and tokens[index - 1] == ("mark", ".")
        called = index + 1 < len(tokens) and tokens[index + 1] == ("mark", "(")
        if kind != "name" or member or text in _WORDS or called:
            continue
        if text not in SHAPE:
            if text in bound:
                continue
            raise PolicyError(f"the name {text!r} is not known", rule="cel-name", seen=text, wanted="job or node",
                              fix=nearest(text, SHAPE))  # fmt: skip
        if text in bound:
            raise PolicyError(f"a loop must not rename {text!r}", rule="cel-name", seen=text, wanted="another name",
                              fix="call it item")  # fmt: skip
        roots.add(text)
        path, single = _check_path(tokens[index + 1 :], text)
        if index in inside_loops and not single:
            raise PolicyLimitError(f"a loop names {path} inside", rule="cel-cost", seen=path, wanted="single values inside a loop",
                                   fix=f"compare with single values, or ask about {path} outside the loop")  # fmt: skip
    return frozenset(roots)


def _check_path(after: list[tuple[str, str]], path: str) -> tuple[str, bool]:
    """Check the members that follow a root; return how far the path is known, and whether it holds a single value."""
    inside = SHAPE[path]
    followers = [*after[2::2], ("mark", "")]
    for dot, (kind, text), following in zip(after[::2], after[1::2], followers, strict=False):
        if dot != ("mark", ".") or kind != "name" or following == ("mark", "(") or not isinstance(inside, Mapping):
            break
        if path == "job.inputs":  # a list: only loops and indexes reach into it
            break
        if text not in inside:
            raise PolicyError(f"{path} has no {text!r}", rule="cel-name", seen=f"{path}.{text}", wanted=", ".join(sorted(inside)),
                              fix=nearest(text, inside))  # fmt: skip
        path, inside = f"{path}.{text}", inside[text]
    return path, path not in MANY and not isinstance(inside, Mapping)
