"""What an upload is made of, where its parts were sent side by side."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    with op.batch_alter_table("uploads", schema=None) as batch_op:
        batch_op.add_column(sa.Column("parts", sa.JSON(), nullable=False, server_default="[]"))


def downgrade() -> None:
    """Take this step back."""
    with op.batch_alter_table("uploads", schema=None) as batch_op:
        batch_op.drop_column("parts")
