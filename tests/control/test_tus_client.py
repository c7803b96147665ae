"""A tus client that others wrote uploads to this server, is cut, and goes on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.control.actors import TUS, make_bundle, ok
from tests.control.server_process import ServerProcess

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tus = pytest.importorskip("tusclient.client", reason="needs the package tuspy, a tus client")

ROOT = Path(__file__).resolve().parents[2]
MODULES = Path(os.environ.get("SEALRIG_NODE_MODULES", ROOT / ".dev" / "node_modules"))


@pytest.fixture
def server(folder: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(folder)
    yield process
    process.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tuspy_uploads_is_cut_and_resumes(server: ServerProcess) -> None:
    customer = server.customer()
    bundle = make_bundle(server.folder, customer.identity, os.urandom(300_000))
    path = server.folder / "bundle"
    path.write_bytes(bundle.raw)

    def uploader(file: BinaryIO, **more: object):
        client = tus.TusClient(f"{server.http.base_url}/v1/uploads", headers={"Authorization": f"Bearer {customer.token}"})
        metadata = {"digest": bundle.digest, "filetype": "application/octet-stream"}
        return client.uploader(file_stream=file, chunk_size=50_000, metadata=metadata, upload_checksum=True, **more)

    with path.open("rb") as file:
        first = uploader(file)
        first.upload_chunk()
        first.upload_chunk()
    assert first.offset == 100_000
    place = first.url.rpartition("/")[2]
    server.restart()
    with path.open("rb") as file:
        second = uploader(file, url=f"{server.http.base_url}/v1/uploads/{place}")
        assert second.offset == 100_000
        second.upload()
    assert ok(customer.get(f"/v1/bundles/{bundle.digest}"))["size"] == len(bundle.raw)
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tus_js_client_uploads_is_cut_and_resumes(server: ServerProcess) -> None:
    if shutil.which("node") is None or not (MODULES / "tus-js-client").is_dir():
        pytest.skip("tus-js-client is not installed: './dev test' installs it into .dev/node_modules, and needs node and npm")
    customer = server.customer()
    bundle = make_bundle(server.folder, customer.identity, os.urandom(300_000))
    path = server.folder / "bundle"
    path.write_bytes(bundle.raw)

    def upload(*more: str) -> tuple[int, dict[str, object]]:
        program = ["node", str(Path(__file__).parent / "third_party" / "tus_upload.js"), str(MODULES)]
        words = [*program, f"{server.http.base_url}/v1/uploads", str(path), bundle.digest, *more]
        done = subprocess.run(words, input=customer.token, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, json.loads(done.stdout) if done.returncode in {0, 3} else {"error": done.stderr}

    cut, first = upload("-", "100000")
    assert (cut, first["accepted"]) == (3, 100_000)
    place = str(first["url"]).rpartition("/")[2]
    server.restart()
    done, second = upload(f"{server.http.base_url}/v1/uploads/{place}")
    assert (done, second["started"]) == (0, 100_000), second
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tus_js_client_uploads_parts_side_by_side(server: ServerProcess) -> None:
    if shutil.which("node") is None or not (MODULES / "tus-js-client").is_dir():
        pytest.skip("tus-js-client is not installed: './dev test' installs it into .dev/node_modules, and needs node and npm")
    customer = server.customer()
    bundle = make_bundle(server.folder, customer.identity, os.urandom(300_000))
    path = server.folder / "bundle"
    path.write_bytes(bundle.raw)
    program = ["node", str(Path(__file__).parent / "third_party" / "tus_upload.js"), str(MODULES)]
    words = [*program, f"{server.http.base_url}/v1/uploads", str(path), bundle.digest, "-", "0", "4"]
    done = subprocess.run(words, input=customer.token, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    final = "/v1/uploads/" + json.loads(done.stdout)["url"].rpartition("/")[2]
    assert len(customer.call("HEAD", final, headers=TUS).headers["upload-concat"].split()) == 4
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw
