"""Identities, lease keys and their files: nothing opens for another key or context, nothing is overwritten, nothing is printed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import InputError, KeyFileError, SealrigError, WrongKeyError
from sandbox.sealing.keys import DataKey, Identity, IdentityPublic, LeaseKey, is_protected, load_public, wrap_to_lease_key


def test_a_secret_opens_for_its_key_and_context_only(alice, bob):
    wrapped = alice.public.wrap(b"s" * 32, b"context")
    assert alice.unwrap(wrapped, b"context") == b"s" * 32
    for who, info, raw in (
        (bob, b"context", wrapped),
        (alice, b"other", wrapped),
        (alice, b"context", wrapped[:-1]),
        (alice, b"context", b""),
    ):
        with pytest.raises(WrongKeyError):
            who.unwrap(raw, info)
    for position in range(0, len(wrapped), 61):
        changed = wrapped[:position] + bytes([wrapped[position] ^ 1]) + wrapped[position + 1 :]
        with pytest.raises(WrongKeyError):
            alice.unwrap(changed, b"context")


def test_a_lease_key_is_one_too():
    key, other = LeaseKey.generate(), LeaseKey.generate()
    wrapped = wrap_to_lease_key(key.public, b"dek", b"grant")
    assert key.unwrap(wrapped, b"grant") == b"dek"
    with pytest.raises(WrongKeyError):
        other.unwrap(wrapped, b"grant")
    for bad in (b"", key.public[:-1], b"\xff" * len(key.public)):
        with pytest.raises(InputError):
            wrap_to_lease_key(bad, b"dek", b"grant")


@pytest.mark.parametrize("passphrase", [None, "correct horse ünï"])
def test_files_come_back_and_are_private(tmp_path, alice, passphrase):
    alice.save(tmp_path / "k", passphrase)
    assert (tmp_path / "k" / "identity.key").stat().st_mode & 0o7777 == 0o600
    assert load_public(tmp_path / "k") == load_public(tmp_path / "k" / "identity.pub") == alice.public
    assert is_protected(tmp_path / "k") == (passphrase is not None)
    again = Identity.load(tmp_path / "k", passphrase)
    assert again.public == alice.public
    assert again.signing_key.private_bytes() == alice.signing_key.private_bytes()


def test_a_passphrase_is_needed_and_must_be_right(tmp_path, alice):
    alice.save(tmp_path / "k", "right")
    for wrong in (None, "wrong", ""):
        with pytest.raises(KeyFileError, match="passphrase"):
            Identity.load(tmp_path / "k", wrong)
    with pytest.raises(InputError):
        alice.save(tmp_path / "empty", "")


def test_nothing_is_overwritten(tmp_path, alice, bob):
    alice.save(tmp_path)
    with pytest.raises(KeyFileError, match="never overwritten"):
        bob.save(tmp_path)
    (tmp_path / "identity.key").unlink()
    with pytest.raises(KeyFileError, match="never overwritten"):
        bob.save(tmp_path)
    assert load_public(tmp_path) == alice.public


def test_bad_key_files_say_what_is_wrong(tmp_path, alice):
    alice.save(tmp_path / "k", "p")
    path = tmp_path / "k" / "identity.key"
    good = json.loads(path.read_bytes())
    with pytest.raises(KeyFileError, match="cannot be read"):
        Identity.load(tmp_path / "none")
    path.chmod(0o640)
    with pytest.raises(KeyFileError, match="by others"):
        Identity.load(tmp_path / "k", "p")
    path.chmod(0o600)
    bad: list[bytes] = [b"", b"{}", b"x" * 5000, b"\xff", json.dumps(good | {"v": 2}).encode(), json.dumps(good | {"extra": 1}).encode(),
                        json.dumps(good | {"data": good["data"][:-4]}).encode(), json.dumps(good | {"protection": None}).encode(),
                        json.dumps(good | {"protection": good["protection"] | {"n": 2}}).encode(),
                        json.dumps(good | {"protection": good["protection"] | {"n": 2**40}}).encode(),
                        json.dumps(good | {"protection": good["protection"] | {"salt": "????"}}).encode()]  # fmt: skip
    for raw in bad:
        path.write_bytes(raw)
        with pytest.raises(KeyFileError):
            Identity.load(tmp_path / "k", "p")


def test_a_public_identity_is_one_line(alice):
    text = alice.public.text
    assert IdentityPublic.parse(text) == IdentityPublic.parse(text + "\n") == alice.public
    assert len(text) <= 8192
    assert len(alice.public.fingerprint) == 32
    for bad in (
        "",
        "sealrig1:",
        text[:-4],
        text + "AAAA",
        text.replace("1:", "2:"),
        " " + text,
        text + "\n\n",
        "sealrig1:" + "é" * 10,
        "A" * 10**6,
    ):
        with pytest.raises(InputError):
            IdentityPublic.parse(bad)


@given(st.text(max_size=200))
def test_no_text_is_accepted_by_chance(text):
    with pytest.raises(SealrigError):
        IdentityPublic.parse(text)


def test_nothing_secret_is_printed(alice):
    for thing in (alice, DataKey(b"\x01" * 32), LeaseKey.generate(), alice.signing_key):
        assert len(repr(thing)) < 60
    assert "01" not in repr(DataKey(b"\x01" * 32))


def test_the_header_can_be_read_without_anything_that_unwraps():
    """The control plane imports format and public only; neither may bring the private half along."""
    script = (
        "import sys, sandbox.sealing.format, sandbox.sealing.public\n"
        "found = [m for m in sys.modules if m.startswith('sandbox.sealing.')]\n"
        "assert set(found) == {'sandbox.sealing.' + n for n in ('format', 'public', 'algorithms')}, found\n"
        "assert not hasattr(sandbox.sealing.format, 'Suite')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
