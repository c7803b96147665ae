"""The layout of an NVIDIA GPU attestation report: an SPDM GET_MEASUREMENTS request and its signed response. Pure parsing.

DMTF DSP0274, version 1.1; numbers are little endian.

request:  11 E0 param1 param2 | nonce (32) | slot (1)
response: 11 60 param1 param2 | blocks (1) | record length (3) | record | nonce (32) | opaque length (2) | opaque | signature (96)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from attestation.errors import FormatError, LimitError
from attestation.verify.binary import BinaryReader

REQUEST_BYTES = 37
SIGNATURE_BYTES = 96
NONCE_BYTES = 32
SHA384_BYTES = 48
MAX_REPORT_BYTES = 64 * 1024
MAX_OPAQUE_FIELDS = 256

_SPDM_1_1 = 0x11
_GET_MEASUREMENTS, _MEASUREMENTS = 0xE0, 0x60
_DMTF = 0x01

DRIVER_VERSION, VBIOS_VERSION, NVDEC0, CHIP_SKU, PROJECT, PROJECT_SKU, FWID, PROTECTED_PCIE, FEATURE_FLAG = 3, 6, 11, 15, 17, 18, 20, 21, 36
"""Opaque field ids."""
ON, OFF = b"\xaa", b"\x55"
MULTI_GPU, SINGLE_GPU, PROTECTED_PCIE_MODE = "multi-GPU", "single GPU", "protected PCIe"
_MODES = {0: MULTI_GPU, 1: SINGLE_GPU, 2: PROTECTED_PCIE_MODE}


@dataclass(frozen=True)
class GpuReport:
    """What a report says. ``measurements`` maps the SPDM block index (from 1) to its value; ``signed`` is what the signature covers."""

    nonce: bytes
    measurements: Mapping[int, bytes]
    opaque: Mapping[int, bytes]
    signed: bytes
    signature: tuple[int, int]

    @property
    def driver(self) -> str:
        """The driver's version, such as ``535.86.09``."""
        return self.opaque.get(DRIVER_VERSION, b"").rstrip(b"\0").decode("ascii", errors="replace")

    @property
    def vbios(self) -> str:
        """The VBIOS version, such as ``96.00.5E.00.01``: four bytes from the high one down, then the next."""
        raw = self.opaque.get(VBIOS_VERSION, b"")
        return ".".join(f"{raw[at]:02X}" for at in (3, 2, 1, 0, 4)) if len(raw) >= 5 else ""

    @property
    def nvdec0_on(self) -> bool | None:
        """Whether the video decoder is enabled, which decides on one measurement; None where the report does not say."""
        return {ON: True, OFF: False}.get(self.opaque.get(NVDEC0, b""))

    @property
    def mode(self) -> str | None:
        """The protection that the GPU is set to, in NVIDIA's words; None where the firmware is too old to say.

        Confidential computing is ``single GPU`` or ``multi-GPU``. Protected PCIe is not: what GPUs exchange over NVLink is in the clear.
        """
        if self.opaque.get(PROTECTED_PCIE) == ON:
            return PROTECTED_PCIE_MODE
        flag = self.opaque.get(FEATURE_FLAG)
        if flag is None:
            return None
        number = int.from_bytes(flag, "little")
        return _MODES.get(number, f"unknown mode {number}"[:60])

    @property
    def reference_ids(self) -> tuple[str, str]:
        """The board's part of the names that NVIDIA publishes its references under: ``PROJECT_SKU_CHIP`` and the VBIOS version."""
        parts = [self.opaque.get(field, b"").rstrip(b"\0").decode("ascii", errors="replace") for field in (PROJECT, PROJECT_SKU, CHIP_SKU)]
        return "_".join(parts), self.vbios.replace(".", "")


def parse_gpu_report(raw: bytes) -> GpuReport:
    """Parse request and response. Raises ``FormatError`` or ``LimitError``."""
    if len(raw) > MAX_REPORT_BYTES:
        raise LimitError("a GPU report is too large", seen=f"{len(raw)} bytes", wanted=f"≤ {MAX_REPORT_BYTES} bytes")
    reader = BinaryReader(raw, "the GPU report", "little")
    _header(reader, _GET_MEASUREMENTS)
    nonce = reader.take(NONCE_BYTES)
    reader.number(1)  # certificate slot
    _header(reader, _MEASUREMENTS)
    blocks, record = reader.number(1), reader.sized(limit=MAX_REPORT_BYTES, size=3)
    reader.take(NONCE_BYTES)  # the responder's own nonce
    opaque = reader.sized(limit=MAX_REPORT_BYTES)
    signature = reader.take(SIGNATURE_BYTES)
    reader.end()
    half = SIGNATURE_BYTES // 2
    pair = (int.from_bytes(signature[:half], "big"), int.from_bytes(signature[half:], "big"))
    return GpuReport(nonce, _measurements(record, blocks), _opaque(opaque), raw[:-SIGNATURE_BYTES], pair)


def _header(reader: BinaryReader, code: int) -> None:
    version, seen = reader.number(1), reader.number(1)
    if (version, seen) != (_SPDM_1_1, code):
        raise FormatError("not an SPDM 1.1 measurement", seen=f"{version:02x} {seen:02x}", wanted=f"{_SPDM_1_1:02x} {code:02x}")
    reader.take(2)


def _measurements(record: bytes, blocks: int) -> dict[int, bytes]:
    reader = BinaryReader(record, "the measurement record", "little")
    found: dict[int, bytes] = {}
    for _ in range(blocks):
        index, kind = reader.number(1), reader.number(1)
        inner = BinaryReader(reader.sized(limit=1024), "a measurement", "little")
        inner.number(1)  # DMTF value type
        value = inner.sized(limit=1024)
        inner.end()
        if kind != _DMTF or index in found or index == 0:
            raise FormatError("not a measurement block", seen=f"index {index}, kind {kind}", wanted="each index once, DMTF format")
        found[index] = value
    reader.end()
    return found


def _opaque(raw: bytes) -> dict[int, bytes]:
    reader = BinaryReader(raw, "the opaque data", "little")
    found: dict[int, bytes] = {}
    while reader.left:
        name, value = reader.number(2), reader.sized(limit=len(raw))
        if name in found or len(found) >= MAX_OPAQUE_FIELDS:
            raise FormatError(
                "an opaque field stands twice, or there are too many", seen=str(name), wanted=f"≤ {MAX_OPAQUE_FIELDS} fields, each once"
            )
        found[name] = value
    return found
