"""The source of ``seccomp.json``: the system calls that a job may make, each group with what it is for.

An allow-list: what is not here answers EPERM. It starts from what container engines allow by default and leaves out what a
model that computes does not need and an attacker does (``REFUSED`` says what and why). Three things differ in kind:

* native calls only (no 32-bit x86, x32 or 32-bit Arm): through ``socketcall`` and friends their arguments cannot be filtered,
  and a call of a foreign architecture ends the process;
* ``socket`` names the address families that are allowed; the comparison is over 64 bits, so high bits do not slip through;
* ``mknod`` makes pipes, sockets and plain files only, whatever capabilities there are.

Write the file anew after a change: ``python -m sandbox.node.seccomp > sandbox/node/seccomp.json``.
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from typing import Any

ENOSYS = 38
EPERM = 1

ALLOWED: dict[str, str] = {
    "processes and threads": """
        arch_prctl execve execveat exit exit_group fork vfork wait4 waitid waitpid getpid getppid gettid getpgid getpgrp
        setpgid getsid setsid set_tid_address set_robust_list get_robust_list set_thread_area get_thread_area rseq prctl
        map_shadow_stack kill tgkill tkill pidfd_open pidfd_send_signal process_mrelease restart_syscall pause uname getcpu
    """,
    "scheduling and limits": """
        sched_yield sched_getaffinity sched_setaffinity sched_getattr sched_setattr sched_getparam sched_setparam sched_getscheduler
        sched_setscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval getpriority setpriority ioprio_get
        ioprio_set getrlimit setrlimit prlimit64 getrusage times sysinfo umask membarrier
    """,
    "memory": """
        brk mmap munmap mremap mprotect madvise mincore msync mlock mlock2 mlockall munlock munlockall memfd_create pkey_alloc
        pkey_free pkey_mprotect remap_file_pages mseal cachestat
    """,
    "signals and waiting": """
        rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
        sigaltstack signalfd signalfd4 futex futex_waitv futex_wait futex_wake futex_requeue poll ppoll select pselect6 epoll_create
        epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2
    """,
    "time, without setting it": """
        time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep alarm getitimer setitimer timer_create timer_delete
        timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime
    """,
    "files": """
        open openat openat2 creat close close_range read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 lseek
        access faccessat faccessat2 stat lstat fstat newfstatat statx statfs fstatfs readlink readlinkat getcwd chdir fchdir getdents
        getdents64 mkdir mkdirat rmdir link linkat unlink unlinkat symlink symlinkat rename renameat renameat2 chmod fchmod fchmodat
        fchmodat2 chown fchown fchownat lchown utime utimes utimensat futimesat truncate ftruncate fallocate fadvise64 readahead
        sync syncfs fsync fdatasync sync_file_range flock fcntl dup dup2 dup3 pipe pipe2 tee splice sendfile copy_file_range ioctl
        inotify_init inotify_init1 inotify_add_watch inotify_rm_watch getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr
        setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr
    """,
    "asynchronous file reads of the older kind, which storage libraries use": """
        io_setup io_submit io_getevents io_pgetevents io_cancel io_destroy
    """,
    "sockets, once made": """
        bind connect listen accept accept4 getsockname getpeername getsockopt setsockopt sendto recvfrom sendmsg
        recvmsg sendmmsg recvmmsg shutdown
    """,
    "shared memory, semaphores and queues of the job's own IPC namespace": """
        shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl mq_open mq_unlink mq_timedsend
        mq_timedreceive mq_notify mq_getsetattr
    """,
    "who it is; changing it needs capabilities that a job has not, and libraries ask anyway": """
        getuid geteuid getgid getegid getgroups getresuid getresgid setuid setgid setreuid setregid setresuid setresgid setfsuid
        setfsgid setgroups capget capset
    """,
    "giving up rights": "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    "randomness": "getrandom",
    "Arm": "cacheflush",
}

REFUSED: dict[str, str] = {
    "ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd": "reaching into other processes",
    "name_to_handle_at open_by_handle_at": "file handles reach around mounts (the 'shocker' escape)",
    "io_uring_setup io_uring_enter io_uring_register": "a second system call interface that no filter sees, with a long list of CVEs",
    "userfaultfd": "stops the kernel in mid-copy, which makes races exploitable",
    "add_key request_key keyctl": "kernel keyrings are not namespaced; the node keeps scratch keys there",
    "bpf perf_event_open": "large kernel interfaces and side channels",
    "mount umount umount2 mount_setattr move_mount open_tree fsopen fsconfig fsmount fspick pivot_root chroot": "what a path means",
    "statmount listmount": "telling the host's mounts",
    "unshare setns": "new user namespaces give back every capability inside them",
    "clone3": "its flags stand in memory where a filter cannot look; ENOSYS makes libraries use clone",
    "init_module finit_module delete_module kexec_load kexec_file_load reboot": "changing the kernel",
    "swapon swapoff acct quotactl quotactl_fd sethostname setdomainname": "administering the host",
    "settimeofday stime clock_settime adjtimex clock_adjtime": "setting clocks",
    "iopl ioperm modify_ldt": "old x86 interfaces with a history",
    "syslog lookup_dcookie": "kernel addresses and messages",
    "fanotify_init fanotify_mark": "watching whole file systems",
    "memfd_secret vmsplice": "not needed, and each was part of an exploit or hides memory",
    "mbind set_mempolicy set_mempolicy_home_node move_pages migrate_pages get_mempolicy": "placing memory on nodes that others use",
    "vhangup uselib nfsservctl sysfs ustat _sysctl": "obsolete",
    "personality": "switches address randomisation off (only the values that change nothing are allowed)",
}
"""What is left out on purpose; a test proves that none of it crept into ``ALLOWED``."""

_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET (``linux/sched.h``)."""
_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
_AF_NETLINK, _NETLINK_ROUTE = 16, 0
_FILE_TYPE = 0xF000
_NODE_TYPES = {"plain, by omission": 0, "S_IFIFO": 0x1000, "S_IFREG": 0x8000, "S_IFSOCK": 0xC000}
_PERSONALITIES = {"PER_LINUX": 0, "UNAME26": 0x20000, "ask": 0xFFFFFFFF}


