"""``sealrig seal``, ``open``, ``inspect`` and ``cat``: bundles on this machine."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sandbox.cli.console import console, counted, shown
from sandbox.cli.context import KeyOption, PassphraseOption, ServerOption, identity, state
from sandbox.cli.stored import Stored, StoredArgument, find, opened
from sandbox.errors import LimitError, UsageError

MAX_JSON_CAT_BYTES = 64 * 1024 * 1024
_RANGE = re.compile(r"(\d{0,18})-(\d{0,18})")

BundleArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A bundle made by 'sealrig seal'.", exists=True, dir_okay=False)]


def seal(
    sources: Annotated[
        list[Path], typer.Argument(metavar="SRC...", help="Files and folders. One folder alone: its contents.", exists=True)
    ],
    out_file: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The bundle; an existing file is kept.")],
    key: KeyOption = None,
    label: Annotated[list[str] | None, typer.Option("--label", metavar="K=V", help="A public label; may be given several times.")] = None,
    recipient: Annotated[
        list[Path] | None, typer.Option("--to", metavar="FILE", help="Another identity.pub that can open it; may be given several times.")
    ] = None,
    lenient: Annotated[
        bool, typer.Option("--lenient", help="Leave out sockets, devices and links out of the tree instead of refusing.")
    ] = False,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Seal files and folders into one bundle that only you (and --to) can open. Labels, size and recipients stay visible to all."""
    from policies.units import format_size
    from sandbox.sealing.bundle import seal as seal_bundle
    from sandbox.sealing.keys import load_public

    out = console()
    me = identity(key, passphrase_file)
    recipients = [me.public, *(load_public(path) for path in recipient or ())]
    with out.progress("sealing") as progress:
        done = seal_bundle(
            sources, out_file, recipients=recipients, signer=me.signing_key, labels=_labels(label or []), progress=progress, lenient=lenient
        )
    try:
        state().remember_file(done.digest, done.path)
    except (OSError, UsageError) as error:
        # The bundle is whole; all that is lost is that the release agent reads it once from the server before it hands out its key.
        out.warn(f"the bundle is sealed, but this was not noted for the release agent: {error}")
    for skipped in done.skipped:
        out.warn(f"left out: {skipped}")
    document = {
        "bundle": str(done.path), "digest": done.digest, "size": done.size, "files": done.files, "plaintext_size": done.plaintext_size,
        "skipped": list(done.skipped),
    }  # fmt: skip
    out.emit(
        document,
        f"{done.digest}  {done.path}  {counted(done.files, 'file')}, {format_size(done.plaintext_size)} sealed in {format_size(done.size)}",
    )


def open_(
    file: BundleArgument,
    dest: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the files go; an empty or new folder.")],
    key: KeyOption = None,
    passphrase_file: PassphraseOption = None,
) -> None:
    """Open a bundle back to files, byte for byte. Nothing stands in DIR unless all of it was verified."""
    from policies.units import format_size
    from sandbox.sealing.bundle import open_bundle

    out = console()
    me = identity(key, passphrase_file)
    with out.progress("opening") as progress:
        opened = open_bundle(file, dest, key=me, progress=progress)
    document = {
        "path": str(dest),
        "files": opened.files,
        "size": opened.size,
        "signer": opened.header.signer.text,
        "labels": dict(opened.header.labels),
    }
    out.emit(document, f"{counted(opened.files, 'file')}, {format_size(opened.size)}, in {dest}")


