"""A node's GPUs on the console: rows of a table, and a small plot of what was measured (SVG, styled by the style sheet alone)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from attestation.qualification import Card, Measurement
from sandbox.control.fitness import UNKNOWN
from sandbox.told import gpu_words
from sandbox.wire import NodeInfo

_DRAWN = {
    "memory-bandwidth": "Memory bandwidth",
    "matmul-fp32": "Products, fp32",
    "matmul-fp16": "Products, fp16",
    "link-to-device": "Link to the card",
}
_MARKS = {"training": "", "inference": "!", "unfit": "x"}
"""Said beside the value, so that colour is not the only sign."""
_LEFT, _CELL, _GAP, _TOP, _ROW, _BAR = 190, 190, 8, 34, 30, 12
_MAX_ROWS = 64
_DECADES = (-1.0, 1.5)
"""The scale: from a tenth of the inference floor to thirty times of it."""


def gpu_rows(node: NodeInfo) -> list[dict[str, object]]:
    """Return what the table shows of each GPU in the node's own inventory. It is the node's word, of any shape: nothing is relied on."""
    told = node.inventory.get("gpus")
    cards = {card.uuid: card for card in node.qualification.cards} if node.qualification else {}
    rows = [_row(gpu, cards) for gpu in told[:_MAX_ROWS] if isinstance(gpu, dict)] if isinstance(told, list) else []
    known = {row["uuid"] for row in rows}
    return rows + [_row({"uuid": uuid}, cards) for uuid in node.capacity.gpus if uuid not in known]


def _row(gpu: Mapping[str, Any], cards: Mapping[str, Card]) -> dict[str, object]:
    uuid, memory = str(gpu.get("uuid", ""))[:100], gpu.get("memory")
    card = cards.get(uuid)
    return {
        "uuid": uuid,
        "name": str(gpu.get("name", "GPU"))[:200],
        "memory": memory if isinstance(memory, int) and memory >= 0 else 0,
        "grade": card.grade if card else UNKNOWN,
        "reasons": card.reasons if card else (),
        **gpu_words(gpu),
    }


def plot_cards(name: str, cards: Sequence[Card]) -> Markup:
    """Draw the cards, a row each. ``name`` makes the ids of the drawing's title and description its own."""
    width, height = _LEFT + len(_DRAWN) * (_CELL + _GAP), _TOP + _ROW * len(cards) + 4
    parts = [
        Markup('<svg role="img" viewBox="0 0 {} {}" aria-labelledby="{}-title {}-text">').format(width, height, name, name),
        Markup('<title id="{}-title">{}</title>').format(name, "What this rig's GPUs reach"),
        Markup('<desc id="{}-text">{}</desc>').format(name, _described(cards)),
    ]
    for column, title in enumerate(_DRAWN.values()):
        parts.append(_text(_LEFT + column * (_CELL + _GAP), _TOP - 14, title, "soft"))
    for number, card in enumerate(cards):
        top = _TOP + number * _ROW
        parts.append(_text(0, top + 11, f"{card.name[:24]} {card.uuid[-4:]}", ""))
        found = {item.id: item for item in card.measurements}
        for column, measured in enumerate(_DRAWN):
            if measured in found:
                parts.append(_bar(_LEFT + column * (_CELL + _GAP), top, found[measured]))
    return Markup("").join([*parts, Markup("</svg>")])


def _bar(left: float, top: float, item: Measurement) -> Markup:
    wide = _CELL - 90
    value = "not measured" if item.seen is None else f"{item.seen:.3g} {item.unit} {_MARKS[item.fits]}".rstrip()
    parts = [Markup('<rect class="track" x="{}" y="{}" width="{}" height="{}" rx="2"/>').format(left, top, wide, _BAR)]
    if item.seen is not None and item.inference:
        long = wide * _share(item.seen / item.inference)
        parts.append(
            Markup('<rect class="{}" x="{}" y="{}" width="{:.1f}" height="{}" rx="2"/>').format(item.fits, left, top, max(long, 2), _BAR)
        )
        for floor, kind in ((item.inference, "floor least"), (item.training, "floor")):
            if floor:
                at = left + wide * _share(floor / item.inference)
                parts.append(
                    Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(kind, at, at, top - 3, top + _BAR + 3)
                )
    parts.append(_text(left + wide + 6, top + 10, value, ""))
    return Markup("").join(parts)


def _share(times: float) -> float:
    low, high = _DECADES
    return min(1.0, max(0.0, (math.log10(max(times, 1e-9)) - low) / (high - low)))


def _text(x: float, y: float, words: str, kind: str) -> Markup:
    return Markup('<text x="{}" y="{}" class="{}">{}</text>').format(x, y, kind, words)


def _described(cards: Sequence[Card]) -> Markup:
    words = []
    for card in cards:
        found = {item.id: item for item in card.measurements}
        values = (f"{title} {found[name].seen} {found[name].unit}" for name, title in _DRAWN.items() if name in found)
        words.append(f"{card.name} {card.uuid}: {card.grade}; {', '.join(values)}.")
    return escape(" ".join(words))
