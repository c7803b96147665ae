"""A receipt as one printable page of HTML that needs nothing else: no script, no network, no other file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape

from attestation.certificate import Predicate, Sanitized
from attestation.document import time_text
from attestation.errors import Step
from attestation.receipt import ReceiptResult
from attestation.run import RunRecord
from attestation.wipe import WipeReport

_STYLE = """
:root { color-scheme: light; font: 11pt/1.45 Georgia, serif; color: #14181f; }
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; background: #fff; }
h1 { font-size: 1.5rem; margin-bottom: .25rem; } h2 { font-size: 1.1rem; margin: 1.75rem 0 .5rem; border-bottom: 1px solid #999; }
p.verdict { font-size: 1.1rem; padding: .5rem .75rem; border: 2px solid; } p.held { color: #12703a; } p.failed { color: #b3261e; }
dl { display: grid; grid-template-columns: 11rem 1fr; gap: .2rem 1rem; margin: 0; } dt { color: #555; }
dd { margin: 0; overflow-wrap: anywhere; } table { border-collapse: collapse; width: 100%; font-size: .88em; }
th, td { text-align: left; vertical-align: top; padding: .25rem .5rem .25rem 0; border-bottom: 1px solid #ddd; overflow-wrap: anywhere; }
thead { display: table-header-group; } tr { break-inside: avoid; }
code { font: .9em ui-monospace, monospace; } footer { margin-top: 2rem; color: #555; }
@media print { body { margin: 0; max-width: none; } @page { margin: 2cm; } }
"""

_FOOTER = (
    "<footer>Anybody can repeat this: <code>sealrig receipt verify FILE --trust TRUST.yaml</code>. "
    "Each document is signed by its maker; each log entry carries a proof of its place in a tree whose root the log signed.</footer>"
)


def receipt_page(result: ReceiptResult, *, digest: str, trust_digest: str, at: datetime) -> str:
    """Return the page for a verified (or refused) receipt.

    ``digest`` is of the receipt's bytes, ``trust_digest`` of the trust file it was checked against, ``at`` when that was.
    """
    failed = [step for step in result.steps if not step.ok]
    verdict = (
        f"All {len(result.steps)} checks held."
        if result.ok
        else f"{len(failed)} of {len(result.steps)} checks failed. This proves nothing."
    )
    level = result.appraisal.level.label if result.appraisal is not None else "none: no key was released"
    parts = [
        f"<h1>Receipt of {escape(result.lease)}</h1>",
        f'<p class="verdict {"held" if result.ok else "failed"}">{escape(verdict)}</p>',
        _facts([
            ("Receipt", digest), ("Checked", f"{time_text(at)}, offline"), ("Against trust file", trust_digest), ("Assurance level", level),
        ]),
        *_story(result),
        "<h2>Checks</h2>",
        _table(("", "check", "seen", "wanted", ""), (_check(number, step) for number, step in enumerate(result.steps, 1))),
        _FOOTER,
    ]  # fmt: skip
    title = f"Receipt of {escape(result.lease)}"
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>'
    return f"{head}<body>{''.join(parts)}</body></html>\n"


def _check(number: int, step: Step) -> Sequence[str]:
    return (str(number), step.step, step.seen, step.wanted, "held" if step.ok else "FAILED")


def _story(result: ReceiptResult) -> list[str]:
    found = result.documents
    if found is None:
        return []
    parts: list[str] = []
    if found.job is not None:
        parts += [
            "<h2>The job</h2>",
            _facts([("Customer's key", found.job.customer.text), ("Image", found.job.image), ("Policy", found.job.policy_digest)]),
        ]
    if found.evidence is not None:
        node = found.evidence
        gpus = ", ".join(f"{gpu.name} {gpu.uuid}" for gpu in node.gpus) or "none on this node"
        facts = [
            ("Node", node.node),
            ("Node's key", node.node_key),
            ("Runner", f"{node.runner_version} {node.runner_digest}"),
            ("GPUs", gpus),
        ]
        parts += ["<h2>The node</h2>", _facts([*facts, ("Evidence made", time_text(node.made_at))])]
    if found.run is not None:
        parts += ["<h2>The run</h2>", _run(found.run)]
    if found.certificate is not None:
        parts += ["<h2>Sanitization certificate</h2>", _certificate(found.certificate.predicate)]
    if found.wipe is not None:
        parts += ["<h2>Wipe, step by step</h2>", _wipe(found.wipe)]
    return parts


def _run(run: RunRecord) -> str:
    return _facts([
        ("Started", time_text(run.started_at) if run.started_at else "never"), ("Ended", time_text(run.ended_at)), ("Outcome", run.outcome),
        ("Exit code", "none" if run.exit_code is None else str(run.exit_code)), ("Limit that ended it", run.limit or "none"),
        ("Sealed result", f"{run.result} ({run.result_size} bytes)" if run.result else "none"), ("Sealed log", f"{run.log_chunks} chunks"),
    ])  # fmt: skip


def _certificate(said: Predicate) -> str:
    facts = _facts([
        ("Result", said.result), ("Standard", said.standard), ("Began", time_text(said.started_at)), ("Ended", time_text(said.ended_at)),
        ("Tool", f"{said.tool.name} {said.tool.version}"), ("Performed by", said.performed_by.name),
        ("Verified by", said.verified_by.name if said.verified_by else "nobody but the node"),
        ("Validated by", said.validated_by.name if said.validated_by else "nobody but the node"),
        ("GPUs", said.gpus), ("Limits", said.limits),
    ])  # fmt: skip
    columns = ("medium", "model, serial", "method", "technique", "verification", "proven")
    return facts + _table(columns, (_medium(medium) for medium in said.media))


def _medium(medium: Sanitized) -> Sequence[str]:
    identity = f"{medium.manufacturer} {medium.model}, {medium.serial_number}"
    return (medium.media_type, identity, medium.method, medium.technique, medium.verification_method, "yes" if medium.proven else "NO")


def _wipe(report: WipeReport) -> str:
    rows = ((step.step, step.target, step.action, step.seen, step.wanted, "proven" if step.ok else "NOT PROVEN") for step in report.steps)
    return _table(("step", "of", "what was done", "seen", "wanted", ""), rows)


def _facts(pairs: Iterable[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs) + "</dl>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
