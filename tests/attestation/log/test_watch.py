"""Watching a log: quiet while it grows honestly, and an alarm of its own for each thing that may go wrong."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from attestation.errors import FormatError
from attestation.log.history import ForkEvidence
from attestation.log.note import COSIGNATURE, Note, NoteVerifier, cosign
from attestation.log.places import LogPlaces
from attestation.log.reader import LogReader
from attestation.log.rotation import rotate_key
from attestation.log.watch import Watch, WatchState
from tests.attestation.log.logs import KEY, NOW, ORIGIN, OTHER_KEY, VERIFIER, leaf, make_log, open_log
from tests.attestation.log.test_tampering import LEAVES, build

WATCH = Watch((VERIFIER,), stale_seconds=600)


def kinds(watch: Watch, log: Path, state: WatchState, now: int = 0) -> list[str]:
    return [alarm.kind for alarm in watch.step(LogReader.from_dir(log), state, now)[1]]


def look(log: Path, state: WatchState | None = None, now: int = 0) -> WatchState:
    state, alarms = WATCH.step(LogReader.from_dir(log), state or WatchState(), now)
    assert not alarms
    return state


def test_follows_a_log_that_grows(tmp_path: Path) -> None:
    state = WatchState()
    with open_log(tmp_path) as writer:
        for number, count in enumerate((1, 254, 1, 1, 600)):
            writer.append([leaf() for _ in range(count)])
            state = look(tmp_path, state, now=number)
            state.save(tmp_path / "state")
            assert WatchState.load(tmp_path / "state") == state
            assert state.since == number
    assert state.size == 857
    assert look(tmp_path, state, now=99).since == 4


def test_a_fork_a_shrink_and_a_rewrite(tmp_path: Path) -> None:
    state = look(build(tmp_path / "log", LEAVES[:300]))
    for size, kind in [(300, "fork"), (301, "fork"), (512, "fork")]:
        forked = build(tmp_path / f"forked-{size}", [leaf(), *LEAVES[1:size]])
        after, (alarm,) = WATCH.step(LogReader.from_dir(forked), state, 0)
        assert alarm.kind == kind
        assert after == state
        ForkEvidence.from_text(str(alarm.details["evidence"])).verify([VERIFIER])
    assert kinds(WATCH, build(tmp_path / "short", LEAVES[:299]), state) == ["shrink"]


def test_an_unknown_key_and_a_broken_checkpoint(tmp_path: Path) -> None:
    state = look(build(tmp_path / "log", LEAVES[:5]))
    assert kinds(WATCH, build(tmp_path / "other", LEAVES[:5], OTHER_KEY), state) == ["unknown-key"]
    (tmp_path / "log" / "checkpoint").write_text("hello")
    assert kinds(WATCH, tmp_path / "log", state) == ["bad-checkpoint"]
    shutil.rmtree(tmp_path / "log")
    assert kinds(WATCH, tmp_path / "log", state) == ["unreachable"]


def test_entries_that_are_not_those_of_the_tree(tmp_path: Path) -> None:
    state = look(build(tmp_path / "log", LEAVES[:5]))
    build(tmp_path / "log", LEAVES[:10])
    bundle = tmp_path / "log" / "tile" / "entries" / "000.p" / "10"
    good = bundle.read_bytes()
    bundle.write_bytes(good.replace(LEAVES[7], leaf(7)))
    assert kinds(WATCH, tmp_path / "log", state) == ["bad-log"]
    bundle.write_bytes(good)
    look(tmp_path / "log", state)


def test_a_log_that_stands_still(tmp_path: Path) -> None:
    make_log(tmp_path, 3)
    state = look(tmp_path, now=1000)
    assert kinds(WATCH, tmp_path, state, now=1600) == []
    assert kinds(WATCH, tmp_path, state, now=1601) == ["stale"]
    assert kinds(Watch((VERIFIER,)), tmp_path, state, now=10**9) == []
    # A clock that jumps back raises no alarm, and none is missed after it came right again.
    assert kinds(WATCH, tmp_path, state, now=1000 - 86400) == []
    shutil.rmtree(tmp_path / "log")
    assert kinds(WATCH, tmp_path, state, now=1601) == ["unreachable", "stale"]


def test_witnesses_and_their_quorum(tmp_path: Path) -> None:
    log = build(tmp_path / "log", LEAVES[:5])
    witness = NoteVerifier("w.example", OTHER_KEY.public, COSIGNATURE)
    watch = Watch((VERIFIER,), (witness,), quorum=1, stale_seconds=600)
    assert kinds(watch, log, WatchState(), now=5000) == ["quorum-lost"]
    note = Note.parse((log / "checkpoint").read_text())
    (log / "checkpoint").write_text(Note(note.text, (*note.signatures, cosign(note.text, "w.example", OTHER_KEY, 5000))).whole)
    state, alarms = watch.step(LogReader.from_dir(log), WatchState(), 5000)
    assert not alarms
    # The log does not grow, but a witness saw it lately: it is not stale.
    (log / "checkpoint").write_text(Note(note.text, (*note.signatures, cosign(note.text, "w.example", OTHER_KEY, 9000))).whole)
    assert kinds(watch, log, state, now=9100) == []
    assert kinds(watch, log, state, now=9700) == ["stale"]
    # A witness whose clock is ahead does not keep the alarm silent until that time comes.
    (log / "checkpoint").write_text(Note(note.text, (*note.signatures, cosign(note.text, "w.example", OTHER_KEY, 10**9))).whole)
    assert kinds(watch, log, state, now=5500) == []
    assert kinds(watch, log, state, now=9700) == ["stale"]


def test_a_state_that_a_clock_ahead_wrote(tmp_path: Path) -> None:
    make_log(tmp_path, 3)
    ahead = look(tmp_path, now=1000 + 86400)
    state = look(tmp_path, ahead, now=1000)
    assert kinds(WATCH, tmp_path, state, now=1600) == []
    assert kinds(WATCH, tmp_path, state, now=1601) == ["stale"]
    # The same where the log is out of reach meanwhile.
    shutil.move(tmp_path / "log", tmp_path / "gone")
    state, _ = WATCH.step(LogReader.from_dir(tmp_path / "log"), ahead, 1000)
    assert kinds(WATCH, tmp_path / "log", state, now=1601) == ["unreachable", "stale"]


def test_a_malformed_cosignature_is_an_alarm_too(tmp_path: Path) -> None:
    log = build(tmp_path / "log", LEAVES[:5])
    witness = NoteVerifier("w.example", OTHER_KEY.public, COSIGNATURE)
    watch = Watch((VERIFIER,), (witness,), quorum=1)
    note = Note.parse((log / "checkpoint").read_text())
    good = cosign(note.text, "w.example", OTHER_KEY, 5000)
    for lines in ((good, good), (replace(good, blob=good.blob[:-1]),), (replace(good, blob=bytes(72)),)):
        (log / "checkpoint").write_text(Note(note.text, (*note.signatures, *lines)).whole)
        state, (alarm,) = watch.step(LogReader.from_dir(log), WatchState(), 5000)
        assert (alarm.kind, state) == ("unknown-key", WatchState())
        assert str(alarm.details["rule"]).startswith("signature-")


def test_goes_on_with_the_new_key_from_before_an_exchange(tmp_path: Path) -> None:
    """What was seen under the old key leads on by its hashes; of another history the new key alone raises an alarm as well."""
    make_log(tmp_path, 300)
    state, new = look(tmp_path), NoteVerifier(ORIGIN, OTHER_KEY.public)
    rotate_key(LogPlaces(tmp_path), origin=ORIGIN, old=KEY, new=OTHER_KEY, at=NOW)
    with open_log(tmp_path, key=OTHER_KEY) as writer:
        writer.append([leaf()])
    for watch in (Watch((new,)), Watch((new,), retired={VERIFIER: 301}), WATCH):
        after, alarms = watch.step(LogReader.from_dir(tmp_path), state, 0)
        assert (after.size, alarms) == (302, [])
    forked = build(tmp_path / "forked", [leaf(), *LEAVES[1:302]], OTHER_KEY)
    assert kinds(Watch((new,)), forked, state) == ["bad-log"]
    assert kinds(Watch((new,), retired={VERIFIER: 301}), forked, state) == ["fork"]
    assert kinds(Watch((new,)), build(tmp_path / "short", LEAVES[:299], OTHER_KEY), state) == ["shrink"]


def test_a_fork_whose_entries_are_no_leaves_is_a_fork(tmp_path: Path) -> None:
    state = look(build(tmp_path / "log", LEAVES[:300]))
    forked = build(tmp_path / "forked", [leaf(), *LEAVES[1:300], b"no leaf"])
    assert kinds(WATCH, forked, state) == ["fork"]


def test_a_retired_key_raises_an_alarm(tmp_path: Path) -> None:
    log = build(tmp_path / "log", LEAVES[:5])
    watch = Watch((NoteVerifier(ORIGIN, OTHER_KEY.public),), retired={VERIFIER: 4})
    assert kinds(watch, log, WatchState()) == ["unknown-key"]
    assert kinds(Watch(watch.keys, retired={VERIFIER: 5}), log, WatchState()) == []


def test_a_damaged_state_is_not_started_over(tmp_path: Path) -> None:
    for text in ("[]", "{}", '{"note":1}', "x"):
        (tmp_path / "state").write_text(text)
        with pytest.raises(FormatError):
            WatchState.load(tmp_path / "state")