def allowed_names() -> list[str]:
    """Return the calls allowed without a look at their arguments, sorted."""
    return sorted({word for group in ALLOWED.values() for word in group.split()})


def profile() -> dict[str, Any]:
    """Return the profile in the engine's own form (the one that ``--security-opt seccomp=`` takes)."""
    rules = [_allow(allowed_names(), comment="see ALLOWED in seccomp.py")]
    for call in ("socket", "socketpair"):
        rules += [_allow([call], comment=name, args=[_equal(0, number)]) for name, number in _FAMILIES.items()]
    rules.append(_allow(["socket"], comment="AF_NETLINK for routes only", args=[_equal(0, _AF_NETLINK), _equal(2, _NETLINK_ROUTE)]))
    rules.append(_allow(["clone"], comment="threads and processes, no namespaces", args=[_masked(0, _NAMESPACES, 0)]))
    rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS, "comment": "libraries then use clone"})
    for call, index in (("mknod", 1), ("mknodat", 2)):
        rules += [_allow([call], comment=name, args=[_masked(index, _FILE_TYPE, kind)]) for name, kind in _NODE_TYPES.items()]
    rules += [_allow(["personality"], comment=name, args=[_equal(0, number)]) for name, number in _PERSONALITIES.items()]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": []},
        ],
        "syscalls": rules,
    }


def profile_text() -> str:
    """Return ``seccomp.json`` as it must stand in the repository."""
    return json.dumps(profile(), indent=2) + "\n"


def shipped_profile() -> str:
    """Return the reviewed file's text, for the launch plan."""
    return files("sandbox.node").joinpath("seccomp.json").read_text(encoding="utf-8")


def _allow(names: list[str], *, comment: str, args: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": "SCMP_ACT_ALLOW", "comment": comment}
    return rule | ({"args": args} if args else {})


def _equal(index: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}


def _masked(index: int, mask: int, value: int) -> dict[str, Any]:
    # The engine's "value" is the mask and "valueTwo" what must remain.
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


if __name__ == "__main__":
    sys.stdout.write(profile_text())