def inspect(file: BundleArgument, key: KeyOption = None, passphrase_file: PassphraseOption = None) -> None:
    """Show what anybody can see of a bundle; with --key also the files inside. Only --key proves that it opens."""
    from sandbox.sealing.algorithms import SUITE_NAME
    from sandbox.sealing.bundle import BundleReader, FileSource, read_header

    out = console()
    with FileSource(file) as source:
        header = read_header(source.read_at(0, min(source.size, 64 * 1024)))
        header.require_size(source.size)
        document: dict[str, Any] = {
            "bundle": str(file), "size": source.size, "id": header.core.id, "suite": SUITE_NAME, "created_at": header.core.created_at,
            "signer": header.signer.text, "recipients": [each.to for each in header.recipients], "labels": dict(header.labels),
        }  # fmt: skip
        if key is not None:
            entries = BundleReader(source, identity(key, passphrase_file)).entries().values()
            document["entries"] = [
                {"path": entry.name, "kind": entry.kind.value, "size": entry.size, "mode": f"{entry.mode:04o}"} for entry in entries
            ]
    out.emit(document, lambda: _print_inspected(document))


def cat(
    bundle: StoredArgument,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file inside the bundle.")],
    span: Annotated[
        str | None,
        typer.Option(
            "--range", metavar="A-B", help="Bytes A to B, counted from 0, both included; A- to the end, -N the last N.", show_default=False
        ),
    ] = None,
    key: KeyOption = None,
    passphrase_file: PassphraseOption = None,
    server: ServerOption = None,
) -> None:
    """Print one file from inside a bundle, without reading, fetching or decrypting the rest."""
    from attestation.signing import b64encode
    from sandbox.sealing.bundle import BundleReader

    out = console()
    place = find(bundle, server)
    me = identity(key, passphrase_file)
    with opened(place) as source:
        reader = BundleReader(source, me, **(place.insists(me) if isinstance(place, Stored) else {}))
        size = reader.entry(path).size
        start, end = _span(span, size)
        if not out.json:
            for piece in reader.read(path, start, end):
                sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            return
        if end - start > MAX_JSON_CAT_BYTES:
            raise LimitError(
                "too much for one JSON document",
                rule="cat-json",
                seen=f"{end - start} bytes",
                wanted=f"≤ {MAX_JSON_CAT_BYTES} bytes",
                fix="leave --json out, or ask for a smaller --range",
            )
        data = b"".join(reader.read(path, start, end))
    out.emit({"path": path, "size": size, "start": start, "end": start + len(data), "data": b64encode(data)})


def _labels(pairs: list[str]) -> dict[str, str]:
    labels: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name or name in labels:
            raise UsageError(
                "a label is K=V, each K once", rule="label", seen=pair[:100], wanted="K=V", fix="for example --label team=vision"
            )
        labels[name] = value
    return labels


def _span(text: str | None, size: int) -> tuple[int, int]:
    """Return (start, end without it) for ``A-B``, ``A-`` and ``-N`` as HTTP means them (RFC 9110, 14.1.2)."""
    if text is None:
        return 0, size
    match = _RANGE.fullmatch(text)
    if match is None or match.groups() == ("", "") or (match[1] and match[2] and int(match[1]) > int(match[2])):
        raise UsageError("not a range", rule="range", seen=text[:60], wanted="A-B, A- or -N", fix="for example --range 0-1023")
    if not match[1]:
        return max(0, size - int(match[2])), size
    start = int(match[1])
    if start >= size and size:
        raise UsageError("the range starts after the end", rule="range", seen=text[:60], wanted=f"0 to {size - 1}", fix="correct --range")
    return min(start, size), min(int(match[2]) + 1, size) if match[2] else size


def _print_inspected(document: dict[str, Any]) -> None:
    out = console()
    out.fields({name: value for name, value in document.items() if name not in {"entries", "labels"}})
    for name, value in document["labels"].items():
        out.print(f"label       {shown(name)}={shown(value)}")
    for entry in document.get("entries", ()):
        out.print(
            f"  {entry['mode']} {entry['size']:>14} {shown(entry['path'])}{'' if entry['kind'] == 'file' else ' (' + entry['kind'] + ')'}"
        )
    if "entries" not in document:
        out.say("names and contents of files are sealed; --key shows them to who may open it")
