"""Exchanges the key of a log."""

from __future__ import annotations

from datetime import datetime

from attestation.canonical import sha256_digest
from attestation.log.errors import LogStoreError
from attestation.log.keychain import HEADER, LEAF_TYPE
from attestation.log.leaf import DocumentRef, Leaf, leaf_id
from attestation.log.note import NoteVerifier, sign_note
from attestation.log.places import LogPlaces
from attestation.log.state import open_stores
from attestation.log.writer import hold
from attestation.signing import SigningKey

MEDIA_TYPE = "text/vnd.sealrig.log-key"


def rotate_key(places: LogPlaces, *, origin: str, old: SigningKey, new: SigningKey, at: datetime) -> str:
    """Hand the log over from ``old`` to ``new``; return the note of it. No writer may be open.

    Nothing is published here: whether witnesses must agree first is for the log's next writer to know.

    A crash before the handover is decided leaves the old key in charge (and an entry about a handover that did not
    happen); after it the new one. Raises ``LogStoreError``.
    """
    held = hold(places.held)
    try:
        stores = open_stores(places, origin, old)
        try:
            size = stores.size + 1
            text = "".join(f"{line}\n" for line in (HEADER, origin, str(size), NoteVerifier(origin, new.public).text))
            note = sign_note(text, origin, (old, new))
            leaf = Leaf(
                LEAF_TYPE,
                at,
                at,
                "server",
                sha256_digest(new.public.raw),
                "rotate",
                "done",
                None,
                DocumentRef(sha256_digest(text.encode()), MEDIA_TYPE),
            )
            raw = leaf.to_bytes()
            stores.rotate(new, (leaf_id(raw), raw), note.whole)
        finally:
            stores.close()
    finally:
        held.close()
    return note.whole


def is_key_of(places: LogPlaces, *, origin: str, key: SigningKey) -> bool:
    """Say whether the log at ``places`` belongs to ``key``. No writer may be open, and nothing is published. Raises ``LogStoreError``."""
    held = hold(places.held)
    try:
        open_stores(places, origin, key).close()
    except LogStoreError as error:
        if error.details.get("rule") != "store-key":
            raise
        return False
    finally:
        held.close()
    return True
