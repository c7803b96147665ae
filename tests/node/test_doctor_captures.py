"""The doctor on hosts as they were captured: whole ones, and what others have published of theirs."""

from __future__ import annotations

import json

import pytest

from sandbox.node.doctor import Host, run_checks
from sandbox.node.engine import engine_facts
from tests.node.doctor_hosts import CAPTURES, captured
from tests.node.test_doctor import NOW, expect, plant

WHOLE = {"debian-13"}
PUBLISHED = {
    "debian-11": ("pass", "fail", "apparmor"),
    "debian-12": ("pass", "fail", "apparmor"),
    "ubuntu-22.04": ("pass", "fail", "apparmor"),
    "ubuntu-24.04": ("pass", "fail", "apparmor"),
    "rocky-8": ("fail", "fail", "selinux"),
    "rhel-9": ("fail", "fail", "selinux"),
    "fedora-39": ("fail", "fail", "selinux"),
    "sles-15": ("fail", "fail", ""),
    "rhel-7": ("fail", "fail", ""),
}


def test_every_capture_is_used_and_says_where_it_comes_from():
    assert {path.stem for path in CAPTURES.iterdir()} == WHOLE | set(PUBLISHED)
    assert all(path.read_text().startswith("# Captured ") for path in CAPTURES.iterdir())


def test_debian_13_with_cgroup_v2_and_apparmor(tmp_path):
    files, said = captured("debian-13")
    facts = engine_facts(json.loads(said["GET /info"]), json.loads(said["GET /version"]))
    assert (facts.version, facts.api_version, facts.cgroup_version, facts.cdi) == ("26.1.5+dfsg1", "1.45", "2", False)
    assert facts.apparmor
    checks = {check.id: check for check in run_checks(Host(plant(tmp_path, files), said), facts=facts, now=NOW)}
    # What the doctor itself said on that machine.
    expect(
        checks, swap_off="pass", zswap_off="pass", zram_off="pass", hibernation_off="fail", core_pattern="pass", suid_dumpable="pass",
        init_on_alloc="pass", init_on_free="fail", ptrace_scope="fail", unprivileged_userns="fail", unprivileged_bpf="pass",
        dmesg_restrict="pass", kptr_restrict="fail", perf_event_paranoid="pass", address_randomisation="pass", cpu_mitigations="pass",
        smt_off="pass", mandatory_access_control="pass", cgroup_limits="pass", aes_instructions="pass", kernel_aes="pass",
        secure_boot="fail", lockdown="fail", module_signatures="fail", kexec_disabled="fail", kernel_taint="pass", kernel_cmdline="pass",
        iommu_strict="fail", runc_version="unknown", engine_answers="pass", engine_seccomp="pass", engine_cgroup="pass",
    )  # fmt: skip
    assert checks["cgroup-limits"].seen == "v2: memory, pids"
    assert checks["cpu-mitigations"].seen == "17 flaws, all mitigated or absent"
    assert checks["lockdown"].seen == "[none] integrity confidentiality"
    assert "a distribution's package" in checks["runc-version"].seen


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_others_published_of_theirs(tmp_path, name):
    files, said = captured(name)
    checks = {check.id: check for check in run_checks(Host(plant(tmp_path, files), said), facts=None, now=NOW)}
    on_alloc, on_free, control = PUBLISHED[name]
    expect(checks, init_on_alloc=on_alloc, init_on_free=on_free)
    assert control in checks["mandatory-access-control"].seen
    assert checks["runc-version"].result == checks["cpu-mitigations"].result == "unknown"
