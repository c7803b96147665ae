"""Patterns of images and of network targets: what is accepted as a pattern, and what matches. Pure.

``*`` never reaches across a separator (``/`` or ``@`` in an image, ``.`` or ``:`` in a host), so that a pattern cannot match
more than it shows; ``**`` reaches across ``/`` in an image.
"""

from __future__ import annotations

import ipaddress
import re

_DIGEST = re.compile(r"sha256:(?:[0-9a-f]{64}|\*)")
_REPOSITORY = re.compile(r"[a-z0-9._:/*-]{1,255}")
_HOST_PATTERN = re.compile(r"(?:\*|(?:\*\.)?[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*)")
_PORT = re.compile(r"\*|[1-9]\d{0,4}")
_STARS = re.compile(r"\*+")
MAX_STARS = 3
"""Matching costs length to the power of stars; names are at most 255 characters, so three stay far under a second."""
_LOOKS_NUMERIC = re.compile(r"(?:\d+|0x[0-9a-f]*)")


def check_image_pattern(pattern: str) -> str:
    """Return ``pattern`` if it is ``sha256:…``, ``repository@sha256:…`` or one with ``*``. Raises ``ValueError``."""
    repository, at, digest = pattern.rpartition("@")
    sound = _REPOSITORY.fullmatch(repository) if at else not repository
    if not _DIGEST.fullmatch(digest) or not sound or len(_STARS.findall(repository)) > MAX_STARS:
        msg = (
            f"{pattern!r} is no image pattern; write sha256:<64 hex>, repository@sha256:<64 hex> or repository/*@sha256:* "
            f"(at most {MAX_STARS} stars before the @)"
        )
        raise ValueError(msg)
    return pattern


def image_matches(pattern: str, image: str) -> bool:
    """Say whether ``image`` (``sha256:…`` or ``repository@sha256:…``) matches.

    A pattern that is a whole bare digest matches that content under any repository name; ``sha256:*`` matches bare digests only.
    """
    wanted_repository, wanted_at, wanted_digest = pattern.rpartition("@")
    repository, at, digest = image.rpartition("@")
    if not wanted_at:
        return digest == wanted_digest or (wanted_digest == "sha256:*" and not at)
    if not at or wanted_digest not in {"sha256:*", digest}:
        return False
    return _glob(wanted_repository).fullmatch(repository) is not None


def _glob(pattern: str) -> re.Pattern[str]:
    words = re.split(r"(\*+)", pattern)
    return re.compile("".join(r"[^/@]*" if word == "*" else r"[^@]*" if word.startswith("**") else re.escape(word) for word in words))


def check_egress_pattern(pattern: str) -> str:
    """Return ``pattern`` if it is ``host:port``, ``*.domain:port`` or with port ``*``. Raises ``ValueError``.

    Addresses must be whole, and never loopback, link-local (metadata services live there), multicast or unspecified.
    """
    host, _, port = pattern.rpartition(":")
    if not _HOST_PATTERN.fullmatch(host) or not _PORT.fullmatch(port) or (port != "*" and int(port) > 65535):
        msg = f"{pattern!r} is no network target; write host:port or *.domain:port in lower case, for example *.example.org:443"
        raise ValueError(msg)
    if _is_numeric(host):
        try:
            address = ipaddress.IPv4Address(host)
        except ValueError:
            address = None
        if address is None or address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified:
            msg = f"{pattern!r} is an address that a job must not reach, or no whole address; name a host instead"
            raise ValueError(msg)
    return pattern


def egress_matches(pattern: str, target: str) -> bool:
    """Say whether ``target`` (``host:port``) matches. Numeric hosts match only a pattern that spells them out."""
    wanted_host, _, wanted_port = pattern.rpartition(":")
    host, _, port = target.rpartition(":")
    if wanted_port not in {"*", port}:
        return False
    if wanted_host == host:
        return True
    if _is_numeric(host):
        return False
    if wanted_host == "*":
        return True
    return wanted_host.startswith("*.") and host.partition(".")[2] == wanted_host[2:]


def _is_numeric(host: str) -> bool:
    # Resolvers read "2130706433", "0x7f.1" and "127.1" as addresses; the last label decides (WHATWG URL, "ends in a number").
    return _LOOKS_NUMERIC.fullmatch(host.rpartition(".")[2]) is not None
