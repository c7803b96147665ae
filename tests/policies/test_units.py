import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.units import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("17", 17),
        (17, 17),
        ("1Ki", 1024),
        ("4Gi", 4 * 2**30),
        ("1.5Gi", 3 * 2**29),
        ("2G", 2 * 10**9),
        ("0.001Ki", 1),
        ("3Pi", 3 * 2**50),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("bad", ["", "-1", -1, True, 1.5, "1 Gi", "1gi", "Gi", "1.2345Gi", "1e9", "9" * 16, None, [], "٣Gi"])
def test_what_is_no_size_is_refused(bad):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(bad)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("24h", 86400), ("7d", 604800), (5, 5)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("bad", ["", "5", "-5s", -5, True, 1.0, "1w", "1h30m", "1 h", None])
def test_what_is_no_duration_is_refused(bad):
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(bad)


@given(st.integers(0, 2**60))
def test_any_size_can_be_shown(count):
    assert format_size(count)


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**29, "1.5 GiB"), (2**40, "1.0 TiB")])
def test_sizes_for_people(count, text):
    assert format_size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59.9, "59s"), (5400, "1h 30m"), (90061, "1d 1h 1m 1s")])
def test_durations_for_people(seconds, text):
    assert format_duration(seconds) == text
