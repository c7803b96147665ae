"""A signed release: which runner digests a version of the program has on which kinds of machine, and the lock file it is installed from.

An in-toto Statement v1 in a DSSE envelope, signed by whoever publishes the program; its subjects are the runners. A customer accepts a
release once by a key that the trust file lists, and from then on the trust file names its runners.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from attestation.certificate import CERTIFICATE_PAYLOAD_TYPE, STATEMENT_TYPE, DigestSet, Subject
from attestation.document import Document, Moment, Name, Part, Sha256
from attestation.errors import FormatError, SignatureError
from attestation.signing import Envelope, VerifyKey
from attestation.trust import MAX_RUNNERS, AcceptedRelease

RELEASE_PAYLOAD_TYPE = CERTIFICATE_PAYLOAD_TYPE
PREDICATE_TYPE: Final = "https://sealrig.dev/release/v1"
_SHA256 = "sha256:"


class ReleasePredicate(Part):
    """What the publisher says of the runners: their version, the SHA-256 of the lock file, and when this was signed."""

    version: Name
    lock: Sha256
    released_at: Annotated[Moment, Field(alias="releasedAt")]

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True, serialize_by_alias=True)


class ReleaseStatement(Document):
    """The payload of ``RELEASE_PAYLOAD_TYPE``: an in-toto Statement. A subject's name is the kind of machine, its digest the runner's."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True, serialize_by_alias=True)

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")] = STATEMENT_TYPE
    subject: Annotated[tuple[Subject, ...], Field(min_length=1, max_length=MAX_RUNNERS)]
    predicate_type: Annotated[Literal["https://sealrig.dev/release/v1"], Field(alias="predicateType")] = PREDICATE_TYPE
    predicate: ReleasePredicate


def build_release(version: str, lock: str, runners: Mapping[str, str], at: datetime) -> bytes:
    """Return the payload to sign. ``lock`` and the values of ``runners`` (by kind of machine) are ``sha256:…``."""
    subjects = tuple(Subject(name=name, digest=DigestSet(sha256=digest.removeprefix(_SHA256))) for name, digest in sorted(runners.items()))
    return ReleaseStatement(subject=subjects, predicate=ReleasePredicate(version=version, lock=lock, released_at=at)).to_payload()


def verify_release(raw: bytes, keys: Iterable[VerifyKey]) -> AcceptedRelease:
    """Return what a trust file keeps of a release, once one of ``keys`` is proven to have signed it.

    Raises ``SignatureError``, ``FormatError`` or ``LimitError``.
    """
    envelope, accepted = Envelope.from_bytes(raw), tuple(keys)
    for key in accepted:
        try:
            payload = envelope.verify(RELEASE_PAYLOAD_TYPE, [key])
        except SignatureError:
            continue
        return _accepted(ReleaseStatement.from_payload(payload), key)
    raise SignatureError(
        "no release key of the trust file signed this",
        rule="release-key",
        seen=f"{envelope.payload_type} signed by {', '.join(name[:16] for name, _ in envelope.signatures)}",
        wanted=f"{RELEASE_PAYLOAD_TYPE} signed by {', '.join(key.key_id for key in accepted) or 'a listed key'}",
        fix="compare the publisher's key with what you know of it by another way; then list it under 'releases.keys' in the trust file",
    )


def _accepted(statement: ReleaseStatement, key: VerifyKey) -> AcceptedRelease:
    runners = {subject.name: _SHA256 + subject.digest.sha256 for subject in statement.subject}
    if len(runners) != len(statement.subject):
        names = ", ".join(subject.name for subject in statement.subject)
        raise FormatError("the release names a kind of machine twice", rule="release-subjects", seen=names[:200], wanted="each name once")
    said = statement.predicate
    return AcceptedRelease(version=said.version, released_at=said.released_at, key=key.text, lock=said.lock, runners=runners)
