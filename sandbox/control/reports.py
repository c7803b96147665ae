"""What a node may say of a lease, and how each word is checked before the lease moves.

Every report is a DSSE envelope by the key the node registered with. A report for the state that the lease is in already is the same as
once, so that a node may repeat itself after any cut.

``attested``    evidence by the node's key that answers this lease, nonce, job, policy and plan; graded, and the policy asked again
``running``     nothing more
``collecting``  nothing more
``wiping``      how the job ended, the run record, and the sealed result, which must have arrived before
the end         wipe report and certificate by the node's key; the state must be the one that follows from them
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import ValidationError
from sqlalchemy.orm import Session

from attestation.canonical import parse_json, sha256_digest
from attestation.certificate import CERTIFICATE_PAYLOAD_TYPE, verify_certificate
from attestation.evidence import EVIDENCE_PAYLOAD_TYPE, Evidence
from attestation.log.leaf import DocumentRef
from attestation.run import RUN_PAYLOAD_TYPE, RunRecord
from attestation.shape import place_of
from attestation.signing import Envelope, VerifyKey, b64decode
from attestation.verify import Expected
from attestation.wipe import WIPE_PAYLOAD_TYPE, WipeReport
from sandbox.control.access import SERVER, Caller
from sandbox.control.admission import admit_again
from sandbox.control.core import Control
from sandbox.control.database.models import BundleOwnerRow, LeaseRow, NodeRow, ReportRow, TransitionRow
from sandbox.control.grading import grade
from sandbox.control.nodes import CHANGED, own_node, set_node_state
from sandbox.control.story import ask_end, no_lease, require_state
from sandbox.control.transitions import DSSE, PLAN_MEDIA, advance, keep, keep_report
from sandbox.errors import InputError, StateError
from sandbox.lifecycle import TERMINAL, LeaseState, Outcome, check_transition, end_state
from sandbox.wire import REPORT_PAYLOAD_TYPE, DocumentKind, NodeReport

S = LeaseState
MADE_GOOD = "made-good"
"""Where the certificate of a later, proven wipe of a quarantined lease is kept among its reports."""


def take_report(control: Control, caller: Caller, node_id: str, lease_id: str, envelope: Envelope) -> None:
    """Check one report and move the lease. Raises ``SignatureError``, ``InputError``, ``StateError`` or ``NotFoundError``."""
    with control.database.write() as session:
        node = own_node(session, caller, node_id)
        key = VerifyKey.from_text(node.public_key)
        report = _parse(envelope.verify(REPORT_PAYLOAD_TYPE, [key]))
        if (report.node, report.lease) != (node_id, lease_id):
            raise InputError(
                "this report is about something else",
                rule="report-subject",
                seen=f"{report.node} {report.lease}",
                wanted=f"{node_id} {lease_id}",
                fix="report to the lease's own address",
            )
        lease = session.get(LeaseRow, lease_id, with_for_update=True)
        if lease is None or lease.node != node_id:
            raise no_lease(lease_id)
        documents = {kind: b64decode(data) for kind, data in report.documents.items()}
        said = _Said(control, session, node, key, report, envelope.to_bytes(), documents)
        if lease.state != report.state.value:
            check_transition(lease_id, LeaseState(lease.state), report.state)
            _STEPS[report.state](said, lease)
        elif report.state is S.QUARANTINED:
            _make_good(said, lease)
    control.acknowledge(lease_id, f"node:{node_id}", "queue", "waiting", CHANGED)


@dataclass(frozen=True)
class _Said:
    """One verified report with all that is needed to act on it."""

    control: Control
    session: Session
    node: NodeRow
    key: VerifyKey
    report: NodeReport
    raw: bytes
    documents: dict[DocumentKind, bytes]

    def only(self, *kinds: DocumentKind) -> None:
        """Raise ``InputError`` unless the report carries exactly these documents."""
        if set(self.documents) != set(kinds):
            raise InputError(
                "a report with other documents than its state needs",
                rule="report-documents",
                seen=", ".join(sorted(self.documents)) or "none",
                wanted=", ".join(kinds) or "none",
                fix="send what this step produced",
            )

    def signed(self, kind: DocumentKind, payload_type: str) -> tuple[Envelope, bytes]:
        """Return a document's envelope and its payload once the node is proven to have signed it, in its one spelling."""
        envelope = Envelope.from_bytes(self.documents[kind])
        if envelope.to_bytes() != self.documents[kind]:
            raise InputError(
                f"the {kind} is not in canonical form",
                rule="report-canonical",
                seen="another spelling",
                wanted="RFC 8785 JSON",
                fix="send Envelope.to_bytes()",
            )
        return envelope, envelope.verify(payload_type, [self.key])

    def same(self, kind: str, **pairs: tuple[object, object]) -> None:
        """Raise ``InputError`` naming the first pair (seen, wanted) that differs."""
        for name, (seen, wanted) in pairs.items():
            if seen != wanted:
                raise InputError(
                    f"the {kind} does not fit this lease",
                    rule=f"{kind}-{name.replace('_', '-')}",
                    seen=str(seen)[:200],
                    wanted=str(wanted)[:200],
                    fix="make it anew for this lease",
                )


