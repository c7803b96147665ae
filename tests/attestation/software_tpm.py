"""A software TPM in a process of its own, driven by the same tools as a real one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import weakref
from pathlib import Path

import pytest

from attestation.collect.tpm import TpmSource
from tests.patience import LONG, eventually

HANDLE = "0x81010002"
TOOLS = ("swtpm", "swtpm_setup", "tpm2_createek", "tpm2_createak", "tpm2_quote", "tpm2_pcrextend", "tpm2_evictcontrol")
software_tpm = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="needs swtpm, swtpm-tools and tpm2-tools")


class Tpm:
    """One swtpm process with an attestation key in a context file. It listens on unix sockets: a port might be somebody else's."""

    def __init__(self, folder):
        self.folder, self.state, self.process = folder, folder / "state", None
        # A path of a unix socket has 107 bytes at most, so pytest's own folders are too deep.
        sockets = tempfile.mkdtemp(prefix="sealrig-tpm-")
        weakref.finalize(self, shutil.rmtree, sockets, ignore_errors=True)
        self.server = Path(sockets) / "tpm"
        self.control = Path(f"{self.server}.ctrl")  # where the tools look for it
        self.tcti = f"swtpm:path={self.server}"
        self.state.mkdir()
        done = subprocess.run(
            ["swtpm_setup", "--tpm2", "--tpmstate", str(self.state), "--createek", "--pcr-banks", "sha256", "--overwrite"],
            capture_output=True,
            timeout=LONG,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()

    def start(self):
        """Switch it on; after ``stop`` this is a reboot, at the same address."""
        command = [
            "swtpm",
            "socket",
            "--tpm2",
            "--tpmstate",
            f"dir={self.state}",
            "--server",
            f"type=unixio,path={self.server}",
            "--ctrl",
            f"type=unixio,path={self.control}",
            "--flags",
            "not-need-init,startup-clear",
        ]
        log = self.folder / "swtpm.log"
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        eventually(lambda: self._listens() or self.process.poll() is not None, "swtpm to listen")
        assert self.process.poll() is None, log.read_text()

    def _listens(self):
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.control)) == 0

    def tool(self, *command):
        environment = {"PATH": os.environ["PATH"], "TPM2TOOLS_TCTI": self.tcti}
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, timeout=LONG, check=False)
        assert done.returncode == 0, done.stderr.decode()

    def make_key(self):
        self.tool("tpm2_createek", "-c", "ek.ctx", "-G", "ecc", "-u", "ek.pub")
        self.tool("tpm2_flushcontext", "-t")
        self.tool(
            "tpm2_createak", "-C", "ek.ctx", "-c", "ak.ctx", "-G", "ecc", "-g", "sha256", "-s", "ecdsa", "-u", "ak.pub", "-n", "ak.name"
        )
        self.tool("tpm2_flushcontext", "-t")
        self.tool("tpm2_evictcontrol", "-C", "o", "-c", "ak.ctx", HANDLE)
        self.tool("tpm2_flushcontext", "-t")

    def stop(self):
        if self.process is not None:
            self.process.terminate()
            self.process.wait(LONG)
            self.process = None

    def quote(self, binding, pcrs=(0, 14, 16), handle=HANDLE):
        return TpmSource(handle, pcrs, self.tcti).quote(binding)
