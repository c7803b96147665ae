"""Made the golden vectors beside this file, once: ``python -m tests.sealing.vectors.make``. Keys in here protect nothing.

A vector never changes: a format that cannot read it any more is another version. To add one, seal with the release that writes it.
What is in them is described in ``docs/format.md``.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from attestation.signing import b64encode
from sandbox.sealing.bundle import data_key, read_header, seal
from sandbox.sealing.keys import Identity
from sandbox.sealing.logs import LogSealer
from sandbox.sealing.stream import Stream, iterate_stream, plain_size

PLACE = Path(__file__).parent
NOW = 1_700_000_000_123_456_789
SECRET = bytes(range(128))
DEEP = "/".join(["d" * 255] * 14)


def main() -> None:
    """Write the vectors that are missing; none is overwritten."""
    for name, make in (("v1.json", whole), ("v1-segments.json", segments)):
        if not (PLACE / name).exists():
            (PLACE / name).write_text(json.dumps(make(), indent=1))


def whole() -> dict[str, object]:
    """Return a small bundle and a log."""
    identity = Identity(SECRET)

    def fill(root: Path) -> None:
        (root / "folder").mkdir(parents=True)
        (root / "folder" / "text").write_bytes(b"golden\n")
        (root / "folder" / "nothing").touch()
        (root / "ünï").write_bytes(b"unicode")
        (root / os.fsdecode(b"\xff")).write_bytes(b"bytes")
        (root / "link").symlink_to("folder/text")
        os.link(root / "folder" / "text", root / "same")
        _settle(root)

    vector, raw = _sealed(fill, identity, {"vector": "v1"})
    sealer = LogSealer("lease-golden", identity.public)
    log = [sealer.header, sealer.seal(b"first\n"), sealer.seal(b"last\n", final=True)]
    return vector | {"bundle": b64encode(raw), "log_lease": "lease-golden", "log": [b64encode(chunk) for chunk in log]}


def segments() -> dict[str, object]:
    """Return what a bundle of several segments can be made from again: paths as long as can be, and numbers at their ends."""
    identity = Identity(SECRET)

    def fill(root: Path) -> None:
        (root / DEEP).mkdir(parents=True)
        sizes = {f"{DEEP}/{n:03}{'n' * 213}": n for n in range(270)}
        sizes |= {"large": 1_000_000, "old": 1, "late": 2, "p" * 100: 3, "q" * 101: 4, 'odd \t"\\\x7f\u2028': 5, "ü": 6}
        for name, size in sizes.items():
            (root / name).write_bytes(hashlib.shake_128(name.encode()).digest(size))
        for length in (99, 100):
            (root / ("f" * length)).mkdir()
        with (root / "sparse").open("wb") as file:
            file.truncate(100_000)
        (root / "far").symlink_to("t/" * 60 + "t")
        os.link(root / "ü", root / "üü")
        _settle(root)
        os.utime(root / "old", ns=(0, -1_500_000_000))
        os.utime(root / "late", ns=(0, (8**11 + 5) * 10**9))

    vector, raw = _sealed(fill, identity, {"vector": "v1-segments"})
    header = read_header(raw)
    start, size = header.index_offset, header.index_size
    stream = Stream(data_key(header, identity), raw[start : start + 40], header.index_aad, plain_size(size))
    index = b"".join(bytes(piece) for piece in iterate_stream(stream, lambda at, length: raw[start + at : start + at + length]))
    return vector | {
        "header": b64encode(raw[: header.payload_offset]),
        "payload_stream": b64encode(raw[header.payload_offset : header.payload_offset + 40]),
        "index_stream": b64encode(raw[start : start + 40]),
        "index": b64encode(zlib.compress(index, 9)),
    }


def _settle(root: Path) -> None:
    """Give everything the same modes and time."""
    for path in [*root.rglob("*"), root]:
        path.chmod(0o755 if path.is_dir() else 0o640) if not path.is_symlink() else None
        os.utime(path, ns=(0, NOW), follow_symlinks=False)


def _sealed(fill: Callable[[Path], None], identity: Identity, labels: dict[str, str]) -> tuple[dict[str, object], bytes]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:  # keeps any time
        fill(Path(name) / "src")
        recipients = [identity.public, Identity(bytes(range(128, 256))).public]
        result = seal([Path(name) / "src"], Path(name) / "b", recipients=recipients, signer=identity.signing_key, labels=labels)
        raw = (Path(name) / "b").read_bytes()
    vector: dict[str, object] = {
        "identity": b64encode(SECRET),
        "identity_pub": identity.public.text,
        "fingerprint": identity.public.fingerprint,
        "data_key": b64encode(data_key(read_header(raw), identity).raw),
        "digest": result.digest,
    }
    return vector, raw


if __name__ == "__main__":
    main()
