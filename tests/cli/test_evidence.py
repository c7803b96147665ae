"""``sealrig evidence verify`` on the public samples: the document, the exit code, the words."""

from __future__ import annotations

import json

import pytest

from attestation.collect import collect
from sandbox.cli import main
from tests.attestation.leases import NODE_KEY, NONCE, OTHER_KEY, evidence
from tests.conftest import VECTORS

pytestmark = pytest.mark.skipif(not VECTORS.exists(), reason="the public vectors are not here")
AT = "2024-06-01T00:00:00Z"


def call(capsys, *words):
    code = main(["evidence", "verify", *map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def arguments(kind):
    folder = VECTORS / {"tpm": "tpm", "sev-snp": "snp", "nvidia-gpu": "nvidia"}[kind]
    files = {
        "tpm": [folder / "tpm_evidence.json"],
        "sev-snp": [folder / "test-report.bin", "--chain", folder / "test-vcek.der"],
        "nvidia-gpu": [folder / "hopperAttestationReport.txt", "--chain", folder / "hopperCertChain.txt", "--rim",
                       folder / "vbios_1010_0200_882_96005E0001.swidtag"],
    }  # fmt: skip
    return [*files[kind], "--kind", kind, "--at", AT]


@pytest.mark.parametrize("kind", ["tpm", "sev-snp", "nvidia-gpu"])
def test_public_samples_verify(kind, capsys):
    code, told = call(capsys, *arguments(kind))
    assert (code, told["ok"], set(told)) == (0, True, {"ok", "level", "ear", "steps"})
    assert all(set(step) == {"step", "ok", "seen", "wanted"} for step in told["steps"])


@pytest.mark.parametrize("kind", ["tpm", "sev-snp", "nvidia-gpu"])
def test_another_nonce_is_refused_at_its_step(kind, capsys):
    code, told = call(capsys, *arguments(kind), "--nonce", "00" * 32)
    assert (code, told["ok"], told["level"]) == (1, False, None)
    assert [step["step"] for step in told["steps"] if not step["ok"]] == [
        {"tpm": "tpm", "sev-snp": "snp", "nvidia-gpu": "gpu"}[kind] + "-nonce"
    ]
    assert told["error"]["code"] == "not-verified"
    assert {"seen", "wanted", "fix"} <= set(told["error"]["details"])


def test_software_evidence_of_a_node(tmp_path, capsys):
    (tmp_path / "evidence.json").write_bytes(collect(evidence(), NODE_KEY).to_bytes())
    (tmp_path / "key").write_text(NODE_KEY.public.text + "\n")
    (tmp_path / "other").write_text(OTHER_KEY.public.text + "\n")
    words = [tmp_path / "evidence.json", "--kind", "software"]
    assert call(capsys, *words)[0] == 0
    code, told = call(capsys, *words, "--roots", tmp_path / "key", "--nonce", NONCE)
    assert (code, told["ear"]["submods"]["node"]["ear_trustworthiness_vector"]["instance-identity"]) == (0, 2)
    assert call(capsys, *words, "--roots", tmp_path / "other")[0] == 1


@pytest.mark.parametrize("words", [["--nonce", "xyz"], ["--nonce", "00" * 65], ["--at", "yesterday"], ["--kind", "magic"]])
def test_wrong_arguments_are_a_usage_error(words, capsys):
    assert main(["evidence", "verify", *map(str, arguments("tpm")), *words]) == 2
    assert "Traceback" not in capsys.readouterr().err
