"""The public part of a bundle: a small bounded header that anybody can read and check, and nobody can change unseen.

::

    0             b"sealrig.bundle/1"                    16 bytes
    16            u32be L
    20            DSSE envelope, canonical JSON           L bytes; its payload is the header document
    20 + L        zeros up to the next multiple of 4096
    payload       Tink stream of a pax tar                payload_size bytes
    index         Tink stream of the index                index_size bytes, to the end of the file

This module can neither unwrap nor decrypt anything, and imports nothing that can: the control plane reads headers with it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO, Self

from attestation.canonical import bind, canonical_json, parse_json, sha256_digest
from attestation.errors import AttestationError, SignatureError
from attestation.shape import shape
from attestation.signing import Envelope, SigningKey, VerifyKey, b64decode, b64encode, sign_envelope
from sandbox.errors import BundleError, BundleTamperedError, InputError, LimitError
from sandbox.sealing.algorithms import STREAM_HEADER_BYTES, SUITE_NAME, TAG_BYTES, WRAPPED_KEY_BYTES

MAGIC = b"sealrig.bundle/1"
HEADER_PAYLOAD_TYPE = "application/vnd.sealrig.bundle+json"
ALIGNMENT = 4096
"""The payload starts at a multiple of this, so that it can be written and read past the page cache."""
MAX_HEADER_BYTES = 64 * 1024
"""Everything before the payload. Whoever has this many first bytes of a bundle has its whole header."""
MAX_RECIPIENTS = 16
MAX_LABELS = 16
MAX_LABEL_CHARS = 256
MAX_PAYLOAD_BYTES = 2**50
MAX_INDEX_BYTES = 2**32
_PREFIX_BYTES = len(MAGIC) + 4
_TYPE = "sealrig-bundle"
_FIELDS = {"created_at", "id", "index_size", "labels", "payload_size", "recipients", "signer", "suite", "type", "v"}
_LABEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_HEX32 = re.compile(r"[0-9a-f]{32}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_MIN_STREAM = STREAM_HEADER_BYTES + TAG_BYTES


@dataclass(frozen=True)
class Recipient:
    """Who can open a bundle: the fingerprint of an identity, and the data key wrapped to it."""

    to: str
    wrapped: bytes


@dataclass(frozen=True)
class Core:
    """All of a header but the wrapped keys: what those are bound to. Sizes in bytes of ciphertext."""

    id: str
    created_at: str
    labels: Mapping[str, str]
    payload_size: int
    index_size: int
    signer: VerifyKey
    to: tuple[str, ...]

    def tree(self, wrapped: tuple[bytes, ...] | None = None) -> dict[str, Any]:
        """Return the header document, with the wrapped keys where they are given."""
        recipients: list[dict[str, str]] = [{"to": name} for name in self.to]
        for entry, secret in zip(recipients, wrapped or (), strict=False):
            entry["wrapped"] = b64encode(secret)
        return {
            "created_at": self.created_at, "id": self.id, "index_size": self.index_size, "labels": dict(self.labels),
            "payload_size": self.payload_size, "recipients": recipients, "signer": self.signer.text, "suite": SUITE_NAME,
            "type": _TYPE, "v": 1,
        }  # fmt: skip

    @property
    def wrap_info(self) -> bytes:
        """HPKE's ``info`` for the wrapped data keys: a key lifted into another header does not unwrap there."""
        return bind("sealrig/bundle-key/v1", canonical_json(self.tree()))


