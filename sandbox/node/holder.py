"""The holder's image: one program that does nothing, so that a network namespace stays open. Made here, from no registry.

The program is a static ELF file (System V ABI) of a few instructions: it asks the kernel to wait for nothing, for ever. It has no
libc, no shell and no files beside it, so that there is nothing in the holder to attack.
"""

from __future__ import annotations

import io
import platform
import struct
import tarfile

from sandbox.errors import EngineError

HOLDER_PROGRAM = "/hold"
_BASE = 0x400000
_HEADER_BYTES = 64 + 56
# ppoll(NULL, 0, NULL, NULL), again and again.
_CODE = {
    # mov eax, 271; xor edi, edi; xor esi, esi; xor edx, edx; xor r10d, r10d; syscall; jmp back
    "x86_64": (62, bytes.fromhex("b80f010000 31ff 31f6 31d2 4531d2 0f05 ebec".replace(" ", ""))),
    # mov x8, #73; mov x0, xzr; mov x1, xzr; mov x2, xzr; mov x3, xzr; svc #0; b back
    "aarch64": (183, struct.pack("<7I", 0xD2800928, 0xAA1F03E0, 0xAA1F03E1, 0xAA1F03E2, 0xAA1F03E3, 0xD4000001, 0x17FFFFFA)),
}


def holder_elf(machine: str) -> bytes:
    """Return the program for a machine type. Raises ``EngineError`` for one that is not known."""
    if machine not in _CODE:
        raise EngineError(
            "no holder for this machine type",
            rule="egress-holder",
            seen=machine,
            wanted=", ".join(_CODE),
            fix="run jobs with network: none",
        )
    number, code = _CODE[machine]
    size = _HEADER_BYTES + len(code)
    ident = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)
    header = struct.pack("<16sHHIQQQIHHHHHH", ident, 2, number, 1, _BASE + _HEADER_BYTES, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + code


def holder_archive() -> bytes:
    """Return the root file system of the holder's image, the same bytes every time."""
    program = holder_elf(platform.machine())
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for folder in ("dev", "etc", "proc", "sys"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        entry = tarfile.TarInfo(HOLDER_PROGRAM.lstrip("/"))
        entry.size, entry.mode = len(program), 0o555
        tar.addfile(entry, io.BytesIO(program))
    return out.getvalue()
