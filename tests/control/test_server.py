"""``sealrig serve`` as a process: how it starts, how it ends, and what survives a kill at every state."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from attestation.log.note import NoteVerifier
from attestation.log.reader import LogReader
from attestation.log.verify import verify_log
from attestation.receipt import verify_receipt
from attestation.trust import Trust
from policies.loader import load_profile
from sandbox.control import server as server_module
from sandbox.control.server import parse_listen
from sandbox.control.settings import ControlSettings
from sandbox.errors import UsageError
from tests.control.actors import TUS, make_bundle, nonce, ok
from tests.control.server_process import ServerProcess
from tests.patience import LONG, eventually
from tests.rig import run


@pytest.fixture
def server(folder: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(folder)
    yield process
    process.close()


def check_log(server: ServerProcess) -> int:
    """Verify the whole log; return its size."""
    vkey = server.http.get("/log/vkey").text.strip()
    return int(verify_log(LogReader.from_dir(server.data), vkey).checkpoint.size)


@pytest.mark.parametrize("text", ["0.0.0.0:80", "10.0.0.1:80", "[::]:80", "example.org:80", "localhost.example.org:80"])
def test_addresses_that_others_can_reach_need_tls(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_listen(text, None, None)
    assert raised.value.details["rule"] == "listen-tls"
    assert parse_listen(text, Path("c"), Path("k")).url.startswith("https://")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:80", "http://127.0.0.1:80"),
        ("[::1]:80", "http://[::1]:80"),
        ("localhost:1", "http://localhost:1"),
        ("127.9.9.9:0", "http://127.9.9.9:0"),
    ],
)
def test_loopback_needs_none(text: str, url: str) -> None:
    assert parse_listen(text, None, None).url == url


@pytest.mark.parametrize("text", ["", "80", ":80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:99999", "127.0.0.1:-1"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_listen(text, None, None)
    assert raised.value.details["rule"] == "listen"


def test_half_of_tls_is_refused() -> None:
    with pytest.raises(UsageError):
        parse_listen("127.0.0.1:80", Path("c"), None)


def test_the_strict_profile_applies_where_nothing_was_said(tmp_path: Path) -> None:
    assert ControlSettings(data=tmp_path).policy.digest == load_profile("strict").digest


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_starts_ends_cleanly_and_lets_long_polls_go(server: ServerProcess) -> None:
    customer, node = server.customer(), server.node()
    lease = ok(customer.submit(customer.job()))["id"]
    answers: list[object] = []
    waiting = threading.Thread(target=lambda: answers.append(customer.get(f"/v1/leases/{lease}?wait=30&since=admitted").json()["state"]))
    waiting.start()
    with contextlib.suppress(httpx.TimeoutException):
        customer.get("/v1/whoami", timeout=0.5)
    assert server.stop() == 0
    waiting.join(LONG)
    assert answers == ["admitted"]
    for path in (server.data / "operator.token", server.data / "log.key", server.data / "control.db"):
        assert path.stat().st_mode & 0o077 == 0
    assert customer.token not in (server.folder / "server.log").read_text()
    assert node.token not in (server.folder / "server.log").read_text()
    server.start()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tenants_space_is_as_the_server_was_started(server: ServerProcess) -> None:
    customer = server.customer()
    digest = "blake3:" + "1" * 64
    assert customer.start_upload(digest, 2 * 2**40).status_code == 201
    assert customer.start_upload(digest, 2 * 2**40).status_code == 201
    assert customer.start_upload(digest, 1).json()["details"]["wanted"] == f"at most {4 * 2**40} bytes in all"
    server.more = ("--tenant-quota", "4.5Ti")
    server.restart()
    assert customer.start_upload(digest, 2**39).status_code == 201
    assert customer.start_upload(digest, 1).json()["details"]["wanted"] == f"at most {9 * 2**39} bytes in all"


@pytest.mark.parametrize("size", ["", "0", "-1", "lots", "4 Ti", "1025Pi", "9" * 15 + "Pi"])
def test_a_quota_that_is_none(tmp_path: Path, size: str) -> None:
    result = run("serve", "--data", tmp_path / "data", "--json", f"--tenant-quota={size}")
    assert (result.error["code"], result.error["details"]["rule"]) == ("usage", "tenant-quota-size")
    assert not (tmp_path / "data").exists()


def test_killed_at_every_state_it_loses_nothing_that_was_acknowledged(server: ServerProcess) -> None:
    customer, node = server.customer(), server.node()
    bundle = make_bundle(server.folder, customer.identity, b"weights" * 1000)
    place = customer.start_upload(bundle.digest, len(bundle.raw)).headers["location"]
    server.restart()
    for start, end in itertools.pairwise([0, 5000, len(bundle.raw)]):
        assert customer.send(place, start, bundle.raw[start:end]).status_code == 204
        server.restart()
        assert customer.call("HEAD", place, headers=TUS).headers["upload-offset"] == str(end)
    assert customer.get(f"/v1/bundles/{bundle.digest}/content").content == bundle.raw
    job = customer.job(inputs=[bundle.digest])
    lease = ok(customer.submit(job))["id"]
    result = make_bundle(server.folder, customer.identity, b"result")
    steps = {
        "admitted": lambda: None,
        "placed": node.poll,
        "attested": lambda: (ok(nonce(customer, lease)), ok(node.attest(lease))),
        "unlocked": lambda: ok(customer.unlock(lease, bundle.digest)),
        "running": lambda: ok(node.report(lease, "running")),
        "collecting": lambda: (
            node.call("PUT", f"/v1/nodes/{node.id}/leases/{lease}/logs/0", content=b"log").raise_for_status(),
            ok(node.report(lease, "collecting")),
        ),
        "wiping": lambda: (
            node.upload(result.raw, result.digest, lease=lease),
            ok(
                node.report(
                    lease, "wiping", outcome="succeeded", exit_code=0, result=result.digest, documents=node.run_record(lease, result.digest)
                )
            ),
        ),
        "closed": lambda: ok(node.report(lease, "closed", documents=node.wipe(lease))),
    }
    size = 0
    for number, (state, step) in enumerate(steps.items()):
        step()
        server.restart()
        info = customer.lease(lease)
        assert info["state"] == state
        assert [row["state"] for row in info["history"]] == ["submitted", *list(steps)[: number + 1]]
        assert all(row["log_index"] is not None for row in info["history"])
        grown = check_log(server)
        assert grown > size
        size = grown
        assert ok(customer.submit(job) if state == "admitted" else customer.get(f"/v1/leases/{lease}"))["id"] == lease
    assert customer.get(f"/v1/bundles/{result.digest}/content").content == result.raw
    assert len(ok(customer.get(f"/v1/leases/{lease}/logs"))["chunks"]) == 1
    vkey = NoteVerifier.from_text(server.http.get("/log/vkey").text)
    trust = Trust.from_tree(
        {
            "apiVersion": "sealrig/v1",
            "kind": "Trust",
            "spec": {
                "level": "software",
                "nodes": {node.id: node.key.public.text},
                "log": {"origin": vkey.name, "key": vkey.text},
                "interlock": "claimed",
            },
        }
    )
    checked = verify_receipt(customer.get(f"/v1/leases/{lease}/receipt").content, trust)
    assert checked.ok, [step for step in checked.steps if not step.ok]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_in_the_middle_of_many_requests_it_keeps_every_acknowledged_one(server: ServerProcess) -> None:
    customer = server.customer()
    acknowledged: list[str] = []
    jobs = {job.digest: job for job in (customer.job() for _ in range(200))}

    def submit(part: list) -> None:
        for job in part:
            try:
                answer = customer.submit(job)
            except httpx.HTTPError:
                return
            if answer.status_code == 201:
                acknowledged.append(answer.json()["id"])

    everything = list(jobs.values())
    threads = [threading.Thread(target=submit, args=(everything[number::4],)) for number in range(4)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(acknowledged) >= 20)
    server.kill()
    for thread in threads:
        thread.join()
    server.start()
    for lease in acknowledged:
        info = customer.lease(lease)
        assert [row["state"] for row in info["history"]] == ["submitted", "admitted"]
        assert all(row["log_index"] is not None for row in info["history"])
    logged = dict(LogReader.from_dir(server.data).entries(0, 10**6))
    assert len(logged) == check_log(server)
    listed = ok(customer.get("/v1/leases?limit=500"))
    for row in listed:
        for step in row["history"]:
            assert row["id"].encode() in logged[step["log_index"]]
    again = [customer.submit(job) for job in everything]
    assert {answer.status_code for answer in again} <= {200, 201}
    assert len({answer.json()["id"] for answer in again}) == len(everything)


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_goes_ends_the_server_in_order_unless_the_parent_wants_otherwise(*, ignored: bool) -> None:
    """Raised in the middle of a request, as by default, it would be that request's failure."""
    taken: list[int] = []
    ours = signal.SIG_IGN if ignored else lambda number, _frame: taken.append(number)
    before = signal.signal(signal.SIGHUP, ours)
    try:
        server = server_module._Server(uvicorn.Config(app="none"), lambda: None, control=None)  # type: ignore[arg-type]
        with server.capture_signals():
            signal.raise_signal(signal.SIGHUP)
        assert (server.should_exit, taken) == (not ignored, [])
        assert signal.getsignal(signal.SIGHUP) is ours
    finally:
        signal.signal(signal.SIGHUP, before)
