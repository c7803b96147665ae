"""Made the golden vectors beside this file, once: ``python -m tests.sealing.vectors.make``. Keys in here protect nothing.

A vector never changes: a format that cannot read it any more is another version. To add one, seal with the release that writes it.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from attestation.signing import b64encode
from sandbox.sealing.bundle import data_key, read_header, seal
from sandbox.sealing.keys import Identity
from sandbox.sealing.logs import LogSealer

PLACE = Path(__file__).with_name("v1.json")


def main() -> None:
    """Write ``v1.json``; refuse to overwrite it."""
    identity, other = Identity(bytes(range(128))), Identity(bytes(range(128, 256)))
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "src"
        (root / "folder").mkdir(parents=True)
        (root / "folder" / "text").write_bytes(b"golden\n")
        (root / "folder" / "nothing").touch()
        (root / "ünï").write_bytes(b"unicode")
        (root / os.fsdecode(b"\xff")).write_bytes(b"bytes")
        (root / "link").symlink_to("folder/text")
        os.link(root / "folder" / "text", root / "same")
        for path in [*root.rglob("*"), root]:
            path.chmod(0o755 if path.is_dir() else 0o640) if not path.is_symlink() else None
            os.utime(path, ns=(0, 1_700_000_000_123_456_789), follow_symlinks=False)
        out = Path(name) / "b"
        result = seal([root], out, recipients=[identity.public, other.public], signer=identity.signing_key, labels={"vector": "v1"})
        raw = out.read_bytes()
    sealer = LogSealer("lease-golden", identity.public)
    log = [sealer.header, sealer.seal(b"first\n"), sealer.seal(b"last\n", final=True)]
    vector = {
        "identity": b64encode(bytes(range(128))),
        "identity_pub": identity.public.text,
        "fingerprint": identity.public.fingerprint,
        "data_key": b64encode(data_key(read_header(raw), identity).raw),
        "digest": result.digest,
        "bundle": b64encode(raw),
        "log_lease": "lease-golden",
        "log": [b64encode(chunk) for chunk in log],
    }
    with PLACE.open("x") as file:
        json.dump(vector, file, indent=1)


if __name__ == "__main__":
    main()
