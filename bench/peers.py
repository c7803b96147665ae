"""What sealing is compared with: other programs and libraries that encrypt a file, each behind the same three calls."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1024 * 1024


@dataclass(frozen=True)
class Peer:
    """One contestant. ``sealed`` is where ``encrypt`` puts its output and ``decrypt`` finds it; ``between`` is called then, untimed."""

    name: str
    sealed: Path
    encrypt: Callable[[Path], object]
    decrypt: Callable[[Path], object]
    between: Callable[[], object] = lambda: None


def sh(*command: str | Path) -> None:
    """Run a program quietly. Raises ``RuntimeError`` with what it said when it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")


def tree(root: Path, files: int) -> Path:
    """Make a folder of small files, two hundred to a folder; return it."""
    for number in range(files):
        place = root / f"{number // 200:04d}"
        if number % 200 == 0:
            place.mkdir(parents=True)
        (place / f"{number % 200:03d}.txt").write_bytes(b"%d " % number * (number % 700 + 1))
    return root


@contextmanager
def peers(folder: Path) -> Iterator[list[Peer]]:
    """Set up every peer that this machine has, working in ``folder``."""
    with ExitStack() as stack:
        found = [_age(folder), _pyrage(folder), _openssl(folder), _tink(folder), _gocryptfs(folder, stack)]
        yield [peer for peer in found if peer is not None]


def _age(folder: Path) -> Peer | None:
    if shutil.which("age") is None:
        return None
    key, out = folder / "age.key", folder / "sealed.age"
    sh("age-keygen", "-o", key)
    recipient = key.read_text().split("public key: ")[1].split()[0]
    return Peer(
        "age", out, lambda plain: sh("age", "-r", recipient, "-o", out, plain), lambda new: sh("age", "-d", "-i", key, "-o", new, out)
    )


def _pyrage(folder: Path) -> Peer | None:
    if importlib.util.find_spec("pyrage") is None:
        return None
    import pyrage

    who, out = pyrage.x25519.Identity.generate(), folder / "sealed.pyrage"
    return Peer(
        "pyrage",
        out,
        lambda plain: pyrage.encrypt_file(str(plain), str(out), [who.to_public()]),
        lambda new: pyrage.decrypt_file(str(out), str(new), [who]),
    )


def _openssl(folder: Path) -> Peer | None:
    """Only a stream cipher, with nothing that would notice a change: the least that a program that encrypts can do."""
    if shutil.which("openssl") is None:
        return None
    out = folder / "sealed.openssl"
    words = ("openssl", "enc", "-aes-256-ctr", "-K", "00" * 32, "-iv", "00" * 16)
    return Peer(
        "openssl enc", out, lambda plain: sh(*words, "-in", plain, "-out", out), lambda new: sh(*words, "-d", "-in", out, "-out", new)
    )


def _tink(folder: Path) -> Peer | None:
    if importlib.util.find_spec("tink") is None:
        return None
    import tink
    from tink import streaming_aead

    streaming_aead.register()
    handle = tink.new_keyset_handle(streaming_aead.streaming_aead_key_templates.AES256_GCM_HKDF_1MB)
    primitive = handle.primitive(streaming_aead.StreamingAead)
    out = folder / "sealed.tink"

    def encrypt(plain: Path) -> None:
        with plain.open("rb") as source, primitive.new_encrypting_stream(out.open("wb"), b"") as target:
            shutil.copyfileobj(source, target, CHUNK)

    def decrypt(new: Path) -> None:
        with primitive.new_decrypting_stream(out.open("rb"), b"") as source, new.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK)

    return Peer("tink-python", out, encrypt, decrypt)


def _gocryptfs(folder: Path, stack: ExitStack) -> Peer | None:
    """Copy into a mounted folder and, mounted anew so that no cache helps, out of it."""
    if shutil.which("gocryptfs") is None or not Path("/dev/fuse").exists():
        return None
    cipher, place, word = folder / "gocryptfs", folder / "gocryptfs.mount", folder / "gocryptfs.password"
    cipher.mkdir()
    place.mkdir()
    word.write_text("only a measurement")
    sh("gocryptfs", "-init", "-scryptn", "10", "-passfile", word, cipher)

    def mount() -> None:
        sh("gocryptfs", "-passfile", word, cipher, place)

    def again() -> None:
        sh("fusermount3", "-u", place)
        mount()

    mount()
    stack.callback(sh, "fusermount3", "-u", place)
    out = place / "sealed"
    return Peer("gocryptfs", out, lambda plain: sh("cp", plain, out), lambda new: sh("cp", out, new), again)
