"""A software TPM in a process of its own, driven by the same tools as a real one."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import time

import pytest

from attestation.collect.tpm import TpmSource

HANDLE = "0x81010002"
TOOLS = ("swtpm", "swtpm_setup", "tpm2_createek", "tpm2_createak", "tpm2_quote", "tpm2_pcrextend", "tpm2_evictcontrol")
software_tpm = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="needs swtpm, swtpm-tools and tpm2-tools")


class Tpm:
    """One swtpm process with an attestation key in a context file."""

    def __init__(self, folder):
        self.folder, self.state, self.process = folder, folder / "state", None
        self.port = random.SystemRandom().randrange(20000, 40000, 2)
        self.tcti = f"swtpm:host=127.0.0.1,port={self.port}"
        self.state.mkdir()
        done = subprocess.run(
            ["swtpm_setup", "--tpm2", "--tpmstate", str(self.state), "--createek", "--pcr-banks", "sha256", "--overwrite"],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()

    def start(self):
        """Switch it on; after ``stop`` this is a reboot, at the same address."""
        port = self.port
        command = [
            "swtpm",
            "socket",
            "--tpm2",
            "--tpmstate",
            f"dir={self.state}",
            "--server",
            f"type=tcp,port={port},bindaddr=127.0.0.1",
            "--ctrl",
            f"type=tcp,port={port + 1},bindaddr=127.0.0.1",
            "--flags",
            "not-need-init,startup-clear",
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port + 1), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        pytest.fail("swtpm did not start")

    def tool(self, *command):
        environment = {"PATH": os.environ["PATH"], "TPM2TOOLS_TCTI": self.tcti}
        done = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, timeout=60, check=False)
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
            self.process.wait(10)
            self.process = None

    def quote(self, binding, pcrs=(0, 14, 16), handle=HANDLE):
        return TpmSource(handle, pcrs, self.tcti).quote(binding)
