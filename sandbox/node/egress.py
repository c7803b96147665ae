"""The job's way out, where its policy permits one: an allow-list inside the job's own network namespace.

A holder container opens a namespace on the engine's bridge; the rules are loaded into it from outside, before the job exists; then the
job joins it. The job has no capability to change them. All else is dropped and counted: other hosts, the host's own addresses, the
bridge's gateway, metadata services, name servers. Names are resolved by the node when the plan is made and pinned in ``/etc/hosts``.
"""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import shutil
import socket
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sandbox.errors import EngineError, JobError
from sandbox.node.holder import HOLDER_PROGRAM, holder_archive
from sandbox.node.layout import ROLE_LABEL
from sandbox.node.plan import EgressRule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sandbox.node.engine import Engine
    from sandbox.node.plan import LaunchPlan

HOLDER_MEMORY = 16 * 2**20
HOLDER_PROCESSES = 16
"""The holder is one process, but runc starts it with threads of its own: with less room the start fails now and then on a busy host."""
HOLDER_PREFIX = "sealrig-net-"
HOLDER_IMAGE = "sealrig-net"
MAX_ADDRESSES = 16
"""Addresses of one name that are pinned."""
_SECONDS = 10
_TABLE = "sealrig"


@dataclass(frozen=True)
class Blocked:
    """Packets that the rules dropped: where they were going, by which protocol, how many."""

    address: str
    protocol: str
    packets: int


def resolve(targets: Iterable[str], lookup: Callable[[str], list[str]] | None = None) -> tuple[EgressRule, ...]:
    """Resolve ``host:port`` targets to the addresses that will be reachable.

    A name may not lead to the node itself, its links or private networks (a name server must not be able to open what the policy
    did not name); an address written out may be private. Raises ``JobError``.
    """
    rules = []
    for target in targets:
        host, _, port = target.rpartition(":")
        literal = _address(host)
        addresses = [host] if literal else (lookup or _lookup)(host)
        if not addresses:
            raise _refused(target, "no IPv4 address", "a name that resolves")
        for text in addresses:
            address = ipaddress.IPv4Address(text)
            if address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved:
                raise _refused(target, text, "an address of another host")
            if not literal and not address.is_global:
                raise _refused(target, text, "a public address, or the private address written out")
        rules.append(EgressRule(host, int(port), tuple(sorted(addresses)[:MAX_ADDRESSES])))
    return tuple(rules)


def open_network(engine: Engine, plan: LaunchPlan) -> str:
    """Make the holder and its rules; return the network mode with which the job joins. Raises ``EngineError``."""
    for tool in ("nft", "nsenter"):
        if shutil.which(tool) is None:
            raise EngineError(
                "the egress rules cannot be loaded", rule="egress", seen=f"no {tool}", wanted=tool, fix="install nftables and util-linux"
            )
    archive = holder_archive()
    name = f"{HOLDER_IMAGE}:{hashlib.sha256(archive).hexdigest()[:16]}"
    image = engine.find_image(name) or engine.import_image(io.BytesIO(archive), name=name, changes=[])
    hosts = tuple(f"{rule.host}:{address}" for rule in plan.egress for address in rule.addresses[:1] if _address(rule.host) is None)
    holder = replace(
        plan,
        container=f"{HOLDER_PREFIX}{plan.lease}",
        image=image,
        image_reference=image,
        command=(HOLDER_PROGRAM,),
        env=("PATH=/",),
        labels={**{key: value for key, value in plan.labels.items() if key.startswith("sealrig.")}, ROLE_LABEL: "net"},
        exposed_ports=(),
        binds=(),
        tmpfs=(),
        memory=HOLDER_MEMORY,
        pids=HOLDER_PROCESSES,
        shm=65536,
        working_dir="/",
        runtime="runc",
        extra_hosts=hosts,
        dns=("127.0.0.1",),
        devices=(),
        cdi=(),
    )
    container, _ = engine.create(holder, network_mode="bridge")
    engine.start(container)
    _nft(engine.pid(container), ruleset(plan.egress))
    return f"container:{container}"


def ruleset(rules: Iterable[EgressRule]) -> str:
    """Return the nftables rules of an allow-list. Pure."""
    allowed = "\n".join(f"    ip daddr {{ {', '.join(rule.addresses)} }} tcp dport {rule.port} accept" for rule in rules)
    return f"""\
table inet {_TABLE} {{
  set blocked {{
    type ipv4_addr . inet_proto
    size 4096
    flags dynamic
    counter
  }}
  chain output {{
    type filter hook output priority 0; policy drop;
    oifname "lo" accept
    ct state established accept
{allowed}
    update @blocked {{ ip daddr . meta l4proto }}
    drop
  }}
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname "lo" accept
    ct state established accept
  }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
  }}
}}
"""


def blocked(engine: Engine, plan: LaunchPlan) -> tuple[Blocked, ...]:
    """Return what the rules dropped so far. Raises ``EngineError`` when the holder is gone."""
    out = _nft(engine.pid(f"{HOLDER_PREFIX}{plan.lease}"), None)
    return parse_blocked(out)


def parse_blocked(raw: bytes) -> tuple[Blocked, ...]:
    """Read nft's JSON list of the table. Raises ``EngineError`` for anything else. Pure."""
    try:
        tree: dict[str, Any] = json.loads(raw)
        sets = [item["set"] for item in tree["nftables"] if "set" in item]
        rows = [element["elem"] for item in sets if item["name"] == "blocked" for element in item.get("elem", [])]
        found = [Blocked(str(row["val"]["concat"][0]), str(row["val"]["concat"][1]), int(row["counter"]["packets"])) for row in rows]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise EngineError(
            "the egress counters cannot be read", rule="egress", seen=type(error).__name__, wanted="nft's JSON", fix="update nftables"
        ) from error
    return tuple(sorted(found, key=lambda item: (-item.packets, item.address)))


def _nft(pid: int, rules: str | None) -> bytes:
    action = ["-f", "-"] if rules is not None else ["-j", "list", "table", "inet", _TABLE]
    command = ["nsenter", f"--net=/proc/{pid}/ns/net", "nft", *action]
    try:
        done = subprocess.run(command, input=(rules or "").encode(), capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(
            "nft did not run", rule="egress", seen=type(error).__name__, wanted="nft's answer", fix="install nftables"
        ) from error
    if done.returncode != 0:
        seen = done.stderr.decode(errors="replace").strip()[:300]
        raise EngineError(
            "the egress rules could not be used", rule="egress", seen=seen, wanted="rules in the job's namespace", fix="install nftables"
        )
    return done.stdout


def _lookup(host: str) -> list[str]:
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return []
    return sorted({str(item[4][0]) for item in found})


def _address(text: str) -> ipaddress.IPv4Address | None:
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        return None


def _refused(target: str, seen: str, wanted: str) -> JobError:
    return JobError(
        f"egress to {target} is not possible", rule="egress-address", seen=seen, wanted=wanted, fix="correct the target in the job"
    )
