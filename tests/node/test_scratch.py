"""One suite for every kind of scratch, on the real kernel."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

from sandbox.errors import ScratchError
from sandbox.node.layout import NodeFolder
from sandbox.node.plan import UID
from sandbox.node.scratch import base, dmcrypt, fscrypt, image, kernel
from sandbox.node.scratch.choose import all_kinds, available_kinds, choose, scratch_of
from tests.node.rig import host_leftovers

SIZE = 16 * 2**20
needs_root = pytest.mark.root


@pytest.fixture
def folder(tmp_path):
    return NodeFolder(tmp_path).lease("lease-" + "d" * 32)


@pytest.fixture(params=["tmpfs", "dm-crypt", "fscrypt"])
def opened(request, folder):
    _needs(request.param)
    scratch = scratch_of(request.param)
    scratch.open(folder, SIZE)
    yield scratch, folder
    for _ in scratch.destroy(folder):
        pass


def _needs(kind: str) -> None:
    if kind not in available_kinds():
        pytest.skip(f"this host cannot make scratch of kind {kind}")


def _all_ok(proofs) -> bool:
    found = list(proofs)
    assert found
    return all(proof.ok for proof in found)


@needs_root
def test_folders_are_there_and_only_the_container_may_enter(opened):
    _, folder = opened
    for place in (folder.out, folder.tmp):
        state = place.stat()
        assert (state.st_uid, state.st_mode & 0o777) == (UID, 0o700)
    assert folder.inputs.is_dir()


@needs_root
def test_mount_flags(opened):
    _, folder = opened
    flags = {item.point: item.options for item in kernel.mounts_under(folder.data)}
    assert {"nosuid", "nodev"} <= flags[folder.scratch.resolve()]
    assert {"nosuid", "nodev", "noexec"} <= flags[folder.work.resolve()]


@needs_root
def test_size_is_a_hard_bound(opened):
    scratch, folder = opened
    written = 0
    block = os.urandom(2**20)
    with (folder.out / "big").open("wb", buffering=0) as file:
        try:
            while written < 8 * SIZE:
                written += file.write(block)
        except OSError as error:
            assert error.errno == errno.ENOSPC  # noqa: PT017  (how much fitted matters as well)
    assert SIZE // 2 < written < 2 * SIZE + image.FLOOR_BYTES, scratch.kind


@needs_root
def test_nothing_is_readable_on_the_host_disk_and_nothing_is_left(opened, tmp_path):
    scratch, folder = opened
    canary = b"canary-5f1c9e" * 100
    (folder.out / "canary-name").write_bytes(canary)
    (folder.inputs / "0").mkdir()
    (folder.inputs / "0" / "x").write_bytes(canary)
    os.sync()
    if folder.image.exists():
        raw = folder.image.read_bytes()
        assert b"canary-5f1c9e" not in raw
        assert b"canary-name" not in raw
    assert _all_ok(scratch.destroy(folder))
    assert host_leftovers(tmp_path) == [f"folder {folder.root}"]
    assert not folder.image.exists()


@needs_root
def test_destroy_can_be_called_again_and_before_open(opened, tmp_path):
    scratch, folder = opened
    other = NodeFolder(tmp_path).lease("lease-" + "e" * 32)
    assert _all_ok(scratch.destroy(other))
    assert _all_ok(scratch.destroy(folder))
    assert _all_ok(scratch.destroy(folder))


@needs_root
def test_destroy_does_not_need_to_know_the_kind(opened, tmp_path):
    _, folder = opened
    (folder.out / "x").write_bytes(b"x")
    proven = [_all_ok(kind.destroy(folder)) for kind in all_kinds()]
    assert all(proven)
    assert not kernel.mounts_under(folder.data)


@needs_root
def test_an_open_file_is_no_proof(opened, monkeypatch):
    monkeypatch.setattr(base, "UNMOUNT_SECONDS", 0.2)
    monkeypatch.setattr(fscrypt, "KEY_SECONDS", 0.2)
    monkeypatch.setattr(dmcrypt, "CLOSE_SECONDS", 0.2)
    scratch, folder = opened
    with (folder.out / "held").open("wb"):
        assert not all(proof.ok for proof in list(scratch.destroy(folder)))
    assert _all_ok(scratch.destroy(folder))


@needs_root
@pytest.mark.alone  # the copy holds every mount of the machine, those of other nodes' leases too
def test_a_process_with_its_own_mount_namespace_is_no_proof(opened, monkeypatch):
    monkeypatch.setattr(base, "UNMOUNT_SECONDS", 0.2)
    monkeypatch.setattr(base, "HOLDERS_SECONDS", 0.2)
    monkeypatch.setattr(fscrypt, "KEY_SECONDS", 0.2)
    monkeypatch.setattr(dmcrypt, "CLOSE_SECONDS", 0.2)
    scratch, folder = opened
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 1000"], stdout=subprocess.PIPE
    )
    with holder.stdout as out:
        out.readline()
        failed = [proof for proof in scratch.destroy(folder) if not proof.ok]
    holder.kill()
    holder.wait()
    assert failed
    assert _all_ok(scratch.destroy(folder))


@needs_root
@pytest.mark.alone
def test_a_copy_of_the_mounts_that_goes_away_again_is_waited_for(opened, monkeypatch):
    monkeypatch.setattr(base, "UNMOUNT_SECONDS", 0.2)
    scratch, folder = opened
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as starting:
        starting.stdout.readline()
        assert _all_ok(scratch.destroy(folder))


@needs_root
@pytest.mark.parametrize(
    ("kind", "module", "step"),
    [
        *(("fscrypt", kernel, step) for step in ("mount", "add_key", "set_policy", "attach_loop")),
        *(("dm-crypt", module, step) for module, step in ((kernel, "attach_loop"), (image, "format_ext4"), (kernel, "mount"))),
    ],
)
def test_an_open_that_fails_half_way_leaves_what_destroy_removes(folder, monkeypatch, kind, module, step):
    _needs(kind)

    def broken(*_):
        raise OSError(5, "planted")

    monkeypatch.setattr(module, step, broken)
    scratch = scratch_of(kind)
    with pytest.raises(ScratchError, match="planted"):
        scratch.open(folder, SIZE)
    monkeypatch.undo()
    assert _all_ok(scratch.destroy(folder))
    assert host_leftovers(folder.root.parents[1]) == [f"folder {folder.root}"]


@needs_root
@pytest.mark.parametrize("kind", ["dm-crypt", "fscrypt"])
def test_a_full_host_disk_is_said_before_anything_runs(folder, kind):
    _needs(kind)
    scratch = scratch_of(kind)
    with pytest.raises(ScratchError, match="No space left") as caught:
        scratch.open(folder, 2**50 // 128)
    assert caught.value.details["fix"] == "free disk space for the scratch size"
    assert _all_ok(scratch.destroy(folder))


@needs_root
def test_the_key_is_the_leases_own(folder, tmp_path):
    _needs("fscrypt")
    identifiers = set()
    scratch = scratch_of("fscrypt")
    for number in range(2):
        place = NodeFolder(tmp_path).lease(f"lease-{number:032x}")
        scratch.open(place, SIZE)
        identifiers.add(kernel.get_policy(place.vault))
        assert kernel.key_status(place.scratch, kernel.get_policy(place.vault)) == 2
        assert _all_ok(scratch.destroy(place))
    assert len(identifiers) == 2


@needs_root
def test_the_mapping_goes_with_the_key_and_the_key_stands_nowhere_else(folder, monkeypatch):
    _needs("dm-crypt")
    commands = []
    run = image.run_tool
    monkeypatch.setattr(image, "run_tool", lambda command, **how: (commands.append((command, how)), run(command, **how))[1])
    key = bytes(range(dmcrypt.KEY_BYTES))  # has a zero and a newline: what is read as a password would end at one of them
    monkeypatch.setattr(dmcrypt.os, "urandom", lambda size: key[:size])
    scratch, name = scratch_of("dm-crypt"), dmcrypt.mapping_of(folder)
    scratch.open(folder, SIZE)
    assert [how["stdin"] for _, how in commands if how.get("stdin")] == [key]
    table = subprocess.run(["dmsetup", "table", "--showkeys", name], capture_output=True, check=True, text=True).stdout.split()
    assert (table[2:4], table[4]) == (["crypt", "aes-xts-plain64"], key.hex())
    assert not [word for command, _ in commands for word in command if key.hex() in word]
    assert key not in folder.image.read_bytes()
    (proof,) = [proof for proof in scratch.destroy(folder) if proof.step == "scratch-key"]
    assert (proof.seen, proof.ok) == ("no mapping", True)
    assert not dmcrypt.is_mapped(name)


@needs_root
def test_dm_crypt_leaves_what_another_kind_has_mounted(folder):
    _needs("fscrypt")
    scratch_of("fscrypt").open(folder, SIZE)
    assert _all_ok(scratch_of("dm-crypt").destroy(folder))
    assert folder.out.is_dir()
    assert _all_ok(scratch_of("fscrypt").destroy(folder))


def test_dm_crypt_is_possible_where_its_parts_are(tmp_path, monkeypatch):
    mapper, modules, tools = tmp_path / "mapper", tmp_path / "modules", tmp_path / "bin"
    lists = modules / os.uname().release
    for place in (mapper, lists, tools):
        place.mkdir(parents=True)
    monkeypatch.setattr(image, "TOOL_PATH", str(tools))
    found = []
    for path, text in (
        (tools / "cryptsetup", ""),
        (mapper / "control", ""),
        (lists / "modules.dep", "kernel/drivers/md/dm-crypt.ko.xz: x\n"),
    ):
        found.append(dmcrypt.possible(mapper, modules, tmp_path / "dm_crypt"))
        path.write_text(text)
        path.chmod(0o755)
    assert (found, dmcrypt.possible(mapper, modules, tmp_path / "dm_crypt")) == ([False, False, False], True)


BOTH = ("tmpfs", "fscrypt")


@pytest.mark.parametrize(
    ("size", "pin", "memory", "kinds", "wanted"),
    [
        (10, "auto", 100, BOTH, "tmpfs"),
        (26, "auto", 100, BOTH, "fscrypt"),
        (10, "fscrypt", 100, BOTH, "fscrypt"),
        (99, "tmpfs", 100, BOTH, "tmpfs"),
        (10, "auto", 100, ("fscrypt",), "fscrypt"),
        (26, "auto", 100, ("tmpfs", "dm-crypt", "fscrypt"), "dm-crypt"),
        (10, "dm-crypt", 100, ("tmpfs", "dm-crypt", "fscrypt"), "dm-crypt"),
        (10, "fscrypt", 100, ("tmpfs", "dm-crypt", "fscrypt"), "fscrypt"),
    ],
)
def test_choice(size, pin, memory, kinds, wanted):
    assert choose(size, pin, available_memory=memory, kinds=kinds) == wanted


@pytest.mark.parametrize(("pin", "kinds"), [("dm-crypt", BOTH), ("fscrypt", ("tmpfs",)), ("tmpfs", ()), ("auto", ())])
def test_a_pinned_kind_is_never_replaced(pin, kinds):
    with pytest.raises(ScratchError) as caught:
        choose(10, pin, available_memory=2**40, kinds=kinds)
    assert caught.value.details["rule"] == "scratch-kind"


def test_too_large_for_memory_without_disk():
    with pytest.raises(ScratchError):
        choose(50, "auto", available_memory=100, kinds=("tmpfs",))
