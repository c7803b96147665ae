"""Commitments: open with their subject's key, tell nothing without it, and are gone for good once the subject is erased."""

from __future__ import annotations

import shutil
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import VerificationError
from attestation.log.commitments import MAX_VALUE_BYTES, Opening, SubjectKeys, commitment_mac
from attestation.log.errors import LogStoreError
from attestation.log.leaf import Commitment, Leaf, new_leaf_id
from attestation.log.reader import LogReader
from attestation.log.verify import verify_log
from tests.attestation.log.logs import NOW, VERIFIER, open_log

SUBJECT, OTHER = "tenant-" + "a" * 32, "tenant-" + "b" * 32


@pytest.fixture
def keys(tmp_path: Path) -> SubjectKeys:
    return SubjectKeys(tmp_path / "keys")


def test_a_committed_value_opens(keys: SubjectKeys) -> None:
    leaf = new_leaf_id()
    made = keys.commit(leaf, SUBJECT, {"name": "Ada", "email": "ada@example.org"})
    opened = [keys.open(leaf, SUBJECT, each.commitment.field, each.sealed) for each in made]
    assert [(each.field, each.value) for each in opened] == [("email", "ada@example.org"), ("name", "Ada")]
    for opening, each in zip(opened, made, strict=True):
        opening.verify(each.commitment)
        for wrong in (replace(opening, value="Eve"), replace(opening, salt=b"\0" * 32), replace(opening, field="other")):
            with pytest.raises(VerificationError):
                wrong.verify(each.commitment)


def test_the_same_value_never_looks_the_same(keys: SubjectKeys) -> None:
    leaf = new_leaf_id()
    (one,) = keys.commit(leaf, SUBJECT, {"name": "Ada"})
    (two,) = keys.commit(leaf, SUBJECT, {"name": "Ada"})
    assert one.commitment.mac != two.commitment.mac


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20)), min_size=2, max_size=2, unique=True))
def test_no_two_inputs_share_a_commitment(pairs: list[tuple[str, str]]) -> None:
    assert commitment_mac(b"s" * 32, *pairs[0]) != commitment_mac(b"s" * 32, *pairs[1])


def test_erased_is_erased_and_others_stay(keys: SubjectKeys) -> None:
    leaf = new_leaf_id()
    (mine,) = keys.commit(leaf, SUBJECT, {"name": "Ada"})
    (theirs,) = keys.commit(leaf, OTHER, {"name": "Bob"})
    assert b"Ada" not in mine.sealed
    assert set(keys.subjects()) == {SUBJECT, OTHER}
    keys.erase(SUBJECT)
    keys.erase(SUBJECT)
    assert keys.open(leaf, SUBJECT, "name", mine.sealed) is None
    assert keys.open(leaf, OTHER, "name", theirs.sealed).value == "Bob"
    assert set(keys.subjects()) == {OTHER}


def test_the_tree_stays_valid(tmp_path: Path, keys: SubjectKeys) -> None:
    with open_log(tmp_path) as writer:
        id_ = new_leaf_id()
        made = tuple(each.commitment for each in keys.commit(id_, SUBJECT, {"name": "Ada"}))
        writer.append([Leaf("tenant.named", NOW, NOW, "server", SUBJECT, "name", "ok", commitments=made, id=id_).to_bytes()])
        keys.erase(SUBJECT)
    assert verify_log(LogReader.from_dir(tmp_path), VERIFIER).checkpoint.size == 1
    (raw,) = [raw for _, raw in LogReader.from_dir(tmp_path).entries(0, 1)]
    assert Leaf.from_bytes(raw).commitments == made


def test_what_is_sealed_opens_in_its_own_place_alone(tmp_path: Path, keys: SubjectKeys) -> None:
    leaf = new_leaf_id()
    (made,) = keys.commit(leaf, SUBJECT, {"name": "Ada"})
    keys.commit(leaf, OTHER, {"name": "Bob"})
    for place in ((new_leaf_id(), SUBJECT, "name"), (leaf, OTHER, "name"), (leaf, SUBJECT, "email")):
        with pytest.raises(LogStoreError) as caught:
            keys.open(*place, made.sealed)
        assert caught.value.details["rule"] == "commitment-damaged"
    shutil.copy(tmp_path / "keys" / f"{OTHER}.key", tmp_path / "keys" / f"{SUBJECT}.key")
    with pytest.raises(LogStoreError):
        keys.open(leaf, SUBJECT, "name", made.sealed)


@pytest.mark.parametrize("subject", ["../../etc/passwd", "Ada", "", "tenant-" + "g" * 32])
def test_a_subject_is_a_random_id(keys: SubjectKeys, subject: str) -> None:
    for work in (lambda: keys.commit(new_leaf_id(), subject, {"name": "Ada"}), lambda: keys.erase(subject)):
        with pytest.raises(LogStoreError):
            work()


def test_values_are_bounded(keys: SubjectKeys) -> None:
    with pytest.raises(LogStoreError):
        keys.commit(new_leaf_id(), SUBJECT, {"name": "x" * (MAX_VALUE_BYTES + 1)})


def test_keys_are_for_their_owner_alone(tmp_path: Path, keys: SubjectKeys) -> None:
    keys.commit(new_leaf_id(), SUBJECT, {"name": "Ada"})
    assert stat.S_IMODE((tmp_path / "keys" / f"{SUBJECT}.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_an_opening_of_another_commitment() -> None:
    with pytest.raises(VerificationError):
        Opening("name", b"s" * 32, "Ada").verify(Commitment("name", "0" * 64))
