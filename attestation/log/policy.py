"""Which witnesses must have cosigned: the policy file of c2sp.org/tlog-policy."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from attestation.log.errors import PolicyError
from attestation.log.note import COSIGNATURE, NoteVerifier
from attestation.shape import shape

MAX_POLICY_BYTES = 64 * 1024
MAX_NAMES = 64
NONE = "none"


@dataclass(frozen=True)
class WitnessPlace:
    """A witness: its submission prefix, and the key that its cosignatures must verify with."""

    url: str
    verifier: NoteVerifier


@dataclass(frozen=True)
class Group:
    """At least ``least`` of the members (witnesses or groups, by their names in the policy) must have witnessed."""

    least: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class WitnessPolicy:
    """Logs and witnesses that are known, groups of witnesses, and the name of what must have witnessed (``none``: nobody)."""

    logs: tuple[NoteVerifier, ...] = ()
    witnesses: Mapping[str, WitnessPlace] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    quorum: str = NONE

    @classmethod
    def at_least(cls, least: int, witnesses: Sequence[WitnessPlace]) -> Self:
        """Return the policy that wants ``least`` of the witnesses, whichever. Raises ``PolicyError`` if there are fewer."""
        named = {f"w{number}": place for number, place in enumerate(witnesses, start=1)}
        if not least:
            return cls(witnesses=named)
        if least > len(witnesses):
            raise PolicyError("more witnesses are wanted than named", rule="quorum-size", seen=str(len(witnesses)), wanted=f"≥ {least}")
        return cls(witnesses=named, groups={"all": Group(least, tuple(named))}, quorum="all")

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """Read a policy file. Raises ``PolicyError``, which names the line, or ``NoteError`` for a key."""
        if len(raw) > MAX_POLICY_BYTES:
            raise PolicyError("a policy is too large", rule="policy-size", seen=f"{len(raw)} bytes", wanted=f"≤ {MAX_POLICY_BYTES} bytes")
        if any((byte < 0x20 and byte not in b"\t\n") or byte == 0x7F for byte in raw):
            raise PolicyError("a policy has control characters", rule="policy-bytes", seen="one", wanted="text, tabs and newlines")
        reading = _Reading()
        # Octets beyond ASCII are opaque: Latin-1 keeps each as it is.
        for number, line in enumerate(raw.decode("latin-1").split("\n"), start=1):
            words = line.replace("\t", " ").split(" ")
            words = [word for word in words if word]
            if words and not words[0].startswith("#"):
                reading.take(number, words)
        if reading.quorum is None:
            raise PolicyError("a policy has no quorum", rule="policy-quorum", seen="no quorum line", wanted="quorum NAME, or quorum none")
        return cls(tuple(reading.logs), reading.witnesses, reading.groups, reading.quorum)

    @property
    def verifiers(self) -> tuple[NoteVerifier, ...]:
        """The witnesses' keys."""
        return tuple(place.verifier for place in self.witnesses.values())

    def satisfied(self, cosigned: Collection[NoteVerifier]) -> bool:
        """Say whether these witnesses are a quorum."""
        return self.quorum == NONE or self._witnessed(self.quorum, cosigned)

    def _witnessed(self, name: str, cosigned: Collection[NoteVerifier]) -> bool:
        if name in self.witnesses:
            return self.witnesses[name].verifier in cosigned
        group = self.groups[name]
        return sum(self._witnessed(member, cosigned) for member in group.members) >= group.least


class _Reading:
    """What the lines so far said."""

    def __init__(self) -> None:
        self.logs: list[NoteVerifier] = []
        self.witnesses: dict[str, WitnessPlace] = {}
        self.groups: dict[str, Group] = {}
        self.quorum: str | None = None
        self._members: set[str] = set()

    def take(self, number: int, words: list[str]) -> None:
        """Take one line."""
        kinds: dict[str, tuple[Callable[[int, list[str]], None], int, int]] = {
            "log": (self._log, 1, 2),
            "witness": (self._witness, 2, 3),
            "group": (self._group, 3, MAX_NAMES),
            "quorum": (self._quorum, 1, 1),
        }
        kind, *rest = words
        if kind not in kinds:
            raise _wrong(number, shape(kind), " or ".join(kinds))
        read, least, most = kinds[kind]
        if not least <= len(rest) <= most:
            raise _wrong(number, f"{kind} with {len(rest)} words", f"{least} to {most} words")
        read(number, rest)

    def _log(self, number: int, words: list[str]) -> None:
        verifier = NoteVerifier.from_text(words[0])
        if verifier.kind == COSIGNATURE or any(verifier.key == each.key for each in self.logs):
            raise _wrong(number, words[0], "another log's key")
        self.logs.append(verifier)

    def _witness(self, number: int, words: list[str]) -> None:
        self._require_new(number, words[0])
        verifier = NoteVerifier.from_text(words[1])
        if verifier.kind != COSIGNATURE or any(verifier.key == each.verifier.key for each in self.witnesses.values()):
            raise _wrong(number, words[1], "another witness's key (type 04)")
        self.witnesses[words[0]] = WitnessPlace(words[2] if len(words) > 2 else "", verifier)

    def _group(self, number: int, words: list[str]) -> None:
        name, threshold, *members = words
        self._require_new(number, name)
        for member in members:
            if member not in self.witnesses and member not in self.groups:
                raise _wrong(number, member, "a witness or group named above")
            if member in self._members:
                raise _wrong(number, f"{member} again", "each name in one group at most, once")
            self._members.add(member)
        least = {"any": "1", "all": str(len(members))}.get(threshold, threshold)
        if not least.isascii() or not least.isdigit() or least[0] == "0" or not 1 <= int(least[:4]) <= len(members):
            raise _wrong(number, threshold, f"any, all, or 1 to {len(members)}")
        self.groups[name] = Group(int(least), tuple(members))

    def _quorum(self, number: int, words: list[str]) -> None:
        (name,) = words
        if self.quorum is not None:
            raise _wrong(number, "a second quorum line", "one")
        if name != NONE and name not in self.witnesses and name not in self.groups:
            raise _wrong(number, name, "none, or a witness or group named above")
        self.quorum = name

    def _require_new(self, number: int, name: str) -> None:
        if name == NONE or name in self.witnesses or name in self.groups or len(self.witnesses) + len(self.groups) == MAX_NAMES:
            raise _wrong(number, name, f"a name that is not used yet, {MAX_NAMES} at most")


def _wrong(number: int, seen: str, wanted: str) -> PolicyError:
    return PolicyError(f"line {number} of a policy is not understood", rule="policy-line", seen=seen[:120], wanted=wanted)
