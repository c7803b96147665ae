"""The egress allow-list, with real hosts in network namespaces on the engine's bridge."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from contextlib import contextmanager

import pytest

from sandbox.errors import EngineError, JobError
from sandbox.lifecycle import Outcome
from sandbox.node import egress
from sandbox.node.plan import EgressRule

pytestmark = [pytest.mark.docker, pytest.mark.root]
pure = pytest.mark.parametrize


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def _host(name: str, address: str):
    """A host of its own on the engine's bridge, which answers on TCP 7000 and 7001 and on UDP 53."""
    _run("ip", "netns", "add", name)
    server = None
    try:
        _run("ip", "link", "add", f"{name}0", "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", f"{name}0", "master", "docker0", "up")
        _run("ip", "-n", name, "addr", "add", f"{address}/16", "dev", "eth0")
        _run("ip", "-n", name, "link", "set", "eth0", "up")
        _run("ip", "-n", name, "route", "add", "default", "via", "172.17.0.1")
        script = (
            "import socket, sys, threading, time\n"
            "def serve(s, port):\n"
            "    while True:\n"
            "        c, _ = s.accept(); c.sendall(b'hello from %d' % port); c.close()\n"
            "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(('0.0.0.0', 53))\n"
            "def answer():\n"
            "    while True:\n"
            "        d, a = u.recvfrom(2048); sys.stderr.write('asked\\n'); sys.stderr.flush(); u.sendto(b'leak', a)\n"
            "for port in (7000, 7001):\n"
            "    s = socket.create_server(('0.0.0.0', port))  # here, so that it listens before anybody is told\n"
            "    threading.Thread(target=serve, args=(s, port), daemon=True).start()\n"
            "threading.Thread(target=answer, daemon=True).start()\n"
            "print('ready', flush=True); time.sleep(1000)\n"
        )
        server = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{name}", "python3", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert server.stdout.readline() == "ready\n"
        yield server
    finally:
        if server is not None:
            server.kill()
            server.communicate()
        _run("ip", "netns", "del", name)


@pytest.fixture
def hosts():
    if not all(map(shutil.which, ("ip", "nft", "nsenter"))):
        pytest.skip("needs ip, nft and nsenter (apt-get install iproute2 nftables util-linux)")
    bridge = subprocess.run(["ip", "-4", "addr", "show", "docker0"], capture_output=True, text=True, check=False).stdout
    if "172.17.0.1/16" not in bridge:
        pytest.skip("needs the engine's default bridge at 172.17.0.1/16 in this network namespace")
    with _host("srgood", "172.17.200.1") as good, _host("srbad", "172.17.200.2") as bad:
        yield good, bad


@contextmanager
def _own_address(address: str):
    """One more address of this host itself, not on the bridge."""
    _run("ip", "addr", "add", f"{address}/32", "dev", "lo")
    try:
        yield
    finally:
        _run("ip", "addr", "del", f"{address}/32", "dev", "lo")


@contextmanager
def _listening(address: str, port: int):
    """A listener on one of this host's own addresses."""
    with socket.create_server((address, port)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connection.sendall(b"the host itself")
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)  # closing alone would not wake the thread, which keeps the port


HOST = "198.51.100.77"
SCRIPT = """
try() { echo "$1:" $(nc -w 1 $2 $3 </dev/null 2>&1); }
cat /etc/hosts
cat /etc/resolv.conf
try allowed 172.17.200.1 7000
try other-port 172.17.200.1 7001
try other-host 172.17.200.2 7000
try gateway 172.17.0.1 7075
try host 198.51.100.77 7075
try metadata 169.254.169.254 80
timeout 3 nslookup secret.tunnel 172.17.200.2 2>&1
timeout 3 nslookup secret.tunnel 172.17.200.1 2>&1
echo asked
nc -w 1 some.name 7000 2>&1
true
"""