@dataclass(frozen=True)
class Header:
    """A header whose form and signature were checked. ``signer`` says who signed; whether to trust them is the caller's decision."""

    core: Core
    recipients: tuple[Recipient, ...]
    document: bytes
    """The exact signed bytes."""
    payload_offset: int

    @property
    def payload_size(self) -> int:
        """Ciphertext bytes of the payload."""
        return self.core.payload_size

    @property
    def index_size(self) -> int:
        """Ciphertext bytes of the index."""
        return self.core.index_size

    @property
    def index_offset(self) -> int:
        """Where the index starts in the file."""
        return self.payload_offset + self.core.payload_size

    @property
    def total_size(self) -> int:
        """How long the whole file must be."""
        return self.index_offset + self.core.index_size

    @property
    def labels(self) -> Mapping[str, str]:
        """Public labels, as the sealer wrote them."""
        return self.core.labels

    @property
    def signer(self) -> VerifyKey:
        """The key that signed the header."""
        return self.core.signer

    @property
    def payload_aad(self) -> bytes:
        """The associated data of the payload stream: ties it to this very header."""
        return bind("sealrig/bundle-payload/v1", self.document)

    @property
    def index_aad(self) -> bytes:
        """The associated data of the index stream."""
        return bind("sealrig/bundle-index/v1", self.document)

    @property
    def digest(self) -> str:
        """SHA-256 of the signed document, which names signer, sizes and wrapped keys: what pins a bundle before all of it was read."""
        return sha256_digest(self.document)

    def require_digest(self, digest: str) -> None:
        """Raise ``BundleTamperedError`` unless this is the header of that digest."""
        if self.digest != digest:
            raise BundleTamperedError("this is the header of another bundle", rule="bundle-header", seen=self.digest, wanted=digest,
                                      fix="get the bundle again from its source")  # fmt: skip

    def require_signer(self, signers: Collection[VerifyKey]) -> None:
        """Raise ``BundleTamperedError`` unless one of ``signers`` signed this header."""
        if self.signer not in signers:
            raise BundleTamperedError(
                "the bundle was sealed by somebody else",
                rule="bundle-signer",
                seen=self.signer.text,
                wanted=", ".join(key.text for key in signers) or "at least one accepted signer",
                fix="get the bundle from whom you expected it, or accept this signer",
            )

    def require_size(self, size: int) -> None:
        """Raise ``BundleError`` unless a file of ``size`` bytes can be this whole bundle."""
        if size != self.total_size:
            kind = "cut short" if size < self.total_size else "longer than it says"
            raise BundleError(f"the bundle is {kind}", rule="bundle-size", seen=f"{size} bytes", wanted=f"{self.total_size} bytes",
                              fix="transfer the bundle again")  # fmt: skip

    @classmethod
    def _from_document(cls, document: bytes, payload_offset: int) -> Self:
        tree = parse_json(document, max_bytes=MAX_HEADER_BYTES)
        if not isinstance(tree, dict) or set(tree) != _FIELDS or canonical_json(tree) != document:
            raise _malformed("other fields, or another spelling")
        if tree["type"] != _TYPE or tree["v"] != 1 or isinstance(tree["v"], bool) or tree["suite"] != SUITE_NAME:
            raise BundleError(
                "the bundle is of another kind or version",
                rule="bundle-version",
                seen=shape(tree["suite"]),
                wanted=SUITE_NAME,
                fix="open it with the version of Sealrig that made it",
            )
        recipients = _recipients(tree["recipients"])
        core = Core(
            id=_text(tree["id"], _HEX32), created_at=_text(tree["created_at"], _TIME), labels=check_labels(tree["labels"]),
            payload_size=_size(tree["payload_size"], MAX_PAYLOAD_BYTES), index_size=_size(tree["index_size"], MAX_INDEX_BYTES),
            signer=VerifyKey.from_text(_text(tree["signer"], None)), to=tuple(item.to for item in recipients),
        )  # fmt: skip
        return cls(core, recipients, document, payload_offset)


def new_core(
    *,
    bundle_id: str,
    labels: Mapping[str, str],
    payload_size: int,
    index_size: int,
    signer: VerifyKey,
    to: tuple[str, ...],
) -> Core:
    """Describe a bundle about to be written. Raises ``InputError`` for too many recipients, none, or unacceptable labels."""
    if not 1 <= len(to) <= MAX_RECIPIENTS or len(set(to)) != len(to):
        raise InputError("not a usable list of recipients", rule="recipients", seen=f"{len(to)} ({len(set(to))} different)",
                         wanted=f"1 to {MAX_RECIPIENTS}, each once", fix="name each recipient once")  # fmt: skip
    if payload_size > MAX_PAYLOAD_BYTES or index_size > MAX_INDEX_BYTES:
        raise LimitError(
            "too much for one bundle",
            rule="bundle-size",
            seen=f"{payload_size} and {index_size} bytes",
            wanted=f"≤ {MAX_PAYLOAD_BYTES} bytes of payload and {MAX_INDEX_BYTES} of index",
            fix="seal it in parts",
        )
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    try:
        checked = check_labels(dict(labels))
    except BundleError as error:
        raise InputError(error.message, **error.details) from error
    return Core(bundle_id, moment, checked, payload_size, index_size, signer, to)


def write_header(core: Core, wrapped: tuple[bytes, ...], signer: SigningKey) -> tuple[bytes, Header]:
    """Sign a header. Returns its bytes, padding included, and its parsed form."""
    document = canonical_json(core.tree(wrapped))
    envelope = sign_envelope(document, HEADER_PAYLOAD_TYPE, signer).to_bytes()
    raw = MAGIC + len(envelope).to_bytes(4, "big") + envelope
    raw += bytes(-len(raw) % ALIGNMENT)
    return raw, read_header(raw)


