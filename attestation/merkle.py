"""Merkle trees of RFC 6962 (section 2.1): hashes, proofs, and their verification after RFC 9162 (2.1.3, 2.1.4).

Pure functions. A tree is seen through ``Node``: a function from (height, index) to the hash of the perfect subtree whose
leaves are ``index * 2**height`` up to ``(index + 1) * 2**height``; it is only asked for subtrees that are full.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

from attestation.errors import LogError

Node = Callable[[int, int], bytes]

HASH_BYTES = 32
MAX_PROOF_HASHES = 64
MAX_SIZE = 2**63 - 1
EMPTY_ROOT = hashlib.sha256(b"").digest()
_sha256 = hashlib.sha256


class ProofError(LogError):
    """An inclusion or consistency proof does not hold."""

    code = "log-proof"


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf. The prefix 0 keeps a leaf from passing as an inner node."""
    return _sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node."""
    return _sha256(b"\x01" + left + right).digest()


def perfect_root(hashes: Sequence[bytes]) -> bytes:
    """Return the root over a power of two of hashes."""
    row = list(hashes)
    while len(row) > 1:
        row = [_sha256(b"\x01" + row[at] + row[at + 1]).digest() for at in range(0, len(row), 2)]
    return row[0]


def perfect_parts(hashes: Sequence[bytes]) -> list[bytes]:
    """Return the roots of the perfect subtrees that a row of hashes falls into, largest first."""
    parts, start = [], 0
    for bit in range(len(hashes).bit_length() - 1, -1, -1):
        if len(hashes) >> bit & 1:
            parts.append(perfect_root(hashes[start : start + (1 << bit)]))
            start += 1 << bit
    return parts


def fold(parts: Sequence[bytes]) -> bytes:
    """Return the root of a tree from its perfect subtrees, largest first."""
    if not parts:
        return EMPTY_ROOT
    total = parts[-1]
    for part in reversed(parts[:-1]):
        total = node_hash(part, total)
    return total


def root(leaf_hashes: Iterable[bytes]) -> bytes:
    """Return the root of the tree over these leaf hashes."""
    return fold(perfect_parts(list(leaf_hashes)))


def range_root(start: int, end: int, node: Node) -> bytes:
    """Return the hash of the subtree over leaves ``start`` up to ``end``, as it stands in a tree's proof."""
    parts = []
    while start < end:
        height = min((end - start).bit_length() - 1, _alignment(start))
        parts.append(node(height, start >> height))
        start += 1 << height
    return fold(parts)


def inclusion_proof(index: int, size: int, node: Node) -> list[bytes]:
    """Return the proof that leaf ``index`` stands in the tree of ``size`` leaves, sibling of the leaf first."""
    if not 0 <= index < size <= MAX_SIZE:
        raise ProofError("no such leaf in this tree", rule="proof-index", seen=str(index), wanted=f"0 ≤ index < {size}")
    proof, low, high = [], 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            proof.append(range_root(middle, high, node))
            high = middle
        else:
            proof.append(range_root(low, middle, node))
            low = middle
    return proof[::-1]


