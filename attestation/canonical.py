"""One spelling for everything that is hashed or signed: canonical JSON (RFC 8785) and length-prefixed binding."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import rfc8785

from attestation.errors import FormatError, LimitError
from attestation.shape import shape

MAX_JSON_BYTES = 8 * 1024 * 1024


def canonical_json(value: object) -> bytes:
    """Return the canonical JSON of a value of JSON types (RFC 8785). Raises ``FormatError`` for anything else."""
    try:
        return rfc8785.dumps(value)  # type: ignore[arg-type]  # any value; what has no canonical form is refused below
    except (rfc8785.CanonicalizationError, TypeError, ValueError, RecursionError):
        raise FormatError("a value has no canonical JSON form", seen=shape(value), wanted="JSON values only") from None


def parse_json(raw: bytes, *, max_bytes: int = MAX_JSON_BYTES) -> Any:  # noqa: ANN401  (JSON is dynamic; callers check the shape)
    """Parse untrusted JSON: bounded, UTF-8, no duplicate keys, no NaN. Raises ``FormatError`` or ``LimitError``."""
    if len(raw) > max_bytes:
        raise LimitError("the document is too large", seen=f"{len(raw)} bytes", wanted=f"≤ {max_bytes} bytes")
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError) as error:
        raise FormatError("not JSON", seen=f"{shape(raw)}; {error}"[:200], wanted="one UTF-8 JSON document with unique keys") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        msg = "a key stands twice"
        raise ValueError(msg)
    return tree


def _no_constant(text: str) -> None:
    msg = f"{text} is not JSON"
    raise ValueError(msg)


def sha256_digest(data: bytes) -> str:
    """Return ``sha256:`` and the hex digest of exact bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_of(value: object) -> str:
    """Return the SHA-256 digest of a value's canonical JSON."""
    return sha256_digest(canonical_json(value))


def bind(domain: str, *fields: bytes) -> bytes:
    """Return the 32-byte SHA-256 over a domain and fields, each with its 8-byte big-endian length in front.

    Length prefixes make the input unambiguous: no two different lists of fields give the same bytes.
    """
    state = hashlib.sha256()
    for part in (domain.encode(), *fields):
        state.update(len(part).to_bytes(8, "big"))
        state.update(part)
    return state.digest()
