"""Alterations of JSON and of bytes, for fuzzing what parses them: every one follows from the dice it is given."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

_DEEP = "deep-d41d8cd98f00b204"
_JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 511, 512, 2**50, 2**53 + 1, 2**64, 0.0, 1.5, 1e300, float("inf"), float("nan"), "", "\0", "0", "a/../../b",
    "\ud800", "\u2028", "ü", "\u0661", "=", "AA==", "AB==", "AAAA", "x" * 70_000, [], {}, [[]], {"": ""}, _DEEP,
)  # fmt: skip
_BLOCKS = (b"\xff\xff\xff\xff", bytes(4), b"\x7f\xff\xff\xff", b"\n", b"\0", b"}", b'"')


def alter(dice: random.Random, raw: bytes) -> bytes:
    """Return ``raw`` after one to three changes: a bit, a cut, a filling, an extreme number, a piece repeated."""
    data = bytearray(raw)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        at = dice.randrange(len(data) + 1)
        change = dice.randrange(5)
        if change == 0 and at < len(data):
            data[at] ^= 1 << dice.randrange(8)
        elif change == 1:
            del data[at : at + dice.choice((1, 2, 16, 512, len(data)))]
        elif change == 2:
            data[at:at] = dice.randbytes(dice.choice((1, 2, 16, 512)))
        elif change == 3:
            block = dice.choice(_BLOCKS)
            data[at : at + len(block)] = block
        else:
            data[at:at] = data[: dice.choice((1, 16, 512))]
    return bytes(data)


def twist(dice: random.Random, raw: bytes) -> bytes:
    """Return a JSON object's text with something in it changed, mostly still in canonical spelling."""
    if dice.random() < 0.15:
        return alter(dice, raw)
    tree = json.loads(raw)
    for _ in range(dice.choice((1, 1, 2))):
        _change(dice, dice.choice(_containers(tree)))
    if dice.random() < 0.2:
        return _respelled(dice, tree)
    spelled = json.dumps(tree, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return spelled.encode("utf-8", "surrogatepass").replace(f'"{_DEEP}"'.encode(), b"[" * 50_000)


def _containers(tree: Any) -> list[Any]:  # noqa: ANN401  (JSON is dynamic)
    found = [tree]
    for value in list(tree.values()) if isinstance(tree, dict) else tree:
        if isinstance(value, dict | list):
            found += _containers(value)
    return found


def _change(dice: random.Random, place: Any) -> None:  # noqa: ANN401  (JSON is dynamic)
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    change = dice.randrange(5) if keys else 4
    if change == 0:
        del place[dice.choice(keys)]
    elif change <= 2:
        place[dice.choice(keys)] = _one_of(dice, _JUNK)
    elif change == 3:
        key = dice.choice(keys)
        place[key] = _near(dice, place[key])
    elif isinstance(place, dict):
        key = dice.choice(["x", "sparse", "target", "targetB64", "path", "pathB64", "size", "v", *map(str, keys)])
        place[key] = _one_of(dice, (*_JUNK, *place.values()))
    else:
        place.append(_one_of(dice, (*_JUNK, *place)))


def _one_of(dice: random.Random, values: Sequence[Any]) -> Any:  # noqa: ANN401  (JSON is dynamic)
    # A copy: what is changed later must neither be the junk of the next case nor hold itself.
    return copy.deepcopy(dice.choice(values))


def _near(dice: random.Random, value: Any) -> Any:  # noqa: ANN401  (JSON is dynamic)
    """Return a value like ``value``: the next number, a text with a character changed."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return _one_of(dice, _JUNK)
    if isinstance(value, int):
        return value + dice.choice((-512, -1, 1, 512))
    at = dice.randrange(len(value) + 1)
    return value[:at] + dice.choice(("", "0", "A", "a", "/", "-", "\0", "\n")) + value[at + dice.randrange(2) :]


def _respelled(dice: random.Random, tree: Any) -> bytes:  # noqa: ANN401  (JSON is dynamic)
    kind = dice.randrange(4)
    if kind == 0:
        return json.dumps(tree).encode()
    if kind == 1:
        return json.dumps(tree, sort_keys=True, separators=(",", ":"), indent=0).encode()
    spelled = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    if kind == 2:
        return (spelled[:-1] + "," + spelled[1:]).encode()
    return spelled.replace("a", "\\u0061", 1).encode()
