"""``sealrig serve``: run the control plane (operator)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sandbox.cli.console import console
from sandbox.cli.context import trust_file
from sandbox.cli.keeping import LogLock, LogState, LogTiles, witnesses

if TYPE_CHECKING:
    from policies.loader import LoadedPolicy


def serve(
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Everything the server keeps; made where it is missing.")],
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where to listen; other than loopback needs TLS.")
    ] = "127.0.0.1:8470",
    database: Annotated[str, typer.Option("--database", metavar="URL", help="SQLite below --data if not given.", show_default=False)] = "",
    store: Annotated[
        str, typer.Option("--store", metavar="URL", help="Where bundles are kept: a folder below --data if not given.", show_default=False)
    ] = "",
    policy: Annotated[
        str,
        typer.Option(
            "--policy", metavar="FILE|PROFILE", help="For tenants without a policy of their own: strict, standard, development, or a file."
        ),
    ] = "strict",
    trust: Annotated[
        Path | None,
        typer.Option(
            "--trust", metavar="TRUST.yaml", help="Your own trust file: it gives the level of nodes that policies see.", show_default=False
        ),
    ] = None,
    tenant_quota: Annotated[
        str,
        typer.Option("--tenant-quota", metavar="SIZE", help="Space for the bundles of each tenant, with uploads under way, such as 500Gi."),
    ] = "4Ti",
    log_state: LogState = "",
    log_lock: LogLock = "",
    log_tiles: LogTiles = "",
    witness_policy: Annotated[
        Path | None,
        typer.Option(
            "--witness-policy",
            metavar="FILE",
            help="Witnesses that must cosign the audit log before it is published (c2sp.org/tlog-policy).",
            show_default=False,
        ),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", metavar="FILE", help="PEM certificate chain.", show_default=False)] = None,
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="PEM private key of the certificate.", show_default=False)
    ] = None,
    unsafe_development: Annotated[
        bool, typer.Option("--unsafe-development", help="Accept the development profile, which protects nobody.")
    ] = False,
) -> None:
    """Run the control plane until it is told to stop. The first start writes an operator's token to DIR/operator.token."""
    from sandbox.control.server import parse_listen
    from sandbox.control.server import serve as run
    from sandbox.control.settings import ControlSettings, Limits

    place = parse_listen(listen, tls_cert, tls_key)
    chosen = _policy(policy, unsafe=unsafe_development)
    accepted = trust_file(trust) if trust is not None else None
    settings = ControlSettings(
        data=data.absolute(),
        database=database,
        store=store,
        policy=chosen,
        unsafe_development=unsafe_development,
        trust=accepted,
        log_state=log_state,
        log_lock=log_lock,
        log_tiles=log_tiles,
        witnesses=witnesses(witness_policy),
        limits=Limits(tenant_quota_bytes=_quota(tenant_quota)),
    )
    out = console()
    if unsafe_development:
        out.warn("--unsafe-development: policies that protect nobody are accepted")

    def ready(url: str) -> None:
        out.emit({"url": url, "data": str(settings.data), "policy": chosen.name, "policy_digest": chosen.digest})
        out.say(f"serving {url} (policy {chosen.name}); stop with Ctrl-C")

    run(settings, place, ready=ready)


def _quota(text: str) -> int:
    from policies.units import parse_size
    from sandbox.control.settings import MAX_QUOTA_BYTES
    from sandbox.errors import UsageError

    try:
        quota = parse_size(text)
    except ValueError:
        quota = 0
    if not 0 < quota <= MAX_QUOTA_BYTES:
        raise UsageError("--tenant-quota is no size that a tenant can have", rule="tenant-quota-size", seen=text[:100],
                         wanted="bytes, or a number with Ki, Mi, Gi, Ti or Pi; more than 0, at most 1024Pi",
                         fix="write for example --tenant-quota 500Gi")  # fmt: skip
    return quota


def _policy(text: str, *, unsafe: bool) -> LoadedPolicy:
    from policies.loader import POLICY_MAX_BYTES, PROFILES, load_policy, load_profile
    from sandbox.errors import UsageError

    if text in PROFILES:
        loaded = load_profile(text)
    else:
        path = Path(text)
        if not path.is_file():
            raise UsageError(
                "no such policy", rule="policy", seen=text[:200], wanted=f"a file, or one of {', '.join(PROFILES)}", fix="correct --policy"
            )
        with path.open("rb") as file:
            loaded = load_policy(file.read(POLICY_MAX_BYTES + 1))
    if loaded.policy.spec.unsafe_development and not unsafe:
        raise UsageError(
            "this policy is for development and protects nobody",
            rule="policy-unsafe",
            seen=loaded.name,
            wanted="strict, standard or your own",
            fix="add --unsafe-development, on a machine where nothing matters",
        )
    return loaded
