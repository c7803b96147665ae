"""A tus client that others wrote uploads to this server, is cut, and goes on."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.control.actors import make_bundle, ok
from tests.control.server_process import ServerProcess

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tus = pytest.importorskip("tusclient.client", reason="needs the package tuspy, a tus client")


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
