"""Merkle proofs against the public vectors and against the plain recursive definition of RFC 6962."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.merkle import (
    EMPTY_ROOT,
    ProofError,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    perfect_root,
    root,
    verify_consistency,
    verify_inclusion,
)

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "merkle"
LEAVES = [leaf_hash(b"%d" % number) for number in range(70)]


def _plain_root(hashes: list[bytes]) -> bytes:
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    half = 1
    while half * 2 < len(hashes):
        half *= 2
    return node_hash(_plain_root(hashes[:half]), _plain_root(hashes[half:]))


def _node(height: int, index: int) -> bytes:
    return perfect_root(LEAVES[index << height : (index + 1) << height])


def _hashes(texts: list[str] | None) -> list[bytes]:
    return [base64.b64decode(text) for text in texts or []]


def test_public_inclusion_vectors() -> None:
    files = sorted((VECTORS / "inclusion").rglob("*.json"))
    assert len(files) == 98
    for file in files:
        case = json.loads(file.read_bytes())
        given_ = (
            case["leafIdx"],
            case["treeSize"],
            base64.b64decode(case["leafHash"] or ""),
            _hashes(case["proof"]),
            base64.b64decode(case["root"] or ""),
        )
        if case["wantErr"]:
            with pytest.raises(ProofError):
                verify_inclusion(*given_)
        else:
            verify_inclusion(*given_)


def test_public_consistency_vectors() -> None:
    files = sorted((VECTORS / "consistency").rglob("*.json"))
    assert len(files) == 98
    for file in files:
        case = json.loads(file.read_bytes())
        roots = base64.b64decode(case["root1"] or ""), base64.b64decode(case["root2"] or "")
        if case["wantErr"]:
            with pytest.raises(ProofError):
                verify_consistency(case["size1"], case["size2"], *roots, _hashes(case["proof"]))
        else:
            verify_consistency(case["size1"], case["size2"], *roots, _hashes(case["proof"]))


@pytest.mark.parametrize("size", range(len(LEAVES) + 1))
def test_root_is_the_definition(size: int) -> None:
    assert root(LEAVES[:size]) == _plain_root(LEAVES[:size])
    assert root([]) == EMPTY_ROOT


def test_every_inclusion_proof_holds_and_only_there() -> None:
    for size in range(1, 40):
        total = root(LEAVES[:size])
        for index in range(size):
            proof = inclusion_proof(index, size, _node)
            verify_inclusion(index, size, LEAVES[index], proof, total)
            with pytest.raises(ProofError):
                verify_inclusion((index + 1) % size if size > 1 else 1, size, LEAVES[index], proof, total)


def test_every_consistency_proof_holds() -> None:
    for new in range(1, 40):
        for old in range(1, new + 1):
            verify_consistency(old, new, root(LEAVES[:old]), root(LEAVES[:new]), consistency_proof(old, new, _node))
    assert consistency_proof(0, 9, _node) == []


@given(st.integers(1, 70), st.integers(1, 70), st.data())
def test_any_changed_bit_breaks_a_consistency_proof(one: int, two: int, data: st.DataObject) -> None:
    old, new = sorted((one, two))
    proof = consistency_proof(old, new, _node)
    if not proof:
        return
    at, bit = data.draw(st.integers(0, len(proof) - 1)), data.draw(st.integers(0, 255))
    proof[at] = (int.from_bytes(proof[at], "big") ^ 1 << bit).to_bytes(32, "big")
    with pytest.raises(ProofError):
        verify_consistency(old, new, root(LEAVES[:old]), root(LEAVES[:new]), proof)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: inclusion_proof(3, 3, _node), "proof-index"),
        (lambda: inclusion_proof(-1, 3, _node), "proof-index"),
        (lambda: inclusion_proof(0, 2**63, _node), "proof-index"),
        (lambda: consistency_proof(4, 3, _node), "consistency-sizes"),
        (lambda: verify_inclusion(2**63, 2**63 + 1, LEAVES[0], [], LEAVES[0]), "proof-index"),
        (lambda: verify_inclusion(0, 1, b"short", [], LEAVES[0]), "proof-hash"),
        (lambda: verify_inclusion(0, 1, LEAVES[0], [LEAVES[0]] * 70, LEAVES[0]), "proof-limit"),
        (lambda: verify_inclusion(0, 1, LEAVES[0], [], LEAVES[1]), "proof-root"),
        (lambda: verify_consistency(3, 3, LEAVES[0], LEAVES[1], []), "consistency-equal"),
        (lambda: verify_consistency(3, 3, LEAVES[0], LEAVES[0], [LEAVES[0]]), "consistency-length"),
        (lambda: verify_consistency(3, 5, LEAVES[0], LEAVES[0], []), "consistency-length"),
        (lambda: verify_consistency(1, 2, LEAVES[0], LEAVES[9], [LEAVES[1]]), "consistency-new-root"),
        (lambda: verify_consistency(3, 4, LEAVES[0], root(LEAVES[:4]), consistency_proof(3, 4, _node)), "consistency-old-root"),
    ],
)
def test_each_refusal_names_its_rule(call, rule: str) -> None:
    with pytest.raises(ProofError) as caught:
        call()
    assert caught.value.details["rule"] == rule
