# SPDX-License-Identifier: GPL-2.0-or-later
"""Alembic runs this; the connection comes from :func:`harness.store.engine.open_store`, which holds the transaction."""

from __future__ import annotations

from alembic import context

from harness.store.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
