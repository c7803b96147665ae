"""A second implementation of the bundle format, in the words of ``docs/format.md`` and in its order, without a line of Sealrig's.

It is here to prove that the page is enough: where this needs to know something, the page must say it. It is slow, wants everything in
memory, and imports nothing but ``cryptography``, ``blake3`` and the standard library; X-Wing and HPKE's key schedule are written out.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import struct
import unicodedata
from collections import deque
from dataclasses import dataclass
from itertools import pairwise

from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

MAGIC = b"sealrig.bundle/1"
PAYLOAD_TYPE = "application/vnd.sealrig.bundle+json"
SUITE = "HPKE-MLKEM768_X25519-HKDF_SHA256-AES_256_GCM+AES256_GCM_HKDF_1MB"
FIELDS = {"v", "type", "suite", "id", "created_at", "labels", "payload_size", "index_size", "signer", "recipients"}
LINE_FIELDS = {
    "file": {"type", "path", "mode", "mtime", "size", "offset", "blake3"},
    "dir": {"type", "path", "mode", "mtime"},
    "symlink": {"type", "path", "mode", "mtime", "target"},
    "link": {"type", "path", "mode", "mtime", "target"},
}
TAR_TYPES = {"file": b"0", "link": b"1", "symlink": b"2", "dir": b"5"}
FIRST, OTHER, HEADER, TAG = 1048520, 1048560, 40, 16
END = bytes(1024)


class Refused(Exception):  # noqa: N818  (a verdict)
    """The bundle is not one that a reader may accept."""


def need(holds: object, what: str) -> None:
    if not holds:
        raise Refused(what)


# ---- spelling -------------------------------------------------------------------------------------------------------------------------


def bind(domain: str, *fields: bytes) -> bytes:
    return hashlib.sha256(b"".join(struct.pack(">Q", len(part)) + part for part in (domain.encode(), *fields))).digest()


def canonical(tree: object) -> bytes:
    return json.dumps(tree, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def parse(raw: bytes) -> dict:
    """Return the object that ``raw`` is the canonical spelling of."""
    try:
        tree = json.loads(raw.decode())
        need(isinstance(tree, dict) and canonical(tree) == raw, "another spelling")
    except (ValueError, RecursionError) as error:
        raise Refused("not JSON") from error
    return tree


def b64(text: object) -> bytes:
    need(isinstance(text, str), "no base64")
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refused("no base64") from error
    need(base64.b64encode(raw).decode() == text, "base64 in another spelling")
    return raw


def text(value: object, pattern: str) -> str:
    need(isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII), f"no {pattern}")
    return value


def number(value: object, low: int, high: int) -> int:
    need(type(value) is int and low <= value <= high, "no such number")
    return value


def verify(key: bytes, signature: bytes, message: bytes) -> None:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise Refused("a signature that does not verify") from error


# ---- header ---------------------------------------------------------------------------------------------------------------------------


@dataclass
class Header:
    document: bytes
    tree: dict
    signer: bytes
    payload_offset: int

    @property
    def index_offset(self) -> int:
        return self.payload_offset + self.tree["payload_size"]


def read_header(raw: bytes) -> Header:
    need(raw[:16] == MAGIC and len(raw) >= 20, "no magic")
    end = 20 + struct.unpack(">I", raw[16:20])[0]
    payload_offset = -(-end // 4096) * 4096
    need(payload_offset <= min(len(raw), 65536) and not any(raw[end:payload_offset]), "no header")
    envelope = parse(raw[20:end])
    need(envelope.keys() == {"payload", "payloadType", "signatures"} and envelope["payloadType"] == PAYLOAD_TYPE, "no envelope")
    signatures = envelope["signatures"]
    need(isinstance(signatures, list) and len(signatures) == 1 and isinstance(signatures[0], dict), "not one signature")
    need(signatures[0].keys() == {"keyid", "sig"}, "no signature")
    document = b64(envelope["payload"])
    header = read_document(document, payload_offset)
    need(signatures[0]["keyid"] == hashlib.sha256(header.signer).hexdigest()[:16], "another key id")
    kind = PAYLOAD_TYPE.encode()
    verify(header.signer, b64(signatures[0]["sig"]), b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(document), document))
    need(len(raw) == header.index_offset + header.tree["index_size"], "another size")
    return header


def read_document(document: bytes, payload_offset: int) -> Header:
    tree = parse(document)
    need(tree.keys() == FIELDS, "other fields")
    need(type(tree["v"]) is int and (tree["v"], tree["type"], tree["suite"]) == (1, "sealrig-bundle", SUITE), "another version")
    text(tree["id"], "[0-9a-f]{32}")
    text(tree["created_at"], r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
    need(isinstance(tree["labels"], dict) and len(tree["labels"]) <= 16, "no labels")
    for key, value in tree["labels"].items():
        text(key, "[a-z0-9][a-z0-9._-]{0,62}")
        need(isinstance(value, str) and len(value) <= 256, "no label")
        need(all(char == " " or unicodedata.category(char)[0] not in "CZ" for char in value), "a label that cannot be printed")
    number(tree["payload_size"], 56, 2**50)
    number(tree["index_size"], 56, 2**32)
    signer = b64(text(tree["signer"], "ed25519:.*").removeprefix("ed25519:"))
    need(len(signer) == 32, "no key")
    need(isinstance(tree["recipients"], list) and 1 <= len(tree["recipients"]) <= 16, "no recipients")
    for recipient in tree["recipients"]:
        need(isinstance(recipient, dict) and recipient.keys() == {"to", "wrapped"}, "no recipient")
        text(recipient["to"], "[0-9a-f]{32}")
        need(len(b64(recipient["wrapped"])) == 1168, "no wrapped key")
    need(len({recipient["to"] for recipient in tree["recipients"]}) == len(tree["recipients"]), "a recipient named twice")
    return Header(document, tree, signer, payload_offset)


# ---- key wrap -------------------------------------------------------------------------------------------------------------------------


class Identity:
    """The halves of a private key, and what others know of it."""

    def __init__(self, secret: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self.mlkem = MLKEM768PrivateKey.from_seed_bytes(secret[:64])
        self.x25519 = X25519PrivateKey.from_private_bytes(secret[64:96])
        signing = Ed25519PrivateKey.from_private_bytes(secret[96:])
        self.x25519_public = self.x25519.public_key().public_bytes_raw()
        public = self.mlkem.public_key().public_bytes_raw() + self.x25519_public + signing.public_key().public_bytes_raw()
        self.text = "sealrig1:" + base64.b64encode(public).decode()
        self.fingerprint = hashlib.sha256(public).hexdigest()[:32]

    def unwrap(self, wrapped: bytes, info: bytes) -> bytes:
        """HPKE in base mode (RFC 9180, sections 5.1 and 6.1), with X-Wing's decapsulation."""
        suite = b"HPKE" + struct.pack(">HHH", 0x647A, 0x0001, 0x0002)
        theirs = wrapped[1088:1120]

        def extract(salt: bytes, label: bytes, key: bytes) -> bytes:
            return hmac.digest(salt, b"HPKE-v1" + suite + label + key, "sha256")

        def expand(secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
            return HKDFExpand(SHA256(), length, struct.pack(">H", length) + b"HPKE-v1" + suite + label + context).derive(secret)

        try:
            secrets = self.mlkem.decapsulate(wrapped[:1088]) + self.x25519.exchange(X25519PublicKey.from_public_bytes(theirs))
            shared = hashlib.sha3_256(secrets + theirs + self.x25519_public + bytes.fromhex("5c2e2f2f5e5c")).digest()
            context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
            secret = extract(shared, b"secret", b"")
            return AESGCM(expand(secret, b"key", context, 32)).decrypt(expand(secret, b"base_nonce", context, 12), wrapped[1120:], b"")
        except (InvalidTag, ValueError) as error:
            raise Refused("a key wrapped for somebody else") from error


def data_key(header: Header, identity: Identity) -> bytes:
    bare = header.tree | {"recipients": [{"to": recipient["to"]} for recipient in header.tree["recipients"]]}
    for recipient in header.tree["recipients"]:
        if recipient["to"] == identity.fingerprint:
            key = identity.unwrap(b64(recipient["wrapped"]), bind("sealrig/bundle-key/v1", canonical(bare)))
            need(len(key) == 32, "no data key")
            return key
    raise Refused("sealed to others")


# ---- streams --------------------------------------------------------------------------------------------------------------------------


def _cipher(key: bytes, stream_header: bytes, context: bytes) -> tuple[AESGCM, bytes]:
    need(len(stream_header) == HEADER and stream_header[0] == 0x28, "no stream")
    return AESGCM(HKDF(SHA256(), 32, stream_header[1:33], context).derive(key)), stream_header[33:]


def open_stream(key: bytes, raw: bytes, context: bytes) -> bytes:
    cipher, prefix = _cipher(key, raw[:HEADER], context)
    count = -(-len(raw) // 2**20)
    need(count == 1 or len(raw) - (count - 1) * 2**20 > TAG, "an empty last segment")
    plain = []
    for number_ in range(count):
        sealed = raw[max(HEADER, number_ * 2**20) : (number_ + 1) * 2**20]
        try:
            plain.append(cipher.decrypt(prefix + struct.pack(">IB", number_, number_ == count - 1), sealed, None))
        except (InvalidTag, ValueError) as error:
            raise Refused(f"segment {number_}") from error
    return b"".join(plain)


def seal_stream(key: bytes, stream_header: bytes, context: bytes, plain: bytes) -> bytes:
    cipher, prefix = _cipher(key, stream_header, context)
    pieces = [plain[:FIRST], *(plain[start : start + OTHER] for start in range(FIRST, len(plain), OTHER))]
    sealed = [cipher.encrypt(prefix + struct.pack(">IB", n, n == len(pieces) - 1), piece, None) for n, piece in enumerate(pieces)]
    return stream_header + b"".join(sealed)


# ---- tar ------------------------------------------------------------------------------------------------------------------------------


@dataclass
class Entry:
    kind: str
    path: bytes
    mode: int
    mtime: str
    size: int = 0
    offset: int = 0
    digest: str = ""
    sparse: bool = False
    target: bytes = b""


def tar_header(entry: Entry) -> bytes:
    """Return what stands in the tar before a file's bytes."""
    path, size = entry.path + b"/" * (entry.kind == "dir"), entry.size
    records = _record(b"mtime", entry.mtime.encode())
    name, link = path, entry.target
    if any(len(part) > 100 or max(part, default=0) > 0x7F for part in (path, entry.target)):
        records += b"" if _is_text(path) and _is_text(entry.target) else _record(b"hdrcharset", b"BINARY")
        records += _record(b"path", path)
        records += _record(b"linkpath", entry.target) if entry.kind in {"link", "symlink"} else b""
        name, link = (re.sub(rb"[^\x20-\x7e]", b"_", part[:100]) for part in (path, entry.target))
    if size >= 8**11:
        records += _record(b"size", b"%d" % size)
        size = 0
    whole = entry.mtime.lstrip("-").split(".")[0]
    seconds = 0 if entry.mtime.startswith("-") else min(int(whole), 8**11 - 1)
    first = _ustar(b"././@PaxHeader", 0o644, len(records), 0, b"x", b"")
    return first + records + bytes(-len(records) % 512) + _ustar(name, entry.mode, size, seconds, TAR_TYPES[entry.kind], link)


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _record(key: bytes, value: bytes) -> bytes:
    rest = b" %b=%b\n" % (key, value)
    length = next(n for n in range(len(rest), len(rest) + 9) if len(str(n)) + len(rest) == n)
    return b"%d" % length + rest


def _ustar(name: bytes, mode: int, size: int, seconds: int, kind: bytes, link: bytes) -> bytes:  # noqa: PLR0917  (the order of the fields)
    def block(checksum: bytes) -> bytes:
        return struct.pack(
            "100s8s16s12s12s8sc100s8s64s16s167s", name, b"%07o\0" % mode, b"0000000\0" * 2, b"%011o\0" % size, b"%011o\0" % seconds,
            checksum, kind, link, b"ustar\x0000", b"", b"0000000\0" * 2, b"",
        )  # fmt: skip

    return block(b"%06o\0 " % sum(block(b" " * 8)))


def write_tar(entries: list[Entry], contents: dict[bytes, bytes]) -> bytes:
    parts = []
    for entry in entries:
        parts += [tar_header(entry), contents.get(entry.path, b""), bytes(-entry.size % 512)]
    return b"".join(parts) + END


# ---- index ----------------------------------------------------------------------------------------------------------------------------


def read_index(plain: bytes, header: Header) -> list[Entry]:
    """Return the entries of an index that its sealer signed; offsets are still to be compared with the tar."""
    need(plain.endswith(b"\n"), "a line without an end")
    *lines, last = plain.split(b"\n")[:-1]
    entries = [read_line(line) for line in lines]
    check_order(entries)
    links = {entry.path: entry.target for entry in entries if entry.kind == "symlink"}
    for path in links:
        check_link(path, links)
    end = parse(last)
    need(end.keys() == {"type", "entries", "signature"} and end["type"] == "end", "no last line")
    need(number(end["entries"], 0, 2**53) == len(entries), "another number of entries")
    signed = bind("sealrig/bundle-contents/v1", header.document, blake3(b"".join(line + b"\n" for line in lines)).digest())
    verify(header.signer, b64(end["signature"]), signed)
    return entries


def read_line(line: bytes) -> Entry:
    need(len(line) < 65536, "an overlong line")
    tree = parse(line)
    kind = text(tree.get("type"), "file|dir|symlink|link")
    fields = {key.removesuffix("B64") if key in {"pathB64", "targetB64"} else key for key in tree}
    need(
        len(fields) == len(tree) and fields - {"sparse"} == LINE_FIELDS[kind] and ("sparse" not in fields or kind == "file"), "other fields"
    )
    path = _name(tree, "path")
    parts = path.split(b"/")
    need(
        len(path) <= 3800 and b"\0" not in path and all(part not in {b"", b".", b".."} and len(part) <= 255 for part in parts), "a bad path"
    )
    mtime = text(tree["mtime"], r"-?(0|[1-9]\d{0,11})\.\d{9}")
    need(mtime != "-0.000000000", "another spelling of 1970")
    entry = Entry(kind, path, number(tree["mode"], 0, 0o777), mtime)
    if kind == "file":
        entry.size, entry.offset = number(tree["size"], 0, 2**50), number(tree["offset"], 0, 2**53)
        entry.digest, entry.sparse = text(tree["blake3"], "[0-9a-f]{64}"), "sparse" in tree
        need(tree.get("sparse", True) is True, "sparse otherwise")
    elif kind != "dir":
        entry.target = _name(tree, "target")
        need(1 <= len(entry.target) <= 3800 and b"\0" not in entry.target, "a bad target")
    return entry


def _name(tree: dict, key: str) -> bytes:
    if key in tree:
        return text(tree[key], r"[\s\S]*").encode()
    raw = b64(tree[key + "B64"])
    need(not _is_text(raw), "text as bytes")
    return raw


def check_order(entries: list[Entry]) -> None:
    keys = [entry.path.replace(b"/", b"\0") for entry in entries]
    need(all(low < high for low, high in pairwise(keys)), "another order")
    before: dict[bytes, str] = {b"": "dir"}
    for entry in entries:
        need(before.get(entry.path.rpartition(b"/")[0]) == "dir", "in no folder")
        need(entry.kind != "link" or before.get(entry.target) == "file", "a link to no earlier file")
        before[entry.path] = entry.kind


def check_link(path: bytes, links: dict[bytes, bytes]) -> None:
    need(not links[path].startswith(b"/"), "an absolute link")
    place, ahead, count = path.split(b"/")[:-1], deque(links[path].split(b"/")), 1
    while ahead:
        part = ahead.popleft()
        if part == b"..":
            need(place, "a link that leads outside")
            place.pop()
        elif part not in {b"", b"."}:
            place.append(part)
            target = links.get(b"/".join(place)) if len(place) <= 1900 else None  # no path has more parts
            if target is not None:
                count += 1
                need(count <= 40 and not target.startswith(b"/"), "a link that leads nowhere, or outside")
                place.pop()
                ahead.extendleft(reversed(target.split(b"/")))


# ---- the whole ------------------------------------------------------------------------------------------------------------------------


@dataclass
class Opened:
    header: Header
    entries: list[Entry]
    contents: dict[bytes, bytes]


def open_bundle(raw: bytes, key: Identity | bytes) -> Opened:
    """Check everything that a reader must, in the page's order; ``key`` may be the data key. Raises ``Refused``."""
    header = read_header(raw)
    secret = key if isinstance(key, bytes) else data_key(header, key)
    index = open_stream(secret, raw[header.index_offset :], bind("sealrig/bundle-index/v1", header.document))
    entries = read_index(index, header)
    payload = raw[header.payload_offset : header.index_offset]
    tar = open_stream(secret, payload, bind("sealrig/bundle-payload/v1", header.document))
    contents, cursor = {}, 0
    for entry in entries:
        cursor += len(tar_header(entry))
        if entry.kind == "file":
            need(entry.offset == cursor, "another offset")
            contents[entry.path] = tar[cursor : cursor + entry.size]
            need(len(contents[entry.path]) == entry.size and blake3(contents[entry.path]).hexdigest() == entry.digest, "other bytes")
            cursor += entry.size + -entry.size % 512
    need(write_tar(entries, contents) == tar, "another tar")
    return Opened(header, entries, contents)


def open_log(chunks: list[bytes], lease: str, identity: Identity) -> list[bytes]:
    """Return the texts of a finished log. Raises ``Refused``."""
    need(chunks and chunks[0].startswith(b"sealrig.log/1\n") and len(chunks[0]) == 14 + 1168, "no log")
    cipher = AESGCM(identity.unwrap(chunks[0][14:], bind("sealrig/log/v1", lease.encode())))
    texts = [b""]
    for number_, chunk in enumerate(chunks[1:], 1):
        last = number_ == len(chunks) - 1
        need(len(chunk) <= 256 * 1024 and chunk[:1] == bytes([last]), "no chunk, or an unfinished log")
        try:
            nonce = bytes(3) + chunk[:1] + struct.pack(">Q", number_)
            texts.append(cipher.decrypt(nonce, chunk[1:], bind("sealrig/log-chunk/v1", lease.encode())))
        except (InvalidTag, ValueError) as error:
            raise Refused(f"chunk {number_}") from error
    need(len(texts) > 1, "an unfinished log")
    return texts
