"""Key rotation: logged, followed from any key, and the end of the old one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from attestation.errors import LogError
from attestation.log.errors import LogStoreError, NoteSignatureError, QuorumError
from attestation.log.keychain import HEADER, KeyChain
from attestation.log.leaf import Leaf
from attestation.log.note import Checkpoint, NoteVerifier, open_checkpoint, sign_checkpoint, sign_note
from attestation.log.places import LogPlaces
from attestation.log.reader import LogReader
from attestation.log.rotation import is_key_of, rotate_key
from attestation.log.sqlite import SqliteLock
from attestation.log.store import Head
from attestation.log.verify import verify_log
from attestation.signing import SigningKey
from tests.attestation.log.logs import KEY, NOW, ORIGIN, OTHER_KEY, VERIFIER, leaf, make_log, open_log

NEW = NoteVerifier(ORIGIN, OTHER_KEY.public)
THIRD_KEY = SigningKey(b"\x09" * 32)
THIRD = NoteVerifier(ORIGIN, THIRD_KEY.public)


def rotate(data: Path, old: SigningKey = KEY, new: SigningKey = OTHER_KEY) -> str:
    """Exchange the key and have the next writer publish; return the note of it."""
    handover = rotate_key(LogPlaces(data), origin=ORIGIN, old=old, new=new, at=NOW)
    open_log(data, key=new).close()
    return handover


def check(data: Path, key: NoteVerifier = VERIFIER, held: str | None = None) -> int:
    return verify_log(LogReader.from_dir(data), key, held=held).checkpoint.size


def test_old_key_leads_to_the_new_one(tmp_path: Path) -> None:
    make_log(tmp_path, 5)
    before = LogReader.from_dir(tmp_path).checkpoint()
    rotate(tmp_path)
    with open_log(tmp_path, key=OTHER_KEY) as writer:
        assert writer.append([leaf()]) == [6]
    assert check(tmp_path) == 7
    assert check(tmp_path, NEW) == 7
    assert check(tmp_path, held=before) == 7
    assert open_checkpoint(before, [VERIFIER])[0].size == 5
    (raw,) = [raw for _, raw in LogReader.from_dir(tmp_path).entries(5, 6)]
    assert Leaf.from_bytes(raw).type == "log.key-rotated"
    with pytest.raises(NoteSignatureError):
        check(tmp_path, THIRD)


def test_twice(tmp_path: Path) -> None:
    make_log(tmp_path, 300)
    rotate(tmp_path)
    rotate(tmp_path, OTHER_KEY, THIRD_KEY)
    for key in (VERIFIER, NEW, THIRD):
        assert check(tmp_path, key) == 302


def test_a_retired_key_cannot_sign(tmp_path: Path) -> None:
    make_log(tmp_path, 5)
    rotate(tmp_path)
    with pytest.raises(LogStoreError) as caught:
        open_log(tmp_path)
    assert caught.value.details["rule"] == "store-key"
    head = verify_log(LogReader.from_dir(tmp_path), NEW).checkpoint
    with open_log(tmp_path, key=OTHER_KEY) as writer:
        writer.append([leaf()])
    grown = verify_log(LogReader.from_dir(tmp_path), NEW).checkpoint
    file = tmp_path / "log" / "checkpoint"
    file.write_text(sign_checkpoint(Checkpoint(ORIGIN, grown.size, grown.root), ORIGIN, KEY).whole)
    with pytest.raises(NoteSignatureError) as refused:
        check(tmp_path)
    assert refused.value.details["rule"] == "key-retired"
    # What it signed up to its last size still stands.
    chain = KeyChain.follow(LogReader.from_dir(tmp_path), [VERIFIER])
    assert chain.open(sign_checkpoint(head, ORIGIN, KEY).whole)[0] == head


def test_a_retired_key_ends_where_the_caller_says_whatever_the_notes_tell(tmp_path: Path) -> None:
    """The old key is in a thief's hands. Who trusts the new one, and the old one up to its last size, takes nothing later from him."""
    make_log(tmp_path, 5)
    before = LogReader.from_dir(tmp_path).checkpoint()
    handover = rotate(tmp_path)
    forged = sign_checkpoint(Checkpoint(ORIGIN, 7, b"r" * 32), ORIGIN, KEY).whole
    to_thief = sign_note(f"{HEADER}\n{ORIGIN}\n5\n{THIRD.text}\n", ORIGIN, (KEY, THIRD_KEY)).whole
    by_thief = sign_checkpoint(Checkpoint(ORIGIN, 5, b"r" * 32), ORIGIN, THIRD_KEY).whole
    for notes in ([], [handover], [to_thief], [to_thief, handover], [handover, to_thief]):
        chain = KeyChain.from_handovers(notes, [NEW], {VERIFIER: 6})
        assert chain.open(before)[0].size == 5
        for note, rule in ((forged, "key-retired"), (by_thief, "signature-unknown")):
            with pytest.raises(NoteSignatureError) as caught:
                chain.open(note)
            assert caught.value.details["rule"] == rule
    # Who trusts both, in whatever order, or the old key alone, learns of its end from the note, and of no second one.
    for both in ([NEW, VERIFIER], [VERIFIER, NEW]):
        assert {link.verifier: link.end for link in KeyChain.from_handovers([handover], both).links} == {VERIFIER: 6, NEW: None}
    for notes in ([handover], [handover, to_thief]):
        chain = KeyChain.from_handovers(notes, [VERIFIER])
        assert set(chain.keys) == {VERIFIER, NEW}
        with pytest.raises(NoteSignatureError):
            chain.open(forged)


