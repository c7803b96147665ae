"""Node side of an SEV-SNP report or a TDX quote, through the kernel's configfs-tsm (Documentation/ABI/testing/configfs-tsm-report)."""

from __future__ import annotations

import contextlib
import secrets
import uuid
from dataclasses import dataclass
from pathlib import Path

from attestation.errors import AttestationError
from attestation.evidence import TeeEvidence
from attestation.signing import b64encode

TSM = Path("/sys/kernel/config/tsm/report")
PROVIDER = "sev_guest"
TDX_PROVIDER = "tdx_guest"
REPORT_DATA_BYTES = 64
MAX_BLOB_BYTES = 64 * 1024
ATTEMPTS = 3
"""How often to ask again where another process used the same entry in between (``generation`` moved)."""

# Certificate table of the extended report (AMD 56421, GHCB): GUID (16), offset (4), length (4), ended by zeros.
CHIP_KEY_GUIDS = (uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd"), uuid.UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1"))
"""VCEK, VLEK."""
_ENTRY_BYTES = 24


@dataclass(frozen=True)
class SnpSource:
    """An SEV-SNP guest's own report. ``chain`` is a file with the VCEK or VLEK where the host does not hand it over.

    ``crl`` is a file with AMD's revocation list, which travels along.
    """

    chain: Path | None = None
    crl: Path | None = None
    root: Path = TSM

    def quote(self, binding: bytes) -> TeeEvidence:
        """Return a report with ``binding`` in its report data. Raises ``AttestationError`` where the kernel refuses."""
        try:
            report, table = ask_kernel(self.root, PROVIDER, binding)
            certificate = self.chain.read_bytes() if self.chain is not None else chip_certificate(table)
            parts = {"report": report, "chain": certificate} | ({"crl": self.crl.read_bytes()} if self.crl is not None else {})
        except OSError as error:
            raise AttestationError(
                "the kernel gives no SEV-SNP report",
                rule="snp-report",
                seen=str(error)[:300],
                wanted="configfs-tsm in an SEV-SNP guest",
                fix="start the node inside an SEV-SNP guest with Linux 6.7 or later, and mount configfs",
            ) from error
        return TeeEvidence(kind="sev-snp", target="cpu0", parts={name: b64encode(data) for name, data in parts.items()})


@dataclass(frozen=True)
class TdxSource:
    """A TDX guest's own quote. ``collateral`` is a file with Intel's signed tables, which travels along."""

    collateral: Path
    root: Path = TSM

    def quote(self, binding: bytes) -> TeeEvidence:
        """Return a quote with ``binding`` in its report data. Raises ``AttestationError`` where the kernel refuses."""
        try:
            quote, _ = ask_kernel(self.root, TDX_PROVIDER, binding)
            parts = {"quote": quote, "collateral": self.collateral.read_bytes()}
        except OSError as error:
            raise AttestationError(
                "the kernel gives no TDX quote",
                rule="tdx-quote",
                seen=str(error)[:300],
                wanted="configfs-tsm in a TDX guest, and Intel's collateral in its file",
                fix="start the node inside a TDX guest with Linux 6.7 or later, and mount configfs",
            ) from error
        return TeeEvidence(kind="tdx", target="cpu0", parts={name: b64encode(data) for name, data in parts.items()})


def ask_kernel(root: Path, wanted: str, binding: bytes) -> tuple[bytes, bytes]:
    """Return report and auxiliary blob, both made from ``binding`` and nothing else. Raises ``AttestationError`` or ``OSError``."""
    report_data = binding.ljust(REPORT_DATA_BYTES, b"\0")
    entry = root / f"sealrig-{secrets.token_hex(8)}"
    entry.mkdir()
    try:
        for _ in range(ATTEMPTS):
            (entry / "inblob").write_bytes(report_data)
            before = (entry / "generation").read_text(encoding="ascii")
            provider = (entry / "provider").read_text(encoding="ascii").strip()
            if provider != wanted:
                raise AttestationError(
                    "another kind of confidential guest",
                    rule="snp-provider",
                    seen=provider[:50],
                    wanted=wanted,
                    fix="leave this source out on this machine",
                )
            report, table = _read(entry / "outblob"), _read(entry / "auxblob")
            if (entry / "generation").read_text(encoding="ascii") == before:
                return report, table
    finally:
        with contextlib.suppress(OSError):
            entry.rmdir()
    raise AttestationError(
        "the report was changed by another process",
        rule="snp-generation",
        seen=f"{ATTEMPTS} times",
        wanted="a stable generation",
        fix="try again",
    )


def chip_certificate(table: bytes) -> bytes:
    """Return the VCEK or VLEK certificate (DER) of a certificate table. Raises ``AttestationError`` where there is none."""
    for at in range(0, len(table) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
        name, offset, length = (
            table[at : at + 16],
            int.from_bytes(table[at + 16 : at + 20], "little"),
            int.from_bytes(table[at + 20 : at + 24], "little"),
        )
        if not any(name):
            break
        if uuid.UUID(bytes=name) in CHIP_KEY_GUIDS and 0 < length <= len(table) - offset:
            return table[offset : offset + length]
    raise AttestationError(
        "the host hands over no chip certificate",
        rule="snp-chain",
        seen=f"a table of {len(table)} bytes",
        wanted="a VCEK or VLEK",
        fix="fetch it from AMD's key service once and name the file",
    )


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BLOB_BYTES)
