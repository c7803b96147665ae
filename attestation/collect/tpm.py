"""Node side of a TPM 2.0 quote, through tpm2-tools: the quote carries the evidence's binding as qualifying data."""

from __future__ import annotations

import hashlib
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
MAX_LOG_BYTES = 1024 * 1024
"""Two logs, in base64, and a quote fit into one document of evidence."""
RESETTABLE = frozenset({16, 23})
"""PCRs that software may set to zero at any time (TCG PC Client Platform TPM Profile, section 4.6): debug and application."""
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

    ``pcrs`` are quoted from the SHA-256 bank; ``tcti`` is the TPM's address for tpm2-tools, None for the system's own. ``event_log`` and
    ``ima_log`` are the kernel's files of what was measured, which travel along.
    """

    handle: str
    pcrs: tuple[int, ...]
    tcti: str | None = None
    event_log: Path | None = None
    ima_log: Path | None = None

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
        # Read after the quote: IMA's log grows, and must hold all that was quoted.
        parts |= {name: _log(path) for name, path in (("event_log", self.event_log), ("ima_log", self.ima_log)) if path is not None}
        return TeeEvidence(kind="tpm", target="node", parts={part: b64encode(data) for part, data in parts.items()})


def measure_runner(pcr: int, digest: bytes, tools: Tools) -> bool:
    """Make ``pcr`` hold the measurement of the runner (32 bytes) and nothing else; return whether it does now.

    A PCR that software cannot reset keeps what was measured since boot: the same runner is not measured twice, and after another one
    the new runner is added, False is returned, and customers that look at this PCR refuse the machine until it boots anew.
    """
    empty, wanted = bytes(_SHA256_BYTES), hashlib.sha256(bytes(_SHA256_BYTES) + digest).digest()
    value = _read_pcr(pcr, tools)
    if value == wanted:
        return True
    if pcr in RESETTABLE:
        tools.run("tpm2_pcrreset", str(pcr))
        value = empty
    tools.run("tpm2_pcrextend", f"{pcr}:sha256={digest.hex()}")
    return value == empty and _read_pcr(pcr, tools) == wanted


def _read_pcr(pcr: int, tools: Tools) -> bytes:
    with tempfile.TemporaryDirectory(prefix="sealrig-tpm-") as name:
        file = Path(name) / "pcr"
        tools.run("tpm2_pcrread", f"sha256:{pcr}", "-o", str(file))
        return file.read_bytes()


def _log(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_LOG_BYTES + 1)
    except OSError as error:
        seen = f"{path}: {error.strerror}"
        raise AttestationError("a measurement log cannot be read", rule="tpm-log", seen=seen, wanted="the kernel's file",
                               fix="mount securityfs, or leave this log out of node.yaml") from error  # fmt: skip
    if len(raw) > MAX_LOG_BYTES:
        raise AttestationError("a measurement log is too large", rule="tpm-log", seen=f"{path}: more", wanted=f"≤ {MAX_LOG_BYTES} bytes",
                               fix="let IMA measure programs only, boot anew, or leave this log out of node.yaml")  # fmt: skip
    return raw
