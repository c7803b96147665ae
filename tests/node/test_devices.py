"""What ``node.yaml`` says of devices that vouch becomes sources of evidence, and evidence asks each of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from attestation.collect.nvidia import GpuSource
from attestation.collect.snp import SnpSource, TdxSource
from attestation.collect.tpm import TpmSource
from attestation.errors import AttestationError
from sandbox.errors import UsageError
from sandbox.node.devices import EvidenceDevices, evidence_sources, measure_start, reachable_level
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
    assert found == (TpmSource("0x81010002", (0, 14, 23)), SnpSource(Path("/c.pem")), GpuSource("GPU-1", rims), GpuSource("GPU-2", rims))


def test_the_runner_pcr_is_quoted_with_the_others_or_not_at_all(tmp_path):
    tpm = {"handle": "0x81010002", "pcrs": [0, 14], "eventLog": "/e", "imaLog": "/i"}
    assert evidence_sources(settings(tmp_path, {"evidence": {"tpm": tpm | {"runner": 14}}}).evidence, []) == (
        TpmSource("0x81010002", (0, 14), None, Path("/e"), Path("/i")),
    )
    none = settings(tmp_path, {"evidence": {"tpm": tpm | {"runner": None}}}).evidence
    assert evidence_sources(none, [])[0].pcrs == (0, 14)
    assert measure_start(none)
    assert measure_start(EvidenceDevices())


@pytest.mark.parametrize(
    ("evidence", "level"),
    [
        ({}, 0),
        ({"tpm": {"handle": "0x81010002", "pcrs": [0]}}, 1),
        ({"sevSnp": {}}, 2),
        ({"sevSnp": {}, "nvidia": {}}, 3),
        ({"nvidia": {}}, 0),
        ({"tdx": {"collateral": "/c.json"}}, 2),
    ],
)
def test_a_node_refuses_early_only_what_it_can_never_reach(tmp_path, evidence, level):
    assert reachable_level(settings(tmp_path, {"evidence": evidence}).evidence) == level


def test_a_tpm_that_does_not_answer_stops_the_start(tmp_path):
    tpm = {"handle": "0x81010002", "pcrs": [0], "tcti": "swtpm:host=127.0.0.1,port=1"}
    with pytest.raises(AttestationError):
        measure_start(settings(tmp_path, {"evidence": {"tpm": tpm}}).evidence)


def test_confidential_guests_name_their_files(tmp_path):
    told = {"evidence": {"sevSnp": {"crl": "/amd.crl"}, "tdx": {"collateral": "/c.json"}}}
    found = evidence_sources(settings(tmp_path, told).evidence, [])
    assert found == (SnpSource(None, Path("/amd.crl")), TdxSource(Path("/c.json")))


def test_no_devices_is_the_default(tmp_path):
    assert evidence_sources(settings(tmp_path, {}).evidence, ["GPU-1"]) == ()


@pytest.mark.parametrize(
    "evidence",
    [
        {"tmp": {}},
        {"tpm": {"handle": "0x81010002"}},
        {"tpm": {"handle": "ak.ctx", "pcrs": [0]}},
        {"tpm": {"handle": "0x81010002", "pcrs": [24]}},
        {"tpm": {"handle": "0x81010002", "pcrs": [0], "runner": 7}},
        {"nvidia": {"rims": [""]}},
        {"tdx": {}},
    ],
)
def test_wrong_settings_are_refused(tmp_path, evidence):
    with pytest.raises(UsageError):
        settings(tmp_path, {"evidence": evidence})
    with pytest.raises(ValidationError):
        EvidenceDevices.model_validate(evidence)
