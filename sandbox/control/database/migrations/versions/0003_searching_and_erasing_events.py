"""Columns and indexes to search events by, the values they commit to, and when a tenant was erased."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_SEARCHED = ("type", "actor", "tenant_ref", "resource", "outcome", "evidence", "occurred_at")
_BATCH = 1000


def upgrade() -> None:
    """Apply this step."""
    op.add_column("tenants", sa.Column("erased_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("events", sa.Column("outcome", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("events", sa.Column("evidence", sa.String(length=96), nullable=True))
    _fill()
    op.drop_index("events_resource", table_name="events")
    op.drop_index("events_tenant", table_name="events")
    logged = sa.text("log_index IS NOT NULL")
    for column in _SEARCHED:
        op.create_index(f"events_by_{column}", "events", [column, "log_index"], sqlite_where=logged, postgresql_where=logged)
    op.create_table(
        "committed",
        sa.Column("leaf_id", sa.String(length=64), nullable=False),
        sa.Column("field", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["leaf_id"], ["events.leaf_id"]),
        sa.PrimaryKeyConstraint("leaf_id", "field"),
    )
    op.create_index("ix_committed_subject", "committed", ["subject"])


def _fill() -> None:
    """Take outcome and evidence of earlier events from their leaves."""
    events = sa.table("events", sa.column("id"), sa.column("leaf"), sa.column("outcome"), sa.column("evidence"))
    change = events.update().where(events.c.id == sa.bindparam("row")).values(outcome=sa.bindparam("said"), evidence=sa.bindparam("proof"))
    connection, last = op.get_bind(), 0
    while rows := connection.execute(
        sa.select(events.c.id, events.c.leaf).where(events.c.id > last).order_by(events.c.id).limit(_BATCH)
    ).all():
        last = rows[-1].id
        told = [(row.id, json.loads(row.leaf)) for row in rows]
        connection.execute(
            change,
            [{"row": id_, "said": leaf["outcome"], "proof": leaf["evidence"] and leaf["evidence"]["digest"]} for id_, leaf in told],
        )