def _parse(payload: bytes) -> NodeReport:
    parse_json(payload)  # no duplicate keys
    try:
        return NodeReport.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            "not a report",
            rule="report-schema",
            seen=place_of(NodeReport, first["loc"])[:200],
            wanted=first["msg"][:200],
            fix="run the same version on node and server",
        ) from None


def _attested(said: _Said, lease: LeaseRow) -> None:
    said.only("evidence", "plan")
    require_state(lease, S.PLACED)
    if lease.nonce is None:
        raise StateError(
            "the customer's agent has not asked yet", rule="nonce", seen="no nonce", wanted="a nonce", fix="wait for the nonce"
        )
    envelope, payload = said.signed("evidence", EVIDENCE_PAYLOAD_TYPE)
    evidence = Evidence.from_payload(payload)
    said.same(
        "evidence",
        lease=(evidence.lease, lease.id),
        node=(evidence.node, said.node.id),
        node_key=(evidence.node_key, said.node.public_key),
        nonce=(evidence.nonce, lease.nonce),
        job=(evidence.job_digest, lease.job_digest),
        policy=(evidence.policy_digest, lease.policy_digest),
        image=(evidence.image, lease.image),
        plan=(evidence.plan_digest, sha256_digest(said.documents["plan"])),
    )
    ref = keep(said.session, lease.id, "evidence", said.documents["evidence"])
    keep(said.session, lease.id, "plan", said.documents["plan"], PLAN_MEDIA)
    expected = Expected(
        lease=lease.id, nonce=lease.nonce, job_digest=lease.job_digest, policy_digest=lease.policy_digest, image=lease.image,
        plan=said.documents["plan"], history=None,
    )  # fmt: skip
    graded = grade(said.control.settings.trust, envelope, expected, at=said.control.now())
    _advance(
        said,
        lease,
        ref,
        level=graded.level.label,
        deadline=said.control.now() + timedelta(seconds=said.control.settings.limits.release_seconds),
    )
    admission = admit_again(said.session, lease, evidence, graded.level)
    if not admission.allowed:
        lease.denials = [each.model_dump() for each in (*admission.reasons, *graded.reasons)]
        ask_end(said.control, said.session, lease, Outcome.DENIED, actor=SERVER)


def _onward(said: _Said, lease: LeaseRow) -> None:
    said.only()
    _advance(said, lease, None)


def _wiping(said: _Said, lease: LeaseRow) -> None:
    report = said.report
    if report.outcome is None:
        raise InputError(
            "a report of wiping says how the job ended",
            rule="report-outcome",
            seen="no outcome",
            wanted="an outcome",
            fix="send the outcome",
        )
    ref = None
    if said.documents:
        said.only("run")
        _, payload = said.signed("run", RUN_PAYLOAD_TYPE)
        run = RunRecord.from_payload(payload)
        said.same(
            "run",
            lease=(run.lease, lease.id),
            node=(run.node, said.node.id),
            image=(run.image, lease.image),
            result=(run.result, report.result),
        )
        ref = keep(said.session, lease.id, "run", said.documents["run"])
    elif lease.state not in {S.PLACED, S.ATTESTED}:
        said.only("run")
    if report.result is not None and said.session.get(BundleOwnerRow, (lease.tenant, report.result)) is None:
        raise InputError(
            "the result has not arrived",
            rule="report-result",
            seen=report.result,
            wanted="a bundle uploaded for this lease",
            fix="upload it first",
        )
    _advance(
        said,
        lease,
        ref,
        state_before_wipe=lease.state,
        outcome=report.outcome.value,
        exit_code=report.exit_code,
        result=report.result,
        deadline=None,
        detail=report.detail,
    )


