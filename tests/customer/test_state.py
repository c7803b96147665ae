from __future__ import annotations

import json
import os

import pytest

from sandbox.customer.state import State, checked_lease, write_whole
from sandbox.errors import StateError, UsageError

LEASE = "lease-" + "0a" * 16
DIGEST = "blake3:" + "0b" * 32


@pytest.fixture
def state(tmp_path):
    return State(tmp_path / "state")


def test_everything_is_private(state):
    state.remember(LEASE, "nonce", b"n")
    state.remember_upload("http://x", DIGEST, "/u/1")
    state.remember_header(DIGEST, b"first")
    state.record({"lease": LEASE})
    found = [state.folder, *state.folder.rglob("*")]
    assert len(found) > 8
    assert [path for path in found if path.stat().st_mode & 0o077] == []


def test_a_folder_that_others_can_read_is_refused(tmp_path):
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(UsageError) as caught:
        State(tmp_path / "open")
    assert "chmod 700" in str(caught.value.details["fix"])


def test_a_lease_has_one_of_each_document(state):
    state.remember(LEASE, "grant", b"one")
    state.remember(LEASE, "grant", b"one")
    with pytest.raises(StateError):
        state.remember(LEASE, "grant", b"two")
    assert state.document(LEASE, "grant") == b"one"
    assert state.document(LEASE, "refusal") is None
    assert state.leases() == [LEASE]


@pytest.mark.parametrize("lease", ["", "lease-1", "../x", "lease-" + "0A" * 16, "lease-" + "0a" * 16 + "\n", "lease-" + "0a" * 16 + "/.."])
def test_what_is_no_lease_id_never_becomes_a_path(state, lease):
    with pytest.raises(UsageError):
        checked_lease(lease)
    with pytest.raises(UsageError):
        state.document(lease, "job")


def test_what_is_no_digest_never_becomes_a_path(state):
    with pytest.raises(UsageError):
        state.header("../../etc/passwd")


def test_uploads_belong_to_a_server(state):
    state.remember_upload("http://a", DIGEST, "/u/1")
    assert state.upload("http://a", DIGEST) == "/u/1"
    assert state.upload("http://b", DIGEST) is None
    state.forget_upload("http://a", DIGEST)
    state.forget_upload("http://a", DIGEST)
    assert state.upload("http://a", DIGEST) is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"location": 1}', b"\xff"])
def test_a_damaged_upload_note_is_as_none(state, damage):
    state.remember_upload("http://a", DIGEST, "/u/1")
    next((state.folder / "uploads").iterdir()).write_bytes(damage)
    assert state.upload("http://a", DIGEST) is None


def test_one_agent_holds_a_lease(state, tmp_path):
    with state.locked(LEASE) as first:
        assert first
        with State(tmp_path / "state").locked(LEASE) as second:
            assert not second
    with state.locked(LEASE) as again:
        assert again


def test_decisions_are_lines_with_their_time(state):
    state.record({"lease": LEASE, "decision": "granted"})
    state.record({"lease": LEASE, "decision": "revoked"})
    lines = [json.loads(line) for line in (state.folder / "decisions.jsonl").read_text().splitlines()]
    assert [line["decision"] for line in lines] == ["granted", "revoked"]
    assert all(line["at"].endswith("Z") for line in lines)


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    write_whole(tmp_path / "f", b"old")
    monkeypatch.setattr(os, "fsync", lambda _fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_whole(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_an_oversized_file_is_damage(state):
    state.remember(LEASE, "job", b"x")
    with (state.lease_folder(LEASE) / "job").open("r+b") as file:
        file.truncate(17 * 1024 * 1024)
    with pytest.raises(StateError):
        state.document(LEASE, "job")
