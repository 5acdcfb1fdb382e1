# SPDX-License-Identifier: GPL-2.0-or-later
"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """All tables of a history, none of which is there yet."""
    op.create_table(
        "hosts",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("facts", sa.Text, nullable=False),
    )
    op.create_table(
        "builds",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("sha256", sa.String(64), nullable=False, unique=True),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("build", sa.Text, nullable=False),
        sa.Column("path", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("started", sa.Text, nullable=False),
        sa.Column("command", sa.Text, nullable=False),
        sa.Column("program", sa.Text, nullable=False),
        sa.Column("host_id", sa.Integer, sa.ForeignKey("hosts.id"), nullable=False),
        sa.Column("folder", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("seconds", sa.Float, nullable=False),
        sa.Column("alive", sa.Float, nullable=False),
    )
    op.create_table(
        "machines",
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("machine", sa.Text, primary_key=True),
        sa.Column("loader_id", sa.Integer, sa.ForeignKey("builds.id"), primary_key=True),
        sa.Column("recorder_id", sa.Integer, sa.ForeignKey("builds.id"), primary_key=True),
        sa.Column("colo", sa.String(16), nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "cells",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("key", sa.Text, nullable=False, unique=True),
        sa.Column("line", sa.Text, nullable=False),
        sa.Column("recorder", sa.Text, nullable=False),
        sa.Column("loader", sa.Text, nullable=False),
        sa.Column("machine", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("phases", sa.Text, nullable=False),
        sa.Column("lane", sa.Text, nullable=False),
        sa.Index("cells_line", "line"),
        sa.Index("cells_device", "device"),
    )
    op.create_table(
        "signatures",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("function", sa.Text, nullable=False),
        sa.Column("assertion", sa.Text, nullable=False),
        sa.Column("file", sa.Text, nullable=False),
        sa.Column("section", sa.Text, nullable=False),
        sa.Column("family", sa.Text, nullable=False),
    )
    op.create_table(
        "outcomes",
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("cell_id", sa.Integer, sa.ForeignKey("cells.id"), primary_key=True),
        sa.Column("host_id", sa.Integer, sa.ForeignKey("hosts.id"), primary_key=True),
        sa.Column("verdict", sa.String(16)),
        sa.Column("failure_class", sa.String(24)),
        sa.Column("signature_id", sa.Integer, sa.ForeignKey("signatures.id")),
        sa.Column("loader_id", sa.Integer, sa.ForeignKey("builds.id")),
        sa.Column("recorder_id", sa.Integer, sa.ForeignKey("builds.id")),
        sa.Column("known", sa.Text),
        sa.Column("seen", sa.Integer),
        sa.Column("tries", sa.Integer),
        sa.Column("loads_asked", sa.Integer),
        sa.Column("loads_acked", sa.Integer),
        sa.Column("seconds", sa.Float),
        sa.Column("loads_per_second", sa.Float),
        sa.Index("outcomes_cell", "cell_id", "run_id"),
        sa.Index(
            "outcomes_signature",
            "signature_id",
            "run_id",
            sqlite_where=sa.text("signature_id IS NOT NULL"),
            postgresql_where=sa.text("signature_id IS NOT NULL"),
        ),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "logs",
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("cell_id", sa.Integer, sa.ForeignKey("cells.id"), primary_key=True),
        sa.Column("host_id", sa.Integer, sa.ForeignKey("hosts.id"), primary_key=True),
        sa.Column("cell", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "rates",
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("kind", sa.String(32), primary_key=True),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("value", sa.Float, nullable=False),
        sa.Column("control", sa.Float, nullable=False),
        sa.Column("samples", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "reproductions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("signature_id", sa.Integer, sa.ForeignKey("signatures.id"), nullable=False),
        sa.Column("build_id", sa.Integer, sa.ForeignKey("builds.id"), nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id")),
        sa.Column("at", sa.Text, nullable=False),
        sa.Column("answer", sa.String(16), nullable=False),
        sa.Column("script", sa.Text, nullable=False),
        sa.Index("reproductions_signature", "signature_id"),
    )
    op.create_table(
        "marks",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), nullable=False),
    )
