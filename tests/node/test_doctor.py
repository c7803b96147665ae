import gzip
from datetime import UTC, datetime

import pytest

from policies.loader import PROFILES, load_profile
from sandbox.node.doctor import HOST_CHECKS, Host, all_ids, run_checks
from sandbox.node.engine import EngineFacts
from tests.node import doctor_hosts as hosts

NOW = datetime(2026, 11, 1, tzinfo=UTC)
DOCKER = EngineFacts("20.10.24", "1.41", ("runc",), "1", ("name=seccomp,profile=default",), cdi=False)


def plant(root, files):
    for path, content in files.items():
        place = root / path.lstrip("/")
        if path.endswith("/"):
            place.mkdir(parents=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        raw = content if isinstance(content, bytes) else content.encode()
        place.write_bytes(gzip.compress(raw.removeprefix(b"gzip:")) if path.endswith(".gz") else raw)
    return root


def results(tmp_path, files, tools, **more):
    checks = run_checks(Host(plant(tmp_path, files), tools), facts=DOCKER, now=NOW, **more)
    return {check.id: check for check in checks}


def expect(checks, **wanted):
    seen = {name: checks[name.replace("_", "-")].result for name in wanted}
    assert seen == wanted, {name: checks[name.replace("_", "-")].seen for name in wanted}


def test_a_captured_micro_vm_with_cgroup_v1(tmp_path):
    checks = results(tmp_path, hosts.BARE_VM_V1, hosts.BARE_VM_V1_TOOLS)
    expect(
        checks, swap_off="pass", zswap_off="pass", zram_off="pass", hibernation_off="pass", core_pattern="pass", suid_dumpable="pass",
        init_on_alloc="fail", init_on_free="fail", ptrace_scope="fail", unprivileged_userns="fail", unprivileged_bpf="pass",
        dmesg_restrict="pass", kptr_restrict="fail", perf_event_paranoid="pass", address_randomisation="pass", cpu_mitigations="fail",
        smt_off="pass", mandatory_access_control="fail", cgroup_limits="pass", aes_instructions="pass", kernel_aes="fail",
        secure_boot="fail",
        lockdown="unknown", module_signatures="pass", kexec_disabled="pass", kernel_taint="pass", kernel_cmdline="pass",
        iommu_strict="fail", runc_version="unknown", engine_answers="pass", engine_seccomp="pass", engine_cgroup="pass",
        version_floors_age="pass",
    )  # fmt: skip
    assert checks["cgroup-limits"].seen == "v1: memory, swap, pids"
    assert not [name for name in checks if name.startswith("nvidia")]


def test_ubuntu_24_04_with_cgroup_v2(tmp_path):
    checks = results(tmp_path, hosts.UBUNTU_2404, hosts.UBUNTU_2404_TOOLS)
    expect(
        checks, swap_off="fail", zram_off="fail", hibernation_off="fail", core_pattern="fail", suid_dumpable="fail", init_on_alloc="pass",
        init_on_free="fail", ptrace_scope="pass", unprivileged_userns="pass", cpu_mitigations="pass", smt_off="fail",
        mandatory_access_control="pass", cgroup_limits="pass", kernel_aes="pass",
        secure_boot="pass", lockdown="pass", module_signatures="fail",
        kexec_disabled="fail", iommu_strict="fail", runc_version="unknown",
    )  # fmt: skip
    assert checks["iommu-strict"].seen == "2 DMA-FQ"
    assert checks["swap-off"].seen == "/swap.img"
    assert "apparmor_restrict" in checks["unprivileged-userns"].seen


def test_rhel_9(tmp_path):
    checks = results(tmp_path, hosts.RHEL_9, hosts.RHEL_9_TOOLS)
    expect(
        checks, swap_off="fail", zswap_off="pass", hibernation_off="pass", core_pattern="fail", dmesg_restrict="fail", ptrace_scope="fail",
        mandatory_access_control="pass", secure_boot="fail", lockdown="fail", module_signatures="pass", iommu_strict="fail",
        cpu_mitigations="unknown", kernel_aes="unknown", smt_off="pass", init_on_alloc="fail", runc_version="unknown",
    )  # fmt: skip


def test_a_gpu_node(tmp_path):
    checks = results(tmp_path, hosts.H100_NODE, hosts.H100_NODE_TOOLS)
    expect(
        checks, swap_off="pass", init_on_free="pass", kernel_taint="pass", iommu_strict="pass", runc_version="pass",
        nvidia_driver_version="pass", nvidia_container_toolkit_version="pass", nvidia_scrub_on_free="pass",
        nvidia_system_memory_cleared="pass", nvidia_profiling_admin_only="pass", nvidia_no_suspend_dump="fail", nvidia_module_signed="pass",
    )  # fmt: skip
    assert "/var/tmp" in checks["nvidia-no-suspend-dump"].seen


def params(**changes):
    text = hosts.NVIDIA_PARAMS
    for name, value in changes.items():
        lines = [line for line in text.splitlines() if not line.startswith(f"{name}:")]
        text = "\n".join(lines + ([f"{name}: {value}"] if value is not None else []))
    return {"/proc/driver/nvidia/params": text}


@pytest.mark.parametrize(
    ("change", "name", "result"),
    [
        (params(RegistryDwords='"RMDisableScrubOnFree=1"'), "nvidia-scrub-on-free", "fail"),
        (params(RegistryDwords='"Other=1;rmdisablescrubonfree=0x1"'), "nvidia-scrub-on-free", "fail"),
        (params(RegistryDwordsPerDevice='"pci=0000:18:00.0;RMDisableScrubOnFree=1"'), "nvidia-scrub-on-free", "fail"),
        (params(RegistryDwords='"RMDisableScrubOnFree=0"'), "nvidia-scrub-on-free", "pass"),
        (params(RegistryDwords=None), "nvidia-scrub-on-free", "unknown"),
        (params(InitializeSystemMemoryAllocations="0"), "nvidia-system-memory-cleared", "fail"),
        (params(RmProfilingAdminOnly="0"), "nvidia-profiling-admin-only", "fail"),
        (params(RmProfilingAdminOnly=None), "nvidia-profiling-admin-only", "unknown"),
        (params(PreserveVideoMemoryAllocations="0"), "nvidia-no-suspend-dump", "pass"),
        ({"/sys/power/state": "\n"}, "nvidia-no-suspend-dump", "pass"),
        ({"/sys/module/nvidia/taint": "POE"}, "nvidia-module-signed", "fail"),
        ({"/sys/module/nvidia/version": "580.95.05"}, "nvidia-driver-version", "fail"),
        ({"/sys/module/nvidia/version": "535.247.01"}, "nvidia-driver-version", "fail"),
        ({"/sys/module/nvidia/version": "630.10.01"}, "nvidia-driver-version", "unknown"),
        ({"/sys/module/nvidia/version": ""}, "nvidia-driver-version", "unknown"),
        ({"/proc/sys/kernel/tainted": "12289"}, "kernel-taint", "fail"),
        ({"/proc/cmdline": "quiet mitigations=off"}, "kernel-cmdline", "fail"),
        ({"/proc/cmdline": "init_on_free=1 init_on_free=0"}, "init-on-free", "fail"),
        ({"/proc/sys/user/max_user_namespaces": "0"}, "unprivileged-userns", "pass"),
        ({"/sys/fs/selinux/enforce": "0", "/sys/kernel/security/lsm": "capability,selinux", "/sys/module/apparmor/parameters/enabled": "N"},
         "mandatory-access-control", "fail"),
        ({"/sys/fs/cgroup/cgroup.controllers": "cpu io"}, "cgroup-limits", "fail"),
        ({"/proc/cpuinfo": "Features\t: fp asimd aes pmull"}, "aes-instructions", "pass"),
        ({"/proc/cpuinfo": "flags\t: fpu"}, "aes-instructions", "fail"),
        ({"/sys/devices/system/cpu/smt/control": "notimplemented"}, "smt-off", "unknown"),
        ({"/proc/sys/kernel/kptr_restrict": "rubbish"}, "kptr-restrict", "unknown"),
        ({"/proc/sys/kernel/modules_disabled": "1"}, "module-signatures", "pass"),
    ],
)  # fmt: skip
def test_one_change_on_a_gpu_node(tmp_path, change, name, result):
    check = results(tmp_path, hosts.H100_NODE | change, hosts.H100_NODE_TOOLS)[name]
    assert check.result == result, check
    assert bool(check.fix) == (result != "pass")


@pytest.mark.parametrize("files", [hosts.BARE_VM_V1, hosts.UBUNTU_2404, hosts.RHEL_9, hosts.H100_NODE])
def test_each_check_names_what_was_seen_and_wanted(tmp_path, files):
    for check in results(tmp_path, files, {}).values():
        assert check.seen, check
        assert check.wanted, check


def test_with_nothing_readable_nothing_passes(tmp_path):
    checks = run_checks(Host(tmp_path, {}), facts=None, now=NOW)
    assert {check.id: check.result for check in checks if check.result == "pass"} == {"version-floors-age": "pass"}
    assert len(checks) >= len(HOST_CHECKS) - 8


def test_a_check_that_breaks_is_unknown_and_hides_no_other(tmp_path, monkeypatch):
    def broken(_host):
        raise RuntimeError

    monkeypatch.setitem(HOST_CHECKS, "swap-off", broken)
    checks = results(tmp_path, hosts.RHEL_9, {})
    assert checks["swap-off"].result == "unknown"
    assert checks["smt-off"].result == "pass"


def test_the_list_of_floors_grows_old():
    late = datetime(2027, 3, 1, tzinfo=UTC)
    (check,) = [check for check in run_checks(Host(outputs={}), now=late) if check.id == "version-floors-age"]
    assert check.result == "unknown"


def test_every_profile_demands_checks_that_exist():
    for name in PROFILES:
        assert set(load_profile(name).policy.spec.posture.require) <= set(all_ids())


def test_ids_are_unique_and_told_in_full(tmp_path):
    checks = run_checks(Host(plant(tmp_path, hosts.H100_NODE), hosts.H100_NODE_TOOLS), facts=DOCKER, now=NOW)
    assert [check.id for check in checks] == list(all_ids())


def test_this_very_host_can_be_examined():
    checks = run_checks(now=NOW)
    assert {check.result for check in checks} <= {"pass", "fail", "unknown"}
    assert len(checks) > 20


def test_a_tool_that_fails_or_is_missing_gives_nothing():
    assert Host().output("false") is None
    assert Host().output("no-such-tool-here", "--version") is None


def test_a_damaged_or_endless_gzip_file_is_bounded(tmp_path):
    plant(tmp_path, {"/a.gz": b"\0" * 50_000_000})
    (tmp_path / "b.gz").write_bytes(b"no gzip")
    assert len(Host(tmp_path).unzipped("/a.gz")) <= 1024 * 1024
    assert Host(tmp_path).unzipped("/b.gz") is None
