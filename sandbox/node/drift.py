"""Compare what the engine made with what the plan says, field by field, exactly. Pure.

Every field that the engine's inspect shows under ``Config`` and ``HostConfig`` must be the planned value, or, where the plan does
not know the field, empty: a field that a newer engine adds and fills is drift until somebody has thought about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attestation.canonical import canonical_json
from sandbox.errors import DriftError

if TYPE_CHECKING:
    from sandbox.node.plan import LaunchPlan

_EMPTY: tuple[object, ...] = (None, "", 0, False, [], {}, (), [0, 0])
# What engines fill by themselves and what it may be; nothing here loosens the container.
_ENGINE_OWN: dict[str, frozenset[object]] = {
    "HostConfig.MemorySwappiness": frozenset({None, -1}),
    "HostConfig.OomKillDisable": frozenset({None, False}),
}
_SHOWN = 200


@dataclass(frozen=True)
class Difference:
    """One field that is not as planned."""

    place: str
    seen: str
    wanted: str


def create_request(plan: LaunchPlan, *, network_mode: str) -> dict[str, Any]:
    """Return the body of the engine's create call, with every field that Sealrig decides.

    ``network_mode`` is ``none``, or ``container:ID`` of the holder whose namespace carries the egress rules.
    """
    own_network = not network_mode.startswith("container:")
    config: dict[str, Any] = {
        "Hostname": plan.hostname if own_network else "",
        "Domainname": "",
        "User": plan.user,
        "AttachStdin": False,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "OpenStdin": False,
        "StdinOnce": False,
        "Env": list(plan.env),
        "Cmd": list(plan.command),
        "Entrypoint": [],
        "Healthcheck": {"Test": ["NONE"]},
        "Image": plan.image,
        "Volumes": {},
        "WorkingDir": plan.working_dir,
        "NetworkDisabled": False,
        "OnBuild": [],
        "Labels": dict(plan.labels),
        "ExposedPorts": {port: {} for port in plan.exposed_ports if own_network},
        "StopSignal": plan.stop_signal,
        "StopTimeout": plan.stop_seconds,
    }
    return {**config, "HostConfig": _host_config(plan, network_mode)}


def _host_config(plan: LaunchPlan, network_mode: str) -> dict[str, Any]:
    return {
        "Binds": [],
        "LogConfig": {"Type": plan.log_driver, "Config": {}},
        "NetworkMode": network_mode,
        "PortBindings": {},
        "RestartPolicy": {"Name": plan.restart, "MaximumRetryCount": 0},
        "AutoRemove": False,
        "VolumesFrom": [],
        "CapAdd": [],
        "CapDrop": list(plan.cap_drop),
        "CgroupnsMode": plan.cgroupns,
        "Dns": list(plan.dns),
        "DnsOptions": [],
        "DnsSearch": [],
        "ExtraHosts": list(plan.extra_hosts),
        "GroupAdd": [],
        "IpcMode": plan.ipc,
        "Links": [],
        "OomScoreAdj": 0,
        "PidMode": plan.pid,
        "Privileged": False,
        "PublishAllPorts": False,
        "ReadonlyRootfs": plan.read_only,
        "SecurityOpt": security_options(plan),
        "UTSMode": plan.uts,
        "UsernsMode": "",
        "ShmSize": plan.shm,
        "Sysctls": {},
        "Runtime": plan.runtime,
        "Isolation": "",
        "CpuShares": 0,
        "Memory": plan.memory,
        "NanoCpus": plan.nano_cpus,
        "CgroupParent": "",
        "Devices": [{"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rw"} for path in plan.devices],
        "DeviceCgroupRules": [],
        "DeviceRequests": [{"Driver": "cdi", "Count": 0, "DeviceIDs": list(plan.cdi), "Capabilities": [], "Options": {}}]
        if plan.cdi
        else [],
        "MemoryReservation": 0,
        "MemorySwap": plan.memory,
        "OomKillDisable": False,
        "Init": False,
        "PidsLimit": plan.pids,
        "Ulimits": [
            {"Name": "core", "Soft": plan.core, "Hard": plan.core},
            {"Name": "nofile", "Soft": plan.nofile, "Hard": plan.nofile},
        ],
        "Mounts": _mounts(plan),
        "MaskedPaths": list(plan.masked_paths),
        "ReadonlyPaths": list(plan.readonly_paths),
    }


def security_options(plan: LaunchPlan) -> list[str]:
    """Return the security options; an empty seccomp profile means the engine's own default and is said so by leaving it out."""
    options = ["no-new-privileges:true"] if plan.no_new_privileges else []
    if plan.seccomp:
        options.append(f"seccomp={plan.seccomp}")
    if plan.apparmor:
        options.append(f"apparmor={plan.apparmor}")
    return options


