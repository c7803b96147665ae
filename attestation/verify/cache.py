"""Collateral in a folder: what vendors sign about their devices, kept as long as it says itself that it is valid.

Four kinds: ``crl`` (revocation lists), ``ocsp`` (responders' answers), ``tdx`` (Intel's tables, see ``tdx_collateral``) and ``rim``
(NVIDIA's references). The folder holds the files as they came, named by their digest, and no index: what a file says is read from it
each time, and its signature is verified each time it is used. So whoever can write here can withhold, but not forge.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Literal

from cryptography import x509

from attestation.document import time_text
from attestation.errors import AttestationError, FormatError, LimitError, VerificationError
from attestation.shape import shape
from attestation.verify.certificates import packaged_roots
from attestation.verify.ocsp import load_ocsp
from attestation.verify.revocation import check_revocation, load_crl
from attestation.verify.tdx_collateral import collateral_fix, open_tables, stated_window

Kind = Literal["crl", "ocsp", "tdx", "rim"]
KINDS: tuple[Kind, ...] = ("crl", "ocsp", "tdx", "rim")
MAX_ITEM_BYTES = 4 * 1024 * 1024
MAX_ITEMS = 512
_UNPROVEN = "its signature is checked against the chain that it is used for"
_ROOT_FILES = ("amd_milan.pem", "amd_genoa.pem", "amd_turin.pem", "intel_sgx.pem", "nvidia_device.pem", "nvidia_rim.pem")


@dataclass(frozen=True)
class Cached:
    """The files of a cache, as verifiers take them."""

    crls: tuple[bytes, ...] = ()
    ocsp: tuple[bytes, ...] = ()
    tdx: tuple[bytes, ...] = ()
    rims: tuple[bytes, ...] = ()


NOTHING = Cached()


@dataclass(frozen=True)
class Item:
    """One file: what it is about, from when to when it is valid by its own signed word, who vouches, and where a new one is had."""

    kind: Kind
    digest: str
    about: str
    since: datetime
    until: datetime | None
    signer: str
    fix: str

    def problem(self, at: datetime) -> str:
        """Return why it cannot be used at ``at``, or nothing."""
        if at < self.since:
            return f"not valid before {time_text(self.since)}"
        if self.until is None:
            return "it states no end: it counts only with an age limit in the trust file"
        return f"expired {time_text(self.until)}" if at > self.until else ""


class CollateralCache:
    """A folder of collateral."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, raw: bytes, at: datetime) -> Item:
        """Keep a file that is valid at ``at``; the same one again changes nothing.

        Raises ``FormatError`` for no collateral, ``LimitError``, or ``VerificationError`` for a signature or date that does not hold.
        """
        item = describe(raw)
        if problem := item.problem(at):
            raise VerificationError(
                f"this {item.kind} cannot be used: {problem}",
                rule="collateral",
                seen=item.about,
                wanted=f"valid at {time_text(at)}",
                fix=item.fix,
            )
        place = self._folder / item.kind / item.digest.removeprefix("sha256:")
        if len(self._paths()) >= MAX_ITEMS and not place.exists():
            fix = "remove what expired: 'sealrig evidence collateral check --remove'"
            raise LimitError("the cache is full", rule="collateral", seen=f"{MAX_ITEMS} files", wanted="fewer", fix=fix)
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.part")
        part.write_bytes(raw)
        part.replace(place)
        return item

    def items(self, at: datetime) -> list[tuple[Item, str]]:
        """Return each file with what is wrong with it at ``at`` (nothing for what is good), by kind and subject."""
        found: list[tuple[Item, str]] = []
        for kind, path in self._paths():
            try:
                item = describe(_read(path))
            except AttestationError as error:
                item = Item(kind, f"sha256:{path.name}"[:80], "damaged", at, None, "nobody", "fetch it again")
                found.append((item, error.message))
            else:
                found.append((item, item.problem(at)))
        return sorted(found, key=lambda pair: (pair[0].kind, pair[0].about, pair[0].since))

    def remove(self, item: Item) -> None:
        """Remove one file."""
        (self._folder / item.kind / item.digest.removeprefix("sha256:")).unlink(missing_ok=True)

    def load(self) -> Cached:
        """Return all files, for verifiers; nothing where there is no folder."""
        found: dict[str, list[bytes]] = {kind: [] for kind in KINDS}
        for kind, path in self._paths():
            found[kind].append(_read(path))
        return Cached(*(tuple(found[kind]) for kind in KINDS))

    def _paths(self) -> list[tuple[Kind, Path]]:
        paths: list[tuple[Kind, Path]] = []
        for kind in KINDS:
            folder = self._folder / kind
            if folder.is_dir():
                paths += [(kind, path) for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.is_file()]
        return paths[:MAX_ITEMS]