def _from_the_bridge(address: str, port: int) -> str:
    """What a host on the bridge without any rules hears from an address."""
    script = f"import socket; print(socket.create_connection(({address!r}, {port}), 3).recv(99).decode())"
    command = ["nsenter", "--net=/run/netns/srbad", "python3", "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_only_what_is_allowed_can_be_reached_and_the_rest_is_counted(node_rig, hosts):
    good, bad = hosts
    node_rig.control.policy += b"  network: {egress: {allow: ['172.17.200.1:7000']}}\n"
    with _own_address(HOST), _listening(HOST, 7075), _listening("172.17.0.1", 7075), node_rig.running():
        for reached in ("172.17.0.1", HOST):
            assert _from_the_bridge(reached, 7075) == "the host itself", "it must be reachable for the test to mean anything"
        with socket.create_connection(("172.17.200.2", 7000), 3) as probe:
            assert probe.recv(99), "the other host must be reachable for the test to mean anything"
        lease = node_rig.run(SCRIPT, network={"egress": ["172.17.200.1:7000"]})
    assert lease.outcome is Outcome.SUCCEEDED, lease.detail
    said = dict(line.split(":", 1) for line in node_rig.output(lease).splitlines() if line.partition(":")[0] in SCRIPT and ":" in line)
    assert said["allowed"].strip() == "hello from 7000"
    for name in ("other-port", "other-host", "gateway", "host", "metadata"):
        assert "hello" not in said[name], name
        assert "host itself" not in said[name], name
    text = node_rig.output(lease)
    for address in ("172.17.200.1", "172.17.200.2", "172.17.0.1", HOST, "169.254.169.254"):
        assert f"packets to {address}" in text, f"{address} was not counted for the customer"
        assert address in lease.detail, f"{address} was not reported to the operator"
    assert "(udp)" in text
    for server in (good, bad):
        server.kill()
        assert "asked" not in server.communicate()[1], "a name server was reached"
    assert node_rig.leftovers() == []


def test_names_are_pinned_and_nothing_answers_for_others(node_rig, hosts, monkeypatch):
    monkeypatch.setattr(egress, "_lookup", lambda host: {"files.example.org": ["172.17.200.1"]}[host])
    monkeypatch.setattr(egress.ipaddress.IPv4Address, "is_global", property(lambda self: True))
    node_rig.control.policy += b"  network: {egress: {allow: ['*.example.org:7000']}}\n"
    with node_rig.running():
        lease = node_rig.run("nc -w 1 files.example.org 7000 </dev/null; nc -w 1 other.example.org 7000 2>&1; true",
                             network={"egress": ["files.example.org:7000"]})  # fmt: skip
    text = node_rig.output(lease)
    assert "hello from 7000" in text
    assert "bad address 'other.example.org'" in text


def test_the_holder_goes_with_the_lease(node_rig, hosts):
    node_rig.control.policy += b"  network: {egress: {allow: ['172.17.200.1:7000']}}\n"
    with node_rig.running():
        lease = node_rig.run("true", network={"egress": ["172.17.200.1:7000"]})
    assert lease.outcome is Outcome.SUCCEEDED, lease.detail
    step = next(step for step in node_rig.wipe(lease).steps if step.step == "container")
    assert step.action == "kill and remove 2"
    assert node_rig.leftovers() == []


@pure(
    ("target", "found"),
    [
        ("host.example:443", ["127.0.0.1"]),
        ("host.example:443", ["169.254.169.254"]),
        ("host.example:443", ["10.0.0.1"]),
        ("host.example:443", ["224.0.0.1"]),
        ("host.example:443", ["8.8.8.8", "192.168.1.1"]),
        ("host.example:443", []),
        ("169.254.169.254:80", []),
        ("127.0.0.1:80", []),
        ("0.0.0.0:80", []),
    ],
)
def test_a_name_server_cannot_open_what_the_policy_did_not_name(target, found):
    with pytest.raises(JobError) as caught:
        egress.resolve([target], lookup=lambda _: found)
    assert caught.value.details["rule"] == "egress-address"


def test_addresses_written_out_may_be_private():
    assert egress.resolve(["10.1.2.3:5432"]) == (EgressRule("10.1.2.3", 5432, ("10.1.2.3",)),)
    assert egress.resolve(["a.example:443"], lookup=lambda _: ["9.9.9.9", "8.8.8.8"])[0].addresses == ("8.8.8.8", "9.9.9.9")


def test_rules_drop_by_default():
    rules = egress.ruleset((EgressRule("a", 443, ("8.8.8.8", "9.9.9.9")),))
    assert rules.count("policy drop") == 3
    assert "ip daddr { 8.8.8.8, 9.9.9.9 } tcp dport 443 accept" in rules


@pure("raw", [b"", b"{}", b"[]", b'{"nftables": [{"set": {"name": "blocked", "elem": [{"elem": {"val": 1}}]}}]}'])
def test_counters_that_cannot_be_read_are_an_error(raw):
    with pytest.raises(EngineError):
        egress.parse_blocked(raw)
