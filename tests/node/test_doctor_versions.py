import pytest

from sandbox.node.doctor.versions import floors, judge_version, parse_version

RUNC = {"1.2": "1.2.8", "1.3": "1.3.6", "1.5": "1.5.0-rc.3"}


@pytest.mark.parametrize(
    ("older", "newer"),
    [("1.2.7", "1.2.8"), ("1.2.8", "1.2.10"), ("1.5.0-rc.3", "1.5.0-rc.10"), ("1.5.0-rc.3", "1.5.0"), ("580.95.05", "580.178.04")],
)
def test_versions_compare_as_numbers(older, newer):
    assert parse_version(older) < parse_version(newer)


def test_a_text_without_a_version_has_none():
    assert parse_version("no version here") is None


@pytest.mark.parametrize(
    ("text", "packaged", "result"),
    [
        ("runc version 1.2.8", False, "pass"),
        ("runc version 1.2.9", False, "pass"),
        ("runc version 1.2.7", False, "fail"),
        ("runc version 1.3.6", False, "pass"),
        ("runc version 1.1.15", False, "fail"),
        ("runc version 1.1.15", True, "unknown"),
        ("runc version 1.5.0-rc.2", False, "fail"),
        ("runc version 1.5.0", False, "pass"),
        ("runc version 1.6.0", False, "unknown"),
        ("runc version 2.0.0", False, "unknown"),
        ("runc", False, "unknown"),
        ("", False, "unknown"),
    ],
)
def test_a_version_against_its_branch(text, packaged, result):
    assert judge_version("runc-version", text, RUNC, parts=2, packaged=packaged, fix="update").result == result


def test_every_shipped_floor_is_a_version_of_its_branch():
    for known, parts in ((floors().nvidia_driver, 1), (floors().nvidia_container_toolkit, 2), (floors().runc, 2)):
        for branch, version in known.items():
            assert version.split(".")[:parts] == branch.split(".")
            assert parse_version(version)
    assert not set(floors().nvidia_driver) & floors().nvidia_driver_ended
