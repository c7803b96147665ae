"""Runs inside a job's container, as its hostile program: tries each attack and prints what happened as JSON lines.

Needs nothing but Python's standard library. A probe returns text saying how it was stopped; it raises ``EscapedError`` with what it got.
"""

# A hostile program speaks to the kernel in its own words.
# ruff: noqa: PTH109, PTH110, PTH115, PTH116, PTH118, PTH123, PTH208

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import platform
import signal
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
NUMBERS = {  # x86-64, arch/x86/entry/syscalls/syscall_64.tbl
    "ptrace": 101, "mount": 165, "umount2": 166, "swapon": 167, "reboot": 169, "init_module": 175, "quotactl": 179, "add_key": 248,
    "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298, "fanotify_init": 300, "name_to_handle_at": 303,
    "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313,
    "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsconfig": 431, "fspick": 433, "pivot_root": 155, "chroot": 161, "acct": 163, "settimeofday": 164, "sethostname": 170, "syslog": 103,
    "iopl": 172, "ioperm": 173,
}  # fmt: skip
CHANGING = ("process_limit", "memory_limit", "call_chroot", "clone_user_namespace", "call_unshare_mount", "call_unshare_user")
"""Probes that change this process where they get through, or may end it; they come last, so that no other probe profits."""
MANY_PROCESSES = 150
MUCH_MEMORY = 768 * 2**20
SHARED_MEMORY = 32 * 2**20
"""More than a job of this suite may have, and exactly what it may."""
PROBES: dict[str, tuple[str, Callable[[], str]]] = {}


class EscapedError(Exception):
    """The attack got something."""


