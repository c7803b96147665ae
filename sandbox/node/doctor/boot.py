"""What was booted, and whether root can still change it: Secure Boot, lockdown, modules, kexec, command line, IOMMU."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from sandbox.node.doctor.check import Check, judged, unknown
from sandbox.node.doctor.host import Host

_SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_SYSCTL = "/proc/sys/kernel"
_WEAKENING = frozenset({
    "mitigations=off", "nokaslr", "nosmep", "nosmap", "nopti", "pti=off", "nospectre_v1", "nospectre_v2", "spectre_v2=off", "mds=off",
    "tsx_async_abort=off", "l1tf=off", "retbleed=off", "init_on_alloc=0", "init_on_free=0", "iommu=off", "intel_iommu=off",
    "amd_iommu=off", "iommu=pt", "iommu.passthrough=1", "iommu.strict=0", "lockdown=none", "module.sig_enforce=0", "apparmor=0",
    "selinux=0", "norandmaps", "vsyscall=emulate", "systemd.debug-shell", "efi=disable_early_pci_dma",
})  # fmt: skip
# Documentation/admin-guide/tainted-kernels: what a sound kernel never has. Proprietary (1) and out-of-tree (4096) modules are
# how NVIDIA's driver is built, so those two alone are no fault; their signature is.
_TAINTS = {2: "a module was forced in", 4: "unsuited to the processor", 8: "a module was forced out", 16: "machine check", 32: "bad page",
           64: "asked for by a user", 128: "the kernel died once", 256: "ACPI table overridden", 8192: "an unsigned module",
           32768: "live-patched", 131072: "in-kernel test"}  # fmt: skip


def secure_boot(host: Host) -> Check:
    """Check that the firmware checked what it started."""
    wanted, fix = "on", "enable Secure Boot in the firmware; a machine started by BIOS has none"
    raw = host.raw(_SECURE_BOOT)
    if raw is not None and len(raw) == 5:  # four bytes of attributes, one of value (UEFI 2.10, 32.3)
        return judged("secure-boot", raw[4] == 1, "on" if raw[4] == 1 else "off", wanted, fix)
    if raw is None and host.exists("/sys/firmware") and not host.exists("/sys/firmware/efi"):
        return judged("secure-boot", False, "not started by UEFI", wanted, fix)
    return unknown("secure-boot", "the variable cannot be read", wanted, "mount efivarfs at /sys/firmware/efi/efivars")


def lockdown(host: Host) -> Check:
    """Check that root cannot read or patch the running kernel."""
    wanted, fix = (
        "integrity or confidentiality",
        "lockdown=integrity on the kernel's command line (Secure Boot turns it on in many distributions)",
    )
    seen = host.text("/sys/kernel/security/lockdown")
    if seen is None:
        return unknown(
            "lockdown", "cannot be read", wanted, "mount securityfs at /sys/kernel/security; a kernel without lockdown has no such file"
        )
    return judged("lockdown", "[integrity]" in seen or "[confidentiality]" in seen, seen, wanted, fix)


def module_signatures(host: Host) -> Check:
    """Check that only signed kernel modules load, or none at all any more."""
    wanted, fix = "enforced, or loading disabled", "module.sig_enforce=1 on the kernel's command line"
    enforced = host.text("/sys/module/module/parameters/sig_enforce")
    if host.number(f"{_SYSCTL}/modules_disabled") == 1:
        return judged("module-signatures", True, "loading is disabled", wanted, fix)
    if enforced is not None:
        return judged("module-signatures", enforced in {"Y", "1"}, f"sig_enforce={enforced}", wanted, fix)
    if not host.exists("/proc/modules") and host.exists("/proc/cmdline"):
        return judged("module-signatures", True, "a kernel without loadable modules", wanted, fix)
    if host.exists("/proc/modules"):
        return judged("module-signatures", False, "a kernel that does not check signatures", wanted, "boot a kernel with CONFIG_MODULE_SIG")
    return unknown("module-signatures", "cannot be read", wanted, fix)


def kexec_disabled(host: Host) -> Check:
    """Check that another kernel cannot be started from this one, past the firmware."""
    wanted, fix = "1", "sysctl -w kernel.kexec_load_disabled=1, and keep it in /etc/sysctl.d"
    seen = host.number(f"{_SYSCTL}/kexec_load_disabled")
    if seen is not None:
        return judged("kexec-disabled", seen == 1, seen, wanted, fix)
    if host.exists(f"{_SYSCTL}/osrelease"):
        return judged("kexec-disabled", True, "a kernel without kexec", wanted, fix)
    return unknown("kexec-disabled", "cannot be read", wanted, fix)


def kernel_taint(host: Host) -> Check:
    """Check that nothing happened to the running kernel that makes it another than the one that was built."""
    wanted, fix = "none but a signed out-of-tree module", "find the module in 'dmesg' and sign or remove it; reboot clears the rest"
    seen = host.number(f"{_SYSCTL}/tainted")
    if seen is None:
        return unknown("kernel-taint", "cannot be read", wanted, fix)
    found = [name for bit, name in _TAINTS.items() if seen & bit]
    return judged("kernel-taint", not found, f"{seen}: {', '.join(found) or 'nothing of weight'}", wanted, fix)


def kernel_cmdline(host: Host) -> Check:
    """Check that the command line switches no protection off; show its digest to compare nodes by."""
    wanted = "no word that switches a protection off"
    text = host.text("/proc/cmdline")
    if text is None:
        return unknown("kernel-cmdline", "cannot be read", wanted, "mount /proc")
    digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    found = [word for word in text.split() if word in _WEAKENING]
    return judged("kernel-cmdline", not found, f"{', '.join(found)} in {digest}" if found else digest, wanted,
                  f"remove {', '.join(found)} from the kernel's command line")  # fmt: skip


def iommu_strict(host: Host) -> Check:
    """Check that devices reach only the memory that was mapped for them, and mappings end at once."""
    wanted, fix = (
        "every group translated, strictly",
        "intel_iommu=on (or amd_iommu=on) iommu=force iommu.strict=1 on the kernel's command line",
    )
    groups = host.names("/sys/kernel/iommu_groups")
    if groups is None:
        if host.exists("/sys/kernel"):
            return judged("iommu-strict", False, "no IOMMU", wanted, fix)
        return unknown("iommu-strict", "cannot be read", wanted, fix)
    if not groups:
        return judged("iommu-strict", False, "no IOMMU", wanted, fix)
    kinds = {group: host.text(f"/sys/kernel/iommu_groups/{group}/type") for group in groups}
    if None in kinds.values():
        return unknown("iommu-strict", f"{len(groups)} groups, type not told", wanted, "boot kernel 5.11 or later")
    counted = {str(kind): list(kinds.values()).count(kind) for kind in sorted({str(kind) for kind in kinds.values()})}
    seen = ", ".join(f"{count} {kind}" for kind, count in counted.items())
    return judged("iommu-strict", set(counted) == {"DMA"}, seen, wanted, fix)


CHECKS: dict[str, Callable[[Host], Check | None]] = {
    "secure-boot": secure_boot,
    "lockdown": lockdown,
    "module-signatures": module_signatures,
    "kexec-disabled": kexec_disabled,
    "kernel-taint": kernel_taint,
    "kernel-cmdline": kernel_cmdline,
    "iommu-strict": iommu_strict,
}
