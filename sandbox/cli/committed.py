"""The values behind the commitments of a log's entries: the server tells them to those who may know, and each is checked here."""

from __future__ import annotations

from attestation.log.commitments import Opening
from attestation.log.query import Found
from attestation.signing import b64decode
from sandbox.cli.context import client
from sandbox.errors import ServerError


def committed_values(found: Found, log: str | None) -> dict[str, str | None]:
    """Return the committed values of an entry by field, None where one was erased; each is proven to be the one in the log.

    The server is the one that ``log`` names where it is a URL, else the configured one. Raises ``VerificationError`` for a value that the
    entry does not commit to, ``ServerError`` where the server shows another entry.
    """
    url = log.removesuffix("/").removesuffix("/log") if log is not None and log.startswith(("http://", "https://")) else None
    with client(url) as opened:
        told = opened.log_entry(found.index)
    if told.leaf.encode() != found.raw:
        raise ServerError(
            "the server has another entry at this place", rule="audit-open", seen=told.leaf[:100], wanted=found.raw.decode()[:100],
            fix="name the server whose log this is: SEALRIG_SERVER, or --log URL",
        )  # fmt: skip
    values: dict[str, str | None] = {each.field: None for each in found.leaf.commitments}
    by_field = {each.field: each for each in found.leaf.commitments}
    for each in told.committed:
        if each.value is not None and each.salt is not None and each.field in by_field:
            Opening(each.field, b64decode(each.salt), each.value).verify(by_field[each.field])
            values[each.field] = each.value
    return values
