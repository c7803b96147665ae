"""Commitments: open with the sidecar, tell nothing without it, and are gone for good once their subject is erased."""

from __future__ import annotations

import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import VerificationError
from attestation.log.commitments import MAX_VALUE_BYTES, Opening, Sidecar, commitment_mac
from attestation.log.errors import LogStoreError
from attestation.log.leaf import Commitment, Leaf, new_leaf_id
from attestation.log.reader import LogReader
from attestation.log.verify import verify_log
from tests.attestation.log.logs import NOW, VERIFIER, open_log

SUBJECT, OTHER = "tenant-" + "a" * 32, "tenant-" + "b" * 32


@pytest.fixture
def sidecar(tmp_path: Path):
    with Sidecar(tmp_path / "sidecar") as sidecar:
        yield sidecar


def test_a_committed_value_opens(sidecar: Sidecar) -> None:
    leaf = new_leaf_id()
    made = sidecar.commit(leaf, SUBJECT, {"name": "Ada", "email": "ada@example.org"})
    opened = list(sidecar.open(leaf))
    assert [(each.field, each.value) for each in opened] == [("email", "ada@example.org"), ("name", "Ada")]
    for opening, commitment in zip(opened, made, strict=True):
        opening.verify(commitment)
        for wrong in (replace(opening, value="Eve"), replace(opening, salt=b"\0" * 32), replace(opening, field="other")):
            with pytest.raises(VerificationError):
                wrong.verify(commitment)


def test_the_same_value_never_looks_the_same(sidecar: Sidecar) -> None:
    (one,) = sidecar.commit(new_leaf_id(), SUBJECT, {"name": "Ada"})
    (two,) = sidecar.commit(new_leaf_id(), SUBJECT, {"name": "Ada"})
    assert one.mac != two.mac


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=2, max_size=2, unique=True))
def test_no_two_inputs_share_a_commitment(pairs: list[tuple[str, str]]) -> None:
    assert commitment_mac(b"s" * 32, *pairs[0]) != commitment_mac(b"s" * 32, *pairs[1])


def test_erased_is_erased_in_every_copy(tmp_path: Path) -> None:
    leaf, other = new_leaf_id(), new_leaf_id()
    with Sidecar(tmp_path / "sidecar") as sidecar:
        sidecar.commit(leaf, SUBJECT, {"name": "Ada"})
        sidecar.commit(other, OTHER, {"name": "Bob"})
        shutil.copytree(tmp_path / "sidecar", tmp_path / "backup")
        with pytest.raises(LogStoreError) as caught:
            sidecar.forget(SUBJECT)
        assert caught.value.details["rule"] == "forget-subject"
        assert sidecar.erase(SUBJECT) == sidecar.erase(SUBJECT) == 1
        assert not list(sidecar.open(leaf))
        sidecar.forget(SUBJECT)
        assert [each.value for each in sidecar.open(other)] == ["Bob"]
        with pytest.raises(LogStoreError) as caught:
            sidecar.erase(SUBJECT)
        assert caught.value.details["rule"] == "erase-subject"
    # A copy of the values without the keys, as backups are made, holds nothing that opens.
    shutil.rmtree(tmp_path / "backup" / "keys")
    assert b"Ada" not in b"".join(path.read_bytes() for path in (tmp_path / "backup").rglob("*") if path.is_file())
    with Sidecar(tmp_path / "backup") as backup:
        assert not list(backup.open(leaf))


def test_the_tree_stays_valid(tmp_path: Path) -> None:
    with Sidecar(tmp_path / "sidecar") as sidecar, open_log(tmp_path) as writer:
        id_ = new_leaf_id()
        made = sidecar.commit(id_, SUBJECT, {"name": "Ada"})
        writer.append([Leaf("tenant.named", NOW, NOW, "server", SUBJECT, "name", "ok", commitments=made, id=id_).to_bytes()])
        sidecar.erase(SUBJECT)
    assert verify_log(LogReader.from_dir(tmp_path), VERIFIER).checkpoint.size == 1
    (raw,) = [raw for _, raw in LogReader.from_dir(tmp_path).entries(0, 1)]
    assert Leaf.from_bytes(raw).commitments == made


def test_a_damaged_value_is_told(tmp_path: Path, sidecar: Sidecar) -> None:
    leaf = new_leaf_id()
    sidecar.commit(leaf, SUBJECT, {"name": "Ada"})
    (tmp_path / "sidecar" / "keys" / f"{SUBJECT}.key").write_bytes(b"k" * 32)
    with pytest.raises(LogStoreError) as caught:
        list(sidecar.open(leaf))
    assert caught.value.details["rule"] == "commitment-damaged"


@pytest.mark.parametrize("subject", ["../../etc/passwd", "Ada", "", "tenant-" + "g" * 32])
def test_a_subject_is_a_random_id(sidecar: Sidecar, subject: str) -> None:
    with pytest.raises(LogStoreError):
        sidecar.commit(new_leaf_id(), subject, {"name": "Ada"})


def test_a_leaf_s_values_are_stored_once_and_bounded(sidecar: Sidecar) -> None:
    leaf = new_leaf_id()
    sidecar.commit(leaf, SUBJECT, {"name": "Ada"})
    with pytest.raises(LogStoreError):
        sidecar.commit(leaf, SUBJECT, {"name": "Eve"})
    with pytest.raises(LogStoreError):
        sidecar.commit(new_leaf_id(), SUBJECT, {"name": "x" * (MAX_VALUE_BYTES + 1)})
    assert [each.value for each in sidecar.open(leaf)] == ["Ada"]


def test_keys_are_for_their_owner_alone(tmp_path: Path, sidecar: Sidecar) -> None:
    sidecar.commit(new_leaf_id(), SUBJECT, {"name": "Ada"})
    assert stat.S_IMODE((tmp_path / "sidecar" / "keys" / f"{SUBJECT}.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "sidecar").stat().st_mode) == 0o700


def test_an_opening_of_another_commitment(sidecar: Sidecar) -> None:
    with pytest.raises(VerificationError):
        Opening("x", "name", b"s" * 32, "Ada").verify(Commitment("name", "0" * 64))