def probe(tried: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    def register(function: Callable[[], str]) -> Callable[[], str]:
        PROBES[function.__name__] = (tried, function)
        return function

    return register


def refused(action: Callable[[], object]) -> str:
    """Run ``action``; an ``OSError`` is how it was stopped, anything else an escape."""
    try:
        got = action()
    except OSError as error:
        return f"{errno.errorcode.get(error.errno or 0, str(error.errno))}"
    raise EscapedError(repr(got)[:200])


def syscall(name: str, *arguments: object) -> str:
    result = LIBC.syscall(NUMBERS[name], *arguments)
    code = ctypes.get_errno()
    if result >= 0:
        raise EscapedError(f"{name} returned {result}")
    if code in (errno.EFAULT, errno.EINVAL, errno.EBADF, errno.ENOENT, errno.ESRCH, errno.EOVERFLOW):
        raise EscapedError(f"{name} reached the kernel: {errno.errorcode[code]}")
    return errno.errorcode.get(code, str(code))


def status(field: str) -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return line.split(":")[1].strip()
    return "absent"


def wanted(seen: object, want: object) -> str:
    if seen != want:
        raise EscapedError(f"seen {seen!r}, wanted {want!r}")
    return repr(seen)


# ---- privilege


@probe("be root")
def uid_is_not_root() -> str:
    if 0 in (*os.getresuid(), *os.getresgid(), *os.getgroups()):
        raise EscapedError(f"uids {os.getresuid()} gids {os.getresgid()} groups {os.getgroups()}")
    return f"uid {os.getuid()}"


@probe("hold capabilities (effective, bounding, ambient, permitted)")
def no_capabilities() -> str:
    return wanted([int(status(name), 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")], [0, 0, 0, 0])


@probe("gain privileges through a set-user-id program")
def no_new_privileges() -> str:
    return wanted(LIBC.prctl(39, 0, 0, 0, 0), 1)


@probe("become root with setuid(0)")
def setuid_root() -> str:
    return refused(lambda: os.setuid(0))


@probe("a seccomp filter is missing")
def seccomp_filter() -> str:
    return wanted(LIBC.prctl(21, 0, 0, 0, 0), 2)


# ---- system calls


@probe("trace another process (ptrace)")
def call_ptrace() -> str:
    child = os.fork()
    if child == 0:
        os._exit(0 if LIBC.syscall(NUMBERS["ptrace"], 0, 0, 0, 0) == 0 else ctypes.get_errno())  # PTRACE_TRACEME: needs no privilege
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        raise EscapedError("a child can be traced")
    return errno.errorcode.get(code, str(code))


@probe("read another process's memory (process_vm_readv)")
def call_process_vm_readv() -> str:
    return syscall("process_vm_readv", os.getpid(), 0, 0, 0, 0, 0)


@probe("write another process's memory (process_vm_writev)")
def call_process_vm_writev() -> str:
    return syscall("process_vm_writev", os.getpid(), 0, 0, 0, 0, 0)


@probe("open files by handle, the 'shocker' escape (open_by_handle_at)")
def call_open_by_handle_at() -> str:
    return syscall("open_by_handle_at", -1, 0, 0)


@probe("ask for file handles (name_to_handle_at)")
def call_name_to_handle_at() -> str:
    return syscall("name_to_handle_at", -100, b"/tmp", ctypes.create_string_buffer(8), ctypes.create_string_buffer(8), 0)


@probe("load a BPF program")
def call_bpf() -> str:
    return syscall("bpf", 0, 0, 0)


@probe("use io_uring")
def call_io_uring() -> str:
    return syscall("io_uring_setup", 1, 0)


@probe("use userfaultfd")
def call_userfaultfd() -> str:
    return syscall("userfaultfd", 1)  # UFFD_USER_MODE_ONLY: needs no privilege


@probe("use the kernel's key ring (keyctl)")
def call_keyctl() -> str:
    return syscall("keyctl", 0, -3, 0, 0, 0)


@probe("add a key to the kernel's key ring")
def call_add_key() -> str:
    return syscall("add_key", 0, 0, 0, 0, 0)


@probe("watch the processor's counters (perf_event_open)")
def call_perf_event_open() -> str:
    return syscall("perf_event_open", 0, 0, -1, -1, 0)


@probe("mount something")
def call_mount() -> str:
    return syscall("mount", b"none", b"/tmp", b"tmpfs", 0, 0)


@probe("unmount something")
def call_umount() -> str:
    return syscall("umount2", b"/proc", 2)


@probe("mount through the new interface (fsopen)")
def call_fsopen() -> str:
    return syscall("fsopen", b"tmpfs", 0)


@probe("clone a mount tree (open_tree)")
def call_open_tree() -> str:
    return syscall("open_tree", -100, b"/", 1)


@probe("make a 32-bit system call, whose arguments a filter may not see (int 0x80)")
def call_i386() -> str:
    if platform.machine() != "x86_64":
        return "this processor has none"
    child = os.fork()
    if child == 0:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
        os._exit(0)
    _, how = os.waitpid(child, 0)
    if os.WIFSIGNALED(how):
        return signal.Signals(os.WTERMSIG(how)).name
    raise EscapedError("the kernel answered")


@probe("open a socket of a refused family with high bits set")
def socket_high_bits() -> str:
    result = LIBC.syscall(ctypes.c_long(41), ctypes.c_long((1 << 32) | 40), ctypes.c_long(1), ctypes.c_long(0))
    if result >= 0:
        raise EscapedError(f"socket {result}")
    return errno.errorcode.get(ctypes.get_errno(), "error")


@probe("make a user namespace (unshare)")
def call_unshare_user() -> str:
    return syscall("unshare", 0x10000000)


@probe("make a mount namespace (unshare)")
def call_unshare_mount() -> str:
    return syscall("unshare", 0x00020000)


@probe("clone into a new user namespace")
def clone_user_namespace() -> str:
    result = LIBC.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)
    if result == 0:
        os._exit(0)
    if result > 0:
        os.waitpid(result, 0)
        raise EscapedError("a child in its own user namespace")
    return errno.errorcode.get(ctypes.get_errno(), "?")


@probe("enter another namespace (setns)")
def call_setns() -> str:
    return syscall("setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0)


@probe("load a kernel module")
def call_finit_module() -> str:
    return syscall("finit_module", -1, 0, 0)


@probe("load another kernel (kexec)")
def call_kexec() -> str:
    return syscall("kexec_file_load", -1, -1, 0, 0, 0)


@probe("change the root (pivot_root)")
def call_pivot_root() -> str:
    return syscall("pivot_root", b"/", b"/")


@probe("change the root (chroot)")
def call_chroot() -> str:
    return syscall("chroot", b"/")


@probe("turn on swap")
def call_swapon() -> str:
    return syscall("swapon", b"/tmp/x", 0)


@probe("reboot")
def call_reboot() -> str:
    return syscall("reboot", 0, 0, 0, 0)


@probe("set the clock")
def call_settimeofday() -> str:
    return syscall("settimeofday", struct.pack("qq", 0, 0), 0)


@probe("read the kernel's log (syslog)")
def call_syslog() -> str:
    return syscall("syslog", 3, ctypes.create_string_buffer(64), 64)


@probe("get raw I/O ports (iopl)")
def call_iopl() -> str:
    return syscall("iopl", 3)


@probe("watch the whole file system (fanotify)")
def call_fanotify() -> str:
    return syscall("fanotify_init", 0, 0)


# ---- sockets


@probe("open a raw socket")
def raw_socket() -> str:
    return refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))


@probe("open a packet socket")
def packet_socket() -> str:
    return refused(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))


@probe("use the kernel's crypto sockets (AF_ALG)")
def alg_socket() -> str:
    return refused(lambda: socket.socket(38, socket.SOCK_SEQPACKET, 0))


@probe("talk to the hypervisor (AF_VSOCK)")
def vsock_socket() -> str:
    return refused(lambda: socket.socket(40, socket.SOCK_STREAM, 0))


@probe("listen to host events (netlink kobject_uevent)")
def netlink_uevent() -> str:
    def listen() -> str:
        with socket.socket(16, socket.SOCK_RAW, 15) as events:
            events.bind((0, 1))
            events.settimeout(0.3)
            return events.recv(100).decode("ascii", "replace")

    try:
        return refused(listen)
    except TimeoutError:
        return "nothing to hear"


# ---- network


def connect(host: str, port: int) -> str:
    def attempt() -> str:
        try:
            with socket.create_connection((host, port), timeout=2):
                return f"connected to {host}:{port}"
        except ConnectionRefusedError:
            return f"{host} answered, although nothing listens on {port}"

    return refused(attempt)


@probe("reach the cloud's metadata address")
def network_metadata() -> str:
    return connect("169.254.169.254", 80)


@probe("reach the usual bridge gateway")
def network_gateway() -> str:
    return connect("172.17.0.1", 22)


@probe("send a DNS query out")
def network_dns() -> str:
    def ask() -> object:
        query = bytes.fromhex("aaaa01000001000000000000") + b"\x06canary\x07example\x00" + bytes.fromhex("00010001")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.settimeout(1)
            out.sendto(query, ("8.8.8.8", 53))
            return out.recv(512)

    return refused(ask)


@probe("see network interfaces other than loopback")
def network_interfaces() -> str:
    fallback = ("lo", "sit0", "tunl0", "ip6tnl0", "gre0", "gretap0", "erspan0")  # what some kernels put into every namespace
    return wanted([name for _, name in socket.if_nameindex() if name not in fallback], [])


# ---- files of the host


@probe("write to the root file system")
def write_root() -> str:
    return wanted(refused(lambda: Path("/canary").write_text("x")), "EROFS")  # anything else: only the file's mode was in the way


@probe("write to the inputs")
def write_inputs() -> str:
    return refused(lambda: Path("/in/code/canary").write_text("x"))


@probe("run a program from /tmp")
def execute_tmp() -> str:
    target = Path("/tmp/program")
    target.write_text("#!/bin/sh\necho ran\n")
    target.chmod(0o755)
    return refused(lambda: os.posix_spawn(str(target), [str(target)], {}))


@probe("find the engine's socket")
def engine_socket() -> str:
    docker = ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock")
    places = (*docker, "/run/nvidia-persistenced/socket", "/tmp/nvidia-mps")
    return wanted([place for place in places if Path(place).exists()], [])


@probe("make a device node")
def make_device() -> str:
    return refused(lambda: os.mknod("/tmp/disk", stat.S_IFBLK | 0o600, os.makedev(8, 0)))


@probe("find device nodes beyond the usual")
def device_nodes() -> str:
    plain = "null zero full random urandom tty console ptmx pts shm mqueue fd stdin stdout stderr core net"
    return wanted(sorted(set(os.listdir("/dev")) - set(plain.split())), [])


@probe("open other GPUs' device nodes")
def gpu_nodes() -> str:
    return wanted([name for name in os.listdir("/dev") if name.startswith(("nvidia", "dri", "kfd"))], [])


@probe("read the machine's memory (/proc/kcore, /dev/mem)")
def kernel_memory() -> str:
    found = []
    for place in ("/proc/kcore", "/dev/mem", "/dev/kmem", "/dev/port"):
        try:
            with open(place, "rb", buffering=0) as handle:
                if handle.read(1):
                    found.append(place)
        except OSError:
            continue
    return wanted(found, [])


@probe("read firmware and masked files")
def masked_files() -> str:
    found = []
    for place in ("/proc/keys", "/proc/timer_list", "/proc/latency_stats", "/proc/interrupts"):
        try:
            if Path(place).read_bytes():
                found.append(place)
        except OSError:
            continue
    for place in ("/sys/firmware", "/proc/scsi", "/proc/acpi"):
        try:
            found += [f"{place}/{name}" for name in os.listdir(place)]
        except OSError:
            continue
    return wanted(found, [])


@probe("set the program that handles core dumps, the classic escape")
def core_pattern() -> str:
    return refused(lambda: open("/proc/sys/kernel/core_pattern", "w").write("|/tmp/x"))


@probe("find /proc/sys and its like mounted writable")
def read_only_proc() -> str:
    places = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys")
    return wanted([place for place in places if os.path.exists(place) and not os.statvfs(place).f_flag & os.ST_RDONLY], [])


@probe("set the module loader's path")
def modprobe_path() -> str:
    return refused(lambda: open("/proc/sys/kernel/modprobe", "w").write("/tmp/x"))


@probe("trigger a kernel action (sysrq)")
def sysrq() -> str:
    return refused(lambda: open("/proc/sysrq-trigger", "w").write("h"))


@probe("escape through the cgroup release agent (CVE-2022-0492)")
def release_agent() -> str:
    found = []
    for folder, _, names in os.walk("/sys/fs/cgroup"):
        if "release_agent" in names and os.access(os.path.join(folder, "release_agent"), os.W_OK):
            found.append(folder)
    return wanted(found, [])


@probe("write anywhere below /sys")
def write_sys() -> str:
    found = []
    for folder, _, names in os.walk("/sys/kernel"):
        found += [os.path.join(folder, name) for name in names if os.access(os.path.join(folder, name), os.W_OK)]
    return wanted(found[:5], [])


@probe("use a file descriptor that the runtime left open (CVE-2024-21626)")
def leaked_descriptors() -> str:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if target.startswith(("/sys/fs/cgroup", "/var/", "/run/")) or (target.startswith("/") and not os.path.exists(target)):
            found.append(target)
    return wanted(found, [])


@probe("leave through the working directory (CVE-2024-21626)")
def working_directory() -> str:
    return wanted(os.path.realpath(os.getcwd()).startswith("/proc"), False)


@probe("overwrite the runtime through /proc/1/exe (CVE-2019-5736)")
def runtime_binary() -> str:
    return refused(lambda: os.open("/proc/1/exe", os.O_RDWR))


@probe("see block-backed or writable mounts beyond scratch")
def writable_mounts() -> str:
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ")
        place, options = left.split()[4:6]
        kind = right.split()[0]
        virtual = kind in ("proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2")
        masked = os.path.exists(place) and stat.S_ISCHR(os.stat(place).st_mode)  # /dev/null laid over a file of the kernel's
        ours = kind == "tmpfs" or place in ("/dev", "/dev/shm", "/tmp", "/out", "/dev/console")
        if "rw" in options.split(",") and not (virtual or masked or ours) and os.access(place, os.W_OK):
            found.append(f"{place} ({kind})")
    return wanted(found, [])


@probe("follow device nodes or set-user-id files on scratch")
def scratch_flags() -> str:
    flags = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, options = line.split()[4:6]
        if place in ("/tmp", "/out", "/dev/shm"):
            flags[place] = {"nosuid", "nodev"} <= set(options.split(","))
    return wanted({place: held for place, held in flags.items() if not held}, {})


# ---- other leases, secrets, limits


@probe("see processes of the host")
def other_processes() -> str:
    return wanted(len([name for name in os.listdir("/proc") if name.isdigit()]) < 10, True)


@probe("share System V memory with others")
def shared_memory() -> str:
    return wanted(len(Path("/proc/sysvipc/shm").read_text().splitlines()), 1)


@probe("find secrets in environment and arguments")
def secrets_in_sight() -> str:
    words = ("sealrig_token", "dek", "grant", "nvidia_visible", "ld_preload", "ld_library_path", "cuda_")
    seen = " ".join([*os.environ, Path("/proc/1/cmdline").read_bytes().decode("utf-8", "replace")]).lower()
    return wanted([word for word in words if word in seen], [])


@probe("learn host paths from mountinfo that hold keys")
def keys_in_mounts() -> str:
    return wanted([word for word in ("identity.key", "node.key", "docker.sock") if word in Path("/proc/self/mountinfo").read_text()], [])


@probe("write a core dump")
def core_dump() -> str:
    import resource

    return wanted(resource.getrlimit(resource.RLIMIT_CORE), (0, 0))


@probe("start processes without end")
def process_limit() -> str:
    children = []
    try:
        while len(children) < MANY_PROCESSES:
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    except OSError as error:
        return f"{errno.errorcode[error.errno or 0]} below {MANY_PROCESSES}"
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    raise EscapedError(f"{MANY_PROCESSES} processes")


@probe("use memory without end")
def memory_limit() -> str:
    child = os.fork()
    if child == 0:
        held = mmap.mmap(-1, MUCH_MEMORY)
        for offset in range(0, MUCH_MEMORY, mmap.PAGESIZE):
            held[offset] = 1
        os._exit(0)
    _, how = os.waitpid(child, 0)
    if os.WIFSIGNALED(how):
        return signal.Signals(os.WTERMSIG(how)).name
    raise EscapedError(f"{MUCH_MEMORY} bytes")


@probe("use the processors without a limit")
def cpu_limit() -> str:
    for place in ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us"):
        if os.path.exists(place):
            return wanted(Path(place).read_text().split()[0] not in ("max", "-1"), True)
    raise EscapedError("no control group says so")


@probe("fill shared memory without end")
def shared_memory_size() -> str:
    place = os.statvfs("/dev/shm")
    return wanted(place.f_blocks * place.f_frsize, SHARED_MEMORY)


@probe("open files without end")
def open_files() -> str:
    import resource

    return wanted(resource.getrlimit(resource.RLIMIT_NOFILE)[1] <= 65536, True)


@probe("lock memory beyond limits")
def huge_allocation() -> str:
    return refused(lambda: mmap.mmap(-1, 2**62))


@probe("raise limits")
def raise_limits() -> str:
    import resource

    try:
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError) as error:
        return str(error)
    raise EscapedError("core limit raised")


