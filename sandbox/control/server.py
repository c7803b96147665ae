"""Running the control plane as a process: where it listens, its first token, its clean end."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvicorn
from sqlalchemy import select

from sandbox.control.access import SERVER, issue_token, new_secret
from sandbox.control.app import create_app
from sandbox.control.core import Control, open_control
from sandbox.control.database.models import TokenRow
from sandbox.control.erasure import finish_erasures
from sandbox.control.settings import ControlSettings
from sandbox.control.store.folder import sync_folder
from sandbox.control.sweeper import Sweeper
from sandbox.control.tenant_policies import follow_default
from sandbox.control.uploads import follow_quota
from sandbox.errors import UsageError
from sandbox.wire import TokenRequest

OPERATOR_TENANT = "operator"
SHUTDOWN_SECONDS = 10
KEEP_ALIVE_SECONDS = 75
MAX_CONNECTIONS = 1024


@dataclass(frozen=True)
class Listen:
    """An address to listen on, and the certificate and key for TLS."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted."""
        return self.certificate is not None

    @property
    def url(self) -> str:
        """The server's address for clients."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


def parse_listen(text: str, certificate: Path | None, key: Path | None) -> Listen:
    """Read ``HOST:PORT`` (``[::1]:8080`` for IPv6). Raises ``UsageError``, also for an address others can reach without TLS."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(
            "--listen is not an address",
            rule="listen",
            seen=text[:100],
            wanted="HOST:PORT",
            fix="write for example --listen 127.0.0.1:8470",
        )
    host = host.removeprefix("[").removesuffix("]")
    if (certificate is None) != (key is None):
        raise UsageError(
            "TLS needs a certificate and its key", rule="tls", seen="one of the two", wanted="--tls-cert and --tls-key", fix="give both"
        )
    if certificate is None and not _is_loopback(host):
        raise UsageError(
            "an address that others can reach needs TLS",
            rule="listen-tls",
            seen=text[:100],
            wanted="a loopback address, or TLS",
            fix="add --tls-cert and --tls-key, or listen on 127.0.0.1 behind a TLS proxy",
        )
    return Listen(host, int(port), certificate, key)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(settings: ControlSettings, listen: Listen, *, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP. ``ready`` hears the address once connections are taken.

    Raises ``UsageError`` for what is wrong with address, certificate or data folder.
    """
    _log_to_stderr()
    with _private(), open_control(settings) as control:
        finish_erasures(control)
        follow_default(control)
        follow_quota(control)
        first_token(control)
        _note_start(control)
        bound = _bind(listen)
        place = Listen(listen.host, bound.getsockname()[1], listen.certificate, listen.key)
        sweeper = Sweeper(control)
        sweeper.start()
        try:
            _Server(_config(control, listen), lambda: ready(place.url), control).run(sockets=[bound])
        finally:
            bound.close()
            sweeper.stop()


@contextlib.contextmanager
def _private() -> Iterator[None]:
    """Let nobody else on the machine read what this process writes meanwhile."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def first_token(control: Control) -> None:
    """On the first start, write an operator's token to ``operator.token`` (0600), durably and never to a log or terminal.

    The file comes first and the token after it: a crash in between leaves a file whose secret the next start takes up.
    """
    path = control.settings.data / "operator.token"
    with control.database.read() as session:
        if session.scalars(select(TokenRow.id).where(TokenRow.role == "operator").limit(1)).first() is not None:
            return
    if not path.exists():
        _write_secret(path, new_secret())
    request = TokenRequest(role="operator", tenant=OPERATOR_TENANT)
    issue_token(control, request, actor=SERVER, secret=path.read_text(encoding="ascii").strip())


def _write_secret(path: Path, secret: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{secret}\n".encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    part.replace(path)
    sync_folder(path.parent)


def _note_start(control: Control) -> None:
    with control.database.write() as session:
        control.journal.record(session, "server.started", actor=SERVER, tenant_ref=None, resource=SERVER, at=control.now())
    control.acknowledge()


def _bind(listen: Listen) -> socket.socket:
    try:
        found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # The protocol is named, because asyncio turns Nagle's delay off only for sockets that say they are TCP: 40 ms a request.
        bound = socket.socket(found[0], found[1], found[2])
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(found[4])
    except OSError as error:
        raise UsageError(
            "the address cannot be used",
            rule="listen",
            seen=f"{listen.host}:{listen.port}: {error.strerror}",
            wanted="a free address of this machine",
            fix="choose another --listen",
        ) from error
    return bound


def _config(control: Control, listen: Listen) -> uvicorn.Config:
    config = uvicorn.Config(
        create_app(control),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        limit_concurrency=MAX_CONNECTIONS,
        ssl_certfile=listen.certificate,
        ssl_keyfile=listen.key,
    )
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise UsageError(
            "the certificate or its key cannot be used",
            rule="tls",
            seen=type(error).__name__,
            wanted="a PEM certificate and its key",
            fix="check --tls-cert and --tls-key",
        ) from error
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return config


class _Server(uvicorn.Server):
    """uvicorn that says when it is ready, and lets long polls go when it is told to end."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], control: Control) -> None:
        super().__init__(config)
        self._ready, self._control = ready, control

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGINT, SIGTERM and SIGHUP, unless the parent has that one ignored, as the wish to end.

        Unlike uvicorn's own, this does not kill the process with them afterwards: log and database are closed first.
        """
        hangup = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM, *hangup)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._control.bell.close()
        await super().shutdown(sockets)


def _log_to_stderr() -> None:
    structlog.configure(
        processors=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.add_log_level,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(file=open(2, "w", closefd=False, buffering=1, encoding="utf-8")),  # noqa: SIM115  (lives as long as the process)
        cache_logger_on_first_use=False,
    )
