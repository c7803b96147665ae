"""The names in a folder, sorted, in bounded memory: there are folders with millions."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from sandbox.sealing.spool import Spool

RUN_NAMES = 100_000
"""Sorted in memory at once, at about 80 bytes a name; more than that goes, run by run, to spools and is merged from there."""


def sorted_names(place: bytes, beside: Path) -> Iterator[bytes]:
    """Return the names in the folder ``place``, sorted; all of them were read when this returns. Spools are made in ``beside``.

    Raises ``OSError`` if the folder cannot be read, ``InputError`` if a spool cannot be written; while iterating, if it cannot be read.
    """
    with os.scandir(place) as found, ExitStack() as stack:
        listed = (entry.name for entry in found)
        run = sorted(islice(listed, RUN_NAMES))
        if len(run) < RUN_NAMES:
            return iter(run)
        spools: list[Spool] = []
        while run:
            spools.append(stack.enter_context(Spool(beside)))
            for name in run:
                spools[-1].append(name)
            run = sorted(islice(listed, RUN_NAMES))
        return _merged(spools, stack.pop_all())


def _merged(spools: list[Spool], stack: ExitStack) -> Iterator[bytes]:
    with stack:
        yield from heapq.merge(*spools)