def test_of_two_retired_keys_each_has_its_own_end(tmp_path: Path) -> None:
    make_log(tmp_path, 5)
    notes = [rotate(tmp_path), rotate(tmp_path, OTHER_KEY, THIRD_KEY)]
    for shown in ([], notes[:1], notes[1:], notes):
        chain = KeyChain.from_handovers(shown, [THIRD], {VERIFIER: 6, NEW: 7})
        assert {link.verifier: link.end for link in chain.links} == {VERIFIER: 6, NEW: 7, THIRD: None}
    assert {link.verifier: link.end for link in KeyChain.from_handovers(notes, [VERIFIER]).links} == {VERIFIER: 6, NEW: 7, THIRD: None}


def test_nothing_is_published_by_the_exchange(tmp_path: Path) -> None:
    """Witnesses were named after the log had begun and have never answered: what waits for them goes on waiting."""

    def refuse(_note: str) -> list[str]:
        raise QuorumError("no witness", rule="quorum", seen="0", wanted="1")

    make_log(tmp_path, 5)
    shown = LogReader.from_dir(tmp_path).checkpoint()
    with open_log(tmp_path, cosign=refuse) as writer:
        writer.append([leaf() for _ in range(3)])
    places = LogPlaces(tmp_path)
    assert not is_key_of(places, origin=ORIGIN, key=OTHER_KEY)
    rotate_key(places, origin=ORIGIN, old=KEY, new=OTHER_KEY, at=NOW)
    assert is_key_of(places, origin=ORIGIN, key=OTHER_KEY)
    assert LogReader.from_dir(tmp_path).checkpoint() == shown
    with pytest.raises(LogStoreError) as caught:
        is_key_of(places, origin="log.example/other", key=OTHER_KEY)
    assert caught.value.details["rule"] == "store-origin"
    open_log(tmp_path, key=OTHER_KEY).close()
    assert check(tmp_path) == 9


@pytest.mark.parametrize("step", ["before", "after"])
def test_a_crash_in_the_handover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    make_log(tmp_path, 5)
    real = SqliteLock.swap

    def crash(self: SqliteLock, old: Head, new: Head, *, rotation: str | None = None) -> None:
        if rotation is None or step == "after":
            real(self, old, new, rotation=rotation)
        if rotation is not None:
            msg = "crash"
            raise KeyboardInterrupt(msg)

    monkeypatch.setattr(SqliteLock, "swap", crash)
    with pytest.raises(KeyboardInterrupt):
        rotate(tmp_path)
    monkeypatch.undo()
    if step == "before":
        with pytest.raises(LogStoreError):
            open_log(tmp_path, key=OTHER_KEY)
        rotate(tmp_path)
    open_log(tmp_path, key=OTHER_KEY).close()
    assert check(tmp_path) == (7 if step == "before" else 6)


def _forge(data: Path, text: str, *keys: SigningKey) -> None:
    (data / "log" / "keys").mkdir(exist_ok=True)
    (data / "log" / "keys" / "1").write_text(sign_note(text, ORIGIN, keys).whole)


@pytest.mark.parametrize(
    ("text", "keys", "rule"),
    [
        (f"{HEADER}\n{ORIGIN}\n3\n{NEW.text}\n", (KEY,), "rotation-new-key"),
        (f"{HEADER}\n{ORIGIN}\n03\n{NEW.text}\n", (KEY, OTHER_KEY), "rotation-size-form"),
        (f"{HEADER}\n{ORIGIN}\n0\n{NEW.text}\n", (KEY, OTHER_KEY), "rotation-size"),
        (f"{HEADER}\nother.example\n3\n{NEW.text}\n", (KEY, OTHER_KEY), "rotation-form"),
        (f"hello\n{ORIGIN}\n3\n{NEW.text}\n", (KEY, OTHER_KEY), "rotation-form"),
        (f"{HEADER}\n{ORIGIN}\n3\n{NoteVerifier('other.example', OTHER_KEY.public).text}\n", (KEY, OTHER_KEY), "rotation-key"),
        (f"{HEADER}\n{ORIGIN}\n3\nkey\n", (KEY, OTHER_KEY), "vkey-type"),
        (f"{HEADER}\n{ORIGIN}\n5\n{NEW.text}\n", (KEY, OTHER_KEY), "rotation-logged"),
        (f"{HEADER}\n{ORIGIN}\n3\n{NEW.text}\n", (KEY, OTHER_KEY), "key-retired"),
    ],
)
def test_a_forged_handover(tmp_path: Path, text: str, keys: tuple[SigningKey, ...], rule: str) -> None:
    make_log(tmp_path, 5)
    _forge(tmp_path, text, *keys)
    with pytest.raises(LogError) as caught:
        check(tmp_path)
    assert caught.value.details["rule"] == rule


def test_a_handover_that_the_trusted_key_did_not_sign_leads_nowhere(tmp_path: Path) -> None:
    make_log(tmp_path, 5)
    _forge(tmp_path, f"{HEADER}\n{ORIGIN}\n5\n{NEW.text}\n", OTHER_KEY)
    assert KeyChain.follow(LogReader.from_dir(tmp_path), [VERIFIER]).keys == (VERIFIER,)
    assert check(tmp_path) == 5


def test_lost_notes_come_back(tmp_path: Path) -> None:
    make_log(tmp_path, 5)
    rotate(tmp_path)
    shutil.rmtree(tmp_path / "log" / "keys")
    open_log(tmp_path, key=OTHER_KEY).close()
    assert check(tmp_path) == 6