def consistency_proof(old: int, new: int, node: Node) -> list[bytes]:
    """Return the proof that the tree of ``old`` leaves is the start of the tree of ``new`` leaves (empty for 0 and for equal)."""
    if not 0 <= old <= new <= MAX_SIZE:
        raise ProofError("a tree cannot shrink", rule="consistency-sizes", seen=f"{old} to {new}", wanted="old ≤ new")
    if old in {0, new}:
        return []
    proof, low, high, whole = [], 0, new, True
    while old != high:
        middle = low + _split(high - low)
        if old <= middle:
            proof.append(range_root(middle, high, node))
            high = middle
        else:
            proof.append(range_root(low, middle, node))
            low, whole = middle, False
    if not whole:
        proof.append(range_root(low, high, node))
    return proof[::-1]


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root_hash: bytes) -> None:
    """Raise ``ProofError`` unless ``proof`` shows that the leaf hash ``leaf`` stands at ``index`` under ``root_hash``."""
    if not 0 <= index < size <= MAX_SIZE:
        raise ProofError("the index lies outside the tree", rule="proof-index", seen=f"{index} of {size}", wanted="0 ≤ index < size < 2^63")
    _check_hashes(leaf, root_hash, *proof)
    inner = (index ^ (size - 1)).bit_length()
    wanted = inner + (index >> inner).bit_count()
    if len(proof) != wanted:
        raise ProofError("the proof has a wrong length", rule="proof-length", seen=f"{len(proof)} hashes", wanted=f"{wanted} hashes")
    at = leaf
    for height, sibling in enumerate(proof):
        left = height >= inner or index >> height & 1
        at = node_hash(sibling, at) if left else node_hash(at, sibling)
    if at != root_hash:
        raise ProofError("the proof leads to another root", rule="proof-root", seen=at.hex(), wanted=root_hash.hex())


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Raise ``ProofError`` unless ``proof`` shows that the old tree is a prefix of the new one (RFC 9162, 2.1.4.2).

    An empty old tree is a prefix of everything, so it proves nothing; it is refused, callers must not ask.
    """
    if not 0 < old <= new <= MAX_SIZE:
        raise ProofError(
            "no consistency between these sizes", rule="consistency-sizes", seen=f"{old} to {new}", wanted="0 < old ≤ new < 2^63"
        )
    if old == new:
        if proof:
            raise ProofError("equal trees need no proof", rule="consistency-length", seen=f"{len(proof)} hashes", wanted="none")
        if old_root != new_root:
            raise ProofError("equal sizes, other roots", rule="consistency-equal", seen=new_root.hex(), wanted=old_root.hex())
        return
    _check_hashes(old_root, new_root, *proof)
    # An old tree that is one perfect subtree is its own seed; the proof then leaves it out.
    seeded = old == 1 << _alignment(old)
    first, last = prefix_roots(old, new, [old_root, *proof] if seeded else proof)
    if last != new_root:
        raise ProofError("the proof leads to another new root", rule="consistency-new-root", seen=last.hex(), wanted=new_root.hex())
    if first != old_root:
        raise ProofError("the proof leads to another old root", rule="consistency-old-root", seen=first.hex(), wanted=old_root.hex())


def prefix_roots(old: int, new: int, proof: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the roots of the tree of ``new`` leaves and of its first ``old`` ones (0 < old < new) that a proof leads to: (old, new).

    The proof is that of ``consistency_proof`` with the seed always in front. Where the new root is right, the old one is
    a fact about the new tree, whoever made the proof. Raises ``ProofError`` for a wrong length.
    """
    shift = _alignment(old)
    inner = ((old - 1) ^ (new - 1)).bit_length() - shift
    position = (old - 1) >> shift
    wanted = 1 + inner + (position >> inner).bit_count()
    if len(proof) != wanted:
        raise ProofError("the proof has a wrong length", rule="consistency-length", seen=f"{len(proof)} hashes", wanted=f"{wanted} hashes")
    first = last = proof[0]
    for height, sibling in enumerate(proof[1:]):
        if height >= inner or position >> height & 1:
            first, last = node_hash(sibling, first), node_hash(sibling, last)
        else:
            last = node_hash(last, sibling)
    return first, last


def _check_hashes(*hashes: bytes) -> None:
    if len(hashes) > MAX_PROOF_HASHES + 2:
        raise ProofError("the proof is too long", rule="proof-limit", seen=f"{len(hashes)} hashes", wanted=f"≤ {MAX_PROOF_HASHES}")
    for each in hashes:
        if len(each) != HASH_BYTES:
            raise ProofError("a hash has a wrong length", rule="proof-hash", seen=f"{len(each)} bytes", wanted=f"{HASH_BYTES} bytes")


def _split(size: int) -> int:
    """Return the largest power of two below ``size`` (≥ 2)."""
    return 1 << ((size - 1).bit_length() - 1)


def _alignment(start: int) -> int:
    """Return how many times two divides ``start`` (a large number for 0)."""
    return (start & -start).bit_length() - 1 if start else 64
