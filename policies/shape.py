"""What was seen, said without showing it: any file may be a secret in a wrong place, and errors are printed, logged and sent.

A bad value is told by its kind and size, a place in a document by the words of its format. ``attestation`` and ``policies``, of which
neither imports the other, each have this module, the same to the letter.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from pydantic import BaseModel

_SHORT = 10_000
"""Numbers below are shown: counts and ports, not keys."""
_MARKS = (
    (re.compile(r'"type":\s*"sealrig-identity"'), "the secret part of an identity"),
    (re.compile(r"^sealrig_"), "a token"),
    (re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY"), "a private key (PEM)"),
    (re.compile(r"AGE-SECRET-KEY-"), "a private key (age)"),
)
_KEYS = (
    (frozenset({"data", "protection", "type", "v"}), "the secret part of an identity"),
    (frozenset({"secret_access_key"}), "credentials of a store"),
    (frozenset({"token"}), "settings with a token"),
)


def secret_kind(value: object) -> str | None:
    """Return which kind of secret a file's bytes, text or parsed tree are by their marks, or None."""
    if isinstance(value, Mapping):
        return next((kind for keys, kind in _KEYS if keys <= value.keys()), None)
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    return next((kind for mark, kind in _MARKS if mark.search(text)), None) if isinstance(text, str) else None


def shape(value: object) -> str:
    """Return what kind of value this is and how large, without a part of it."""
    kind = secret_kind(value)
    return f"{kind}: {_plain(value)}" if kind else _plain(value)


def _plain(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) < _SHORT):
        return str(value).lower()
    if isinstance(value, int):
        return "a large number"
    if isinstance(value, str):
        return f"text of {len(value)} characters" if value else "empty text"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, Mapping):
        return f"a mapping with {len(value)} keys"
    if isinstance(value, (list, tuple, set, frozenset)):
        return f"a list of {len(value)} values"
    return "a fraction" if isinstance(value, float) else type(value).__name__


def place_of(model: type[BaseModel], loc: Sequence[int | str], *, nearly: Iterable[str] = ()) -> str:
    """Return a place in a document: positions, the format's own words and what is ``nearly`` one of these, ``*`` for other keys."""
    known = schema_words(model)
    shown = (isinstance(part, int) or part in known or _is_near(part, nearly) for part in loc)
    return ".".join(str(part) if show else "*" for part, show in zip(loc, shown, strict=True))


def unknown_key(key: str, known: Iterable[str]) -> str:
    """Return a key that the format does not have if it is nearly one of its own, else its shape."""
    return key if _is_near(key, known) else f"a key of {len(key)} characters"


def _is_near(key: str, known: Iterable[str]) -> bool:
    return bool(difflib.get_close_matches(key, list(known), n=1))


@cache
def schema_words(model: type[BaseModel]) -> frozenset[str]:
    """Return all field names of a model and of those inside it, as they stand in files and in errors."""
    words: set[str] = set()
    waiting, met = [model], {model}
    while waiting:
        for name, field in waiting.pop().model_fields.items():
            words |= {name, field.alias or name}
            inside = set(_models_in(field.annotation)) - met
            met |= inside
            waiting += inside
    return frozenset(words)


def _models_in(annotation: object) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models_in(part)
