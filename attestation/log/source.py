"""Where a log is read from: a folder (the server's own, or a copy) or a URL. Everything read is bounded and untrusted."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attestation.log.errors import LogFetchError

if TYPE_CHECKING:
    import httpx

TIMEOUT_SECONDS = 20.0


class Source(Protocol):
    """Gives the bytes of a file of the log by its path below the log's prefix."""

    def read(self, path: str, limit: int) -> bytes | None:
        """Return a file, or None where there is none. Raises ``LogFetchError`` for more than ``limit`` bytes or no answer."""
        ...


class FolderSource:
    """A log in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str, limit: int) -> bytes | None:
        """Return a file, or None where there is none."""
        try:
            with (self._root / path).open("rb") as file:
                raw = file.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise LogFetchError(f"{path} cannot be read", rule="log-read", seen=str(error), wanted="a readable file") from error
        _require_bounded(path, len(raw), limit)
        return raw


class UrlSource:
    """A log behind HTTP."""

    def __init__(self, prefix: str, client: httpx.Client | None = None) -> None:
        import httpx  # takes longer to load than a receipt takes to verify; whoever reads a folder does not need it

        self._prefix = prefix.rstrip("/")
        self._problem = httpx.HTTPError
        self._client = client or httpx.Client(timeout=TIMEOUT_SECONDS)

    def read(self, path: str, limit: int) -> bytes | None:
        """Return a file, or None for 404."""
        url = f"{self._prefix}/{path}"
        raw = bytearray()
        try:
            with self._client.stream("GET", url) as answer:
                if answer.status_code == HTTPStatus.NOT_FOUND:
                    return None
                if answer.status_code != HTTPStatus.OK:
                    raise LogFetchError(f"{url} did not answer as a log", rule="log-status", seen=str(answer.status_code), wanted="200")
                for part in answer.iter_bytes():
                    raw += part
                    _require_bounded(path, len(raw), limit)
        except self._problem as error:
            raise LogFetchError(
                f"{url} does not answer",
                rule="log-unreachable",
                seen=f"{type(error).__name__}: {error}"[:200],
                wanted="a log's server",
                fix="check the address, or use a copy of the log's folder",
            ) from error
        return bytes(raw)


def _require_bounded(path: str, size: int, limit: int) -> None:
    if size > limit:
        raise LogFetchError(f"{path} is too large", rule="log-limit", seen=f"more than {limit} bytes", wanted=f"≤ {limit} bytes")
