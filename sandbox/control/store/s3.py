"""Bundles in a bucket that speaks S3, through obstore: ``<prefix>/ab/abcd….bundle``.

An object appears under its name only when its upload is complete, multipart or not, so a cut leaves nothing half. What S3 answers with
success is durable. Credentials come from a file of mode 0600 in the data folder, else from the environment or the instance's role, as
obstore finds them; never from the URL.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import S3Store as Bucket

from sandbox.control.store import CHUNK, Reading
from sandbox.control.store.pieces import open_whole, remove, size_of
from sandbox.errors import InputError
from sandbox.model import is_bundle_digest, new_id

_SUFFIX = ".bundle"
MAX_PARTS = 9000
"""Parts of one upload: below S3's bound of 10,000."""
MIN_PART_BYTES = 8 * 1024 * 1024
IN_FLIGHT_BYTES = 256 * 1024 * 1024
"""What parts under way may take of memory, all together, unless a single one is larger."""
MAX_AT_ONCE = 12


class S3Store:
    """The ``BundleStore`` below a prefix of one bucket."""

    def __init__(self, bucket: str, prefix: str, **options: Any) -> None:  # noqa: ANN401  (obstore's own configuration keys)
        """Connect lazily: nothing is asked of the server yet."""
        self._bucket = Bucket(bucket, prefix=prefix or None, **options)

    def put(self, digest: str, source: Path) -> None:
        """See ``BundleStore``."""
        key = _key(digest)
        if self.size(digest) is None:
            wanted = size_of(source)
            with open_whole(source) as whole, _as_os_errors():
                part, at_once = part_sizes(wanted)
                obstore.put(self._bucket, key, whole, chunk_size=part, max_concurrency=at_once)
            if self.size(digest) != wanted:
                raise OSError(errno.EIO, "the store kept another number of bytes than it was given")
        remove(source)

    def size(self, digest: str) -> int | None:
        """See ``BundleStore``."""
        key = _key(digest)
        try:
            with _as_os_errors():
                return int(obstore.head(self._bucket, key)["size"])
        except FileNotFoundError:
            return None

    def read(self, digest: str, start: int, end: int) -> Reading:
        """See ``BundleStore``. The request is made before the first piece is asked for."""
        with _as_os_errors():
            answer = obstore.get(self._bucket, _key(digest), options={"range": (start, end)})

        def pieces() -> Generator[bytes]:
            with _as_os_errors():
                for received in answer.stream(min_chunk_size=CHUNK):
                    view = memoryview(received)
                    for at in range(0, len(view), CHUNK):
                        yield bytes(view[at : at + CHUNK])

        return pieces()

    def delete(self, digest: str) -> None:
        """See ``BundleStore``."""
        key = _key(digest)
        with contextlib.suppress(FileNotFoundError), _as_os_errors():
            obstore.delete(self._bucket, key)

    def digests(self) -> Iterator[str]:
        """See ``BundleStore``."""
        with _as_os_errors():
            for page in obstore.list(self._bucket, chunk_size=1000):
                for item in page:
                    name = item["path"].rpartition("/")[2]
                    if name.endswith(_SUFFIX):
                        yield f"blake3:{name.removesuffix(_SUFFIX)}"

    def check(self) -> None:
        """See ``BundleStore``."""
        probe = f"{new_id('probe')}.part"
        with _as_os_errors():
            obstore.put(self._bucket, probe, b"sealrig")
            obstore.delete(self._bucket, probe)


def part_sizes(size: int) -> tuple[int, int]:
    """Return the bytes of each part of an object of ``size`` bytes, and how many parts travel at once."""
    part = max(MIN_PART_BYTES, -(-size // MAX_PARTS))
    return part, max(1, min(MAX_AT_ONCE, IN_FLIGHT_BYTES // part))


def _key(digest: str) -> str:
    if not is_bundle_digest(digest):
        raise InputError(
            "not a bundle digest",
            rule="bundle-digest",
            seen=digest[:80],
            wanted="blake3: and 64 hex digits",
            fix="copy it from 'sealrig seal'",
        )
    name = digest.removeprefix("blake3:")
    return f"{name[:2]}/{name}{_SUFFIX}"


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """Speak of failures as local folders do, without the server's answer: it may name buckets and keys."""
    try:
        yield
    except NotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such bundle in the store") from error
    except BaseError as error:
        raise OSError(errno.EIO, f"the store did not answer as it should ({type(error).__name__})") from error
