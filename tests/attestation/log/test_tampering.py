"""What somebody could do to a log, a checkpoint, a key or a proof: each is refused with its own error.

Rows named "with the key" are made by the log's own key holder.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from attestation.canonical import canonical_json
from attestation.errors import FormatError, LogError
from attestation.log.errors import ForkError
from attestation.log.history import ForkEvidence
from attestation.log.leaf import MAX_LEAF_BYTES
from attestation.log.note import (
    COSIGNATURE,
    ED25519,
    MAX_NOTE_BYTES,
    Checkpoint,
    Note,
    NoteSignature,
    NoteVerifier,
    cosign,
    open_checkpoint,
    sign_checkpoint,
)
from attestation.log.proof import TlogProof
from attestation.log.reader import LogReader
from attestation.log.tiles import Edge, pack_bundle, unpack_bundle
from attestation.log.tree import Growth
from attestation.log.verify import verify_log
from attestation.merkle import leaf_hash
from attestation.signing import SigningKey
from tests.attestation.log.logs import KEY, ORIGIN, OTHER_KEY, VERIFIER, leaf

SIZE = 600
LEAVES = [leaf(number) for number in range(SIZE)]
LAST = "512"  # the bundle that is partial starts there; it is number 2, with 88 entries
ROWS: dict[str, tuple[Callable[[Path], object], str]] = {}


def row(rule: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Enter a tampering into the table with the rule that must name it."""

    def enter(tamper: Callable[[Path], object]) -> Callable[[Path], object]:
        ROWS[tamper.__name__] = (tamper, rule)
        return tamper

    return enter


def build(folder: Path, leaves: list[bytes], key: SigningKey = KEY, origin: str = ORIGIN) -> Path:
    """Write a whole log as its key holder can: any bytes as entries, correctly signed."""
    tree = Growth(Edge(), [])
    for path, raw in tree.grow(leaves).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(raw)
    note = sign_checkpoint(Checkpoint(origin, tree.size, tree.root()), origin, key)
    (folder / "checkpoint").write_text(note.whole)
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("good"), LEAVES)


@pytest.fixture
def log(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "log")
    return tmp_path / "log"


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    raw = path.read_bytes()
    changed = change(raw)
    assert changed != raw
    path.write_bytes(changed)


def check(log: Path, key: NoteVerifier | str = VERIFIER, held: str | None = None) -> None:
    verify_log(LogReader.from_dir(log), key, held=held)


