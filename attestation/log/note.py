"""What is signed: C2SP signed notes, their keys, log checkpoints, and witness cosignatures.

Specifications: c2sp.org/signed-note, c2sp.org/tlog-checkpoint, c2sp.org/tlog-cosignature (Ed25519: type 0x01 for a log,
0x04 for a witness). Parsing is strict: one spelling for each note, so that nothing can be changed unseen.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from attestation.errors import FormatError, SignatureError
from attestation.log.errors import CheckpointError, NoteError, NoteSignatureError
from attestation.merkle import HASH_BYTES, MAX_SIZE
from attestation.shape import shape
from attestation.signing import SigningKey, VerifyKey, b64decode, b64encode

ED25519 = 0x01
COSIGNATURE = 0x04
MAX_NOTE_BYTES = 64 * 1024
MAX_SIGNATURES = 64
MAX_EXTENSIONS = 16

_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_DASH = "\u2014 "


def check_name(name: str) -> None:
    """Raise ``NoteError`` unless ``name`` may name a key: not empty, no spaces, no plus, no control characters."""
    if not name or "+" in name or any(letter.isspace() or ord(letter) < 0x20 for letter in name):
        raise NoteError("a key's name is not acceptable", rule="note-name", seen=shape(name), wanted="no spaces, no plus, not empty")


def parse_number(text: str, rule: str) -> int:
    """Read an ASCII decimal without leading zeroes, at most 2^63 - 1. Raises ``CheckpointError`` named ``rule``."""
    if _NUMBER.fullmatch(text) is None:
        raise CheckpointError(
            "a number has another spelling", rule=f"{rule}-form", seen=shape(text), wanted="decimal without leading zeroes"
        )
    value = int(text)
    if value > MAX_SIZE:
        raise CheckpointError("a number is too large", rule=f"{rule}-range", seen=shape(value), wanted=f"≤ {MAX_SIZE}")
    return value


def _key_id(name: str, kind: int, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]


@dataclass(frozen=True)
class NoteVerifier:
    """A trusted key under its name; ``kind`` is ``ED25519`` (a log) or ``COSIGNATURE`` (a witness)."""

    name: str
    key: VerifyKey
    kind: int = ED25519

    def __post_init__(self) -> None:
        check_name(self.name)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse a C2SP vkey, ``name+hexid+base64``. Raises ``NoteError``."""
        name, _, rest = text.strip().partition("+")
        shown, _, body = rest.partition("+")
        check_name(name)
        try:
            raw = b64decode(body)
        except FormatError as error:
            raise NoteError("not a verifier key", rule="vkey-form", seen=shape(text), wanted="name+hexid+base64") from error
        if not raw or raw[0] not in {ED25519, COSIGNATURE}:
            raise NoteError("a key of an unknown type", rule="vkey-type", seen=raw[:1].hex() or "none", wanted="01 or 04")
        if len(raw) != 33:
            raise NoteError("a key has a wrong length", rule="vkey-length", seen=f"{len(raw) - 1} bytes", wanted="32 bytes")
        verifier = cls(name, VerifyKey(raw[1:]), raw[0])
        if verifier.key_id.hex() != shown:
            raise NoteError("a key's id is not that of the key", rule="vkey-id", seen=shape(shown), wanted=verifier.key_id.hex())
        return verifier

    @property
    def key_id(self) -> bytes:
        """The 4-byte id that signature lines carry."""
        return _key_id(self.name, self.kind, self.key.raw)

    @property
    def text(self) -> str:
        """The key as a C2SP vkey."""
        return f"{self.name}+{self.key_id.hex()}+{b64encode(bytes([self.kind]) + self.key.raw)}"

    def check(self, text: str, signature: NoteSignature) -> int | None:
        """Return the time a witness stated (None for a log) once the signature is proven. Raises ``NoteSignatureError``."""
        stamped = self.kind == COSIGNATURE
        if len(signature.blob) != (72 if stamped else 64):
            raise NoteSignatureError(
                "a trusted key's signature has a wrong length",
                rule="signature-length",
                seen=f"{len(signature.blob)} bytes",
                wanted="72 bytes" if stamped else "64 bytes",
            )
        moment = int.from_bytes(signature.blob[:8], "big") if stamped else None
        if moment is not None and moment > MAX_SIZE:
            raise NoteSignatureError(
                "a cosignature's time is out of range", rule="cosignature-time", seen=str(moment), wanted=f"≤ {MAX_SIZE}"
            )
        message = text.encode() if moment is None else _cosigned(moment, text)
        try:
            self.key.verify(signature.blob[8:] if stamped else signature.blob, message)
        except SignatureError as error:
            raise NoteSignatureError(
                f"the signature of {self.name} does not verify",
                rule="signature-invalid",
                seen="other text or another key",
                wanted=f"a signature by {self.text}",
            ) from error
        return moment


