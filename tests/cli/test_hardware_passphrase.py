"""An identity whose passphrase only a TPM gives out, while the machine is what it was: no plug-in, the TPM's own tools and a pipe."""

from __future__ import annotations

import shutil

import pytest

from tests.attestation.software_tpm import Tpm
from tests.rig import run

TOOLS = ("swtpm", "swtpm_setup", "tpm2_createprimary", "tpm2_create", "tpm2_load", "tpm2_unseal", "tpm2_createpolicy", "tpm2_pcrextend")
pytestmark = pytest.mark.skipif(not all(map(shutil.which, TOOLS)), reason="needs swtpm, swtpm-tools and tpm2-tools")


@pytest.fixture
def tpm(tmp_path):
    device = Tpm(tmp_path)
    device.start()
    yield device
    device.stop()


def unsealed(tpm):
    """What 'tpm2_unseal …' prints, for the pipe into '--passphrase-file -'; None where the TPM refuses."""
    try:
        tpm.tool("tpm2_unseal", "-c", "sealed.ctx", "-p", "pcr:sha256:16", "-o", "out")
    except AssertionError:
        return None
    finally:
        tpm.tool("tpm2_flushcontext", "-s")
    raw = (tpm.folder / "out").read_bytes()
    (tpm.folder / "out").unlink()
    return raw


def test_a_tpm_keeps_the_passphrase_of_an_identity(tpm, tmp_path):
    secret = b"correct horse battery staple"
    (tmp_path / "secret").write_bytes(secret)
    tpm.tool("tpm2_createprimary", "-C", "o", "-c", "primary.ctx")
    tpm.tool("tpm2_flushcontext", "-t")
    tpm.tool("tpm2_createpolicy", "--policy-pcr", "-l", "sha256:16", "-L", "policy")
    tpm.tool("tpm2_flushcontext", "-s")
    tpm.tool("tpm2_create", "-C", "primary.ctx", "-i", "secret", "-L", "policy", "-u", "sealed.pub", "-r", "sealed.priv")
    tpm.tool("tpm2_flushcontext", "-t")
    tpm.tool("tpm2_load", "-C", "primary.ctx", "-u", "sealed.pub", "-r", "sealed.priv", "-c", "sealed.ctx")
    tpm.tool("tpm2_flushcontext", "-t")
    (tmp_path / "secret").unlink()

    key, folder, bundle = tmp_path / "id", tmp_path / "data", tmp_path / "x.sealed"
    folder.mkdir()
    (folder / "a").write_bytes(b"content")
    run("key", "new", key, "--passphrase-file", "-", stdin=unsealed(tpm)).ok()
    assert secret not in (key / "identity.key").read_bytes()
    run("seal", folder, "-o", bundle, "--key", key, "--passphrase-file", "-", stdin=unsealed(tpm)).ok()
    run("open", bundle, "-o", tmp_path / "out1", "--key", key, "--passphrase-file", "-", stdin=unsealed(tpm)).ok()
    assert next((tmp_path / "out1").rglob("a")).read_bytes() == b"content"

    # The machine is not what it was: the TPM keeps the passphrase, and nothing opens without it.
    tpm.tool("tpm2_pcrextend", f"16:sha256={'1' * 64}")
    assert unsealed(tpm) is None
    refused = run("open", bundle, "-o", tmp_path / "out2", "--key", key, "--passphrase-file", "-", "--json", stdin=b"a guess")
    assert refused.code == 1
    assert not list((tmp_path / "out2").rglob("a"))
