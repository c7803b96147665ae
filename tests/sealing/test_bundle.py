"""Seal and open: byte for byte, all kinds of entries, ranges, several recipients, and nothing left behind on refusal."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from sandbox.errors import BundleError, BundleTamperedError, InputError, LimitError, NotFoundError, UnsafePathError, WrongKeyError
from sandbox.sealing.algorithms import SEGMENT_BYTES
from sandbox.sealing.bundle import BundleReader, FileSource, Limits, RangeSource, bundle_digest, data_key, open_bundle, read_header, seal
from sandbox.sealing.keys import Identity
from tests.sealing.trees import describe, make_tree, names


@pytest.fixture
def folder(tmp_path):
    """A folder in RAM where there is one: thousands of files would keep a disk busy for long."""
    ram = Path("/dev/shm")
    if not os.access(ram, os.W_OK):
        yield tmp_path
        return
    with TemporaryDirectory(prefix="sealrig-test-", dir=ram) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def sealed(tmp_path_factory, alice):
    root = tmp_path_factory.mktemp("sealed")
    (root / "src").mkdir()
    make_tree(root / "src")
    return seal([root / "src"], root / "b.sealed", recipients=[alice.public], signer=alice.signing_key, labels={"project": "x"})


def test_a_tree_comes_back_byte_for_byte(sealed, tmp_path, alice):
    result = open_bundle(sealed.path, tmp_path / "out", key=alice)
    assert describe(tmp_path / "out") == describe(sealed.path.parent / "src")
    assert result.files == sealed.files
    assert result.size == sealed.plaintext_size
    assert result.header.signer == alice.signing_key.public
    assert (tmp_path / "out" / "sparse").stat().st_blocks * 512 < 1024 * 1024
    assert names(tmp_path) == ["out"]


def test_files_whose_index_takes_several_segments_come_back(folder, alice):
    source = folder / "src"
    for number in range(6_000):
        place = source / f"{number // 500:03d}"
        if number % 500 == 0:
            place.mkdir(parents=True)
        (place / f"{number:06d}-{'x' * 60}").write_bytes(b"%d" % number * (number % 5))
    result = seal([source], folder / "b", recipients=[alice.public], signer=alice.signing_key)
    with FileSource(folder / "b") as sealed:
        assert read_header(sealed.read_at(0, 65536)).index_size > SEGMENT_BYTES
    assert open_bundle(folder / "b", folder / "out", key=alice).files == result.files == 6_000
    assert describe(folder / "out") == describe(source)


def test_digest_and_size_are_those_of_the_file(sealed):
    assert bundle_digest(sealed.path) == sealed.digest
    assert sealed.path.stat().st_size == sealed.size
    assert names(sealed.path.parent) == ["b.sealed", "src"]


def test_an_existing_empty_folder_may_be_opened_into(sealed, tmp_path, alice):
    (tmp_path / "out").mkdir()
    open_bundle(sealed.path, tmp_path / "out", key=alice)
    assert describe(tmp_path / "out") == describe(sealed.path.parent / "src")


def test_a_folder_with_something_in_it_is_refused(sealed, tmp_path, alice):
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(InputError, match="empty"):
        open_bundle(sealed.path, tmp_path, key=alice)
    assert names(tmp_path) == ["mine"]


def test_the_header_is_public_and_enough_for_the_data_key(sealed, alice, bob):
    with sealed.path.open("rb") as file:
        header = read_header(file.read(64 * 1024))
    assert header.labels == {"project": "x"}
    assert header.total_size == sealed.size
    assert len(data_key(header, alice).raw) == 32
    with pytest.raises(WrongKeyError):
        data_key(header, bob)


def test_each_of_several_recipients_opens_it_and_nobody_else(tmp_path, alice, bob):
    (tmp_path / "f").write_bytes(b"for two")
    seal([tmp_path / "f"], tmp_path / "b", recipients=[alice.public, bob.public], signer=alice.signing_key)
    for number, identity in enumerate((alice, bob)):
        open_bundle(tmp_path / "b", tmp_path / str(number), key=identity)
        assert (tmp_path / str(number) / "f").read_bytes() == b"for two"
    with pytest.raises(WrongKeyError):
        open_bundle(tmp_path / "b", tmp_path / "x", key=Identity.generate())
    assert not (tmp_path / "x").exists()


def test_only_an_accepted_signer_is_opened(sealed, tmp_path, alice, bob):
    with pytest.raises(BundleTamperedError, match="somebody else"):
        open_bundle(sealed.path, tmp_path / "out", key=alice, signers=[bob.signing_key.public])
    with pytest.raises(BundleTamperedError):
        open_bundle(sealed.path, tmp_path / "out", key=alice, signers=[])
    open_bundle(sealed.path, tmp_path / "out", key=alice, signers=[alice.signing_key.public])


@pytest.mark.parametrize(
    "span", [(0, 0), (0, 1), (1048519, 1048521), (5, 2_000_000), (2_097_151, None), (0, None), (9_999_999, 10_000_000)]
)
def test_ranges_read_what_the_file_holds(sealed, alice, span):
    name = "a/deep/er/three-segments"
    want = (sealed.path.parent / "src" / name).read_bytes()[span[0] : span[1]]
    with FileSource(sealed.path) as source:
        assert b"".join(BundleReader(source, alice).read(name, *span)) == want


def test_a_small_range_reads_only_index_and_its_segments(sealed, alice):
    raw = sealed.path.read_bytes()
    asked = []

    def fetch(start, end):
        asked.append((start, end))
        return raw[start:end]

    reader = BundleReader(RangeSource(len(raw), fetch), alice)
    assert b"".join(reader.read("a/text")) == b"hello\n"
    assert sum(end - start for start, end in asked) < 1.3 * 1024 * 1024
    assert b"".join(reader.read("zz-hard-link")) == b"hello\n"
    with pytest.raises(NotFoundError):
        reader.read("a/no-such-file")
    with pytest.raises(InputError):
        reader.read("a")
    with pytest.raises(InputError):
        reader.read("a/text", 3, 2)


def test_limits_refuse_before_anything_is_written(sealed, tmp_path, alice):
    for limits in (Limits(files=3), Limits(bytes=1000)):
        with pytest.raises(LimitError):
            open_bundle(sealed.path, tmp_path / "out", key=alice, limits=limits)
    assert names(tmp_path) == []


def test_an_existing_output_is_never_overwritten(tmp_path, alice):
    (tmp_path / "f").write_text("x")
    (tmp_path / "b").write_text("mine")
    with pytest.raises(InputError, match="exists"):
        seal([tmp_path / "f"], tmp_path / "b", recipients=[alice.public], signer=alice.signing_key)
    assert (tmp_path / "b").read_text() == "mine"


@pytest.mark.parametrize("target", ["/etc/passwd", "..", "../x", "sub/../../x", "loop", "dot/../x"])
def test_symlinks_that_leave_are_refused_by_name(tmp_path, alice, target):
    (tmp_path / "src" / "sub").mkdir(parents=True)
    (tmp_path / "src" / "dot").symlink_to(".")
    (tmp_path / "src" / "loop").symlink_to("loop" if target == "loop" else "sub")
    (tmp_path / "src" / "bad").symlink_to(target)
    with pytest.raises(UnsafePathError, match=r"bad|loop"):
        seal([tmp_path / "src"], tmp_path / "b", recipients=[alice.public], signer=alice.signing_key)
    assert names(tmp_path) == ["src"]


def test_lenient_leaves_out_what_cannot_be_kept_and_says_so(tmp_path, alice):
    (tmp_path / "src").mkdir()
    os.mkfifo(tmp_path / "src" / "pipe")
    (tmp_path / "src" / "bad").symlink_to("/etc/passwd")
    (tmp_path / "src" / "good").write_text("x")
    with pytest.raises(InputError, match="pipe"):
        seal([tmp_path / "src"], tmp_path / "b", recipients=[alice.public], signer=alice.signing_key)
    result = seal([tmp_path / "src"], tmp_path / "b", recipients=[alice.public], signer=alice.signing_key, lenient=True)
    assert sorted(result.skipped) == ["bad", "pipe"]
    open_bundle(tmp_path / "b", tmp_path / "out", key=alice)
    assert names(tmp_path / "out") == ["good"]


def test_a_source_that_changes_while_it_is_sealed_is_refused(tmp_path, alice):
    source = tmp_path / "src"
    source.mkdir()
    (source / "big").write_bytes(bytes(20 * 1024 * 1024))
    (source / "z").write_text("x")

    def once(change):
        todo = [change]

        def progress(done, total):
            if todo:
                todo.pop()()

        return progress

    def grow():
        with (source / "big").open("ab") as file:
            file.write(b"more")

    changes = [grow, lambda: os.truncate(source / "big", 10), lambda: (source / "z").write_text("y"), (source / "new").touch,
               (source / "z").unlink]  # fmt: skip
    for change in changes:
        with pytest.raises(InputError, match="changed"):
            seal([source], tmp_path / "b", recipients=[alice.public], signer=alice.signing_key, progress=once(change))
        assert names(tmp_path) == ["src"]
        (source / "z").touch()
        (source / "big").write_bytes(bytes(20 * 1024 * 1024))


def test_what_is_no_bundle_says_so(tmp_path, alice):
    for raw in (b"", b"x", b"sealrig.bundle/1", b"sealrig.bundle/1" + b"\xff" * 9000, b"PK\x03\x04" * 5000):
        (tmp_path / "b").write_bytes(raw)
        with pytest.raises(BundleError):
            open_bundle(tmp_path / "b", tmp_path / "out", key=alice)
        assert not (tmp_path / "out").exists()
