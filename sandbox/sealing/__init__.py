"""Sealed bundles and logs: format, streams, key wrap, mount. ``docs/format.md`` describes the bytes; start with ``algorithms``."""