@dataclass(frozen=True)
class NoteSignature:
    """One signature line: name, 4-byte key id, and the bytes after it."""

    name: str
    key_id: bytes
    blob: bytes

    @classmethod
    def parse(cls, line: str) -> Self:
        """Read a line without its newline. Raises ``NoteError``."""
        name, space, body = line.removeprefix(_DASH).partition(" ")
        if not line.startswith(_DASH) or not space:
            raise NoteError("not a signature line", rule="note-signature-form", seen=shape(line), wanted="em dash, name, base64")
        check_name(name)
        try:
            raw = b64decode(body)
        except FormatError as error:
            raise NoteError(
                "a signature is not canonical base64", rule="note-signature-base64", seen=shape(body), wanted="canonical base64"
            ) from error
        if len(raw) < 5:
            raise NoteError("a signature is too short", rule="note-signature-short", seen=f"{len(raw)} bytes", wanted="more than 4 bytes")
        return cls(name, raw[:4], raw[4:])

    @property
    def line(self) -> str:
        """The signature line with its newline."""
        return f"{_DASH}{self.name} {b64encode(self.key_id + self.blob)}\n"


@dataclass(frozen=True)
class Note:
    """Signed text: ``text`` ends with a newline; signatures stand as received."""

    text: str
    signatures: tuple[NoteSignature, ...]

    @classmethod
    def parse(cls, raw: bytes | str) -> Self:
        """Read a note. Raises ``NoteError``; trusts nothing yet."""
        data = raw.encode() if isinstance(raw, str) else raw
        if len(data) > MAX_NOTE_BYTES:
            raise NoteError("a note is too large", rule="note-size", seen=f"{len(data)} bytes", wanted=f"≤ {MAX_NOTE_BYTES} bytes")
        try:
            whole = data.decode()
        except UnicodeDecodeError as error:
            raise NoteError("a note is not UTF-8", rule="note-utf8", seen=str(error)[:80], wanted="UTF-8") from error
        if "\r" in whole:
            raise NoteError("a note has carriage returns", rule="note-crlf", seen="CR", wanted="lines that end with LF alone")
        if any(ord(letter) < 0x20 and letter != "\n" for letter in whole):
            raise NoteError("a note has control characters", rule="note-control", seen="a byte below 0x20", wanted="text and newlines")
        if not whole.endswith("\n"):
            raise NoteError("a note is cut off", rule="note-newline", seen=shape(whole), wanted="a newline at the end")
        text, blank, tail = whole.rpartition("\n\n")
        if not blank:
            raise NoteError("a note has no signatures", rule="note-blank-line", seen="no blank line", wanted="text, blank line, signatures")
        lines = tail.split("\n")[:-1]
        if not 1 <= len(lines) <= MAX_SIGNATURES:
            raise NoteError(
                "a note has too few or too many signatures", rule="note-count", seen=str(len(lines)), wanted=f"1 to {MAX_SIGNATURES}"
            )
        return cls(text + "\n", tuple(NoteSignature.parse(line) for line in lines))

    @property
    def whole(self) -> str:
        """The note as it is stored and sent."""
        return self.text + "\n" + "".join(signature.line for signature in self.signatures)

    def verify(self, verifiers: Iterable[NoteVerifier]) -> dict[NoteVerifier, int | None]:
        """Return each trusted key that signed, with the time it stated. Raises ``NoteSignatureError``, also where none did.

        Signatures by unknown keys are ignored; one by a known key that does not verify spoils the note.
        """
        trusted = tuple(verifiers)
        proven = self.signed_by(trusted)
        if not proven:
            names = {each.name for each in self.signatures}
            raise NoteSignatureError(
                "no trusted key signed this note",
                rule="signature-unknown" if names & {each.name for each in trusted} else "signature-other-log",
                seen=", ".join(f"{each.name}+{each.key_id.hex()}" for each in self.signatures)[:200],
                wanted=", ".join(f"{each.name}+{each.key_id.hex()}" for each in trusted)[:200] or "at least one trusted key",
            )
        return proven

    def signed_by(self, verifiers: Iterable[NoteVerifier]) -> dict[NoteVerifier, int | None]:
        """Return as ``verify`` does, but nothing where none of these keys signed."""
        known = {(verifier.name, verifier.key_id): verifier for verifier in verifiers}
        proven: dict[NoteVerifier, int | None] = {}
        for signature in self.signatures:
            verifier = known.get((signature.name, signature.key_id))
            if verifier is None:
                continue
            if verifier in proven:
                raise NoteSignatureError("a key signed twice", rule="signature-twice", seen=verifier.name, wanted="one signature a key")
            proven[verifier] = verifier.check(self.text, signature)
        return proven


