"""The memory that a lease wants of each of its GPUs; leases from before are placed as they were, by the number of GPUs alone."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply this step."""
    op.add_column("leases", sa.Column("gpu_memory", sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Take this step back."""
    op.drop_column("leases", "gpu_memory")
