from __future__ import annotations

import base64
import os

import pytest

from tests.rig import run


@pytest.fixture
def home(tmp_path):
    return {"XDG_STATE_HOME": str(tmp_path / "state"), "XDG_CONFIG_HOME": str(tmp_path / "config"), "SEALRIG_KEY": str(tmp_path / "id")}


@pytest.fixture
def sealed(tmp_path, home):
    run("key", "new", tmp_path / "id", env=home).ok()
    source = tmp_path / "src"
    (source / "sub").mkdir(parents=True)
    (source / "a.txt").write_bytes(b"0123456789")
    (source / "sub" / "b.bin").write_bytes(os.urandom(3_000_000))
    (source / "run.sh").write_text("echo\n")
    (source / "run.sh").chmod(0o755)
    result = run("seal", source, "-o", tmp_path / "x.sealed", "--label", "team=vision", "--json", env=home).ok().json
    return source, tmp_path / "x.sealed", result


def test_key_new_keeps_what_is_there(tmp_path, home):
    made = run("key", "new", tmp_path / "id", "--json", env=home).ok().json
    assert set(made) == {"identity", "key", "public", "verify_key", "passphrase"}
    assert (tmp_path / "id" / "identity.key").stat().st_mode & 0o777 == 0o600
    before = (tmp_path / "id" / "identity.key").read_bytes()
    again = run("key", "new", tmp_path / "id", "--json", env=home)
    assert (again.code, again.error["code"]) == (1, "bad-key-file")
    assert (tmp_path / "id" / "identity.key").read_bytes() == before
    assert run("key", "show", tmp_path / "id", "--json").ok().json["identity"] == made["identity"]


def test_a_passphrase_comes_from_a_file_and_is_needed(tmp_path, home, sealed):
    word = tmp_path / "word"
    word.write_text("open sesame\n")
    run("key", "new", tmp_path / "locked", "--passphrase-file", word).ok()
    assert b"sesame" not in (tmp_path / "locked" / "identity.key").read_bytes()
    source, _, _ = sealed
    args = ("seal", source, "-o", tmp_path / "y.sealed", "--key", tmp_path / "locked", "--json")
    missing = run(*args, env=home)
    assert (missing.code, missing.error["details"]["rule"]) == (2, "passphrase")
    wrong = run(*args, "--passphrase-file", "-", env=home, stdin=b"other\n")
    assert (wrong.code, wrong.error["code"]) == (1, "bad-key-file")
    run(*args, "--passphrase-file", "-", env=home, stdin=b"open sesame\n").ok()


def test_seal_and_open_are_byte_for_byte(tmp_path, home, sealed):
    source, bundle, result = sealed
    assert {"bundle", "digest", "size", "files", "plaintext_size"} <= set(result)
    assert (result["files"], result["size"], result["plaintext_size"]) == (3, bundle.stat().st_size, 3_000_015)
    assert result["digest"].startswith("blake3:")
    opened = run("open", bundle, "-o", tmp_path / "out", "--json", env=home).ok().json
    assert opened["files"] == 3
    for path in ("a.txt", "sub/b.bin", "run.sh"):
        assert (tmp_path / "out" / path).read_bytes() == (source / path).read_bytes()
        assert (tmp_path / "out" / path).stat().st_mode == (source / path).stat().st_mode
    full = run("open", bundle, "-o", tmp_path / "out", "--json", env=home)
    assert (full.code, full.error["details"]["rule"]) == (1, "open-dest")


def test_inspect_shows_no_names_without_the_key(home, sealed):
    _, bundle, _ = sealed
    public = run("inspect", bundle, env={**home, "SEALRIG_KEY": ""}).ok()
    assert "a.txt" not in public.out
    document = run("inspect", bundle, "--json", env=home).ok().json
    assert "entries" not in document
    assert document["labels"] == {"team": "vision"}
    mine = run("inspect", bundle, "--key", home["SEALRIG_KEY"], "--json", env=home).ok().json
    assert {entry["path"] for entry in mine["entries"]} == {"a.txt", "run.sh", "sub", "sub/b.bin"}


