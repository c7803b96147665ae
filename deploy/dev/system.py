"""System packages, root, and running commands."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FrameType

# What the programs and their tests call, and the Debian package that has it.
TOOLS = {
    "busybox": "busybox-static",
    "cryptsetup": "cryptsetup-bin",
    "fusermount3": "fuse3",
    "ip": "iproute2",
    "iptables": "iptables",
    "losetup": "mount",
    "mkfs.ext4": "e2fsprogs",
    "nft": "nftables",
    "nsenter": "util-linux",
    "strace": "strace",
}
# What only tests call: without one of these the tests that want it are skipped, and say so.
TEST_TOOLS = {
    "age": "age",
    "apparmor_parser": "apparmor",
    "chromium": "chromium",
    "gcc": "gcc libc6-dev",
    "go": "golang-go golang-golang-x-mod-dev",
    "node": "nodejs",
    "npm": "npm",
    "pg_lsclusters": "postgresql",
    "runsc": "runsc",
    "swtpm": "swtpm",
    "swtpm_setup": "swtpm-tools",
    "tpm2_quote": "tpm2-tools",
}
# What virtual machines are made and run with.
VM_TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86 ovmf",
    "ssh": "openssh-client",
    "swtpm": "swtpm",
    "swtpm_setup": "swtpm-tools",
}
# What measurements compare with, and nothing else calls.
BENCH_TOOLS = {"age": "age", "gocryptfs": "gocryptfs"}
SEARCH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
_updated = False
_installing = threading.Lock()


class Refusal(Exception):  # noqa: N818  (what a person reads, not a fault of the program)
    """Something cannot be set up; the text is one clear sentence that says what to do."""


def say(text: str) -> None:
    """Tell on stderr what is being set up; stdout belongs to the command."""
    sys.stderr.write(f"dev: {text}\n")
    sys.stderr.flush()


def find(tool: str) -> str | None:
    """Return where a tool is, also outside an ordinary user's PATH."""
    return shutil.which(tool, path=SEARCH)


def prefix_root(command: Sequence[str]) -> list[str]:
    """Return a command so that it runs as root: unchanged for root, through sudo else. Raises ``Refusal`` where neither works."""
    if os.geteuid() == 0:
        return list(command)
    if find("sudo") is None:
        raise Refusal("root is needed for mounts, loop devices and Docker, and there is no sudo; run this as root")
    return ["sudo", "--preserve-env", "env", f"PATH={SEARCH}", *command]


def run(command: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
    """Run a command in the foreground and return its exit code; being stopped is the command's to handle, and it is waited for."""
    with subprocess.Popen(list(command), env=None if env is None else dict(env)) as process:

        def hand_on(_number: int, _frame: FrameType | None) -> None:
            process.terminate()

        # A terminal's Ctrl-C reaches the command by itself; what is sent to us alone is handed on.
        before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGHUP)}
        before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def ensure_tools() -> None:
    """Install the packages of missing tools. Raises ``Refusal`` where that is not possible."""
    install(sorted({package for tool, package in TOOLS.items() if find(tool) is None}))


def ensure_more_tools(tools: Mapping[str, str]) -> None:
    """Install what tests or measurements call beyond that; a distribution that lacks one of them is told of, and no obstacle."""
    missing = sorted({package for tool, package in tools.items() if find(tool) is None})
    try:
        install([word for package in missing for word in package.split()])  # all at once: each run of apt-get takes its time
    except Refusal as refusal:
        say(f"one by one then: {refusal}")
        for package in missing:
            try:
                install(package.split())
            except Refusal as lacking:
                say(f"going on without {package}: {lacking}")


def install(packages: Sequence[str]) -> None:
    """Install Debian packages, once the lists are fresh; nothing to install costs nothing. Raises ``Refusal``."""
    with _installing:
        _install(packages)


def _install(packages: Sequence[str]) -> None:
    global _updated  # noqa: PLW0603  (one refresh of the lists a run)
    if not packages:
        return
    if find("apt-get") is None:
        raise Refusal(f"these packages are missing and there is no apt-get: {' '.join(packages)}; install them and run this again")
    say(f"installing {' '.join(packages)}")
    base = prefix_root(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=120"])
    steps = [] if _updated else [[*base, "update"]]
    steps.append([*base, "install", "-y", "--no-install-recommends", *packages])
    for step in steps:
        done = subprocess.run(step, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            sys.stderr.write(done.stdout[-2000:])
            raise Refusal(f"apt-get could not install {' '.join(packages)} (its words are above); install them and run this again")
    _updated = True
