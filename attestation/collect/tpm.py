"""Node side of a TPM 2.0 quote, through tpm2-tools: the quote carries the evidence's binding as qualifying data."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from attestation.errors import AttestationError
from attestation.evidence import TeeEvidence
from attestation.signing import b64encode

TIMEOUT = 30
"""Seconds for one call of a tool; a real TPM needs about one."""
_SHA256_BYTES = 32


@dataclass(frozen=True)
class Tools:
    """tpm2-tools. ``tcti`` is the TPM's address for them, None for the system's own."""

    tcti: str | None = None

    def run(self, tool: str, *arguments: str) -> None:
        """Run one tool to its end. Raises ``AttestationError`` where it is missing, hangs or fails."""
        program = shutil.which(tool)
        if program is None:
            raise AttestationError(
                f"{tool} is not installed", rule="tpm-tools", seen="no such program", wanted=tool, fix="apt-get install tpm2-tools"
            )
        environment = {"PATH": os.environ.get("PATH", "/usr/bin")} | ({"TPM2TOOLS_TCTI": self.tcti} if self.tcti else {})
        try:
            done = subprocess.run([program, *arguments], env=environment, capture_output=True, timeout=TIMEOUT, check=False)
        except subprocess.TimeoutExpired as error:
            raise AttestationError("the TPM does not answer", rule="tpm-timeout", seen=f"{tool} ran {TIMEOUT} s", wanted="an answer",
                                   fix="look at the kernel log") from error  # fmt: skip
        if done.returncode:
            text = done.stderr.decode("utf-8", errors="replace").strip()[-400:]
            raise AttestationError("the TPM refuses", rule="tpm-refused", seen=text or f"exit code {done.returncode}", wanted="exit code 0",
                                   fix=f"run {tool} by hand; the attestation key must be at the handle that it names")  # fmt: skip


@dataclass(frozen=True)
class TpmSource:
    """A TPM with a loaded attestation key: ``handle`` is its persistent handle (``0x81010002``) or context file.

    ``pcrs`` are quoted from the SHA-256 bank; ``tcti`` is the TPM's address for tpm2-tools, None for the system's own.
    """

    handle: str
    pcrs: tuple[int, ...]
    tcti: str | None = None

    def quote(self, binding: bytes) -> TeeEvidence:
        """Return a quote over ``pcrs`` with ``binding`` in it. Raises ``AttestationError`` where the TPM or the tools refuse."""
        with tempfile.TemporaryDirectory(prefix="sealrig-tpm-") as name:
            folder = Path(name)
            files = {part: folder / part for part in ("quote", "signature", "pcrs", "key")}
            selection = "sha256:" + ",".join(str(index) for index in self.pcrs)
            tools = Tools(self.tcti)
            tools.run("tpm2_readpublic", "-c", self.handle, "-f", "der", "-o", str(files["key"]))
            tools.run("tpm2_quote", "-c", self.handle, "-l", selection, "-q", binding.hex(), "-g", "sha256", "-m", str(files["quote"]),
                      "-s", str(files["signature"]), "-o", str(files["pcrs"]), "-F", "values")  # fmt: skip
            parts = {part: path.read_bytes() for part, path in files.items()}
        if len(parts["pcrs"]) != _SHA256_BYTES * len(self.pcrs):
            raise AttestationError("the TPM showed other PCRs than asked for", rule="tpm-pcrs", seen=f"{len(parts['pcrs'])} bytes",
                                   wanted=f"{_SHA256_BYTES * len(self.pcrs)} bytes", fix="enable the SHA-256 bank")  # fmt: skip
        parts["pcrs"] = b"".join(
            bytes([index]) + parts["pcrs"][at * _SHA256_BYTES :][:_SHA256_BYTES] for at, index in enumerate(sorted(self.pcrs))
        )
        return TeeEvidence(kind="tpm", target="node", parts={part: b64encode(data) for part, data in parts.items()})
