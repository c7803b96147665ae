"""The newest qualification of each node's GPUs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.create_table(
        "qualifications",
        sa.Column("node", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["node"], ["nodes.id"]),
        sa.PrimaryKeyConstraint("node"),
    )


def downgrade() -> None:
    """Take this step back."""
    op.drop_table("qualifications")
