"""How NVIDIA's driver is set on this host; nothing where there is no such GPU."""

from __future__ import annotations

import re
from collections.abc import Callable

from sandbox.node.doctor.check import Check, judged, unknown
from sandbox.node.doctor.host import Host

_PARAMS = "/proc/driver/nvidia/params"
_VENDOR = "0x10de"
_DISPLAY = ("0x0300", "0x0302")
# The driver ignores case in registry keys; any value but 0 switches scrubbing off.
_NO_SCRUB = re.compile(r"RMDisableScrubOnFree\s*=\s*(0x[0-9a-f]+|\d+)", re.IGNORECASE)
_MODPROBE = "in /etc/modprobe.d/nvidia.conf, then update the initramfs and reboot"


def has_nvidia(host: Host) -> bool:
    """Say whether the PCI bus has an NVIDIA GPU, or its driver is loaded."""
    devices = host.names("/sys/bus/pci/devices") or []
    return host.exists("/proc/driver/nvidia") or any(
        host.text(f"/sys/bus/pci/devices/{device}/vendor") == _VENDOR
        and (host.text(f"/sys/bus/pci/devices/{device}/class") or "").startswith(_DISPLAY)
        for device in devices
    )


def parameters(text: str) -> dict[str, str]:
    """Return the driver's parameters, one ``Name: value`` a line, without quotes."""
    pairs = (line.partition(":") for line in text.splitlines())
    return {name.strip(): value.strip().strip('"') for name, colon, value in pairs if colon}


def scrub_on_free(host: Host) -> Check | None:
    """Check that the driver clears video memory when it is given back."""
    name, wanted, fix = "nvidia-scrub-on-free", "not disabled", f"remove RMDisableScrubOnFree from NVreg_RegistryDwords {_MODPROBE}"

    def judge(params: dict[str, str]) -> Check:
        words = f"{params.get('RegistryDwords', '')};{params.get('RegistryDwordsPerDevice', '')}"
        off = [match for match in _NO_SCRUB.findall(words) if int(match, 0) != 0]
        if "RegistryDwords" not in params:
            return unknown(name, "the driver does not tell its registry keys", wanted, fix)
        return judged(name, not off, "RMDisableScrubOnFree is set" if off else "not disabled", wanted, fix)

    return _by_parameters(host, name, wanted, judge)


def system_memory(host: Host) -> Check | None:
    """Check that the driver clears system memory before it maps it for a GPU."""
    return _equals(host, "nvidia-system-memory-cleared", "InitializeSystemMemoryAllocations", "NVreg_InitializeSystemMemoryAllocations")


def profiling(host: Host) -> Check | None:
    """Check that GPU performance counters, a side channel between jobs, are for the administrator only."""
    return _equals(host, "nvidia-profiling-admin-only", "RmProfilingAdminOnly", "NVreg_RestrictProfilingToAdminUsers")


def suspend_dump(host: Host) -> Check | None:
    """Check that video memory is not written to a file when the host sleeps."""
    name, wanted = "nvidia-no-suspend-dump", "no sleep, or video memory not preserved"
    fix = f"options nvidia NVreg_PreserveVideoMemoryAllocations=0 {_MODPROBE}; or systemctl mask sleep.target suspend.target"

    def judge(params: dict[str, str]) -> Check:
        preserve, state = params.get("PreserveVideoMemoryAllocations"), host.text("/sys/power/state")
        if preserve == "0":
            return judged(name, True, "not preserved", wanted, fix)
        if state is not None and not {"mem", "disk", "standby", "freeze"} & set(state.split()):
            return judged(name, True, "this host cannot sleep", wanted, fix)
        if preserve is None or state is None:
            return unknown(name, "cannot be read", wanted, fix)
        return judged(name, False, f"preserved in {params.get('TemporaryFilePath') or 'a file'} when the host sleeps", wanted, fix)

    return _by_parameters(host, name, wanted, judge)


def module_origin(host: Host) -> Check | None:
    """Check that the driver's kernel module is signed and was not forced in (patched ones are neither)."""
    if not has_nvidia(host):
        return None
    name, wanted, fix = "nvidia-module-signed", "signed, not forced", "install the distribution's or NVIDIA's signed driver package"
    taint = module_taint(host)
    if taint is None:
        return unknown(name, "the module is not loaded", wanted, "load NVIDIA's driver")
    return judged(name, not {"E", "F"} & set(taint), module_words(host, taint), wanted, fix)


def module_taint(host: Host) -> str | None:
    """Return the kernel's marks of the driver's module: ``F`` forced in, ``E`` unsigned; None where it is not loaded."""
    return host.text("/sys/module/nvidia/taint")


def module_words(host: Host, taint: str) -> str:
    """Say what is known of the module's origin."""
    return f"taint {taint or 'none'}, signer {host.output('modinfo', '-F', 'signer', 'nvidia') or 'not told'}"


def _equals(host: Host, name: str, parameter: str, option: str) -> Check | None:
    def judge(params: dict[str, str]) -> Check:
        seen = params.get(parameter)
        fix = f"options nvidia {option}=1 {_MODPROBE}"
        if seen is None:
            return unknown(name, f"the driver does not tell {parameter}", f"{parameter}: 1", fix)
        return judged(name, seen == "1", f"{parameter}: {seen}", f"{parameter}: 1", fix)

    return _by_parameters(host, name, f"{parameter}: 1", judge)


def _by_parameters(host: Host, name: str, wanted: str, judge: Callable[[dict[str, str]], Check]) -> Check | None:
    if not has_nvidia(host):
        return None
    text = host.text(_PARAMS)
    if text is None:
        return unknown(name, f"{_PARAMS} cannot be read", wanted, "load NVIDIA's driver")
    return judge(parameters(text))


CHECKS: dict[str, Callable[[Host], Check | None]] = {
    "nvidia-scrub-on-free": scrub_on_free,
    "nvidia-system-memory-cleared": system_memory,
    "nvidia-profiling-admin-only": profiling,
    "nvidia-no-suspend-dump": suspend_dump,
    "nvidia-module-signed": module_origin,
}