@dataclass(frozen=True)
class Checkpoint:
    """A tree head: which log, how many leaves, which root; ``extensions`` are opaque lines."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a note's text. Raises ``CheckpointError``; a caller proves the signature first."""
        lines = text.split("\n")
        if len(lines) < 4 or lines[-1] or len(lines) > 4 + MAX_EXTENSIONS:
            raise CheckpointError("not a checkpoint", rule="checkpoint-lines", seen=f"{len(lines) - 1} lines", wanted="origin, size, root")
        origin, size, root, *extensions = lines[:-1]
        if not origin:
            raise CheckpointError("a checkpoint names no log", rule="checkpoint-origin-empty", seen="an empty line", wanted="an origin")
        if not all(extensions):
            raise CheckpointError("an extension line is empty", rule="checkpoint-extension", seen="an empty line", wanted="text")
        number = parse_number(size, "checkpoint-size")
        try:
            digest = b64decode(root)
        except FormatError as error:
            raise CheckpointError(
                "a root is not base64", rule="checkpoint-root-base64", seen=shape(root), wanted="canonical base64"
            ) from error
        if len(digest) != HASH_BYTES:
            raise CheckpointError(
                "a root has a wrong length", rule="checkpoint-root-length", seen=f"{len(digest)} bytes", wanted="32 bytes"
            )
        return cls(origin, number, digest, tuple(extensions))

    @property
    def text(self) -> str:
        """The text that is signed."""
        return "".join(f"{line}\n" for line in (self.origin, str(self.size), b64encode(self.root), *self.extensions))


def open_checkpoint(raw: bytes | str, verifiers: Iterable[NoteVerifier], *, origin: str | None = None) -> tuple[Checkpoint, Note]:
    """Return a checkpoint once a trusted log key is proven to have signed it under its own origin.

    Raises ``NoteError``, ``NoteSignatureError`` or ``CheckpointError``. ``origin`` defaults to the name of the key that signed.
    """
    note = Note.parse(raw)
    logs = [verifier for verifier in verifiers if verifier.kind == ED25519]
    proven = note.verify(logs)
    checkpoint = Checkpoint.parse(note.text)
    wanted = {origin} if origin is not None else {verifier.name for verifier in proven}
    if checkpoint.origin not in wanted:
        raise CheckpointError(
            "a checkpoint of another log", rule="checkpoint-origin", seen=checkpoint.origin[:120], wanted=" or ".join(sorted(wanted))
        )
    return checkpoint, note


def sign_note(text: str, name: str, keys: Sequence[SigningKey]) -> Note:
    """Return text signed by keys of one name."""
    check_name(name)
    return Note(text, tuple(NoteSignature(name, _key_id(name, ED25519, key.public.raw), key.sign(text.encode())) for key in keys))


def sign_checkpoint(checkpoint: Checkpoint, name: str, key: SigningKey) -> Note:
    """Return the checkpoint signed by a log."""
    return sign_note(checkpoint.text, name, (key,))


def cosign(text: str, name: str, key: SigningKey, at: int) -> NoteSignature:
    """Return a witness's cosignature of a checkpoint's text as of ``at`` (POSIX seconds)."""
    return NoteSignature(name, _key_id(name, COSIGNATURE, key.public.raw), at.to_bytes(8, "big") + key.sign(_cosigned(at, text)))


def _cosigned(at: int, text: str) -> bytes:
    return f"cosignature/v1\ntime {at}\n{text}".encode()
