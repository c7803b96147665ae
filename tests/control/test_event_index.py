"""The event index follows the log: what was logged without a server is found, and an old copy of either is refused at the start."""

from __future__ import annotations

import contextlib
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from attestation.log.errors import LogStoreError
from attestation.log.leaf import Leaf
from attestation.log.reader import LogReader
from attestation.merkle import ProofError
from sandbox.cli import main
from sandbox.control.database.engine import Database
from sandbox.control.event_index import follow_log
from sandbox.control.journal import event_row
from tests.attestation.log.logs import make_log
from tests.control.actors import ok, walk
from tests.control.conftest import open_house
from tests.control.test_story import admitted

LOG_PARTS = ("log", "log-state", "log-lock")


def act(folder: Path, times: int = 1) -> None:
    """Let a server live and log something."""
    with ExitStack() as stack:
        house = open_house(stack, folder)
        for _ in range(times):
            house.token("auditor", "audit")


def exchange_key(folder: Path) -> None:
    assert main(["audit", "rotate-key", "--data", str(folder / "data"), "--json"]) == 0


def put_back(data: Path, copy: Path, *names: str) -> None:
    for name in names:
        place = data / name
        if place.is_dir():
            shutil.rmtree(place)
            shutil.copytree(copy / name, place)
        else:
            shutil.copy(copy / name, place)


def refusal(folder: Path) -> dict[str, object]:
    with ExitStack() as stack, pytest.raises(LogStoreError) as caught:
        open_house(stack, folder)
    return caught.value.details


def test_every_exchange_of_the_key_is_found_like_any_other_entry(folder: Path) -> None:
    act(folder)
    for _ in range(2):
        exchange_key(folder)
    act(folder)
    exchange_key(folder)
    with ExitStack() as stack:
        house = open_house(stack, folder)
        auditor = house.person("auditor")
        house.http.post("/login", data={"token": auditor.token})
        rows = ok(auditor.get("/v1/log/entries?limit=500"))["entries"]
        leaves = dict(LogReader(house.control.log_files).entries(0, 10**6))
        assert [row["index"] for row in rows] == sorted(leaves)
        exchanged = [index for index, raw in leaves.items() if Leaf.from_bytes(raw).type == "log.key-rotated"]
        assert [row["index"] for row in ok(auditor.get("/v1/log/entries?type=log.*"))["entries"]] == exchanged
        assert len(exchanged) == 3
        for row in rows:
            leaf = Leaf.from_bytes(leaves[row["index"]])
            assert (row["id"], row["type"], row["actor"], row["resource"]) == (leaf.id, leaf.type, leaf.actor_ref, leaf.resource_ref)
        for index in exchanged:
            assert ok(auditor.get(f"/v1/log/entries/{index}"))["leaf"].encode() == leaves[index]
            assert "log.key-rotated" in house.http.get(f"/audit/{index}").raise_for_status().text


def test_an_old_copy_of_the_database_is_refused(folder: Path) -> None:
    data, copy = folder / "data", folder / "copy"
    with ExitStack() as stack:
        house = open_house(stack, folder)
        customer, node = house.customer(), house.node()
        lease = admitted(house, customer)
        walk(customer, node, lease, "running")
    shutil.copytree(data, copy)
    with ExitStack() as stack:
        customer.http = node.http = open_house(stack, folder).http
        ok(node.report(lease, "collecting"))
    exchange_key(folder)
    put_back(data, copy, "control.db")
    details = refusal(folder)
    assert details["rule"] == "database-behind"
    assert "lease.collecting" in str(details["seen"])
    assert details["fix"]


def test_an_old_copy_of_the_whole_log_is_refused(folder: Path) -> None:
    act(folder)
    data, copy = folder / "data", folder / "copy"
    shutil.copytree(data, copy)
    act(folder, 2)
    put_back(data, copy, *LOG_PARTS)
    details = refusal(folder)
    assert details["rule"] == "log-behind"
    assert details["fix"]
    put_back(data, copy, "control.db")
    act(folder)


def test_an_exchange_that_somebody_put_into_the_files_is_not_believed(folder: Path) -> None:
    """The files may be in somebody else's bucket: an entry is found only once it leads to the signed root."""
    log = folder / "log"
    leaves = make_log(folder, 300)
    old = Leaf.from_bytes(leaves[5])
    forged = Leaf("log.key-rotated", old.occurred_at, old.recorded_at, "server", old.resource_ref, "rotate", "done").to_bytes()
    reader = LogReader.from_dir(log)
    with contextlib.closing(Database(f"sqlite:///{folder / 'control.db'}")) as database:
        database.migrate()
        with database.write() as session:
            session.add_all([event_row(Leaf.from_bytes(raw), index) for index, raw in enumerate(leaves) if index != 5])
        with pytest.raises(LogStoreError):
            follow_log(database, reader, reader.checkpoint())
        bundle = log / "tile" / "entries" / "000"
        length = len(leaves[5]).to_bytes(2, "big")
        bundle.write_bytes(bundle.read_bytes().replace(length + leaves[5], len(forged).to_bytes(2, "big") + forged))
        with pytest.raises(ProofError):
            follow_log(database, reader, reader.checkpoint())
