"""The layout of an SEV-SNP attestation report, versions 2 to 5. Pure parsing.

Source: AMD 56860, SEV Secure Nested Paging Firmware ABI, table ATTESTATION_REPORT; numbers are little endian.
"""

from __future__ import annotations

from dataclasses import dataclass

from attestation.errors import FormatError
from attestation.verify.binary import BinaryReader

REPORT_BYTES = 0x4A0
SIGNED_BYTES = 0x2A0
VERSIONS = range(2, 6)
ECDSA_P384_SHA384 = 1
VCEK, VLEK = 0, 1
MAX_VMPL = 3
_NUMBER_BYTES = 72
_P384_BYTES = 48
TURIN_FAMILY = 0x1A
"""CPU family (extended family + base) from which on the TCB and the chip id have their new layout."""


@dataclass(frozen=True)
class Tcb:
    """Security versions of the firmware parts; ``fmc`` exists from Turin on."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int = 0

    @classmethod
    def parse(cls, raw: bytes, *, turin: bool) -> Tcb:
        """Read the 8 bytes of a TCB_VERSION."""
        if turin:
            return cls(fmc=raw[0], bootloader=raw[1], tee=raw[2], snp=raw[3], microcode=raw[7])
        return cls(bootloader=raw[0], tee=raw[1], snp=raw[6], microcode=raw[7])

    def covers(self, floor: Tcb) -> bool:
        """Say whether every part is at least at ``floor``."""
        return all(getattr(self, part) >= getattr(floor, part) for part in ("bootloader", "tee", "snp", "microcode", "fmc"))

    def __str__(self) -> str:
        return f"bootloader {self.bootloader}, tee {self.tee}, snp {self.snp}, microcode {self.microcode}, fmc {self.fmc}"


@dataclass(frozen=True)
class Policy:
    """The guest policy's bits that matter here."""

    raw: int

    @property
    def smt(self) -> bool:
        """Whether simultaneous multithreading is allowed (bit 16)."""
        return bool(self.raw >> 16 & 1)

    @property
    def migration(self) -> bool:
        """Whether a migration agent may take the guest (bit 18)."""
        return bool(self.raw >> 18 & 1)

    @property
    def debug(self) -> bool:
        """Whether the host may read the guest's memory for debugging (bit 19)."""
        return bool(self.raw >> 19 & 1)


@dataclass(frozen=True)
class SnpReport:
    """The fields that are judged. ``signature`` is (r, s); ``signer`` is ``VCEK`` or ``VLEK``; ``cpuid_family`` is None in version 2."""

    version: int
    policy: Policy
    vmpl: int
    signer: int
    chip_key_masked: bool
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key: bytes
    author_key: bytes
    current_tcb: Tcb
    reported_tcb: Tcb
    committed_tcb: Tcb
    launch_tcb: Tcb
    chip_id: bytes
    cpuid_family: int | None
    signed: bytes
    signature: tuple[int, int]


def parse_report(raw: bytes, *, turin: bool) -> SnpReport:
    """Parse a report. ``turin`` chooses the TCB layout of version 2 reports, which do not name their CPU. Raises ``FormatError``."""
    if len(raw) != REPORT_BYTES:
        raise FormatError("not an SEV-SNP report", seen=f"{len(raw)} bytes", wanted=f"{REPORT_BYTES} bytes")
    reader = BinaryReader(raw, "the report", "little")
    version = reader.number(4)
    if version not in VERSIONS:
        raise FormatError("an unknown version of report", seen=str(version), wanted=f"{VERSIONS.start} to {VERSIONS.stop - 1}")
    reader.number(4)  # guest SVN
    policy = reader.number(8)
    reader.take(32)  # family id, image id
    vmpl, algorithm = reader.number(4), reader.number(4)
    if algorithm != ECDSA_P384_SHA384:
        raise FormatError("an unknown signature algorithm", seen=str(algorithm), wanted=f"{ECDSA_P384_SHA384} (ECDSA P-384 with SHA-384)")
    current = reader.take(8)
    reader.number(8)  # platform info
    key_info = reader.number(4)
    reader.number(4)
    report_data, measurement, host_data = reader.take(64), reader.take(48), reader.take(32)
    id_key, author_key = reader.take(48), reader.take(48)
    reader.take(32 + 32)  # report id, report id of the migration agent
    reported = reader.take(8)
    cpuid = reader.take(24)
    family = cpuid[0] if version > VERSIONS.start else None
    new = turin if family is None else family >= TURIN_FAMILY
    chip_id, committed = reader.take(64), reader.take(8)
    reader.take(8)  # current and committed build
    launch = reader.take(8)
    reader.take(SIGNED_BYTES - 0x1F8)
    r, s = (int.from_bytes(reader.take(_NUMBER_BYTES), "little") for _ in range(2))
    if any(reader.take(reader.left)) or max(r, s).bit_length() > 8 * _P384_BYTES:
        raise FormatError("the signature has bytes where none belong", seen="bytes that are not zero", wanted="r, s and zeros")
    return SnpReport(
        version=version,
        policy=Policy(policy),
        vmpl=vmpl,
        signer=key_info >> 2 & 7,
        chip_key_masked=bool(key_info >> 1 & 1),
        report_data=report_data,
        measurement=measurement,
        host_data=host_data,
        id_key=id_key,
        author_key=author_key,
        current_tcb=Tcb.parse(current, turin=new),
        reported_tcb=Tcb.parse(reported, turin=new),
        committed_tcb=Tcb.parse(committed, turin=new),
        launch_tcb=Tcb.parse(launch, turin=new),
        chip_id=chip_id,
        cpuid_family=family,
        signed=raw[:SIGNED_BYTES],
        signature=(r, s),
    )
