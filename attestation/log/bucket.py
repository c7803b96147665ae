"""The log's public files in a bucket that speaks S3: each object appears whole or not at all, and what S3 answered is durable.

Tiles are put on the condition that nothing stands there (``If-None-Match: *``), the checkpoint on the condition that the one before
still does (``If-Match``): a put that failed but persisted is found on the next try to have the same bytes, and a writer that was
overtaken cannot put an older checkpoint over a newer one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from attestation.log.errors import LogFetchError
from attestation.log.store import differs, fenced, io_error

PARALLEL = 16
MAX_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Bucket:
    """Which bucket, which prefix in it, and obstore's options (region, endpoint, credentials)."""

    name: str
    prefix: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)


class BucketSource:
    """A log in a bucket, for reading."""

    def __init__(self, bucket: Bucket) -> None:
        self._store = S3Store(bucket.name, prefix=bucket.prefix or None, **bucket.options)

    def read(self, path: str, limit: int) -> bytes | None:
        """See ``Source``."""
        found = self._get(path, limit)
        return None if found is None else found[0]

    def _get(self, path: str, limit: int) -> tuple[bytes, str | None] | None:
        """Return an object's bytes and its ETag."""
        try:
            answer = obstore.get(self._store, path)
            if answer.meta["size"] > limit:
                raise LogFetchError(
                    f"{path} is too large", rule="log-limit", seen=f"{answer.meta['size']} bytes", wanted=f"≤ {limit} bytes"
                )
            return bytes(answer.bytes()), answer.meta["e_tag"]
        except FileNotFoundError:
            return None
        except BaseError as error:
            # Without the server's answer, which may name buckets and keys.
            raise LogFetchError(
                f"{path} cannot be read", rule="log-read", seen=type(error).__name__, wanted="an answer of the log's bucket"
            ) from error


class PublicBucket(BucketSource):
    """The ``PublicStore`` below a prefix of one bucket."""

    def __init__(self, bucket: Bucket) -> None:
        """Connect lazily: nothing is asked of the server yet."""
        super().__init__(bucket)
        self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="log-bucket")
        self._seen: dict[str, str | None] = {}

    def close(self) -> None:
        """End the threads that put."""
        self._pool.shutdown()

    def read(self, path: str, limit: int) -> bytes | None:
        """See ``Source``; what was read is what ``replace`` may put something in the place of."""
        found = self._get(path, limit)
        self._seen[path] = found[1] if found else None
        return found[0] if found else None

    def write(self, files: Mapping[str, bytes]) -> None:
        """See ``PublicStore``."""
        for _ in self._pool.map(self._create, files.items()):
            pass

    def replace(self, path: str, data: bytes) -> None:
        """See ``PublicStore``. Raises ``LogFencedError`` where another writer put something else there since."""
        if path not in self._seen:
            self.read(path, MAX_FILE_BYTES)
        tag = self._seen[path]
        try:
            with _errors():
                self._seen[path] = obstore.put(self._store, path, data, mode={"e_tag": tag} if tag else "create")["e_tag"]
        except (PreconditionError, AlreadyExistsError, FileNotFoundError) as error:
            # A put that was repeated on the way finds itself there.
            if self.read(path, MAX_FILE_BYTES) != data:
                raise fenced(f"another {path}", f"the {path} that this writer put") from error

    def drop_partials(self, stems: Iterable[str]) -> None:
        """See ``PublicStore``."""
        for stem in stems:
            with contextlib.suppress(BaseError):
                found = [item["path"] for page in obstore.list(self._store, f"{stem}.p") for item in page]
                if found:
                    obstore.delete(self._store, found)

    def _create(self, item: tuple[str, bytes]) -> None:
        path, data = item
        try:
            with _errors():
                obstore.put(self._store, path, data, mode="create")
        except AlreadyExistsError as error:
            if BucketSource.read(self, path, MAX_FILE_BYTES) != data:
                raise differs(path) from error


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Pass on what a condition says; tell of other failures without the server's answer."""
    try:
        yield
    except (PreconditionError, AlreadyExistsError, FileNotFoundError):
        raise
    except BaseError as error:
        raise io_error(OSError(f"the log's bucket did not answer as it should ({type(error).__name__})")) from error
