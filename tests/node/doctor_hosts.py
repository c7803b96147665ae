"""Hosts as the doctor sees them: the files and tool outputs that matter, as these systems show them.

``captured`` reads what was captured on real systems; each file of ``captures/`` says where. ``BARE_VM_V1`` was captured on a Debian 12
microVM with cgroup v1; the parameters of ``H100_NODE`` are those of a node with driver 580 and open kernel modules. The others are
typical installations, written down from the systems' own documentation.
"""

from __future__ import annotations

import re
from pathlib import Path

CAPTURES = Path(__file__).parent / "captures"


def captured(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the files of a captured host, and what its tools and its engine said. Parts begin with ``==> NAME <==``, as with head(1)."""
    text = (CAPTURES / f"{name}.txt").read_text(encoding="utf-8")
    parts = re.split(r"^==> (.+) <==\n", text, flags=re.MULTILINE)[1:]
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    files = {place: content for place, content in found.items() if place.startswith("/")}
    return files, {place.removeprefix("$ "): content for place, content in found.items() if place not in files}


NVIDIA_PARAMS = """ResmanDebugLevel: 4294967295
RmLogonRC: 1
ModifyDeviceFiles: 1
DeviceFileUID: 0
DeviceFileGID: 0
DeviceFileMode: 438
InitializeSystemMemoryAllocations: 1
UsePageAttributeTable: 4294967295
EnableMSI: 1
RmProfilingAdminOnly: 1
PreserveVideoMemoryAllocations: 1
EnableS0ixPowerManagement: 1
EnableGpuFirmware: 18
RegistryDwords: ""
RegistryDwordsPerDevice: ""
TemporaryFilePath: "/var/tmp"
"""

_FLAWS = "/sys/devices/system/cpu/vulnerabilities"
_SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_NO_SWAP = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"

BARE_VM_V1 = {
    "/proc/crypto": "name         : xts(aes)\ndriver       : xts(ecb(aes-fixed-time))\n\nname         : aes\ndriver       : aes-generic\n",
    "/proc/swaps": _NO_SWAP,
    "/proc/meminfo": "MemTotal:       24684092 kB\nSwapTotal:             0 kB\n",
    "/proc/cmdline": "mitigations=auto,no_guest_host console=ttyS0 quiet reboot=k panic=1 nomodule random.trust_cpu=1 swiotlb=noforce\n",
    "/proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu vme sse2 ssse3 fma sse4_1 aes xsave avx f16c rdrand hypervisor\n",
    "/proc/sys/kernel/osrelease": "6.18.44-fc-v657\n",
    "/proc/sys/kernel/core_pattern": "core\n",
    "/proc/sys/kernel/unprivileged_bpf_disabled": "2\n",
    "/proc/sys/kernel/dmesg_restrict": "1\n",
    "/proc/sys/kernel/kptr_restrict": "0\n",
    "/proc/sys/kernel/perf_event_paranoid": "2\n",
    "/proc/sys/kernel/randomize_va_space": "2\n",
    "/proc/sys/kernel/tainted": "0\n",
    "/proc/sys/fs/suid_dumpable": "0\n",
    "/proc/sys/user/max_user_namespaces": "96310\n",
    "/proc/config.gz": b"gzip:# CONFIG_INIT_ON_ALLOC_DEFAULT_ON is not set\n# CONFIG_INIT_ON_FREE_DEFAULT_ON is not set\n",
    "/sys/module/zswap/parameters/enabled": "N\n",
    "/sys/block/vda/size": "1\n",
    "/sys/power/state": "freeze\n",
    "/sys/kernel/security/": "",
    "/sys/firmware/memmap/0/type": "System RAM\n",
    "/sys/kernel/iommu_groups/": "",
    "/sys/devices/system/cpu/smt/control": "notsupported\n",
    f"{_FLAWS}/meltdown": "Not affected\n",
    f"{_FLAWS}/mmio_stale_data": "Vulnerable: Clear CPU buffers attempted, no microcode; SMT Host state unknown\n",
    "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes": "9223372036854771712\n",
    "/sys/fs/cgroup/pids/cgroup.procs": "1\n",
    "/sys/bus/pci/devices/": "",
    "/etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n',
}
BARE_VM_V1_TOOLS = {
    "runc --version": "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\ngo: go1.19.8\nlibseccomp: 2.5.4"
}

UBUNTU_2404 = {
    "/proc/crypto": "name         : xts(aes)\ndriver       : xts-aes-vaes-avx10_512\nmodule       : aesni_intel\n",
    "/proc/swaps": f"{_NO_SWAP}/swap.img                               file\t\t8388604\t\t0\t\t-2\n",
    "/proc/modules": "zram 32768 0 - Live 0x0000000000000000\n",
    "/proc/cmdline": "BOOT_IMAGE=/vmlinuz-6.8.0-48-generic root=/dev/mapper/ubuntu--vg-ubuntu--lv ro quiet splash\n",
    "/proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu vme aes avx2\n",
    "/proc/sys/kernel/osrelease": "6.8.0-48-generic\n",
    "/proc/sys/kernel/core_pattern": "|/usr/share/apport/apport -p%p -s%s -c%c -d%d -P%P -u%u -g%g -- %E\n",
    "/proc/sys/kernel/unprivileged_bpf_disabled": "2\n",
    "/proc/sys/kernel/dmesg_restrict": "1\n",
    "/proc/sys/kernel/kptr_restrict": "1\n",
    "/proc/sys/kernel/perf_event_paranoid": "4\n",
    "/proc/sys/kernel/randomize_va_space": "2\n",
    "/proc/sys/kernel/tainted": "0\n",
    "/proc/sys/kernel/kexec_load_disabled": "0\n",
    "/proc/sys/kernel/modules_disabled": "0\n",
    "/proc/sys/kernel/yama/ptrace_scope": "1\n",
    "/proc/sys/kernel/unprivileged_userns_clone": "1\n",
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n",
    "/proc/sys/user/max_user_namespaces": "255715\n",
    "/proc/sys/fs/suid_dumpable": "2\n",
    "/boot/config-6.8.0-48-generic": "CONFIG_INIT_ON_ALLOC_DEFAULT_ON=y\n# CONFIG_INIT_ON_FREE_DEFAULT_ON is not set\n",
    "/sys/module/zswap/parameters/enabled": "N\n",
    "/sys/module/module/parameters/sig_enforce": "N\n",
    "/sys/module/apparmor/parameters/enabled": "Y\n",
    "/sys/block/zram0/disksize": "4294967296\n",
    "/sys/block/nvme0n1/size": "1\n",
    "/sys/power/state": "freeze mem disk\n",
    "/sys/power/disk": "[platform] shutdown reboot suspend test_resume\n",
    "/sys/kernel/security/lsm": "lockdown,capability,landlock,yama,apparmor",
    "/sys/kernel/security/lockdown": "none [integrity] confidentiality\n",
    "/sys/kernel/iommu_groups/0/type": "DMA-FQ\n",
    "/sys/kernel/iommu_groups/1/type": "DMA-FQ\n",
    _SECURE_BOOT: b"\x06\x00\x00\x00\x01",
    "/sys/devices/system/cpu/smt/control": "on\n",
    f"{_FLAWS}/meltdown": "Mitigation: PTI\n",
    f"{_FLAWS}/mds": "Mitigation: Clear CPU buffers; SMT vulnerable\n",
    f"{_FLAWS}/itlb_multihit": "KVM: Mitigation: VMX disabled\n",
    f"{_FLAWS}/spectre_v2": "Mitigation: Enhanced / Automatic IBRS; IBPB: conditional; PBRSB-eIBRS: SW sequence\n",
    "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma misc\n",
    "/sys/bus/pci/devices/0000:00:02.0/vendor": "0x8086\n",
    "/sys/bus/pci/devices/0000:00:02.0/class": "0x030000\n",
    "/etc/os-release": 'PRETTY_NAME="Ubuntu 24.04.1 LTS"\nID=ubuntu\nID_LIKE=debian\n',
}
UBUNTU_2404_TOOLS = {"runc --version": "runc version 1.3.3-0ubuntu1~24.04.2\nspec: 1.2.1\ngo: go1.22.2\nlibseccomp: 2.5.5"}

RHEL_9 = {
    "/proc/crypto": "name         : sha256\ndriver       : sha256-generic\n",
    "/proc/swaps": f"{_NO_SWAP}/dev/dm-1                               partition\t8126460\t0\t-2\n",
    "/proc/modules": "xfs 1 0 - Live 0x0\n",
    "/proc/cmdline": "BOOT_IMAGE=(hd0,gpt2)/vmlinuz-5.14.0-503.el9.x86_64 root=/dev/mapper/rhel-root ro crashkernel=1G-2G:192M quiet\n",
    "/proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu aes\n",
    "/proc/sys/kernel/osrelease": "5.14.0-503.el9.x86_64\n",
    "/proc/sys/kernel/core_pattern": "|/usr/lib/systemd/systemd-coredump %P %u %g %s %t %c %h\n",
    "/proc/sys/kernel/unprivileged_bpf_disabled": "1\n",
    "/proc/sys/kernel/dmesg_restrict": "0\n",
    "/proc/sys/kernel/kptr_restrict": "1\n",
    "/proc/sys/kernel/perf_event_paranoid": "2\n",
    "/proc/sys/kernel/randomize_va_space": "2\n",
    "/proc/sys/kernel/tainted": "0\n",
    "/proc/sys/kernel/kexec_load_disabled": "0\n",
    "/proc/sys/kernel/yama/ptrace_scope": "0\n",
    "/proc/sys/user/max_user_namespaces": "127174\n",
    "/proc/sys/fs/suid_dumpable": "0\n",
    "/lib/modules/5.14.0-503.el9.x86_64/config": "# CONFIG_INIT_ON_ALLOC_DEFAULT_ON is not set\n",
    "/sys/module/module/parameters/sig_enforce": "Y\n",
    "/sys/block/nvme0n1/size": "1\n",
    "/sys/power/disk": "[disabled]\n",
    "/sys/power/state": "freeze mem disk\n",
    "/sys/fs/selinux/enforce": "1",
    "/sys/kernel/security/lsm": "lockdown,capability,landlock,yama,selinux,bpf",
    "/sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
    "/sys/kernel/iommu_groups/0/type": "identity\n",
    _SECURE_BOOT: b"\x06\x00\x00\x00\x00",
    "/sys/devices/system/cpu/smt/control": "off\n",
    f"{_FLAWS}/meltdown": "Not affected\n",
    f"{_FLAWS}/retbleed": "Unknown: Dependent on hypervisor status\n",
    "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma misc\n",
    "/etc/os-release": 'NAME="Red Hat Enterprise Linux"\nID="rhel"\nID_LIKE="fedora"\n',
}
RHEL_9_TOOLS = {"runc --version": "runc version 1.1.12\nspec: 1.0.2-dev\ngo: go1.21.9\nlibseccomp: 2.5.2"}

H100_NODE = UBUNTU_2404 | {
    "/proc/swaps": _NO_SWAP,
    "/proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/nvme0n1p2 ro init_on_free=1 intel_iommu=on iommu.strict=1 nohibernate\n",
    "/proc/driver/nvidia/params": NVIDIA_PARAMS,
    "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.178.04  Release Build\n",
    "/proc/sys/kernel/tainted": "4097\n",
    "/sys/module/nvidia/version": "580.178.04\n",
    "/sys/module/nvidia/taint": "PO\n",
    "/sys/power/state": "freeze mem\n",
    "/sys/power/disk": "[disabled]\n",
    "/sys/block/zram0/disksize": "0\n",
    "/sys/kernel/iommu_groups/0/type": "DMA\n",
    "/sys/kernel/iommu_groups/1/type": "DMA\n",
    "/sys/bus/pci/devices/0000:18:00.0/vendor": "0x10de\n",
    "/sys/bus/pci/devices/0000:18:00.0/class": "0x030200\n",
}
H100_NODE_TOOLS = {
    "runc --version": "runc version 1.3.6\ncommit: v1.3.6-0-gd842d771\nspec: 1.2.1\ngo: go1.24.9\nlibseccomp: 2.5.5",
    "nvidia-ctk --version": "NVIDIA Container Toolkit CLI version 1.19.1\ncommit: 9b1c1a9",
}