def describe(raw: bytes) -> Item:
    """Return what a file is, its signature verified at its own time as far as the packaged roots reach. Raises ``AttestationError``."""
    if len(raw) > MAX_ITEM_BYTES:
        raise LimitError("the file is too large", rule="collateral", seen=f"{len(raw)} bytes", wanted=f"≤ {MAX_ITEM_BYTES} bytes")
    readers: dict[Kind, Callable[[bytes, str], Item]] = {"tdx": _tdx, "rim": _rim, "crl": _crl, "ocsp": _ocsp}
    return readers[_kind(raw)](raw, f"sha256:{sha256(raw).hexdigest()}")


def _kind(raw: bytes) -> Kind:
    start = raw.lstrip()[:200]
    if start.startswith(b"{"):
        return "tdx"
    if start.startswith((b"<", b"\xef\xbb\xbf<")):
        return "rim"
    for kind, load in (("crl", load_crl), ("ocsp", load_ocsp)):
        with contextlib.suppress(FormatError):
            load(raw)
            return "crl" if kind == "crl" else "ocsp"
    raise FormatError(
        "not collateral",
        rule="collateral",
        seen=shape(raw),
        wanted="a revocation list, an OCSP response, Intel's collateral (JSON) or a RIM file",
        fix="name a file as the vendor publishes it",
    )


def _tdx(raw: bytes, digest: str) -> Item:
    tables = open_tables(raw, packaged_roots("intel_sgx.pem"), stated_window(raw)[0])
    about = f"Intel TDX platforms {tables.tcb.fmspc.lower()}"
    return Item("tdx", digest, about, tables.since, tables.until, "Intel SGX Root CA", collateral_fix(tables.tcb.fmspc))


def _rim(raw: bytes, digest: str) -> Item:
    # XML libraries load here only.
    from attestation.verify.rim import rim_signers, verify_rim

    signers = rim_signers(raw)
    since, until = max(item.not_valid_before_utc for item in signers), min(item.not_valid_after_utc for item in signers)
    rim = verify_rim(raw, since)
    fix = f"fetch the reference of {rim.product} {rim.version} from NVIDIA's RIM service (https://rim.attestation.nvidia.com)"
    return Item("rim", digest, f"NVIDIA {rim.product} {rim.version}", since, until, rim.signer, fix)


def _crl(raw: bytes, digest: str) -> Item:
    crl = load_crl(raw)
    issuer = next((item for item in _known() if item.subject == crl.issuer), None)
    name = crl.issuer.rfc4514_string()[:200]
    fix = "fetch the issuer's current list: the certificates that it issued name the place (CRL distribution points)"
    if issuer is None:
        return Item("crl", digest, name, crl.last_update_utc, crl.next_update_utc, _UNPROVEN, fix)
    if "CN=ARK" in name:
        fix = f"fetch https://kdsintf.amd.com/vcek/v1/{name.partition('CN=ARK-')[2].partition(',')[0] or 'Milan'}/crl"
    check_revocation(crl, issuer, (), at=crl.last_update_utc)
    return Item("crl", digest, name, crl.last_update_utc, crl.next_update_utc, "the pinned certificate of its issuer", fix)


def _ocsp(raw: bytes, digest: str) -> Item:
    answers = list(load_ocsp(raw).responses)
    about = ", ".join(f"serial number {answer.serial_number:x}" for answer in answers[:4])
    ends = [answer.next_update_utc for answer in answers if answer.next_update_utc is not None]
    since, until = max(answer.this_update_utc for answer in answers), min(ends, default=None)
    return Item(
        "ocsp", digest, about, since, until, _UNPROVEN, "ask the issuer's responder again (for NVIDIA: https://ocsp.ndis.nvidia.com)"
    )


def _known() -> list[x509.Certificate]:
    return [certificate for name in _ROOT_FILES for certificate in packaged_roots(name)]


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_ITEM_BYTES + 1)
