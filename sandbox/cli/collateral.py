"""``sealrig evidence collateral``: what vendors sign about their devices, kept with its own dates, for use without a network."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sandbox.cli.console import console
from sandbox.cli.context import state

if TYPE_CHECKING:
    from attestation.verify.cache import CollateralCache, Item

app = typer.Typer(help="Keep revocation lists, OCSP responses, Intel's tables and NVIDIA's references, each with its signed validity.")
CacheOption = Annotated[
    Path | None,
    typer.Option("--cache", metavar="DIR", help="The folder of collateral. [in your state folder]", file_okay=False, show_default=False),
]
AtOption = Annotated[str | None, typer.Option("--at", metavar="TIME", help="The moment that counts; the default is now.")]


def open_cache(folder: Path | None) -> CollateralCache:
    """Open the cache of ``--cache`` or of the state folder."""
    from attestation.verify.cache import CollateralCache

    return CollateralCache(folder or state().folder / "collateral")


def moment(text: str | None) -> datetime:
    """Read ``--at``. Raises ``UsageError``."""
    from sandbox.errors import UsageError

    if text is None:
        return datetime.now(UTC)
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            "not a time", rule="at", seen=text[:100], wanted="RFC 3339", fix="write for example 2026-01-31T12:00:00Z"
        ) from error
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


@app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Files as their vendors publish them.", exists=True, dir_okay=False)],
    cache: CacheOption = None,
    at: AtOption = None,
) -> None:
    """Keep files whose signatures hold and that are valid; they are used by 'evidence verify' and by the release agent."""
    from attestation.verify.cache import MAX_ITEM_BYTES

    folder, when, rows = open_cache(cache), moment(at), []
    for path in files:
        with path.open("rb") as file:
            rows.append(_row(folder.add(file.read(MAX_ITEM_BYTES + 1), when)))
    console().emit({"collateral": rows}, lambda: console().table(rows))


@app.command("list")
def list_(cache: CacheOption = None, at: AtOption = None) -> None:
    """List what is kept: what each file is about, who signed it, and until when it is valid."""
    when = moment(at)
    rows = [{**_row(item), "problem": problem} for item, problem in open_cache(cache).items(when)]
    console().emit({"collateral": rows}, lambda: console().table(rows, empty="nothing is kept; see 'sealrig evidence collateral import'"))


@app.command("check")
def check(
    cache: CacheOption = None,
    at: AtOption = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what cannot be used any more.")] = False,
) -> None:
    """Say whether all that is kept can be used; of what cannot, say what to fetch and where."""
    from attestation.errors import VerificationError

    folder, when = open_cache(cache), moment(at)
    found = folder.items(when)
    bad = [(item, problem) for item, problem in found if problem]
    rows = [{**_row(item), "problem": problem, "fix": item.fix if problem else ""} for item, problem in found]
    if remove:
        for item, _ in bad:
            folder.remove(item)
    document = {"ok": not bad, "collateral": rows, "removed": len(bad) if remove else 0}
    if bad and not remove:
        item, problem = bad[0]
        error = VerificationError(
            f"{len(bad)} of {len(found)} files of collateral cannot be used", rule="collateral", seen=f"{item.about}: {problem}"[:300],
            wanted="collateral that is valid now", fix=item.fix,
        )  # fmt: skip
        console().fail(document, error)
    console().emit(document, f"{len(bad)} removed" if bad else f"ok: {len(found)} files")


def _row(item: Item) -> dict[str, Any]:
    from attestation.document import time_text

    until = time_text(item.until) if item.until is not None else "not stated"
    return {
        "kind": item.kind,
        "about": item.about,
        "since": time_text(item.since),
        "until": until,
        "signer": item.signer,
        "digest": item.digest,
    }
