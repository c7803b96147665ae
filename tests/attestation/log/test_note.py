"""Signed notes: the published examples verify, and there is one spelling."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import LogError
from attestation.log.errors import CheckpointError, NoteError, NoteSignatureError
from attestation.log.note import COSIGNATURE, Checkpoint, Note, NoteVerifier, cosign, open_checkpoint, sign_checkpoint
from attestation.signing import SigningKey
from tests.attestation.log.logs import KEY, ORIGIN, OTHER_KEY, VERIFIER

HEAD = Checkpoint(ORIGIN, 7, b"\x05" * 32)
NOTE = sign_checkpoint(HEAD, ORIGIN, KEY)

# The example of Go's golang.org/x/mod/sumdb/note documentation.
GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_NOTE = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


def test_go_documentation_example_verifies() -> None:
    verifier = NoteVerifier.from_text(GO_VKEY)
    assert verifier.text == GO_VKEY
    assert Note.parse(GO_NOTE).verify([verifier]) == {verifier: None}
    with pytest.raises(NoteSignatureError):
        Note.parse(GO_NOTE.replace("answer", "Answer")).verify([verifier])


def test_round_trip() -> None:
    assert Note.parse(NOTE.whole) == NOTE
    assert open_checkpoint(NOTE.whole, [VERIFIER])[0] == HEAD
    assert NoteVerifier.from_text(VERIFIER.text) == VERIFIER


def test_unknown_signatures_are_ignored_but_one_known_is_needed() -> None:
    both = Note(NOTE.text, (*sign_checkpoint(HEAD, "witness.example", OTHER_KEY).signatures, *NOTE.signatures))
    assert list(both.verify([VERIFIER])) == [VERIFIER]
    with pytest.raises(NoteSignatureError) as caught:
        NOTE.verify([NoteVerifier(ORIGIN, OTHER_KEY.public)])
    assert caught.value.details["rule"] == "signature-unknown"


def test_cosignature_carries_its_time() -> None:
    witness = NoteVerifier("witness.example/w", OTHER_KEY.public, COSIGNATURE)
    note = Note(NOTE.text, (*NOTE.signatures, cosign(NOTE.text, witness.name, OTHER_KEY, 1_800_000_000)))
    assert note.verify([VERIFIER, witness]) == {VERIFIER: None, witness: 1_800_000_000}
    assert NoteVerifier.from_text(witness.text) == witness
    changed = note.signatures[1]
    moved = type(changed)(changed.name, changed.key_id, (1_800_000_001).to_bytes(8, "big") + changed.blob[8:])
    with pytest.raises(NoteSignatureError):
        Note(NOTE.text, (*NOTE.signatures, moved)).verify([VERIFIER, witness])


def test_a_witness_key_does_not_stand_for_the_log() -> None:
    witness = NoteVerifier(ORIGIN, KEY.public, COSIGNATURE)
    note = Note(HEAD.text, (cosign(HEAD.text, ORIGIN, KEY, 1),))
    with pytest.raises(NoteSignatureError):
        open_checkpoint(note.whole, [witness])


@given(st.binary(max_size=300))
def test_noise_is_refused_with_an_error_of_ours(raw: bytes) -> None:
    with pytest.raises(LogError):
        open_checkpoint(raw, [VERIFIER])


@given(st.integers(0, len(NOTE.whole.encode()) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(at: int, change: int) -> None:
    raw = bytearray(NOTE.whole.encode())
    raw[at] ^= change
    with pytest.raises(LogError):
        open_checkpoint(bytes(raw), [VERIFIER])


def _vkey(name: str = "x.example", body: bytes = b"\x01" + KEY.public.raw, shown: str | None = None) -> str:
    right = NoteVerifier("x.example", KEY.public).key_id.hex()
    return f"{name}+{shown or right}+{base64.b64encode(body).decode()}"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "note-name"),
        ("a b+00000000+AQ==", "note-name"),
        ("x.example+00000000", "vkey-type"),
        ("x.example+00000000+***", "vkey-form"),
        (_vkey(body=b"\x02" + KEY.public.raw), "vkey-type"),
        (_vkey(body=b"\x01" + KEY.public.raw[:31]), "vkey-length"),
        (_vkey(shown="00000000"), "vkey-id"),
        (_vkey(name="y.example"), "vkey-id"),
    ],
)
def test_other_keys_are_refused_by_name(text: str, rule: str) -> None:
    with pytest.raises(NoteError) as caught:
        NoteVerifier.from_text(text)
    assert caught.value.details["rule"] == rule


def test_extension_lines_are_kept() -> None:
    head = Checkpoint(ORIGIN, 1, b"\x01" * 32, ("anything",))
    assert open_checkpoint(sign_checkpoint(head, ORIGIN, KEY).whole, [VERIFIER])[0] == head


def test_origin_must_be_the_key_s_own() -> None:
    note = sign_checkpoint(Checkpoint("other.example/log", 1, b"\x01" * 32), ORIGIN, KEY)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(note.whole, [VERIFIER])
    assert caught.value.details["rule"] == "checkpoint-origin"
    assert open_checkpoint(note.whole, [VERIFIER], origin="other.example/log")[0].size == 1


def test_signing_keys_are_not_printed() -> None:
    assert "07070707" not in repr(SigningKey(b"\x07" * 32))