@probe("renice to the front")
def renice() -> str:
    return refused(lambda: os.setpriority(os.PRIO_PROCESS, 0, -20))


@probe("signal the first process of the host")
def signal_host() -> str:
    if os.getpid() == 1:
        return "this process is the first of its own namespace"
    return refused(lambda: os.kill(2, 0))


@probe("change the host's name")
def hostname() -> str:
    return refused(lambda: socket.sethostname("owned"))


def attempt(function: Callable[[], str]) -> tuple[bool, str]:
    try:
        return True, function()
    except EscapedError as escape:
        return False, str(escape)
    except Exception as error:  # noqa: BLE001  (a probe that breaks proves nothing, and says so)
        return False, f"the probe broke: {type(error).__name__}: {error}"


def ordered(names: Iterable[str]) -> list[str]:
    """Return probes in the order in which they run."""
    return sorted(names, key=lambda name: CHANGING.index(name) if name in CHANGING else -1)


def main() -> None:
    head = {"kernel": platform.release(), "gvisor": "gvisor" in dmesg().lower(), "namespaces": namespaces()}
    sys.stdout.write(json.dumps(head) + "\n")
    sys.stdout.flush()
    for name in ordered(sys.argv[1:] or PROBES):
        tried, function = PROBES[name]
        blocked, happened = attempt(function)
        sys.stdout.write(json.dumps({"probe": name, "tried": tried, "blocked": blocked, "happened": happened}) + "\n")
        sys.stdout.flush()


def namespaces() -> dict[str, str]:
    """Return this process's namespaces, as far as the kernel shows them (gVisor does not)."""
    try:
        return {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
    except OSError:
        return {}


def dmesg() -> str:
    """Return the kernel's own messages as far as this process may read them; gVisor introduces itself there."""
    text = ctypes.create_string_buffer(8192)
    got = LIBC.syscall(NUMBERS["syslog"], 3, text, 8192)
    return text.value.decode("ascii", "replace") if got > 0 else ""


if __name__ == "__main__":
    main()