def read_header(source: BinaryIO | bytes) -> Header:
    """Read and check the header at the beginning of a bundle; at most ``MAX_HEADER_BYTES`` are read.

    Raises ``BundleError`` for what is not a bundle and ``BundleTamperedError`` when the signature does not verify.
    """
    raw = source[:MAX_HEADER_BYTES] if isinstance(source, bytes) else _read_up_to(source, MAX_HEADER_BYTES)
    if not raw.startswith(MAGIC):
        raise BundleError(
            "not a Sealrig bundle",
            rule="bundle-magic",
            seen=shape(raw),
            wanted=f"a file that begins with {MAGIC!r}",
            fix="name a file made by 'seal'",
        )
    length = int.from_bytes(raw[len(MAGIC) : _PREFIX_BYTES], "big")
    end = _PREFIX_BYTES + length
    payload_offset = end + -end % ALIGNMENT
    if payload_offset > MAX_HEADER_BYTES:
        raise _malformed(f"a header of {length} bytes")
    if len(raw) < payload_offset:
        raise BundleError("the bundle is cut short", rule="bundle-size", seen=f"{len(raw)} bytes", wanted=f"{payload_offset} bytes or more",
                          fix="transfer the bundle again")  # fmt: skip
    if any(raw[end:payload_offset]):
        raise BundleTamperedError("the bundle's padding was changed", rule="bundle-padding", seen="bytes that are not zero", wanted="zeros",
                                  fix="get the bundle again from its source")  # fmt: skip
    try:
        return _verified(raw[_PREFIX_BYTES:end], payload_offset)
    except SignatureError as error:
        raise BundleTamperedError(
            "the bundle's header was changed",
            rule="bundle-signature",
            seen=str(error.details.get("seen", "")),
            wanted="the header as its sealer signed it",
            fix="get the bundle again from its source",
        ) from error
    except AttestationError as error:
        raise _malformed(str(error.details.get("seen", error.message))[:200]) from error


def check_labels(tree: object) -> dict[str, str]:
    """Return public labels once they are acceptable. Raises ``BundleError``."""
    if not isinstance(tree, dict) or len(tree) > MAX_LABELS:
        raise _bad_label("labels", f"at most {MAX_LABELS} labels")
    for key, value in tree.items():
        if not isinstance(key, str) or not _LABEL.fullmatch(key):
            raise _bad_label(repr(key)[:80], "keys of a-z, 0-9, '.', '_', '-', at most 63 characters")
        if not isinstance(value, str) or len(value) > MAX_LABEL_CHARS or not value.isprintable():
            raise _bad_label(key, f"values of at most {MAX_LABEL_CHARS} printable characters")
    return dict(tree)


def _verified(raw: bytes, payload_offset: int) -> Header:
    envelope = Envelope.from_bytes(raw)
    # Only one spelling and one signature are accepted, so that no byte of a bundle can change without it being refused.
    if envelope.to_bytes() != raw or len(envelope.signatures) != 1:
        raise _malformed("another spelling of the envelope")
    header = Header._from_document(envelope.payload, payload_offset)  # noqa: SLF001  (the one place that makes them)
    envelope.verify(HEADER_PAYLOAD_TYPE, [header.signer])
    if envelope.signatures[0][0] != header.signer.key_id:
        raise _malformed("a key id that is not the signer's")
    return header


def _recipients(tree: object) -> tuple[Recipient, ...]:
    if not isinstance(tree, list) or not 1 <= len(tree) <= MAX_RECIPIENTS:
        raise _malformed("a list of recipients of another length")
    found = []
    for item in tree:
        if not isinstance(item, dict) or set(item) != {"to", "wrapped"}:
            raise _malformed("a recipient with other fields")
        wrapped = b64decode(item["wrapped"])
        if len(wrapped) != WRAPPED_KEY_BYTES:
            raise _malformed(f"a wrapped key of {len(wrapped)} bytes")
        found.append(Recipient(_text(item["to"], _HEX32), wrapped))
    if len({item.to for item in found}) != len(found):
        raise _malformed("a recipient named twice")
    return tuple(found)


def _text(value: object, pattern: re.Pattern[str] | None) -> str:
    if not isinstance(value, str) or (pattern is not None and not pattern.fullmatch(value)):
        raise _malformed(repr(value)[:80])
    return value


def _size(value: object, limit: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not _MIN_STREAM <= value <= limit:
        raise _malformed(f"a size of {value!r}"[:80])
    return value


def _read_up_to(file: BinaryIO, count: int) -> bytes:
    parts = []
    while count and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _malformed(seen: str) -> BundleError:
    return BundleError(
        "the bundle's header is malformed",
        rule="bundle-header",
        seen=seen,
        wanted="a header as docs/format.md describes it",
        fix="get the bundle again from its source",
    )


def _bad_label(seen: str, wanted: str) -> BundleError:
    return BundleError("a label is not acceptable", rule="bundle-label", seen=seen, wanted=wanted, fix="shorten or rename the label")
