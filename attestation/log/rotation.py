"""Exchanges the key of a log."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from attestation.canonical import sha256_digest
from attestation.log.keychain import HEADER, LEAF_TYPE
from attestation.log.leaf import DocumentRef, Leaf, leaf_id
from attestation.log.note import NoteVerifier, sign_note
from attestation.log.state import open_stores
from attestation.log.writer import hold
from attestation.signing import SigningKey

MEDIA_TYPE = "text/vnd.sealrig.log-key"


def rotate_key(data: Path, *, origin: str, old: SigningKey, new: SigningKey, at: datetime, lock: Path | None = None) -> str:
    """Hand the log under ``data`` over from ``old`` to ``new``; return the note of it. No writer may be open.

    A crash before the handover is decided leaves the old key in charge (and an entry about a handover that did not
    happen); after it the new one. Raises ``LogStoreError``.
    """
    held = hold(data / "log-state")
    try:
        stores = open_stores(data, lock or data / "log-lock", origin, old, None)
        try:
            size = stores.published.size + 1
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
