"""What a node tells of its GPUs, in words. It is the node's word, of any shape: nothing of it is relied on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MAX_WORDS = 60
_MOST = 32


def gpu_words(gpu: Mapping[str, Any]) -> dict[str, str]:
    """Return link, memory errors, heat, set-up and origin of one GPU of an inventory; ``not told`` for what is not in it."""
    link, errors, heat = (_part(gpu, name) for name in ("link", "errors", "thermals"))
    return {
        "link": _words(
            ("gen {} x{}", link.get("generation"), link.get("width")),
            ("of gen {} x{}", link.get("generation_most"), link.get("width_most")),
        ),
        "errors": _words(
            ("ECC {}", _switch(errors.get("ecc"))),
            ("{} uncorrected", errors.get("uncorrected")),
            ("{} corrected", errors.get("corrected")),
            ("{} pages retired", errors.get("retired_pages")),
            ("{} rows remapped", errors.get("remapped_rows")),
            *((words, True if errors.get(name) is True else None) for name, words in _TROUBLES.items()),
        ),
        "thermals": _words(
            ("{} °C", heat.get("temperature")),
            ("{} of {} W", heat.get("power"), heat.get("power_limit")),
            *(("held back: {}", reason) for reason in _list(heat.get("throttled_by"))),
        ),
        "setup": _words(("MIG {}", _switch(gpu.get("mig"))), ("{} NVLinks", gpu.get("nvlinks")), ("part of {}", gpu.get("parent") or None)),
        "origin": _words(*((text, gpu.get(name) or None) for text, name in (("{}", "driver"), ("VBIOS {}", "vbios"), ("{}", "serial")))),
    }


_TROUBLES = {
    "retirement_pending": "retirement pending",
    "remapping_pending": "remapping pending",
    "remapping_failed": "remapping failed",
}


def driver_words(inventory: Mapping[str, Any]) -> str:
    """Return what an inventory tells of NVIDIA's driver: version, confidential computing, and the module's parameters."""
    driver = _part(inventory, "gpuDriver")
    parameters = list(_part(driver, "parameters").items())[:_MOST]
    return _words(
        ("{}", driver.get("version") or None),
        ("confidential computing {}", _switch(driver.get("confidential"))),
        *(("{}={}", name, value) for name, value in parameters),
    )


def _part(tree: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return part if isinstance(part := tree.get(name), dict) else {}


def _list(value: object) -> list[object]:
    return value[:_MOST] if isinstance(value, list) else []


def _switch(value: object) -> str | None:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else None


def _words(*parts: tuple[object, ...]) -> str:
    said = [str(text).format(*(str(value)[:_MAX_WORDS] for value in values)) for text, *values in parts if None not in values]
    return ", ".join(said) or "not told"
