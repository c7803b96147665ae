"""What a process on this host may see and reach through the kernel, and what its limits rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sandbox.node.doctor.check import Check, judged, unknown
from sandbox.node.doctor.host import Host

_SYSCTL = "/proc/sys/kernel"
_VULNERABILITIES = "/sys/devices/system/cpu/vulnerabilities"


def _sysctl(name: str, key: str, least: int, why_absent: str | None = None) -> Callable[[Host], Check]:
    """Return a check that ``kernel.<key>`` is at least ``least``; ``why_absent`` says that a missing key is a pass, and why."""

    def check(host: Host) -> Check:
        path = f"{_SYSCTL}/{key.replace('.', '/')}"
        wanted, fix = f"≥ {least}", f"sysctl -w kernel.{key}={least}, and keep it in /etc/sysctl.d"
        seen = host.number(path)
        if seen is not None:
            return judged(name, seen >= least, seen, wanted, fix)
        if why_absent and host.exists(f"{_SYSCTL}/osrelease") and not host.exists(path):
            return judged(name, True, why_absent, wanted, fix)
        return unknown(name, "cannot be read", wanted, fix)

    return check


def ptrace_scope(host: Host) -> Check:
    """Check that processes of one user cannot read each other's memory at will."""
    wanted = "≥ 1"
    seen = host.number(f"{_SYSCTL}/yama/ptrace_scope")
    if seen is None and host.exists(f"{_SYSCTL}/osrelease"):
        return judged("ptrace-scope", False, "a kernel without Yama", wanted, "boot a kernel with Yama (lsm=…,yama)")
    if seen is None:
        return unknown("ptrace-scope", "cannot be read", wanted, "mount /proc")
    return judged("ptrace-scope", seen >= 1, seen, wanted, "sysctl -w kernel.yama.ptrace_scope=1, and keep it in /etc/sysctl.d")


def unprivileged_userns(host: Host) -> Check:
    """Check that ordinary users cannot make user namespaces, in which they hold every capability."""
    wanted = "off for ordinary users"
    fix = "sysctl -w user.max_user_namespaces=0 (or kernel.unprivileged_userns_clone=0, kernel.apparmor_restrict_unprivileged_userns=1)"
    closed = {
        "user.max_user_namespaces": host.number("/proc/sys/user/max_user_namespaces") == 0,
        "kernel.unprivileged_userns_clone": host.number(f"{_SYSCTL}/unprivileged_userns_clone") == 0,
        "kernel.apparmor_restrict_unprivileged_userns": host.number(f"{_SYSCTL}/apparmor_restrict_unprivileged_userns") == 1,
    }
    by = [name for name, holds in closed.items() if holds]
    if by:
        return judged("unprivileged-userns", True, f"closed by {by[0]}", wanted, fix)
    if host.exists("/proc/sys/user/max_user_namespaces"):
        return judged("unprivileged-userns", False, "open", wanted, fix)
    return unknown("unprivileged-userns", "cannot be read", wanted, fix)


def cpu_mitigations(host: Host) -> Check:
    """Check that every processor flaw that the kernel knows is mitigated or absent."""
    wanted, fix = "none vulnerable", "update kernel and microcode, and remove mitigations=off from the kernel's command line"
    names = host.names(_VULNERABILITIES)
    if not names:
        return unknown("cpu-mitigations", f"{_VULNERABILITIES} cannot be read", wanted, "boot a kernel that reports them")
    states = {name: host.text(f"{_VULNERABILITIES}/{name}") or "Unknown" for name in names}
    open_ = [f"{name}: {state}" for name, state in states.items() if state.removeprefix("KVM: ").startswith("Vulnerable")]
    dark = [f"{name}: {state}" for name, state in states.items() if state.startswith("Unknown")]
    if open_ or not dark:
        return judged("cpu-mitigations", not open_, "; ".join(open_) or f"{len(states)} flaws, all mitigated or absent", wanted, fix)
    return unknown("cpu-mitigations", "; ".join(dark), wanted, fix)


def smt(host: Host) -> Check:
    """Check that no two jobs can share a core's two threads."""
    wanted, fix = "off", "nosmt on the kernel's command line, or echo off > /sys/devices/system/cpu/smt/control"
    seen = host.text("/sys/devices/system/cpu/smt/control")
    if seen is None:
        return unknown("smt-off", "cannot be read", wanted, fix)
    if seen == "notimplemented":  # the firmware or hypervisor hides the topology; on a virtual machine its threads may still be shared
        return unknown("smt-off", seen, wanted, "ask whoever runs the hypervisor")
    return judged("smt-off", seen in {"off", "forceoff", "notsupported"}, seen, wanted, fix)


