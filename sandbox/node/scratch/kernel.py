"""Thin, checked calls into the kernel that Python has no words for: mount, umount, loop devices, fscrypt keys.

Numbers and layouts from linux/fscrypt.h, linux/loop.h and linux/mount.h (stable user interface).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
UMOUNT_NOFOLLOW = 8

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_AUTOCLEAR = 4
_LOOP_CONFIG_SIZE = 304
_LOOP_INFO_OFFSET = 8
_LO_FLAGS_OFFSET = _LOOP_INFO_OFFSET + 52
_LO_NAME_OFFSET = _LOOP_INFO_OFFSET + 56

_NR_CACHESTAT = 451
"""The same on every architecture."""

_ADD_KEY = 0xC0506617
_REMOVE_KEY = 0xC0406618
_KEY_STATUS = 0xC080661A
_SET_POLICY = 0x800C6613
_GET_POLICY_EX = 0xC0096616
_SPEC_IDENTIFIER = 2
_POLICY_V2 = 2
_AES_256_XTS = 1
_AES_256_CTS = 4
_PAD_32 = 3
IDENTIFIER_BYTES = 16
KEY_BYTES = 64
FILES_BUSY = 1
OTHER_USERS = 2
STATUS_ABSENT = 1
STATUS_NAMES = {1: "absent", 2: "present", 3: "incompletely removed"}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: Path, kind: str, flags: int, data: str = "") -> None:
    """Mount a file system. Raises ``OSError``."""
    _check(_libc.mount(source.encode(), bytes(target), kind.encode(), ctypes.c_ulong(flags), data.encode()), f"mount {target}")


def unmount(target: Path) -> None:
    """Unmount, never following a link and never lazily: a lazy unmount would hide what is still in use. Raises ``OSError``."""
    _check(_libc.umount2(bytes(target), UMOUNT_NOFOLLOW), f"umount {target}")


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo (proc(5)). ``device`` is ``major:minor``, ``source`` what the file system says of where it comes from."""

    point: Path
    device: str
    kind: str
    source: str
    options: frozenset[str]


def mounts(pid: str = "self") -> list[Mount]:
    """Return the mounts that a process sees. Raises ``OSError`` when it is gone."""
    found = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        point = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        kind, source = right.split(" ")[:2]
        found.append(Mount(Path(point), fields[2], kind, source, frozenset(fields[5].split(","))))
    return found


def mounts_under(folder: Path) -> list[Mount]:
    """Return the mounts at or below ``folder``, innermost and latest first, so that they can be unmounted in this order."""
    real = folder.resolve()
    return [item for item in reversed(mounts()) if item.point == real or real in item.point.parents]


def namespaces_with(device: str) -> list[str]:
    """Return the processes (one a mount namespace) in whose mount table ``device`` (``major:minor``) still stands."""
    return namespaces_where(lambda item: item.device == device)


def namespaces_where(wanted: Callable[[Mount], bool]) -> list[str]:
    """Return the processes (one a mount namespace) in whose mount table a mount is ``wanted``."""
    seen: set[str] = set()
    holders = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            namespace = str((entry / "ns" / "mnt").readlink())
            if namespace in seen:
                continue
            seen.add(namespace)
            if any(wanted(item) for item in mounts(entry.name)):
                holders.append(entry.name)
        except (FileNotFoundError, ProcessLookupError, OSError):
            continue  # the process ended while we looked
    return holders


def attach_loop(image: Path) -> tuple[Path, int]:
    """Attach ``image`` to a free loop device that frees itself with its last user; return its path and an open descriptor.

    The caller mounts the device and then closes the descriptor. Raises ``OSError``.
    """
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for attempt in range(32):
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            device = Path(f"/dev/loop{number}")
            if not device.exists():
                os.mknod(device, 0o060600, os.makedev(7, number))
            fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
            config = bytearray(_LOOP_CONFIG_SIZE)
            struct.pack_into("<II", config, 0, backing, 4096 if attempt % 2 == 0 else 512)
            struct.pack_into("<I", config, _LO_FLAGS_OFFSET, _LO_FLAGS_AUTOCLEAR)
            name = os.fsencode(image)[-63:]
            config[_LO_NAME_OFFSET : _LO_NAME_OFFSET + len(name)] = name
            try:
                fcntl.ioctl(fd, _LOOP_CONFIGURE, bytes(config))
            except OSError:
                os.close(fd)  # somebody else took it between the two calls, or this block size is not possible
                continue
            return device, fd
    finally:
        os.close(control)
        os.close(backing)
    raise OSError(16, "no loop device could be attached")


def loops_of(image: Path) -> list[str]:
    """Return the loop devices whose backing file is ``image``, also where it was deleted meanwhile."""
    wanted = {str(image), f"{image} (deleted)"}
    found = []
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if entry.read_text().strip("\n") in wanted:
                found.append(entry.parts[3])
        except OSError:
            continue  # detached while we looked
    return found


def cached_pages(fd: int) -> int | None:
    """Return how many pages of an open file the page cache holds; None where the kernel cannot say (cachestat, Linux 6.5)."""
    span, found = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    if _libc.syscall(_NR_CACHESTAT, fd, span, found, 0) != 0:
        return None
    return int(found[0])


def add_key(point: Path, key: bytes) -> bytes:
    """Add a raw fscrypt v2 key to the file system at ``point``; return its public identifier. Raises ``OSError``."""
    argument = bytearray(80 + len(key))
    struct.pack_into("<II", argument, 0, _SPEC_IDENTIFIER, 0)
    struct.pack_into("<I", argument, 40, len(key))
    argument[80:] = key
    try:
        _ioctl(point, _ADD_KEY, argument)
        return bytes(argument[8 : 8 + IDENTIFIER_BYTES])
    finally:
        argument[:] = bytes(len(argument))


def remove_key(point: Path, identifier: bytes) -> int:
    """Remove a key; return the status flags (``FILES_BUSY``, ``OTHER_USERS``): only 0 means that it is wholly gone. Raises ``OSError``."""
    argument = bytearray(64)
    struct.pack_into("<II16s", argument, 0, _SPEC_IDENTIFIER, 0, identifier)
    _ioctl(point, _REMOVE_KEY, argument)
    return int(struct.unpack_from("<I", argument, 40)[0])


def key_status(point: Path, identifier: bytes) -> int:
    """Return what the kernel says of a key: 1 absent, 2 present, 3 incompletely removed. Raises ``OSError``."""
    argument = bytearray(128)
    struct.pack_into("<II16s", argument, 0, _SPEC_IDENTIFIER, 0, identifier)
    _ioctl(point, _KEY_STATUS, argument)
    return int(struct.unpack_from("<I", argument, 64)[0])


def set_policy(folder: Path, identifier: bytes) -> None:
    """Encrypt an empty folder (AES-256-XTS contents, AES-256-CTS names) under the key ``identifier``. Raises ``OSError``."""
    argument = bytearray(struct.pack("<BBBB4x16s", _POLICY_V2, _AES_256_XTS, _AES_256_CTS, _PAD_32, identifier))
    _ioctl(folder, _SET_POLICY, argument)


def get_policy(folder: Path) -> bytes | None:
    """Return the key identifier of an encrypted folder, or None where it is not encrypted."""
    argument = bytearray(8 + 24)
    struct.pack_into("<Q", argument, 0, 24)
    try:
        _ioctl(folder, _GET_POLICY_EX, argument)
    except OSError:
        return None
    return bytes(argument[16:32])


def _ioctl(path: Path, number: int, argument: bytearray) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.ioctl(fd, number, argument, True)
    finally:
        os.close(fd)
