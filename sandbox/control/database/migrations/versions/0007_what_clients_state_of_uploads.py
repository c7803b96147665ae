"""What a client stated of its upload when it began it; null for those from before, and where it stated nothing."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.add_column("uploads", sa.Column("stated", sa.Text(), nullable=True))


def downgrade() -> None:
    """Take this step back."""
    op.drop_column("uploads", "stated")
