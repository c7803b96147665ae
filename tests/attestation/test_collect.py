"""Collecting hardware evidence: the kernel's and the driver's interfaces, played by stand-ins that behave as documented."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from attestation.collect.nvidia import GpuSource
from attestation.collect.snp import CHIP_KEY_GUIDS, SnpSource, chip_certificate
from attestation.errors import AttestationError
from attestation.signing import b64decode
from attestation.steps import Steps
from attestation.verify.snp import SnpRules, verify_snp
from attestation.verify.tee import part
from tests.attestation.test_snp import Maker

BINDING = bytes(range(32))
AT = datetime(2024, 6, 1, tzinfo=UTC)


def table(certificate, guid=CHIP_KEY_GUIDS[0]):
    return guid.bytes + (48).to_bytes(4, "little") + len(certificate).to_bytes(4, "little") + bytes(24) + certificate


class Kernel:
    """configfs as the kernel shows it: making a folder fills it, writing the input makes the output."""

    def __init__(self, monkeypatch, maker, *, provider="sev_guest", busy=0, certificates=True):
        self.maker, self.provider, self.busy, self.certificates, self.entries = maker, provider, busy, certificates, []
        self.generation = 0
        real_write, real_text, real_rmdir, real_mkdir = Path.write_bytes, Path.read_text, Path.rmdir, Path.mkdir

        def mkdir(path, *arguments, **named):
            real_mkdir(path, *arguments, **named)
            self.entries.append(path)
            (path / "provider").write_text(f"{self.provider}\n")

        def write(path, data):
            assert len(data) == 64
            real_write(path.parent / "outblob", maker.report(data=data))
            real_write(path.parent / "auxblob", table(maker.certificate()) if self.certificates else b"")
            return real_write(path, data)

        def text(path, **named):
            if path.name == "generation":
                self.generation += self.busy > 0
                self.busy -= 1
                return f"{self.generation}\n"
            return real_text(path, **named)

        def rmdir(path):
            for file in path.iterdir():
                file.unlink()
            real_rmdir(path)

        for name, function in (("mkdir", mkdir), ("write_bytes", write), ("read_text", text), ("rmdir", rmdir)):
            monkeypatch.setattr(Path, name, function)


@pytest.fixture(scope="module")
def maker():
    return Maker()


def test_a_report_from_the_kernel_verifies_and_leaves_nothing(tmp_path, monkeypatch, maker):
    kernel = Kernel(monkeypatch, maker)
    found = SnpSource(root=tmp_path).quote(BINDING)
    steps = Steps("the report")
    verify_snp(part(found, "report"), part(found, "chain"), nonce=BINDING, rules=SnpRules(), at=AT, steps=steps, roots=maker.roots)
    steps.finish()
    assert kernel.entries
    assert not list(tmp_path.iterdir())


def test_another_user_of_the_entry_is_noticed(tmp_path, monkeypatch, maker):
    Kernel(monkeypatch, maker, busy=2)
    assert SnpSource(root=tmp_path).quote(BINDING)
    monkeypatch.undo()
    Kernel(monkeypatch, maker, busy=100)
    with pytest.raises(AttestationError, match="another process"):
        SnpSource(root=tmp_path).quote(BINDING)


def test_other_guests_and_missing_certificates_are_named(tmp_path, monkeypatch, maker):
    Kernel(monkeypatch, maker, provider="tdx_guest")
    with pytest.raises(AttestationError, match="another kind"):
        SnpSource(root=tmp_path).quote(BINDING)
    monkeypatch.undo()
    Kernel(monkeypatch, maker, certificates=False)
    with pytest.raises(AttestationError, match="no chip certificate"):
        SnpSource(root=tmp_path).quote(BINDING)


def test_a_machine_without_the_interface_says_what_to_do(tmp_path):
    with pytest.raises(AttestationError) as caught:
        SnpSource(root=tmp_path / "missing").quote(BINDING)
    assert "SEV-SNP guest" in str(caught.value.details["fix"])


@pytest.mark.parametrize("raw", [b"", b"\0" * 24, b"\1" * 23, table(b"")[:48], CHIP_KEY_GUIDS[1].bytes + b"\xff" * 8 + bytes(24)])
def test_tables_without_a_certificate_are_refused(raw):
    with pytest.raises(AttestationError):
        chip_certificate(raw)
    assert chip_certificate(table(b"vlek", CHIP_KEY_GUIDS[1])) == b"vlek"


def driver(monkeypatch, *, refuse=False):
    class NVMLError(Exception):
        pass

    def report(device, nonce):
        if refuse:
            raise NVMLError("Not Supported")
        return SimpleNamespace(attestationReport=nonce + bytes(100), attestationReportSize=40)

    def chain(device):
        return SimpleNamespace(attestationCertChain=b"chain" + bytes(100), attestationCertChainSize=5)

    calls = []
    fake = SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: calls.append("init"), nvmlShutdown=lambda: calls.append("shutdown"),
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid, nvmlDeviceGetConfComputeGpuAttestationReport=report,
        nvmlDeviceGetConfComputeGpuCertificate=chain,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return calls


def test_a_gpus_report_carries_the_binding_and_its_references(monkeypatch, tmp_path):
    calls = driver(monkeypatch)
    (tmp_path / "driver.swidtag").write_bytes(b"rim")
    found = GpuSource("GPU-1", [tmp_path / "driver.swidtag"]).quote(BINDING)
    assert {name: b64decode(data) for name, data in found.parts.items()} == {
        "report": BINDING + bytes(8),
        "chain": b"chain",
        "rim0": b"rim",
    }
    assert (found.target, calls) == ("GPU-1", ["init", "shutdown"])


def test_a_gpu_without_confidential_computing_says_what_to_do(monkeypatch):
    calls = driver(monkeypatch, refuse=True)
    with pytest.raises(AttestationError) as caught:
        GpuSource("GPU-1").quote(BINDING)
    assert "conf-compute" in str(caught.value.details["fix"])
    assert calls == ["init", "shutdown"]


def test_without_the_driver_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(AttestationError, match="NVML is not installed"):
        GpuSource("GPU-1").quote(BINDING)
