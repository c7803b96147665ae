"""Finds entries of a log by what they say. Works on any reader: a running server, the log's folder, a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from attestation.log.leaf import Leaf
from attestation.log.reader import LogReader
from attestation.log.tiles import TILE_WIDTH

Progress = Callable[[int, int], None]


class Found(NamedTuple):
    """An entry: where it stands, its exact bytes, and what they say."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs of an entry
    raw: bytes
    leaf: Leaf


@dataclass(frozen=True)
class Query:
    """What to look for; None means anything. ``node`` and ``lease`` find what they did as well as what was done to them."""

    type: str | None = None
    actor: str | None = None
    tenant: str | None = None
    node: str | None = None
    lease: str | None = None
    outcome: str | None = None
    text: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def _needles(self) -> list[bytes]:
        """Return bytes that every match has somewhere. The spelling of a leaf is fixed, so most entries are passed over unparsed."""
        exact = {"actor_ref": self.actor, "tenant_ref": self.tenant, "outcome": self.outcome}
        needles = [f'"{name}":"{value}"' for name, value in exact.items() if value is not None]
        needles += [f'_ref":"{value}"' for value in (self.node, self.lease) if value is not None]
        needles += [value for value in (self.type and self.type.rstrip("*"), self.text) if value]
        return [needle.encode() for needle in needles]

    def _matches(self, leaf: Leaf) -> bool:
        return (
            (self.type is None or leaf.type == self.type or (self.type.endswith("*") and leaf.type.startswith(self.type[:-1])))
            and all(value is None or value in {leaf.actor_ref, leaf.resource_ref} for value in (self.node, self.lease))
            and (self.since is None or leaf.occurred_at >= self.since)
            and (self.until is None or leaf.occurred_at < self.until)
        )

    def run(
        self, reader: LogReader, *, newest_first: bool = False, start: int = 0, end: int | None = None, progress: Progress | None = None
    ) -> Iterator[Found]:
        """Yield what matches among entries ``start`` up to ``end`` of the published tree. Raises ``LogError``.

        ``progress`` is told how many of them were looked at, and how many there are.
        """
        size = reader.size()
        end = size if end is None else min(end, size)
        needles, looked = self._needles(), 0
        numbers = range(start // TILE_WIDTH, -(-end // TILE_WIDTH))
        for number in reversed(numbers) if newest_first else numbers:
            rows = list(enumerate(reader.bundle(number, size), start=number * TILE_WIDTH))
            for index, raw in reversed(rows) if newest_first else rows:
                if start <= index < end and all(needle in raw for needle in needles):
                    leaf = Leaf.from_bytes(raw)
                    if self._matches(leaf):
                        yield Found(index, raw, leaf)
            looked += min(end, (number + 1) * TILE_WIDTH) - max(start, number * TILE_WIDTH)
            if progress is not None:
                progress(looked, end - start)


def find_id(reader: LogReader, text: str) -> Found | None:
    """Return the entry with a leaf id, newest first, or None. Reads the log until it is found."""
    for found in Query(text=text).run(reader, newest_first=True):
        if found.leaf.id == text:
            return found
    return None