def note(log: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the checkpoint's bytes and check the log."""
    edit(log / "checkpoint", change)
    check(log)


def text(log: Path, change: Callable[[str], str]) -> None:
    """Change the checkpoint's text, signed again with the log's key, and check the log."""
    old = Note.parse((log / "checkpoint").read_bytes())
    changed = change(old.text)
    assert changed != old.text
    name = old.signatures[0]
    (log / "checkpoint").write_text(Note(changed, (NoteSignature(name.name, name.key_id, KEY.sign(changed.encode())),)).whole)
    check(log)


def signatures(log: Path, *made: NoteSignature) -> None:
    old = Note.parse((log / "checkpoint").read_bytes())
    (log / "checkpoint").write_text(Note(old.text, made).whole)


def signature(log: Path) -> NoteSignature:
    return Note.parse((log / "checkpoint").read_bytes()).signatures[0]


def bundle(log: Path, number: int, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = log / "tile" / "entries" / (f"00{number}" if number < 2 else "002.p/88")
    edit(path, lambda raw: pack_bundle(change(unpack_bundle(raw, 256 if number < 2 else 88))))


def proof(log: Path, change: Callable[[str], str], index: int = 300) -> None:
    old = LogReader.from_dir(log).extract([index]).entries[0]
    changed = change(old.proof)
    assert changed != old.proof
    TlogProof.from_text(changed).verify(old.leaf, [VERIFIER])


def with_leaf(folder: Path, raw: bytes) -> None:
    """Let the key holder log any bytes."""
    check(build(folder / "made", [*LEAVES[:5], raw]))


def changed_leaf(**fields: object) -> bytes:
    return canonical_json({**json.loads(LEAVES[0]), **fields})


# --- the note -------------------------------------------------------------------------------------------------------


@row("note-crlf")
def crlf(log: Path) -> None:
    note(log, lambda raw: raw.replace(b"\n", b"\r\n"))


@row("note-control")
def tab_in_the_text(log: Path) -> None:
    note(log, lambda raw: raw.replace(b"\n600", b"\t\n600"))


@row("note-utf8")
def latin_1(log: Path) -> None:
    note(log, lambda raw: b"\xe9" + raw)


@row("note-newline")
def last_newline_cut(log: Path) -> None:
    note(log, lambda raw: raw[:-1])


@row("note-blank-line")
def blank_line_removed(log: Path) -> None:
    note(log, lambda raw: raw.replace(b"\n\n", b"\n"))


@row("note-size")
def huge_note(log: Path) -> None:
    open_checkpoint((log / "checkpoint").read_bytes() + b"x" * MAX_NOTE_BYTES, [VERIFIER])


@row("log-limit")
def huge_checkpoint_file(log: Path) -> None:
    note(log, lambda raw: raw + b"x" * MAX_NOTE_BYTES)


@row("note-count")
def hundred_signatures(log: Path) -> None:
    note(log, lambda raw: raw + raw.split(b"\n\n")[1] * 100)


@row("note-signature-form")
def hyphen_for_the_dash(log: Path) -> None:
    note(log, lambda raw: raw.replace("—".encode(), b"-"))


@row("note-signature-base64")
def stray_bits_in_the_base64(log: Path) -> None:
    def change(raw: bytes) -> bytes:
        at = raw.rindex(b"=") - 1
        alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        return raw[:at] + bytes([alphabet[alphabet.index(raw[at]) + 1]]) + raw[at + 1 :]

    note(log, change)


@row("note-signature-short")
def signature_of_the_id_alone(log: Path) -> None:
    signatures(log, NoteSignature(ORIGIN, VERIFIER.key_id, b""))
    check(log)


@row("note-name")
def plus_in_a_signer_s_name(log: Path) -> None:
    note(log, lambda raw: raw.replace("— log".encode(), "— l+g".encode()))


@row("signature-invalid")
def size_edited(log: Path) -> None:
    note(log, lambda raw: raw.replace(b"\n600\n", b"\n599\n"))


@row("signature-length")
def signature_cut(log: Path) -> None:
    signatures(log, NoteSignature(ORIGIN, VERIFIER.key_id, signature(log).blob[:63]))
    check(log)


@row("signature-unknown")
def signed_by_another_key(log: Path) -> None:
    build(log, LEAVES, OTHER_KEY)
    check(log)


@row("signature-other-log")
def another_log_of_the_same_key(log: Path) -> None:
    build(log, LEAVES, KEY, "log.example/other")
    check(log)


@row("signature-twice")
def signature_repeated(log: Path) -> None:
    signatures(log, signature(log), signature(log))
    check(log)


@row("cosignature-time")
def cosignature_of_the_far_future(log: Path) -> None:
    witness = NoteVerifier("w.example", OTHER_KEY.public, COSIGNATURE)
    Note("x\n", (cosign("x\n", witness.name, OTHER_KEY, 2**63),)).verify([witness])


# --- the key --------------------------------------------------------------------------------------------------------


def _key(kind: int, raw: bytes) -> str:
    return f"{ORIGIN}+{VERIFIER.key_id.hex()}+{base64.b64encode(bytes([kind]) + raw).decode()}"


@row("vkey-type")
def key_with_a_wrong_type_byte(log: Path) -> None:
    check(log, _key(0x02, KEY.public.raw))


@row("vkey-id")
def key_swapped_under_the_same_id(log: Path) -> None:
    check(log, _key(ED25519, OTHER_KEY.public.raw))


@row("vkey-length")
def key_cut(log: Path) -> None:
    check(log, _key(ED25519, KEY.public.raw[:-1]))


@row("vkey-form")
def key_in_url_safe_base64(log: Path) -> None:
    check(log, f"{ORIGIN}+{VERIFIER.key_id.hex()}+__-_")


# --- the checkpoint, signed again with the key ------------------------------------------------------------------------


@row("checkpoint-size-form")
def leading_zero(log: Path) -> None:
    text(log, lambda old: old.replace("\n600\n", "\n0600\n"))


@row("checkpoint-size-range")
def size_of_two_to_the_63(log: Path) -> None:
    text(log, lambda old: old.replace("\n600\n", f"\n{2**63}\n"))


@row("checkpoint-lines")
def root_left_out(log: Path) -> None:
    text(log, lambda old: "\n".join(old.split("\n")[:2]) + "\n")


@row("checkpoint-root-base64")
def root_without_padding(log: Path) -> None:
    text(log, lambda old: old.replace("=", ""))


@row("checkpoint-root-length")
def root_of_31_bytes(log: Path) -> None:
    text(log, lambda _: f"{ORIGIN}\n600\n{base64.b64encode(b'x' * 31).decode()}\n")


@row("checkpoint-extension")
def empty_extension_line(log: Path) -> None:
    text(log, lambda old: f"{old}\nmore\n")


@row("checkpoint-origin")
def wrong_origin(log: Path) -> None:
    text(log, lambda old: old.replace(ORIGIN, "log.example/other"))


@row("checkpoint-origin-empty")
def no_origin(log: Path) -> None:
    text(log, lambda old: old.replace(ORIGIN, ""))


# --- entries and tiles ------------------------------------------------------------------------------------------------


@row("tile-entry")
def entry_edited(log: Path) -> None:
    bundle(log, 1, lambda all_: [all_[0], all_[1].replace(b'"ok"', b'"no"'), *all_[2:]])
    check(log)


@row("tile-order")
def entries_swapped(log: Path) -> None:
    bundle(log, 0, lambda all_: [all_[1], all_[0], *all_[2:]])
    check(log)


@row("tile-duplicate")
def entry_repeated_over_its_neighbour(log: Path) -> None:
    bundle(log, 0, lambda all_: [all_[0], all_[0], *all_[2:]])
    check(log)


@row("bundle-short")
def last_entry_dropped(log: Path) -> None:
    bundle(log, 2, lambda all_: all_[:-1])
    check(log)


@row("bundle-trailing")
def entry_added_to_a_bundle(log: Path) -> None:
    bundle(log, 1, lambda all_: [*all_, leaf()])
    check(log)


@row("bundle-truncated")
def bundle_cut(log: Path) -> None:
    edit(log / "tile" / "entries" / "001", lambda raw: raw[:-1])
    check(log)


@row("bundle-missing")
def bundle_removed(log: Path) -> None:
    (log / "tile" / "entries" / "000").unlink()
    check(log)


@row("tile-missing")
def tile_removed(log: Path) -> None:
    (log / "tile" / "0" / "001").unlink()
    check(log)


@row("tile-length")
def tile_cut(log: Path) -> None:
    edit(log / "tile" / "0" / "001", lambda raw: raw[:-32])
    check(log)


@row("tile-parent")
def entry_and_its_tile_edited(log: Path) -> None:
    _edit_both(log, 0, "000")


@row("tile-root")
def last_entry_and_its_tile_edited(log: Path) -> None:
    _edit_both(log, 2, "002.p/88")


def _edit_both(log: Path, number: int, path: str) -> None:
    new = leaf(99)
    bundle(log, number, lambda all_: [new, *all_[1:]])
    edit(log / "tile" / "0" / path, lambda raw: leaf_hash(new) + raw[32:])
    check(log)


# --- leaves that the key holder logged though they are none -----------------------------------------------------------


@row("leaf-id-twice")
def leaf_logged_twice(log: Path) -> None:
    with_leaf(log, LEAVES[3])


@row("leaf-json")
def leaf_of_noise(log: Path) -> None:
    with_leaf(log, b"{")


@row("leaf-fields")
def leaf_with_one_more_field(log: Path) -> None:
    with_leaf(log, changed_leaf(note="hello"))


@row("leaf-version")
def leaf_of_another_version(log: Path) -> None:
    with_leaf(log, changed_leaf(v=2))


@row("leaf-canonical")
def leaf_with_spaces(log: Path) -> None:
    with_leaf(log, LEAVES[0].replace(b",", b", "))


@row("leaf-actor_ref")
def leaf_with_a_person_s_address(log: Path) -> None:
    with_leaf(log, changed_leaf(actor_ref="alice@example.org"))


@row("leaf-id")
def leaf_with_a_random_id(log: Path) -> None:
    with_leaf(log, changed_leaf(id="936da01f-9abd-4d9d-80c7-02af85c822a8"))


@row("leaf-day")
def leaf_of_no_day(log: Path) -> None:
    with_leaf(log, changed_leaf(occurred_at="2026-02-30T00:00:00.000Z"))


@row("leaf-size")
def leaf_too_large(log: Path) -> None:
    raw = changed_leaf(commitments=[{"field": "a", "mac": "0" * 64}] * 800)
    assert len(raw) > MAX_LEAF_BYTES
    from attestation.log.leaf import Leaf

    Leaf.from_bytes(raw)


# --- history ------------------------------------------------------------------------------------------------------------


def _rewritten(log: Path, size: int) -> None:
    held = (log / "checkpoint").read_text()
    build(log, [leaf(1), *LEAVES[1:], *(leaf() for _ in range(10))][:size])
    check(log)  # the rewrite is a sound log by itself: only what was held gives it away
    check(log, held=held)


@row("history-shrunk")
def rolled_back_with_the_key(log: Path) -> None:
    held = (log / "checkpoint").read_text()
    build(log, LEAVES[:500])
    check(log, held=held)


@row("fork-same-size")
def rewritten_with_the_key(log: Path) -> None:
    _rewritten(log, 600)


@row("tile-proof")
def tiles_of_another_tree_under_a_newer_checkpoint(log: Path) -> None:
    held = (log / "checkpoint").read_text()
    build(log, [*LEAVES, leaf()])
    (log / "tile" / "1" / "000.p" / "2").write_bytes(b"\x00" * 64)
    check(log, held=held)


@row("fork-prefix")
def rewritten_and_grown_with_the_key(log: Path) -> None:
    _rewritten(log, 605)


# --- proofs ---------------------------------------------------------------------------------------------------------------


@row("proof-index")
def index_beyond_the_tree(log: Path) -> None:
    proof(log, lambda old: old.replace("index 300\n", "index 600\n"))


@row("proof-root")
def index_moved(log: Path) -> None:
    proof(log, lambda old: old.replace("index 300\n", "index 301\n"))


@row("proof-length")
def proof_hash_removed(log: Path) -> None:
    proof(log, lambda old: "\n".join([*old.split("\n")[:2], *old.split("\n")[3:]]))


@row("tlog-proof-index-form")
def index_with_a_leading_zero(log: Path) -> None:
    proof(log, lambda old: old.replace("index 300\n", "index 0300\n"))


@row("tlog-proof-index-range")
def index_of_two_to_the_63(log: Path) -> None:
    proof(log, lambda old: old.replace("index 300\n", f"index {2**63}\n"))


@row("tlog-proof-header")
def proof_of_another_version(log: Path) -> None:
    proof(log, lambda old: old.replace("@v1", "@v2", 1))


@row("tlog-proof-index")
def index_left_out(log: Path) -> None:
    proof(log, lambda old: old.replace("index 300\n", ""))


@row("tlog-proof-base64")
def proof_hash_without_padding(log: Path) -> None:
    proof(log, lambda old: old.replace("=\n", "\n", 1))


@row("tlog-proof-hash")
def proof_hash_cut(log: Path) -> None:
    proof(log, lambda old: old.replace(old.split("\n")[2], base64.b64encode(b"x" * 31).decode(), 1))


@row("tlog-proof-extra")
def extra_data(log: Path) -> None:
    proof(log, lambda old: old.replace("index", "extra aGk=\nindex", 1))


@pytest.mark.parametrize("name", sorted(ROWS))
def test_each_tampering_is_refused_with_its_own_error(log: Path, name: str) -> None:
    tamper, rule = ROWS[name]
    with pytest.raises(LogError) as caught:
        tamper(log)
    assert caught.value.details["rule"] == rule
    assert caught.value.details["seen"] is not None
    assert caught.value.details["wanted"]


def test_the_untampered_log_verifies(log: Path) -> None:
    check(log)


def test_the_table_is_long_and_every_row_has_an_error_of_its_own() -> None:
    rules = [rule for _, rule in ROWS.values()]
    assert len(rules) >= 40
    assert len(set(rules)) == len(rules)


@pytest.mark.parametrize(("before", "after"), [(600, 600), (512, 600), (3, 605), (1, 2), (256, 257)])
def test_a_fork_gives_evidence_that_stands_alone(tmp_path: Path, before: int, after: int) -> None:
    held = (build(tmp_path, LEAVES[:before]) / "checkpoint").read_text()
    build(tmp_path, [leaf(1), *LEAVES[1:], *(leaf() for _ in range(10))][:after])
    with pytest.raises(ForkError) as caught:
        check(tmp_path, held=held)
    evidence = ForkEvidence.from_text(caught.value.evidence)
    old, new = evidence.verify([VERIFIER])
    assert (old.size, new.size) == (before, after)
    with pytest.raises(LogError):
        evidence.verify([NoteVerifier(ORIGIN, OTHER_KEY.public)])


def test_what_is_no_fork_is_no_evidence(tmp_path: Path) -> None:
    held = (build(tmp_path, LEAVES[:5]) / "checkpoint").read_text()
    shown = (build(tmp_path, LEAVES) / "checkpoint").read_text()
    proof = tuple(LogReader.from_dir(tmp_path).prefix(5, 600))
    for evidence, rule in [
        (ForkEvidence(held, shown, proof), "fork-none"),
        (ForkEvidence(shown, held, proof), "fork-sizes"),
        (ForkEvidence(held, shown, (leaf_hash(b""), *proof[1:])), "fork-root"),
        (ForkEvidence(held, shown, proof[1:]), "consistency-length"),
    ]:
        with pytest.raises(LogError) as caught:
            evidence.verify([VERIFIER])
        assert caught.value.details["rule"] == rule
    for text_ in ("{}", "[]", ForkEvidence(held, shown, proof).to_text().replace('"proof":[', '"proof":[1,')):
        with pytest.raises(FormatError):
            ForkEvidence.from_text(text_)
