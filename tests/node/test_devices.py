"""What ``node.yaml`` says of devices that vouch becomes sources of evidence, and evidence asks each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from attestation.collect.nvidia import GpuSource
from attestation.collect.snp import SnpSource
from attestation.collect.tpm import TpmSource
from sandbox.errors import UsageError
from sandbox.node.devices import EvidenceDevices, evidence_sources
from sandbox.node.layout import NodeFolder
from sandbox.node.settings import load_node_settings

NODE = {"apiVersion": "sealrig/v1", "kind": "Node", "id": "node-" + "0" * 32, "server": "http://127.0.0.1:1"}


def settings(tmp_path, evidence):
    (tmp_path / "node.yaml").write_text(yaml.safe_dump(NODE | evidence))
    return load_node_settings(NodeFolder(tmp_path))


def test_named_devices_become_sources(tmp_path):
    told = {
        "evidence": {"tpm": {"handle": "0x81010002", "pcrs": [0, 14]}, "sevSnp": {"chain": "/c.pem"}, "nvidia": {"rims": ["/d.swidtag"]}}
    }
    found = evidence_sources(settings(tmp_path, told).evidence, ["GPU-1", "GPU-2"])
    rims = (Path("/d.swidtag"),)
    assert found == (TpmSource("0x81010002", (0, 14)), SnpSource(Path("/c.pem")), GpuSource("GPU-1", rims), GpuSource("GPU-2", rims))


def test_no_devices_is_the_default(tmp_path):
    assert evidence_sources(settings(tmp_path, {}).evidence, ["GPU-1"]) == ()


@pytest.mark.parametrize(
    "evidence",
    [
        {"tmp": {}},
        {"tpm": {"handle": "0x81010002"}},
        {"tpm": {"handle": "ak.ctx", "pcrs": [0]}},
        {"tpm": {"handle": "0x81010002", "pcrs": [24]}},
        {"nvidia": {"rims": [""]}},
    ],
)
def test_wrong_settings_are_refused(tmp_path, evidence):
    with pytest.raises(UsageError):
        settings(tmp_path, {"evidence": evidence})
    with pytest.raises(ValidationError):
        EvidenceDevices.model_validate(evidence)
