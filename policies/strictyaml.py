"""Strict YAML: one document, bounded, JSON types only, no duplicate keys, no aliases. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import yaml

from policies.errors import PolicyError, PolicyLimitError
from policies.shape import shape

MAX_DEPTH = 32
MAX_NODES = 20_000
_NAMES = re.compile(r"(\b(?:tag|handle|anchor|alias)) .*", re.DOTALL)
"""What PyYAML quotes at length; of everything else it quotes one character."""
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses what makes two readers disagree: aliases, duplicate keys, keys that are no text."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise PolicyError("aliases are not accepted", rule="strict-yaml", seen=f"line {event.start_mark.line + 1}",
                              wanted="every value written out", fix="replace the alias by the value")  # fmt: skip
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise PolicyLimitError("the document is too deep or has too many values", rule="strict-yaml",
                                   seen=f"depth {self.depth}, {self.nodes} values", wanted=f"depth ≤ {MAX_DEPTH}, ≤ {MAX_NODES} values",
                                   fix="split the document")  # fmt: skip
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> str:
        # An escape such as "\\ud800" makes half a character, which cannot be written as UTF-8 and so not be signed or hashed.
        if _HALF_CHARACTER.search(node.value):
            raise PolicyError(f"line {node.start_mark.line + 1}: half a character (a surrogate)", rule="strict-yaml",
                              seen=shape(node.value), wanted="text that can be written as UTF-8",
                              fix="write the character itself, or its 8-digit escape")  # fmt: skip
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:  # noqa: FBT001, FBT002  (PyYAML's signature)
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            line = key_node.start_mark.line + 1
            if key is None or key_node.tag != "tag:yaml.org,2002:str":
                raise PolicyError(f"line {line}: a key must be text", rule="strict-yaml", seen=shape(key_node.value),
                                  wanted="a text key", fix="put the key into quotes")  # fmt: skip
            if key in seen:
                raise PolicyError(f"line {line}: a key stands twice", rule="strict-yaml", seen=f"a key of {len(key)} characters again",
                                  wanted="each key once", fix="remove one of the two")  # fmt: skip
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# Dates would come out as objects that JSON has no word for; they stay text.
_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge"}]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml(raw: bytes, *, max_bytes: int = 256 * 1024) -> object:
    """Parse one strict YAML document.

    ``raw`` is UTF-8 of at most ``max_bytes``. Returns JSON-like values. Raises ``PolicyError`` (line, what was seen, the fix).
    """
    if len(raw) > max_bytes:
        raise PolicyLimitError("the document is too large", rule="strict-yaml", seen=f"{len(raw)} bytes",
                               wanted=f"≤ {max_bytes} bytes", fix="shorten it")  # fmt: skip
    try:
        loader = _StrictLoader(raw.decode("utf-8"))
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except UnicodeDecodeError as error:
        raise PolicyError("the document is not UTF-8", rule="strict-yaml", seen=f"{shape(raw)}, at {error.start} no UTF-8",
                          wanted="UTF-8 text", fix="save it as UTF-8") from None  # fmt: skip
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        problem = _NAMES.sub(r"\1", getattr(error, "problem", None) or "a value that no reader takes")
        # The cause would show the lines around the place.
        raise PolicyError(f"{place}not valid YAML: {problem}"[:500], rule="strict-yaml", seen=f"{place}{shape(raw)}",
                          wanted="one YAML document", fix="correct the syntax") from None  # fmt: skip


def nearest(key: str, valid: Iterable[str]) -> str:
    """Return a fix for an unknown key: the nearest valid one, or all of them."""
    known = sorted(valid)
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"valid keys here: {', '.join(known)}"
