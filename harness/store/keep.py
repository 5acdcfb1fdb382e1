# SPDX-License-Identifier: GPL-2.0-or-later
"""What is written into a history beside runs: names, answers of reproducers, excuses; and what is taken out of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from harness.errors import UsageError
from harness.results.document import Qemu
from harness.store import tables as t
from harness.store.engine import insert_into, told, writing
from harness.store.read import BASELINE, RunRow
from harness.store.states import Excuse, ExcuseKind, Reproduced
from harness.store.write import RunState, build_row, insert_excuses


def set_mark(engine: sa.Engine, run: RunRow, name: str = BASELINE) -> None:
    """Give a run a name; another run that had it has it no more.

    :raises HostError: the database does not take it
    """
    with told(engine), writing(engine) as connection:
        connection.execute(t.marks.delete().where(t.marks.c.name == name))
        connection.execute(t.marks.insert().values(name=name, run_id=run.number))


def put_reproduction(
    engine: sa.Engine,
    *,
    signature: str,
    qemu: Qemu,
    answer: Reproduced,
    at: str = "",
    run: RunRow | None = None,
    script: str = "",
) -> None:
    """Keep what the reproducer of a finding said of a build: a finding that is gone is fixed only when it says so.

    An answer that is there already stays one.

    :param signature: its name; it was seen in a run of this history
    :param qemu: that the reproducer was run on; ``label`` is how the cells of that build are named
    :param at: ISO 8601 in UTC, now when it is empty
    :param run: that it was asked for
    :param script: folder of its bundle
    :raises UsageError: no such signature was ever seen
    :raises HostError: the database does not take it
    """
    build = build_row(qemu)
    with told(engine), writing(engine) as connection:
        query = sa.select(t.signatures.c.id).where(t.signatures.c.name == signature)
        number = connection.execute(query).scalar()
        if number is None:
            raise UsageError(f"{signature}: no run of this history has such a finding")
        connection.execute(insert_into(engine, t.builds).values(build).on_conflict_do_nothing())
        of_build = sa.select(t.builds.c.id).where(t.builds.c.sha256 == qemu.sha256)
        row: dict[str, Any] = {
            "signature_id": number,
            "build_id": connection.execute(of_build).scalar_one(),
            "label": build["label"],
            "run_id": run.number if run else None,
            "at": at or datetime.now(UTC).isoformat(timespec="seconds"),
            "answer": answer,
            "script": script,
        }
        same = sa.and_(*(t.reproductions.c[name] == row[name] for name in ("signature_id", "build_id", "at", "answer")))
        if connection.execute(sa.select(t.reproductions.c.id).where(same)).first() is None:
            connection.execute(t.reproductions.insert().values(row))


def put_excuses(engine: sa.Engine, run: RunRow, excuses: Iterable[Excuse]) -> None:
    """Keep what of a run's findings does not count, in place of what was kept of that; known issues are kept by the
    run itself.

    :raises HostError: the database does not take it
    """
    own = (t.excuses.c.run_id == run.number) & (t.excuses.c.kind != ExcuseKind.KNOWN)
    with told(engine), writing(engine) as connection:
        connection.execute(t.excuses.delete().where(own))
        insert_excuses(connection, engine, run.number, excuses)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What was taken out, or would be.

    :param runs: names of runs, the oldest first
    :param logs: whole cells of runs that stay
    """

    runs: tuple[str, ...]
    logs: int


def prune(
    engine: sa.Engine,
    *,
    keep_runs: int | None = None,
    keep_days: float | None = None,
    log_days: float | None = None,
    now: datetime | None = None,
    dry_run: bool = False,
) -> Pruned:
    """Take out old runs, and the whole cells of those that stay.

    A run stays when it is one of the last ``keep_runs``, or younger than ``keep_days``, or has a name such as
    ``baseline``, or goes on. Signatures stay, and know when they were seen first.

    :raises HostError: the database does not take it; then nothing was taken out
    """
    now = now or datetime.now(UTC)
    with told(engine), writing(engine) as connection:
        going = _going(connection, keep_runs, keep_days, now)
        old = sa.select(t.runs.c.id).where(t.runs.c.started < _before(now, log_days or 0.0))
        of_logs = t.logs.c.run_id.in_(old) & t.logs.c.run_id.not_in(list(going))
        query = sa.select(sa.func.count()).select_from(t.logs).where(of_logs)
        logs = 0 if log_days is None else connection.execute(query).scalar_one()
        if not dry_run:
            if logs:
                connection.execute(t.logs.delete().where(of_logs))
            for number in going:
                _remove(connection, number)
            _remove_unused(connection)
    return Pruned(runs=tuple(going.values()), logs=logs)


def shrink(engine: sa.Engine) -> None:
    """Give the room of what was taken out back to the disk; PostgreSQL does so by itself.

    :raises HostError: another program is at it
    """
    if engine.dialect.name == "sqlite":
        with told(engine), engine.connect() as connection:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            raw.execute("VACUUM")
            raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _before(now: datetime, days: float) -> str:
    return (now - timedelta(days=days)).astimezone(UTC).isoformat(timespec="seconds")


def _going(connection: sa.Connection, keep_runs: int | None, keep_days: float | None, now: datetime) -> dict[int, str]:
    """Number and name of the runs that go, the oldest first."""
    if keep_runs is None and keep_days is None:
        return {}
    order = (t.runs.c.started, t.runs.c.id)
    rows = connection.execute(sa.select(t.runs).order_by(*order)).all()
    named = set(connection.execute(sa.select(t.marks.c.run_id)).scalars())
    stay = {row.id for row in rows if row.id in named or row.state == RunState.RUNNING}
    if keep_runs is not None:
        stay |= {row.id for row in rows[max(0, len(rows) - keep_runs) :]}
    if keep_days is not None:
        stay |= {row.id for row in rows if row.started >= _before(now, keep_days)}
    return {row.id: row.name for row in rows if row.id not in stay}


def _remove(connection: sa.Connection, number: int) -> None:
    """Take out a run, the oldest first: its signatures keep when it began, unless an older one had them."""
    run = connection.execute(sa.select(t.runs).where(t.runs.c.id == number)).one()
    seen = sa.select(t.outcomes.c.signature_id).where(
        t.outcomes.c.run_id == number, t.outcomes.c.signature_id.is_not(None)
    )
    mine = t.signatures.c.id.in_(seen) & (t.signatures.c.first_seen == "")
    connection.execute(t.signatures.update().where(mine).values(first_run=run.name, first_seen=run.started))
    of_run = t.reproductions.c.run_id == number
    connection.execute(t.reproductions.update().where(of_run).values(run_id=None))
    for table in (t.logs, t.outcomes, t.machines, t.rates, t.excuses):
        connection.execute(table.delete().where(table.c.run_id == number))
    connection.execute(t.runs.delete().where(t.runs.c.id == number))


def _remove_unused(connection: sa.Connection) -> None:
    """Cells that no run has any more; a cell that a writer has just made is of no run for a moment, and stays."""
    used = sa.select(t.outcomes.c.cell_id)
    if connection.execute(sa.select(t.runs.c.id).where(t.runs.c.state == RunState.RUNNING).limit(1)).first() is None:
        connection.execute(t.cells.delete().where(t.cells.c.id.not_in(used)))