def mandatory_access_control(host: Host) -> Check:
    """Check that AppArmor or SELinux is there to confine containers."""
    wanted, fix = "apparmor or selinux", "boot with apparmor (lsm=…,apparmor) or selinux"
    active = set((host.text("/sys/kernel/security/lsm") or "").split(","))
    if host.text("/sys/module/apparmor/parameters/enabled") == "Y":
        active.add("apparmor")
    enforcing = host.text("/sys/fs/selinux/enforce")
    if enforcing == "1":
        active.add("selinux")
    elif enforcing == "0":
        active.discard("selinux")
    found = sorted(active & {"apparmor", "selinux"})
    if not found and not host.exists("/sys/kernel/security/lsm") and not host.exists("/sys/module"):
        return unknown("mandatory-access-control", "cannot be read", wanted, fix)
    return judged("mandatory-access-control", bool(found), ", ".join(found) or "none", wanted, fix)


def cgroup_limits(host: Host) -> Check:
    """Check that the kernel can limit memory together with swap, and processes (cgroup v1 and v2)."""
    wanted, fix = "limits on memory, swap and processes", "boot with cgroup_enable=memory swapaccount=1"
    controllers = host.text("/sys/fs/cgroup/cgroup.controllers")
    if controllers is not None:
        have = set(controllers.split())
        missing = sorted({"memory", "pids"} - have)
        return judged("cgroup-limits", not missing, f"v2, without {', '.join(missing)}" if missing else "v2: memory, pids", wanted, fix)
    if host.exists("/sys/fs/cgroup/memory"):
        swap = host.exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
        pids = host.exists("/sys/fs/cgroup/pids")
        parts = [name for name, there in (("memory", True), ("swap", swap), ("pids", pids)) if there]
        return judged("cgroup-limits", swap and pids, f"v1: {', '.join(parts)}", wanted, fix)
    return unknown("cgroup-limits", "no cgroup file system at /sys/fs/cgroup", wanted, "mount it")


def aes_instructions(host: Host) -> Check:
    """Check that the processor encrypts scratch and bundles in hardware; without, both are many times slower."""
    wanted, fix = "aes", "use a processor with AES instructions, or let the hypervisor pass them on"
    lines = (host.text("/proc/cpuinfo") or "").splitlines()
    flags = {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.partition(":")[2].split()}
    if not flags:
        return unknown("aes-instructions", "cannot be read", wanted, fix)
    return judged("aes-instructions", "aes" in flags, "aes" if "aes" in flags else "no aes", wanted, fix)


def kernel_aes(host: Host) -> Check:
    """Check that the kernel encrypts disks with the processor's instructions, not in software."""
    name, wanted = "kernel-aes", "a driver that uses the processor (aesni, vaes, ce)"
    fix = "load aesni_intel (or aes_ce), or boot a kernel that has it; scratch on disk is slow without"
    text = host.text("/proc/crypto")
    if text is None:
        return unknown(name, "cannot be read", wanted, fix)
    entries = [dict(_fields(block)) for block in text.split("\n\n")]
    drivers = [entry.get("driver", "") for entry in entries if entry.get("name") == "xts(aes)"]
    if not drivers:
        return unknown(name, "xts(aes) is not in use yet, so the kernel does not tell", wanted, fix)
    fast = [driver for driver in drivers if any(word in driver for word in ("aesni", "vaes", "-ce", "avx"))]
    return judged(name, bool(fast), ", ".join(fast or drivers), wanted, fix)


def _fields(block: str) -> Iterator[tuple[str, str]]:
    for line in block.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            yield key.strip(), value.strip()


CHECKS: dict[str, Callable[[Host], Check | None]] = {
    "ptrace-scope": ptrace_scope,
    "unprivileged-userns": unprivileged_userns,
    "unprivileged-bpf": _sysctl("unprivileged-bpf", "unprivileged_bpf_disabled", 1),
    "dmesg-restrict": _sysctl("dmesg-restrict", "dmesg_restrict", 1),
    "kptr-restrict": _sysctl("kptr-restrict", "kptr_restrict", 1),
    # The kernel's documentation names the file's absence as the sign that there are no performance events.
    "perf-event-paranoid": _sysctl("perf-event-paranoid", "perf_event_paranoid", 2, "a kernel without performance events"),
    "address-randomisation": _sysctl("address-randomisation", "randomize_va_space", 2),
    "cpu-mitigations": cpu_mitigations,
    "smt-off": smt,
    "mandatory-access-control": mandatory_access_control,
    "cgroup-limits": cgroup_limits,
    "aes-instructions": aes_instructions,
    "kernel-aes": kernel_aes,
}
