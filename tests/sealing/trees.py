"""Trees to seal, and a description of a tree that two of them can be compared by."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def make_tree(root: Path) -> Path:
    """Every kind of entry that a bundle can hold, with awkward names, modes and times."""
    (root / "a" / "deep" / "er").mkdir(parents=True)
    (root / "empty-folder").mkdir()
    (root / "a" / "text").write_bytes(b"hello\n")
    (root / "a" / "nothing").touch()
    (root / "a-b").write_bytes(b"sorts between a and a/")
    (root / "a" / "deep" / "er" / "three-segments").write_bytes(os.urandom(2 * 1024 * 1024 + 12345))
    (root / os.fsdecode(b"not-utf8-\xff\xfe")).write_bytes(b"any bytes")
    (root / "ünïcode 文件 \n tab\t").write_bytes(b"text")
    (root / ("n" * 255)).write_bytes(b"a name as long as can be")
    os.link(root / "a" / "text", root / "zz-hard-link")
    (root / "link-to-file").symlink_to("a/text")
    (root / "a" / "deep" / "up").symlink_to("../../a-b")
    (root / "dangling").symlink_to("a/no-such-file")
    with (root / "sparse").open("wb") as file:
        file.truncate(8 * 1024 * 1024)
        file.seek(4 * 1024 * 1024)
        file.write(b"in the middle")
    (root / "a" / "text").chmod(0o640)
    (root / "a-b").chmod(0o755)
    os.utime(root / "a" / "text", ns=(0, 1_234_567_890_123_456_789))
    os.utime(root / "a-b", ns=(0, -1_500_000_001))
    os.utime(root / "link-to-file", ns=(0, 1_000_000_000), follow_symlinks=False)
    (root / "read-only").mkdir()
    (root / "read-only" / "file").write_bytes(b"x")
    (root / "read-only" / "file").chmod(0o444)
    (root / "read-only").chmod(0o555)
    os.utime(root / "read-only", ns=(0, 77))
    return root


def names(folder: Path) -> list[str]:
    """Return the names in a folder, sorted."""
    return sorted(path.name for path in folder.iterdir())


def describe(root: Path) -> dict[str, tuple]:
    """Return name -> everything that must survive sealing and opening."""
    found = {}
    inodes: dict[int, str] = {}
    for place, folders, files in os.walk(root):
        folders.sort()
        for name in sorted([*folders, *files]):
            path = Path(place) / name
            status = path.lstat()
            key = str(path.relative_to(root))
            kind = stat.S_IFMT(status.st_mode)
            content: object = None
            if stat.S_ISREG(kind):
                content = path.read_bytes()
            elif stat.S_ISLNK(kind):
                content = path.readlink()
            found[key] = (kind, stat.S_IMODE(status.st_mode), status.st_mtime_ns, content)
            if stat.S_ISREG(kind) and status.st_nlink > 1:
                found[key] += (inodes.setdefault(status.st_ino, key),)
    return found