@pytest.mark.parametrize(
    ("span", "wanted"), [(None, b"0123456789"), ("0-3", b"0123"), ("4-", b"456789"), ("-2", b"89"), ("9-9", b"9"), ("8-100", b"89")]
)
def test_cat_prints_exact_ranges(home, sealed, span, wanted):
    _, bundle, _ = sealed
    extra = ["--range", span] if span else []
    assert run("cat", bundle, "a.txt", *extra, env=home).ok().raw == wanted
    document = run("cat", bundle, "a.txt", *extra, "--json", env=home).ok().json
    assert base64.b64decode(document["data"]) == wanted
    assert document["end"] - document["start"] == len(wanted)


@pytest.mark.parametrize("span", ["", "-", "x-y", "5-2", "10-", "0-1-2", "²-3"])
def test_cat_refuses_what_is_no_range(home, sealed, span):
    _, bundle, _ = sealed
    result = run("cat", bundle, "a.txt", f"--range={span}", "--json", env=home)
    assert (result.code, result.error["details"]["rule"]) == (2, "range")


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda raw: raw[: len(raw) // 2], "bad-bundle"),
        (lambda raw: raw[:-1], "bad-bundle"),
        (lambda raw: raw + b"x", "bad-bundle"),
        (lambda raw: raw[:100] + bytes([raw[100] ^ 1]) + raw[101:], "bad"),
        (lambda raw: raw[:-50] + bytes([raw[-50] ^ 1]) + raw[-49:], "bundle-tampered"),
        (lambda raw: raw[:20000] + bytes([raw[20000] ^ 1]) + raw[20001:], "bundle-tampered"),
        (lambda _: b"PK\x03\x04 something else", "bad-bundle"),
        (lambda _: b"", "bad-bundle"),
    ],
)
def test_a_damaged_bundle_opens_to_nothing(tmp_path, home, sealed, damage, code):
    _, bundle, _ = sealed
    bundle.write_bytes(damage(bundle.read_bytes()))
    result = run("open", bundle, "-o", tmp_path / "out", "--json", env=home)
    assert result.code == 1
    assert result.error["code"] in ({code} if code != "bad" else {"bad-bundle", "bundle-tampered"})
    assert not (tmp_path / "out").exists()


def test_another_identity_does_not_open_it(tmp_path, home, sealed):
    _, bundle, _ = sealed
    run("key", "new", tmp_path / "other").ok()
    result = run("open", bundle, "-o", tmp_path / "out", "--key", tmp_path / "other", "--json", env=home)
    assert (result.code, result.error["code"]) == (1, "wrong-key")


def test_a_second_recipient_opens_it(tmp_path, home, sealed):
    source, _, _ = sealed
    run("key", "new", tmp_path / "other").ok()
    run("seal", source, "-o", tmp_path / "y.sealed", "--to", tmp_path / "other" / "identity.pub", env=home).ok()
    run("open", tmp_path / "y.sealed", "-o", tmp_path / "out", "--key", tmp_path / "other").ok()


@pytest.mark.parametrize("label", ["x", "=y", "a=1\n", "A=1"])
def test_bad_labels_are_refused(tmp_path, home, sealed, label):
    source, _, _ = sealed
    result = run("seal", source, "-o", tmp_path / "y.sealed", "--label", label, "--json", env=home)
    assert result.code in {1, 2}
    assert not (tmp_path / "y.sealed").exists()


def test_a_state_folder_that_is_not_ours_does_not_spoil_a_bundle(tmp_path, home, sealed):
    source, _, _ = sealed
    loose = tmp_path / "loose"
    (loose / "sealrig").mkdir(parents=True, mode=0o755)
    result = run("seal", source, "-o", tmp_path / "y.sealed", "--json", env={**home, "XDG_STATE_HOME": str(loose)}).ok()
    assert "not noted" in result.err
    run("open", tmp_path / "y.sealed", "-o", tmp_path / "out", env=home).ok()


def test_seal_keeps_an_existing_file(tmp_path, home, sealed):
    source, bundle, _ = sealed
    before = bundle.read_bytes()
    result = run("seal", source, "-o", bundle, "--json", env=home)
    assert result.code == 1
    assert bundle.read_bytes() == before


def test_no_identity_is_one_clear_sentence(tmp_path, home, sealed):
    _, bundle, _ = sealed
    result = run("open", bundle, "-o", tmp_path / "out", env={**home, "SEALRIG_KEY": ""})
    assert result.code == 2
    assert "sealrig key new" in result.err
    loose = tmp_path / "id" / "identity.key"
    loose.chmod(0o644)
    result = run("open", bundle, "-o", tmp_path / "out", env=home)
    assert (result.code, "chmod 600" in result.err) == (1, True)
