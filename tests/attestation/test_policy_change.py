"""A change of policy: entry, document and texts belong together or do not verify."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.canonical import sha256_digest
from attestation.errors import AttestationError, VerificationError
from attestation.log.leaf import DocumentRef, Leaf
from attestation.policy_change import MAX_COMPARED_LINES, POLICY_CHANGE_MEDIA, PolicyChange, describe_change, verify_change

AT = datetime(2026, 11, 1, tzinfo=UTC)
TENANT = "tenant-" + "1" * 32
OLD, NEW = b"kind: Policy\nmemory: 4Gi\n", b"kind: Policy\nmemory: 1Gi\n"


def leaf(document: bytes, *, kind="policy.applied", tenant=TENANT):
    return Leaf(
        type=kind, occurred_at=AT, recorded_at=AT, actor_ref="server", resource_ref=TENANT, action="applied",
        outcome="done", tenant_ref=tenant, evidence=DocumentRef(sha256_digest(document), POLICY_CHANGE_MEDIA),
    )  # fmt: skip


@pytest.mark.parametrize("before", [OLD, None])
def test_a_true_change_verifies(before):
    raw = describe_change(TENANT, before, NEW).to_payload()
    change = verify_change(raw, leaf(raw), before, NEW)
    assert change.before == (None if before is None else sha256_digest(before))
    assert "+memory: 1Gi" in change.diff.splitlines()
    assert ("-memory: 4Gi" in change.diff.splitlines()) is (before is not None)


RAW = describe_change(TENANT, OLD, NEW).to_payload()
FOREIGN = describe_change("tenant-" + "2" * 32, OLD, NEW).to_payload()
LYING = PolicyChange(salt="0" * 64, tenant_ref=TENANT, before=sha256_digest(OLD), after=sha256_digest(NEW), diff="").to_payload()


@pytest.mark.parametrize(
    ("document", "entry", "before", "after", "step"),
    [
        (RAW, leaf(RAW, kind="token.issued"), OLD, NEW, "entry"),
        (RAW, leaf(LYING), OLD, NEW, "evidence"),
        (FOREIGN, leaf(FOREIGN), OLD, NEW, "tenant"),
        (RAW, leaf(RAW, tenant="tenant-" + "2" * 32), OLD, NEW, "tenant"),
        (RAW, leaf(RAW), NEW, NEW, "before"),
        (RAW, leaf(RAW), None, NEW, "before"),
        (RAW, leaf(RAW), OLD, OLD, "after"),
        (LYING, leaf(LYING), OLD, NEW, "diff"),
    ],
)
def test_what_does_not_belong_together_is_named(document, entry, before, after, step):
    with pytest.raises(VerificationError) as caught:
        verify_change(document, entry, before, after)
    assert caught.value.details["rule"] == step


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw):
    with contextlib.suppress(AttestationError):
        assert PolicyChange.from_payload(raw).to_payload() == raw


@given(st.text(alphabet="a\n#", max_size=60), st.text(alphabet="a\n#", max_size=60))
def test_the_difference_is_empty_only_where_there_is_none(old, new):
    diff = describe_change(TENANT, old.encode(), new.encode()).diff
    assert (diff == "") is (old.splitlines() == new.splitlines())


def test_very_long_texts_are_taken_out_and_put_in_whole():
    old, new = (b"".join(b"#%d\n" % (number * step) for number in range(MAX_COMPARED_LINES + 1)) for step in (1, 7))
    lines = describe_change(TENANT, old, new).diff.splitlines()
    assert lines[:2] == [f"--- {sha256_digest(old)}", f"+++ {sha256_digest(new)}"]
    assert [line[1:].encode() for line in lines if line.startswith("-")][1:] == old.splitlines()
    assert [line[1:].encode() for line in lines if line.startswith("+")][1:] == new.splitlines()
