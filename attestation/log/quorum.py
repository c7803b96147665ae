"""Asks witnesses for their cosignatures before a checkpoint is published; too few and it is not."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from attestation.errors import LogError
from attestation.log.errors import NoteError, NoteSignatureError, QuorumError
from attestation.log.note import Checkpoint, Note, NoteSignature, NoteVerifier
from attestation.log.reader import LogReader
from attestation.log.witness import MAX_BODY_BYTES
from attestation.signing import b64encode

TIMEOUT_SECONDS = 5.0
_TRIES = 2  # the first try may learn from a 409 which size the witness saw last


@dataclass(frozen=True)
class WitnessPlace:
    """A witness: its submission prefix, and the key that its cosignatures must verify with."""

    url: str
    verifier: NoteVerifier


class Quorum:
    """Collects cosignatures, at least ``wanted``; give it to ``LogWriter.open`` as ``cosign``. For one thread.

    ``reader`` reads the log's own folder, where the tiles stand before witnesses are asked.
    """

    def __init__(self, reader: LogReader, witnesses: Sequence[WitnessPlace], wanted: int, client: httpx.Client | None = None) -> None:
        """Raise ``QuorumError`` if more are wanted than there are."""
        if not 0 <= wanted <= len(witnesses):
            raise QuorumError("more witnesses are wanted than named", rule="quorum-size", seen=f"{len(witnesses)}", wanted=f"≥ {wanted}")
        self._reader, self._witnesses, self._wanted = reader, tuple(witnesses), wanted
        self._client = client or httpx.Client(timeout=TIMEOUT_SECONDS)
        self._seen: dict[WitnessPlace, int] = {}

    def __call__(self, note: str, _published: int) -> list[str]:
        """Return the cosignature lines for a signed checkpoint. Raises ``QuorumError``."""
        lines, problems = [], []
        with ThreadPoolExecutor(max(1, len(self._witnesses))) as pool:
            for place, answer in zip(self._witnesses, pool.map(lambda place: self._ask(place, note), self._witnesses), strict=True):
                if isinstance(answer, NoteSignature):
                    lines.append(answer.line)
                else:
                    problems.append(f"{place.verifier.name}: {answer}")
        if len(lines) < self._wanted:
            raise QuorumError(
                "too few witnesses cosigned",
                rule="quorum-lost",
                seen=f"{len(lines)} ({'; '.join(problems)})"[:500],
                wanted=f"≥ {self._wanted}",
                fix="bring the witnesses back; the entries are kept and published as soon as enough agree",
            )
        return lines

    def _ask(self, place: WitnessPlace, note: str) -> NoteSignature | str:
        """Return a witness's cosignature, or why there is none."""
        checkpoint = Checkpoint.parse(Note.parse(note).text)
        try:
            for _ in range(_TRIES):
                old = self._seen.get(place, 0)
                answer = self._client.post(f"{place.url.rstrip('/')}/add-checkpoint", content=self._body(old, checkpoint.size, note))
                if answer.status_code == httpx.codes.OK:
                    self._seen[place] = checkpoint.size
                    return _cosignature(place.verifier, note, answer.content)
                if (
                    answer.status_code != httpx.codes.CONFLICT
                    or not answer.text.strip().isdigit()
                    or int(answer.text[:20]) > checkpoint.size
                ):
                    break
                self._seen[place] = int(answer.text[:20])
            return f"{answer.status_code} {answer.text[:80].strip()}"
        except (httpx.HTTPError, LogError) as error:
            return f"{type(error).__name__}: {error}"[:200]

    def _body(self, old: int, size: int, note: str) -> str:
        proof = self._reader.consistency(old, size)
        return "".join(f"{line}\n" for line in (f"old {old}", *map(b64encode, proof), "")) + note


def _cosignature(verifier: NoteVerifier, note: str, answer: bytes) -> NoteSignature:
    """Return the line of the witness that was asked, once it verifies. Raises ``NoteError`` or ``NoteSignatureError``."""
    if len(answer) > MAX_BODY_BYTES:
        raise NoteError("a witness answered too much", rule="witness-size", seen=f"{len(answer)} bytes", wanted=f"≤ {MAX_BODY_BYTES} bytes")
    text = Note.parse(note).text
    for signature in Note.parse(text.encode() + b"\n" + answer).signatures:
        if (signature.name, signature.key_id) == (verifier.name, verifier.key_id):
            verifier.check(text, signature)
            return signature
    raise NoteSignatureError("a witness answered without its signature", rule="signature-unknown", seen="other keys", wanted=verifier.text)
