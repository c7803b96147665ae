import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.errors import PolicyError, PolicyLimitError
from policies.strictyaml import MAX_DEPTH, MAX_NODES, load_yaml, nearest

# Characters that YAML reads as themselves between double quotes: no controls, no line breaks.
TEXT = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


@given(JSON)
def test_json_is_read_as_it_is(tree):
    assert load_yaml(json.dumps(tree, ensure_ascii=False).encode()) == tree


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"a: 1\na: 2\n", "stands twice"),
        (b"a: {b: 1, b: 2}\n", "stands twice"),
        (b"a: &x 1\nb: *x\n", "aliases"),
        (b"a: &x [*x]\n", "aliases"),
        (b"1: a\n", "must be text"),
        (b"? [a]\n: b\n", "must be text"),
        (b"true: a\n", "must be text"),
        (b"a: 1\n---\nb: 2\n", "not valid YAML"),
        (b"a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        (b"a: [1\n", "not valid YAML"),
        (b"\xff\xfe", "not UTF-8"),
        (b"a: \x00", "not valid YAML"),
        (b'a: "\\ud800"', "half a character"),
        (b'"\\udfff": a', "half a character"),
    ],
)
def test_what_two_readers_could_read_differently_is_refused(raw, word):
    with pytest.raises(PolicyError, match=word) as caught:
        load_yaml(raw)
    assert {"rule", "seen", "wanted", "fix"} <= set(caught.value.details)


def test_dates_and_merge_keys_stay_text():
    assert load_yaml(b"a: 2026-01-01\nb: {'<<': {c: 1}}\n") == {"a": "2026-01-01", "b": {"<<": {"c": 1}}}


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b"[" * 20_000,
        b"[" + b"1," * MAX_NODES + b"]",
        b"#" * 300_000,
    ],
)
def test_bounds(raw):
    with pytest.raises(PolicyError) as caught:
        load_yaml(raw)
    assert isinstance(caught.value, PolicyLimitError)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw):
    try:
        json.dumps(load_yaml(raw))
    except PolicyError:
        return
    except TypeError:
        pytest.fail("a value that JSON has no word for")


def test_nearest_names_one_or_all():
    assert nearest("imagess", ["images", "rules"]) == "did you mean 'images'?"
    assert nearest("zzz", ["images", "rules"]) == "valid keys here: images, rules"
