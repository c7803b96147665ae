"""Asks witnesses for their cosignatures before a checkpoint is published; too few and it is not."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import httpx

from attestation.log.errors import NoteError, NoteSignatureError, PolicyError, QuorumError
from attestation.log.note import Checkpoint, Note, NoteSignature, NoteVerifier
from attestation.log.policy import WitnessPlace, WitnessPolicy
from attestation.log.reader import LogReader
from attestation.log.witness import MAX_BODY_BYTES
from attestation.signing import b64encode

TIMEOUT_SECONDS = 5.0
LINGER_SECONDS = 0.1
"""How long a quorum that is complete waits for the other witnesses."""
_SIZE = re.compile(rb"[0-9]{1,19}\n?")
_TRIES = 2  # the first try may learn from a 409 which size the witness saw last


@dataclass(frozen=True)
class WitnessAnswer:
    """How a witness answered last: POSIX time, and what was wrong, if anything."""

    at: float
    problem: str = ""


class Quorum:
    """Collects cosignatures until ``policy`` is satisfied; give it to ``LogWriter.open`` as ``cosign``. For one thread.

    ``reader`` reads the log's own files, where the tiles stand before witnesses are asked. A witness that is slow keeps nobody waiting
    once the others are a quorum, and is asked again when it has answered.
    """

    def __init__(self, reader: LogReader, policy: WitnessPolicy, client: httpx.Client | None = None) -> None:
        """Raise ``PolicyError`` for a witness without an address."""
        for name, place in policy.witnesses.items():
            if not place.url.startswith(("http://", "https://")):
                raise PolicyError(
                    f"the witness {name} has no address", rule="policy-url", seen=place.url or "none", wanted="its submission prefix (URL)"
                )
        self._reader, self._policy = reader, policy
        self._client = client or httpx.Client(timeout=TIMEOUT_SECONDS)
        self._seen: dict[str, int] = {}
        self._proving = threading.Lock()
        self._busy: dict[str, Future[NoteSignature | str]] = {}
        self._answers: dict[str, WitnessAnswer] = {}
        self._pool = ThreadPoolExecutor(max(1, len(policy.witnesses)), thread_name_prefix="log-witness")

    @property
    def answers(self) -> Mapping[str, WitnessAnswer]:
        """How each witness answered last, by its name in the policy. From any thread."""
        return dict(self._answers)

    def close(self) -> None:
        """End the connections; what is under way ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def __call__(self, note: str) -> list[str]:
        """Return the cosignature lines for a signed checkpoint. Raises ``QuorumError``."""
        asked: dict[Future[NoteSignature | str], str] = {}
        for name, place in self._policy.witnesses.items():
            if name not in self._busy or self._busy[name].done():
                self._busy[name] = self._pool.submit(self._ask, name, place, note)
                asked[self._busy[name]] = name
        found: dict[NoteVerifier, str] = {}
        until = time.monotonic() + _TRIES * TIMEOUT_SECONDS
        while asked and time.monotonic() < until:
            done, _ = wait(asked, max(0.0, until - time.monotonic()), FIRST_COMPLETED)
            for future in done:
                name, answer = asked.pop(future), future.result()
                if isinstance(answer, NoteSignature):
                    found[self._policy.witnesses[name].verifier] = answer.line
                self._answers[name] = WitnessAnswer(time.time(), answer if isinstance(answer, str) else "")
            if self._policy.satisfied(found):
                until = min(until, time.monotonic() + LINGER_SECONDS)
        if not self._policy.satisfied(found):
            missing = [name for name, place in self._policy.witnesses.items() if place.verifier not in found]
            problems = [f"{name}: {self._answers[name].problem if name in self._answers else 'no answer'}" for name in missing]
            raise QuorumError(
                "too few witnesses cosigned",
                rule="quorum-lost",
                seen=f"{len(found)} ({'; '.join(problems)})"[:500],
                wanted=f"the quorum {self._policy.quorum}",
                fix="bring the witnesses back; the entries are kept and published as soon as enough agree",
            )
        return list(found.values())

    def _ask(self, name: str, place: WitnessPlace, note: str) -> NoteSignature | str:
        """Return a witness's cosignature, or why there is none."""
        checkpoint = Checkpoint.parse(Note.parse(note).text)
        try:
            for _ in range(_TRIES):
                old = self._seen.get(name, 0)
                status, answer = self._post(f"{place.url.rstrip('/')}/add-checkpoint", self._body(old, checkpoint.size, note))
                if status == httpx.codes.OK:
                    self._seen[name] = checkpoint.size
                    return _cosignature(place.verifier, note, answer)
                if status != httpx.codes.CONFLICT or _SIZE.fullmatch(answer) is None or int(answer) > checkpoint.size:
                    break
                self._seen[name] = int(answer)
            return f"{status} {answer[:80].decode(errors='replace').strip()}"
        except Exception as error:  # noqa: BLE001  (whatever one witness does or says, the others may still be a quorum)
            return f"{type(error).__name__}: {error}"[:200]

    def _post(self, url: str, body: str) -> tuple[int, bytes]:
        """Return status and answer, as sent and no longer than an answer may be. Raises ``NoteError`` or ``httpx.HTTPError``."""
        raw = bytearray()
        # Not decoded: a few compressed bytes could become any number.
        with self._client.stream("POST", url, content=body, headers={"Accept-Encoding": "identity"}) as answer:
            for part in answer.iter_raw():
                raw += part
                if len(raw) > MAX_BODY_BYTES:
                    raise NoteError("a witness answered too much", rule="witness-size", seen="more", wanted=f"≤ {MAX_BODY_BYTES} bytes")
        return answer.status_code, bytes(raw)

    def _body(self, old: int, size: int, note: str) -> str:
        with self._proving:  # the reader remembers tiles, for one thread at a time
            proof = self._reader.consistency(old, size)
        return "".join(f"{line}\n" for line in (f"old {old}", *map(b64encode, proof), "")) + note


def _cosignature(verifier: NoteVerifier, note: str, answer: bytes) -> NoteSignature:
    """Return the line of the witness that was asked, once it verifies. Raises ``NoteError`` or ``NoteSignatureError``."""
    text = Note.parse(note).text
    for signature in Note.parse(text.encode() + b"\n" + answer).signatures:
        if (signature.name, signature.key_id) == (verifier.name, verifier.key_id):
            verifier.check(text, signature)
            return signature
    raise NoteSignatureError("a witness answered without its signature", rule="signature-unknown", seen="other keys", wanted=verifier.text)
