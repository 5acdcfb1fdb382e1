# SPDX-License-Identifier: GPL-2.0-or-later
"""Signatures remember when they were seen first, whatever is pruned; further looks at a cell are of its line."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("signatures", sa.Column("first_run", sa.Text, nullable=False, server_default=""))
    op.add_column("signatures", sa.Column("first_seen", sa.Text, nullable=False, server_default=""))
    cells = sa.table("cells", sa.column("id"), sa.column("line"))
    connection = op.get_bind()
    for row in connection.execute(sa.select(cells).where(cells.c.line.contains("+rest"))).all():
        line = row.line.rpartition("+rest")[0]
        connection.execute(cells.update().where(cells.c.id == row.id).values(line=line))
