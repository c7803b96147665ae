"""Alembic's entry: run the migrations on the connection that ``Database.migrate`` hands over."""

from __future__ import annotations

from alembic import context

from sandbox.control.database.models import Base

_connection = context.config.attributes["connection"]
context.configure(connection=_connection, target_metadata=Base.metadata, render_as_batch=_connection.dialect.name == "sqlite")
with context.begin_transaction():
    context.run_migrations()
