"""Reading untrusted binary evidence: every length is checked before it is used, and nothing may be left over."""

from __future__ import annotations

from typing import Literal

from attestation.errors import FormatError, LimitError


class BinaryReader:
    """A cursor over bytes. Raises ``FormatError`` rather than read past the end."""

    def __init__(self, data: bytes, what: str, order: Literal["big", "little"]) -> None:
        """Start at the first byte of ``data``; ``what`` names the structure in errors."""
        self._data, self._what, self._order, self._at = data, what, order, 0

    @property
    def left(self) -> int:
        """How many bytes were not read yet."""
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        """Return the next ``count`` bytes."""
        if count > self.left:
            raise FormatError(f"{self._what} ends too early", seen=f"{self.left} bytes at offset {self._at}", wanted=f"{count} bytes")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        """Return the next unsigned number of ``size`` bytes."""
        return int.from_bytes(self.take(size), self._order)

    def sized(self, *, limit: int, size: int = 2) -> bytes:
        """Return bytes that stand behind their own length (``size`` bytes), of at most ``limit``."""
        count = self.number(size)
        if count > limit:
            raise LimitError(f"a field of {self._what} is too long", seen=f"{count} bytes", wanted=f"≤ {limit} bytes")
        return self.take(count)

    def end(self) -> None:
        """Require that nothing is left."""
        if self.left:
            raise FormatError(f"{self._what} has bytes after its end", seen=f"{self.left} bytes", wanted="none")