def _mounts(plan: LaunchPlan) -> list[dict[str, Any]]:
    binds = [
        {
            "Type": "bind",
            "Source": bind.source,
            "Target": bind.target,
            "ReadOnly": bind.read_only,
            "BindOptions": {"Propagation": "rprivate"},
        }
        for bind in plan.binds
    ]
    shadows = [{"Type": "tmpfs", "Target": item.target, "TmpfsOptions": {"SizeBytes": item.size, "Mode": item.mode}} for item in plan.tmpfs]
    return [*binds, *shadows]


def differences(plan: LaunchPlan, inspected: dict[str, Any], *, network_mode: str) -> list[Difference]:
    """Return every field of the engine's inspect that is not exactly as planned."""
    request = create_request(plan, network_mode=network_mode)
    wanted_host = request.pop("HostConfig")
    if network_mode.startswith("container:"):
        # In a joined network a hostname may not be asked for; the engine then takes the container's own id.
        request["Hostname"] = str(inspected.get("Id", ""))[:12]
    found: list[Difference] = []
    _compare("Config", request, inspected.get("Config"), found)
    _compare("HostConfig", wanted_host, inspected.get("HostConfig"), found)
    _compare_field("Image", inspected.get("Image"), plan.image, found)
    _compare_field("Name", inspected.get("Name"), f"/{plan.container}", found)
    _compare_field("Path", inspected.get("Path"), plan.command[0], found)
    _compare_field("Args", inspected.get("Args"), list(plan.command[1:]), found)
    _compare_field("AppArmorProfile", inspected.get("AppArmorProfile"), plan.apparmor, found)
    _compare_field("Mounts", _seen_mounts(inspected.get("Mounts")), _wanted_mounts(plan), found)
    return found


def check(plan: LaunchPlan, inspected: dict[str, Any], *, network_mode: str) -> bytes:
    """Return the canonical bytes of the inspect once it is as planned; raise ``DriftError`` with every difference otherwise."""
    found = differences(plan, inspected, network_mode=network_mode)
    if found:
        first = found[0]
        raise DriftError(
            "the engine made a container that is not the plan: " + "; ".join(f"{item.place} is {item.seen}" for item in found[:8]),
            rule="launch-drift",
            seen=f"{first.place} = {first.seen}",
            wanted=f"{first.place} = {first.wanted}",
            fix="look for defaults in the engine's daemon.json that change containers, and remove them",
            differences=[vars(item) for item in found],
        )
    return canonical_json(_hashable(inspected))


def _compare(place: str, wanted: dict[str, Any], seen: object, found: list[Difference]) -> None:
    if not isinstance(seen, dict):
        found.append(Difference(place, _text(seen), "an object"))
        return
    for key in sorted({*wanted, *seen}):
        where = f"{place}.{key}"
        if where in _ENGINE_OWN:
            if seen.get(key) not in _ENGINE_OWN[where]:
                found.append(Difference(where, _text(seen.get(key)), "not set"))
        elif key in wanted:
            _compare_field(where, seen.get(key), wanted[key], found)
        elif not _is_empty(seen[key]):
            found.append(Difference(where, _text(seen[key]), "not set"))


def _compare_field(place: str, seen: object, wanted: object, found: list[Difference]) -> None:
    if _is_empty(wanted) and _is_empty(seen):
        return
    if _plain(seen) != _plain(wanted):
        found.append(Difference(place, _text(seen), _text(wanted)))


def _plain(value: object) -> object:
    """Drop empties inside objects and sort lists of objects, which engines spell differently; nothing else is evened out."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if not _is_empty(item)}
    if isinstance(value, list | tuple):
        parts = [_plain(item) for item in value]
        return sorted(parts, key=repr) if parts and isinstance(parts[0], dict) else parts
    return value


def _is_empty(value: object) -> bool:
    return any(value == empty and type(value) is type(empty) for empty in _EMPTY)


def _seen_mounts(value: object) -> object:
    if not isinstance(value, list):
        return value
    keys = ("Type", "Source", "Destination", "RW")
    return [{key: item.get(key) for key in keys} for item in value if isinstance(item, dict)]


def _wanted_mounts(plan: LaunchPlan) -> list[dict[str, Any]]:
    binds: list[dict[str, Any]] = [
        {"Type": "bind", "Source": bind.source, "Destination": bind.target, "RW": not bind.read_only} for bind in plan.binds
    ]
    return binds + [{"Type": "tmpfs", "Source": "", "Destination": item.target, "RW": True} for item in plan.tmpfs]


def _hashable(value: object) -> object:
    """Make inspect fit for canonical JSON: numbers beyond 2^53 (RFC 8785) become text."""
    if isinstance(value, dict):
        return {str(key): _hashable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_hashable(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**53:
        return str(value)
    return value


def _text(value: object) -> str:
    return repr(value)[:_SHOWN]
