"""Where memory could reach a disk, or another job: swap, hibernation, core dumps, pages that are not cleared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sandbox.node.doctor.check import Check, judged, unknown
from sandbox.node.doctor.host import Host

_RELEASE = "/proc/sys/kernel/osrelease"


def swap_off(host: Host) -> Check:
    """Check that no swap device is in use."""
    wanted, fix = "no swap in use", "swapoff -a, and remove swap from /etc/fstab (systemctl mask swap.target)"
    table, info = host.text("/proc/swaps"), host.text("/proc/meminfo")
    if table is not None:
        devices = [line.split()[0] for line in table.splitlines()[1:] if line.strip()]
        return judged("swap-off", not devices, ", ".join(devices) or "none", wanted, fix)
    if info is not None and "MemTotal:" in info and "SwapTotal:" not in info:
        return judged("swap-off", True, "a kernel without swap", wanted, fix)
    return unknown("swap-off", "/proc/swaps cannot be read", wanted, "mount /proc, and look at 'swapon --show'")


def zswap_off(host: Host) -> Check:
    """Check that the compressed cache in front of swap is off."""
    seen = host.text("/sys/module/zswap/parameters/enabled")
    wanted, fix = "off", "echo N > /sys/module/zswap/parameters/enabled, and zswap.enabled=0 on the kernel's command line"
    if seen is None:
        return _absent(host, "/sys/module", unknown("zswap-off", "a kernel without zswap", wanted, fix))
    return judged("zswap-off", seen in {"N", "0"}, seen, wanted, fix)


def zram_off(host: Host) -> Check:
    """Check that no compressed block device in memory is set up (it usually carries swap)."""
    wanted, fix = "no zram device with a size", "systemctl disable --now zramswap (or zram-generator), then 'zramctl --reset --all'"
    names = host.names("/sys/block")
    if names is None:
        return unknown("zram-off", "/sys/block cannot be read", wanted, "mount /sys")
    sized = [name for name in names if name.startswith("zram") and host.number(f"/sys/block/{name}/disksize") != 0]
    return judged("zram-off", not sized, ", ".join(sized) or "none", wanted, fix)


def hibernation_off(host: Host) -> Check:
    """Check that the kernel cannot write all of memory to a disk."""
    wanted, fix = "disabled", "nohibernate on the kernel's command line, and systemctl mask hibernate.target hybrid-sleep.target"
    seen = host.text("/sys/power/disk")
    if seen is None:
        return _absent(host, "/sys/power", unknown("hibernation-off", "a kernel without hibernation", wanted, fix))
    return judged("hibernation-off", "[disabled]" in seen, seen, wanted, fix)


def core_pattern(host: Host) -> Check:
    """Check that core dumps are not piped to a program of the host, which the size limit of 0 does not stop."""
    wanted, fix = (
        "a file name, not a pipe",
        "sysctl -w kernel.core_pattern=core (and keep it in /etc/sysctl.d); disable apport or systemd-coredump",
    )
    seen = host.text("/proc/sys/kernel/core_pattern")
    if seen is None:
        return _absent(host, _RELEASE, unknown("core-pattern", "a kernel without core dumps", wanted, fix))
    return judged("core-pattern", not seen.startswith("|"), seen or "(empty)", wanted, fix)


def suid_dumpable(host: Host) -> Check:
    """Check that programs that changed their rights do not dump core."""
    seen = host.number("/proc/sys/fs/suid_dumpable")
    wanted, fix = "0", "sysctl -w fs.suid_dumpable=0, and keep it in /etc/sysctl.d"
    if seen is None:
        return unknown("suid-dumpable", "cannot be read", wanted, fix)
    return judged("suid-dumpable", seen == 0, seen, wanted, fix)


def init_on_alloc(host: Host) -> Check:
    """Check that pages and heap are zeroed before they are handed out."""
    return _auto_init(host, "init-on-alloc", "init_on_alloc", "CONFIG_INIT_ON_ALLOC_DEFAULT_ON")


def init_on_free(host: Host) -> Check:
    """Check that pages and heap are zeroed when they are given back, so that a finished job leaves none in free memory."""
    return _auto_init(host, "init-on-free", "init_on_free", "CONFIG_INIT_ON_FREE_DEFAULT_ON")


def _auto_init(host: Host, name: str, parameter: str, option: str) -> Check:
    """Judge by the command line, which wins, else by how the kernel was built (security/Kconfig.hardening)."""
    wanted, fix = f"{parameter}=1", f"{parameter}=1 on the kernel's command line"
    words = (host.text("/proc/cmdline") or "").split()
    given = [word.partition("=")[2] for word in words if word.startswith(f"{parameter}=")]
    if given:
        return judged(name, given[-1].lower() in {"1", "y", "yes", "on", "true"}, f"{parameter}={given[-1]}", wanted, fix)
    config = kernel_config(host)
    if config is None:
        return unknown(name, "not on the command line, and the kernel's configuration is not there", wanted, fix)
    return judged(
        name, f"{option}=y" in config.splitlines(), f"{option}={'y' if f'{option}=y' in config.splitlines() else 'n'}", wanted, fix
    )


def kernel_config(host: Host) -> str | None:
    """Return the running kernel's build configuration where the host keeps it."""
    found = host.unzipped("/proc/config.gz")
    if found is None and (release := host.text(_RELEASE)) and "/" not in release:
        found = host.text(f"/boot/config-{release}") or host.text(f"/lib/modules/{release}/config")
    return found


def _absent(host: Host, beside: str, check: Check) -> Check:
    """Judge a missing file: with what stands ``beside`` it readable, the kernel has no such thing, which passes; else nothing is known."""
    if host.exists(beside):
        return replace(check, result="pass", fix="")
    return replace(check, seen=f"{beside} cannot be read")


CHECKS: dict[str, Callable[[Host], Check | None]] = {
    "swap-off": swap_off,
    "zswap-off": zswap_off,
    "zram-off": zram_off,
    "hibernation-off": hibernation_off,
    "core-pattern": core_pattern,
    "suid-dumpable": suid_dumpable,
    "init-on-alloc": init_on_alloc,
    "init-on-free": init_on_free,
}