def _end(said: _Said, lease: LeaseRow) -> None:
    wipe = _wiped(said, lease)
    before, outcome = LeaseState(str(lease.state_before_wipe)), Outcome(str(lease.outcome))
    said.same("wipe", end=(said.report.state.value, end_state(before, outcome, proven=wipe.proven).value))
    keep(said.session, lease.id, "wipe", said.documents["wipe"])
    ref = keep(said.session, lease.id, "certificate", said.documents["certificate"])
    _advance(said, lease, ref, ending=None)
    if said.report.state is S.QUARANTINED:
        failed = ", ".join(step.step for step in wipe.failed)[:500] or "a medium or GPU"
        reason = f"lease {lease.id}: not proven: {failed}"
        set_node_state(said.control, said.session, said.node, "quarantined", reason, actor=said.node.id, evidence=ref)


def _wiped(said: _Said, lease: LeaseRow) -> WipeReport:
    """Return the wipe report once it and the certificate over it are proven to be the node's, and of this lease."""
    said.only("wipe", "certificate")
    _, payload = said.signed("wipe", WIPE_PAYLOAD_TYPE)
    wipe = WipeReport.from_payload(payload)
    said.same("wipe", lease=(wipe.lease, lease.id), node=(wipe.node, said.node.id))
    envelope, _ = said.signed("certificate", CERTIFICATE_PAYLOAD_TYPE)
    certificate = verify_certificate(envelope, said.key)
    predicate = certificate.predicate
    said.same(
        "certificate",
        lease=(predicate.lease, lease.id),
        node=(predicate.node, said.node.id),
        wipe=(certificate.documents.get("wipe"), sha256_digest(said.documents["wipe"])),
        result=(predicate.result == "sanitized", wipe.proven),
    )
    return wipe


def _make_good(said: _Said, lease: LeaseRow) -> None:
    """Take the proof that what a quarantined lease left was wiped after all, once the operator has lifted the quarantine.

    The lease stays ``quarantined`` for ever; the audit log's ``node.restored`` names the certificate, so that everybody can see that the
    node is clean again. Repeating the report that put the node into quarantine changes nothing.
    """
    if said.node.state != "ready" or not said.documents or said.session.get(ReportRow, (lease.id, MADE_GOOD)) is not None:
        return
    if not _wiped(said, lease).proven:
        return
    data = said.documents["certificate"]
    said.session.add(ReportRow(lease=lease.id, state=MADE_GOOD, digest=sha256_digest(data), data=data))
    evidence = DocumentRef(sha256_digest(data), DSSE)
    occurred, at = _occurred_at(said, lease), said.control.now()
    event = said.control.journal.record(
        said.session, "node.restored", actor=said.node.id, tenant_ref=None, resource=said.node.id, at=at, evidence=evidence,
        occurred_at=occurred,
    )  # fmt: skip
    # The lease's history shows it too; from there the node learns which log entry its next evidence has to name.
    said.session.add(TransitionRow(lease=lease.id, state=lease.state, at=at, detail=said.report.detail[:2000], event=event))


def _advance(said: _Said, lease: LeaseRow, ref: DocumentRef | None, **changes: object) -> None:
    """Move the lease; the node's report itself is the proof where the step brought no document of its own."""
    report_ref = keep_report(said.session, lease.id, said.report.state, said.raw)
    advance(
        said.control,
        said.session,
        lease,
        said.report.state,
        actor=said.node.id,
        evidence=ref or report_ref,
        history_detail=said.report.detail,
        occurred_at=_occurred_at(said, lease),
        **changes,
    )


def _occurred_at(said: _Said, lease: LeaseRow) -> datetime:
    """Return when the node says that it happened, within what the server knows: after the lease's last step, and not after now."""
    return min(max(said.report.at, lease.updated_at), said.control.now())


_STEPS: dict[LeaseState, Callable[[_Said, LeaseRow], None]] = {
    S.ATTESTED: _attested, S.RUNNING: _onward, S.COLLECTING: _onward, S.WIPING: _wiping, **dict.fromkeys(TERMINAL, _end),
}  # fmt: skip
