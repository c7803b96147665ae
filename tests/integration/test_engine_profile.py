"""Every row of the launch profile, seen from inside a real container."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sandbox.lifecycle import LeaseState, Outcome

pytestmark = [pytest.mark.docker, pytest.mark.root]

SCRIPT = """
section() { echo "=== $1"; }
section status; cat /proc/self/status
section id; id
section env; env
section mounts; cat /proc/self/mountinfo
section namespaces; for n in cgroup ipc mnt net pid uts user; do echo $n $(readlink /proc/self/ns/$n); done
section net; ls /sys/class/net; cat /proc/net/route
section dev; ls /dev
section limits; ulimit -Hc; ulimit -Hn
section kcore; head -c 1 /proc/kcore 2>/dev/null | wc -c; ls /sys/firmware 2>&1 | wc -l
section write; for f in /x /etc/x /usr/x /in/a/x; do touch $f 2>&1; done
section exec; cat /bin/busybox > /tmp/b; chmod +x /tmp/b 2>/dev/null; /tmp/b true 2>&1
cat /bin/busybox > /out/b; chmod +x /out/b; /out/b true 2>&1
section cgroup; cat /proc/self/cgroup
section pid; ls -d /proc/[0-9]* | wc -l; readlink /proc/1/exe; cat /proc/1/cmdline
section hostname; hostname
section attr; cat /proc/self/attr/current 2>&1
section shm; stat -f -c '%b %S' /dev/shm
section pwd; pwd
section sockets; find / -xdev -type s 2>/dev/null; ls /var/run/docker.sock /run/docker.sock 2>&1
"""


@pytest.fixture(scope="module")
def inside(tmp_path_factory, busybox_image):
    from tests.node.rig import NodeRig

    place = tmp_path_factory.mktemp("profile")
    rig = NodeRig(place / "node", busybox_image)
    digest, key = rig.bundle(place, {"a.txt": "a"})
    with rig.running():
        lease = rig.run(SCRIPT, keys={digest: key}, inputs=[{"bundle": digest, "path": "/in/a"}], env={"MINE": "1"})
        assert lease.state is LeaseState.CLOSED, lease.detail
        text = rig.output(lease)
    parts = re.split(r"=== (\w+)\n", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _status(inside, name: str) -> str:
    return re.search(rf"^{name}:\s*(\S+)", inside["status"], re.MULTILINE)[1]


@pytest.mark.parametrize("name", ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"])
def test_no_capability_of_any_kind(inside, name):
    assert int(_status(inside, name), 16) == 0


def test_no_new_privileges(inside):
    assert _status(inside, "NoNewPrivs") == "1"


def test_seccomp_filters(inside):
    assert _status(inside, "Seccomp") == "2"


def test_user_is_nobody_although_the_image_says_root(inside):
    assert inside["id"].strip() == "uid=65532 gid=65532 groups=65532"


def test_environment_is_exactly_as_planned(inside):
    names = {line.partition("=")[0] for line in inside["env"].splitlines()}
    assert names == {"KEPT", "MINE", "HOME", "PATH", "HOSTNAME", "PWD", "SHLVL"}


def test_the_images_entrypoint_and_working_folder_are_not_used(inside):
    assert inside["pwd"].strip() == "/tmp"
    assert "entrypoint" not in inside["pid"]


def _mounts(inside) -> dict[str, tuple[set[str], str]]:
    found = {}
    for line in inside["mounts"].splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        found[fields[4]] = (set(fields[5].split(",")), right.split(" ")[0])
    return found


def test_root_file_system_is_read_only(inside):
    assert "ro" in _mounts(inside)["/"][0]
    assert inside["write"].count("Read-only file system") == 4


@pytest.mark.parametrize("place", ["/tmp", "/out"])
def test_scratch_is_nosuid_nodev_noexec(inside, place):
    assert {"nosuid", "nodev", "noexec", "rw"} <= _mounts(inside)[place][0]


def test_nothing_in_scratch_can_be_executed(inside):
    assert inside["exec"].count("Permission denied") == 2


def test_inputs_are_read_only(inside):
    # Older runc drops nosuid and nodev when it makes a bind read-only. No new privileges stand in for the first; for the second,
    # a bundle cannot hold a device node, and nobody can make one in a read-only mount.
    assert "ro" in _mounts(inside)["/in/a"][0]


def test_the_images_volume_is_an_empty_tmpfs(inside):
    options, kind = _mounts(inside)["/data"]
    assert kind == "tmpfs"
    assert {"nosuid", "nodev", "noexec"} <= options


def test_no_writable_mount_is_backed_by_a_block_device(inside):
    writable = {place: kind for place, (options, kind) in _mounts(inside).items() if "rw" in options}
    assert set(writable.values()) <= {"tmpfs", "proc", "devpts", "mqueue"}, writable


@pytest.mark.parametrize("name", ["cgroup", "ipc", "mnt", "net", "pid", "uts"])
def test_namespaces_are_its_own(inside, name):
    mine = dict(line.split() for line in inside["namespaces"].splitlines())[name]
    assert mine != str(Path(f"/proc/self/ns/{name}").readlink())


def test_no_network_but_its_own_loopback(inside):
    assert inside["net"].split()[0] == "lo"
    assert inside["net"].count("\n") == 2


def test_device_nodes_are_the_plain_ones(inside):
    plain = {"core", "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}
    assert set(inside["dev"].split()) | {"core"} == plain


def test_no_core_dumps_and_bounded_files(inside):
    core, files = inside["limits"].split()
    assert core == "0"
    assert int(files) <= 65536


def test_host_information_is_masked(inside):
    assert inside["kcore"].split() == ["0", "0"]


def test_control_groups_show_nothing_of_the_host(inside):
    assert all(line.endswith(":/") for line in inside["cgroup"].splitlines())


def test_it_sees_its_own_processes_only(inside):
    assert int(inside["pid"].split()[0]) < 8


def test_hostname_tells_nothing(inside):
    assert inside["hostname"].strip() == "sealrig"
    assert inside["hostname"].strip() != os.uname().nodename


def test_shared_memory_has_the_asked_size(inside):
    blocks, size = inside["shm"].split()
    assert int(blocks) * int(size) == 2**20


def test_no_sockets_of_the_host(inside):
    assert "docker.sock: No such file" in inside["sockets"]
    assert not [line for line in inside["sockets"].splitlines() if line.startswith("/")]


def test_no_secret_in_what_the_host_shows(node_rig, tmp_path):
    digest, key = node_rig.bundle(tmp_path, {"secret.txt": "canary-7c1f"})
    with node_rig.running():
        lease = node_rig.control.submit(node_rig.spec("sleep 20", inputs=[{"bundle": digest, "path": "/in/a"}]), {digest: key})
        node_rig.control.wait(lease, LeaseState.RUNNING)
        shown = str(node_rig.node.engine._api.inspect_container(f"sealrig-{lease.id}"))
        assert key.hex() not in shown
        assert "canary" not in shown
        lease.end = Outcome.CANCELLED
        node_rig.control.wait(lease)
    assert lease.outcome is Outcome.CANCELLED
    assert node_rig.leftovers() == []
