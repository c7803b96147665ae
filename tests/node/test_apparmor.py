import shutil
import subprocess
from importlib.resources import files

import pytest

from sandbox.node import apparmor

TEXT = files("sandbox.node").joinpath("apparmor.profile").read_text(encoding="utf-8")


@pytest.fixture
def host(tmp_path):
    enabled, loaded = tmp_path / "enabled", tmp_path / "profiles"
    enabled.write_text("Y\n")
    loaded.write_text("docker-default (enforce)\nsealrig-job (enforce)\n")
    return {"enabled": enabled, "loaded": loaded}


def test_our_profile_is_used_where_it_loads(host, monkeypatch):
    monkeypatch.setattr(apparmor, "_load", lambda: "")
    assert apparmor.profile_for_jobs(engine_confines=True, **host)[0] == "sealrig-job"


def test_the_engines_is_used_and_said_so_where_ours_does_not_load(host, monkeypatch):
    monkeypatch.setattr(apparmor, "_load", lambda: "no parser")
    name, why = apparmor.profile_for_jobs(engine_confines=True, **host)
    assert name == "docker-default"
    assert "no parser" in why


def test_a_profile_that_only_complains_does_not_count(host, monkeypatch):
    monkeypatch.setattr(apparmor, "_load", lambda: "")
    host["loaded"].write_text("sealrig-job (complain)\nnot-sealrig-job (enforce)\n")
    assert apparmor.profile_for_jobs(engine_confines=True, **host)[0] == "docker-default"


@pytest.mark.parametrize("engine", [True, False])
def test_without_apparmor_it_says_none(host, engine):
    host["enabled"].write_text("N\n" if engine else "Y\n")
    assert apparmor.profile_for_jobs(engine_confines=engine, **host) == ("", "this host has no AppArmor")


def test_loading_without_a_parser_says_why(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert apparmor._load() == "FileNotFoundError"


def test_the_profile_grants_no_capability_mount_or_trace():
    rules = [line.split("#")[0].strip() for line in TEXT.splitlines()]
    assert not [rule for rule in rules if rule.startswith(("capability", "mount", "ptrace", "pivot_root", "change_profile", "userns"))]
    assert f"profile {apparmor.PROFILE} " in TEXT


@pytest.mark.skipif(shutil.which("apparmor_parser") is None, reason="needs apparmor_parser")
def test_the_profile_compiles(tmp_path):
    path = tmp_path / "profile"
    path.write_text(TEXT)
    subprocess.run(["apparmor_parser", "--skip-kernel-load", "--skip-cache", str(path)], check=True, capture_output=True)
