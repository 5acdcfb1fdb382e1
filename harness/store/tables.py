# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables of a history, for SQLAlchemy Core.

``harness/store/migrations`` makes them; a test holds the two together. To change a table, change it here and add a
migration with the next number, and raise :data:`HEAD`.

A row of ``outcomes`` is there from when a cell is planned; until it is judged its verdict is NULL. Its key is run, cell
and host: a cell is in a run once for each host, whoever writes it and however often.
"""

from __future__ import annotations

import sqlalchemy as sa

#: The migration that these tables are those of.
HEAD = "0003"

metadata = sa.MetaData()

#: A host as it was in some run; another kernel makes another row.
hosts = sa.Table(
    "hosts",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),  # empty where the run did not say
    sa.Column("sha256", sa.String(64), nullable=False, unique=True),  # of name and facts
    sa.Column("facts", sa.Text, nullable=False),  # JSON
)

#: A QEMU binary.
builds = sa.Table(
    "builds",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("version", sa.Text, nullable=False),
    sa.Column("build", sa.Text, nullable=False),  # the distribution's
    sa.Column("path", sa.Text, nullable=False),  # where it was seen first
    sa.Column("label", sa.Text, nullable=False),  # by which cells named it first
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("started", sa.Text, nullable=False),  # ISO 8601, UTC, seconds: sorts as text
    sa.Column("command", sa.Text, nullable=False),  # JSON, a list
    sa.Column("program", sa.Text, nullable=False),  # version of postload
    sa.Column("host_id", sa.Integer, sa.ForeignKey("hosts.id"), nullable=False),
    sa.Column("folder", sa.Text, nullable=False),  # absolute path on that host, empty where nobody knows
    sa.Column("state", sa.String(16), nullable=False),  # of harness.store.write.RunState
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("alive", sa.Float, nullable=False),  # when it last wrote, in seconds since 1970 by its host's clock
)

#: The answer for a machine type on a QEMU.
machines = sa.Table(
    "machines",
    metadata,
    sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("machine", sa.Text, primary_key=True),
    sa.Column("loader_id", sa.Integer, sa.ForeignKey("builds.id"), primary_key=True),
    sa.Column("recorder_id", sa.Integer, sa.ForeignKey("builds.id"), primary_key=True),
    sa.Column("colo", sa.String(16), nullable=False),
    sa.Column("document", sa.Text, nullable=False),  # JSON, as in machines of matrix.json
    sqlite_with_rowid=False,
)

cells = sa.Table(
    "cells",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key", sa.Text, nullable=False, unique=True),
    sa.Column("line", sa.Text, nullable=False),  # CellKey.line
    sa.Column("recorder", sa.Text, nullable=False),
    sa.Column("loader", sa.Text, nullable=False),
    sa.Column("machine", sa.Text, nullable=False),
    sa.Column("device", sa.Text, nullable=False),
    sa.Column("phases", sa.Text, nullable=False),
    sa.Column("lane", sa.Text, nullable=False),
    sa.Index("cells_line", "line"),
    sa.Index("cells_device", "device"),
)

signatures = sa.Table(
    "signatures",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("function", sa.Text, nullable=False),
    sa.Column("assertion", sa.Text, nullable=False),
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("section", sa.Text, nullable=False),
    sa.Column("family", sa.Text, nullable=False),
    # of runs that were pruned, the first that had it; empty where none was
    sa.Column("first_run", sa.Text, nullable=False, server_default=""),
    sa.Column("first_seen", sa.Text, nullable=False, server_default=""),
)

outcomes = sa.Table(
    "outcomes",
    metadata,
    sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("cell_id", sa.Integer, sa.ForeignKey("cells.id"), primary_key=True),
    sa.Column("host_id", sa.Integer, sa.ForeignKey("hosts.id"), primary_key=True),
    sa.Column("verdict", sa.String(16)),  # NULL: planned, and not judged
    sa.Column("failure_class", sa.String(24)),
    sa.Column("signature_id", sa.Integer, sa.ForeignKey("signatures.id")),
    sa.Column("loader_id", sa.Integer, sa.ForeignKey("builds.id")),
    sa.Column("recorder_id", sa.Integer, sa.ForeignKey("builds.id")),
    sa.Column("known", sa.Text),  # link of the known issue that it is
    sa.Column("seen", sa.Integer),  # of ``tries`` sessions it came in so many; NULL: not repeated
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

#: Whole cells as in ``cells`` of matrix.json, of all that are not plainly ok: JSON, compressed with zstandard.
logs = sa.Table(
    "logs",
    metadata,
    sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("cell_id", sa.Integer, sa.ForeignKey("cells.id"), primary_key=True),
    sa.Column("host_id", sa.Integer, sa.ForeignKey("hosts.id"), primary_key=True),
    sa.Column("cell", sa.LargeBinary, nullable=False),
)

#: Speeds by name, each with its control in the same run: what is compared is their ratio.
rates = sa.Table(
    "rates",
    metadata,
    sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("kind", sa.String(32), primary_key=True),  # of harness.store.write.RateKind
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("value", sa.Float, nullable=False),
    sa.Column("control", sa.Float, nullable=False),
    sa.Column("samples", sa.Integer, nullable=False),
    sqlite_with_rowid=False,
)

#: What of a run's findings does not count, and until when.
excuses = sa.Table(
    "excuses",
    metadata,
    sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), primary_key=True),
    sa.Column("kind", sa.String(16), primary_key=True),  # of harness.store.states.ExcuseKind
    sa.Column("line", sa.Text, primary_key=True),  # CellKey.line; empty for any
    sa.Column("signature", sa.Text, primary_key=True),  # its name
    sa.Column("link", sa.Text, primary_key=True),  # empty where nobody wrote of it
    sa.Column("until", sa.String(10), nullable=False),  # the last day, ISO 8601; empty for no day
    sqlite_with_rowid=False,
)

#: What the reproducer of a finding said of a build.
reproductions = sa.Table(
    "reproductions",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("signature_id", sa.Integer, sa.ForeignKey("signatures.id"), nullable=False),
    sa.Column("build_id", sa.Integer, sa.ForeignKey("builds.id"), nullable=False),
    sa.Column("label", sa.Text, nullable=False),  # by which cells name that build
    sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id")),  # that it was asked for
    sa.Column("at", sa.Text, nullable=False),  # ISO 8601, UTC
    sa.Column("answer", sa.String(16), nullable=False),  # of harness.store.states.Reproduced
    sa.Column("script", sa.Text, nullable=False),  # folder of the bundle, empty where nobody kept it
    sa.Index("reproductions_signature", "signature_id"),
)

#: Runs with a name of their own, such as ``baseline``.
marks = sa.Table(
    "marks",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), nullable=False),
)
