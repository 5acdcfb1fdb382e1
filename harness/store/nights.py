# SPDX-License-Identifier: GPL-2.0-or-later
"""Many runs at once, as pages show them: what each line of cells came to night by night, and what each run counted.

::

    nights = read_nights(history, last=30)
    nights.shown                       # the last runs, the oldest first: a column of a strip each
    nights.lines["7.2/pc-q35-7.2/ahci/bound/same"].marks        # what it came to in each of them
    nights.tallies[run.number]         # verdicts of that run, by device and route
    nights.remarks[run.number]         # its cells that neither passed nor are unsupported

A history of a million outcomes is read in seconds: the database counts, and only the last runs are read cell by cell.
A run may be written meanwhile: a cell or a signature that it brings behind the others is left for the next time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias

import sqlalchemy as sa

from harness.results.key import route_of
from harness.results.verdict import FINDINGS, FailureClass, Verdict, rank
from harness.store import tables as t
from harness.store.engine import told
from harness.store.read import History, RunRow

#: Rows that are held at a time while many are read.
_FETCH = 20_000


class Missing(StrEnum):
    """Why a night says nothing of a cell."""

    NOT_JUDGED = "not-judged"  # planned, and nobody came to it
    ABSENT = "absent"  # not planned


Mark: TypeAlias = Verdict | Missing

#: What a night shows of several cells is the first of these that one of them came to: what was planned and was not
#: judged hides no finding, and is hidden by no cell that passed.
WORST_FIRST: tuple[Mark, ...] = (
    *sorted(FINDINGS, key=rank),
    Missing.NOT_JUDGED,
    Verdict.HARNESS_ERROR,
    Verdict.HOST,
    Verdict.OK,
    Verdict.UNSUPPORTED,
    Missing.ABSENT,
)
_PLACE: Mapping[str | None, int] = {
    None: WORST_FIRST.index(Missing.NOT_JUDGED),
    **{str(mark): place for place, mark in enumerate(WORST_FIRST)},
}
_ABSENT = len(WORST_FIRST) - 1
#: The order of the primary key, in which SQLite has them.
_BY_CELL = (t.outcomes.c.run_id, t.outcomes.c.cell_id, t.outcomes.c.host_id)
#: Lanes of which rates are compared.
_RATED = ("same", "back-to-back")


class CellName(NamedTuple):
    """A cell by the parts of its key; ``route`` is that of its line, as ``7.2`` or ``7.2>10.0``."""

    number: int
    key: str
    line: str
    route: str
    machine: str
    device: str
    phases: str
    lane: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LineNights:
    """What the cells of one line came to.

    :param cell: the newest of them
    :param marks: one for each run that is shown, the oldest first
    :param signature: of the newest finding in them, empty where there was none
    """

    cell: CellName
    marks: tuple[Mark, ...]
    signature: str

    @property
    def newest(self) -> Mark:
        """What it came to when it was planned last."""
        return newest(self.marks)


class Tally(NamedTuple):
    """So many cells of a device came to one mark."""

    device: str
    route: str
    mark: Mark
    cells: int


class Remark(NamedTuple):
    """A cell of a run that neither passed nor is unsupported.

    :param signature: of its finding, or of what the host did; empty where it has none
    :param known: link of the known issue that it is
    """

    cell: CellName
    mark: Mark
    failure_class: FailureClass | None
    signature: str
    known: str


class RateSample(NamedTuple):
    """The rate of a cell that passed, in loads a second."""

    run: int
    host: int
    cell: CellName
    loads_per_second: float


class MachineColo(NamedTuple):
    """What a run says of a machine type; ``recorder`` and ``qemu`` are labels of the QEMUs that record and load."""

    machine: str
    recorder: str
    qemu: str
    colo: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Nights:
    """Runs of a history side by side; all that is by run has its number.

    :param runs: all, the newest first
    :param shown: the last of them, the oldest first
    :param lines: by name, those that were planned in one of the shown runs
    :param samples: of the shown runs
    """

    runs: tuple[RunRow, ...]
    shown: tuple[RunRow, ...]
    lines: Mapping[str, LineNights]
    tallies: Mapping[int, Sequence[Tally]]
    remarks: Mapping[int, Sequence[Remark]]
    answers: Mapping[int, Sequence[MachineColo]]
    samples: Sequence[RateSample]


def read_nights(history: History, *, last: int) -> Nights:
    """All runs, and the last ones cell by cell.

    :raises HostError: the history cannot be read
    """
    runs = tuple(history.runs())
    shown = tuple(reversed(runs[:last]))
    cells, signatures = _cells(history), _signatures(history)
    lines, samples = _lines(history, shown, cells, signatures)
    return Nights(
        runs=runs,
        shown=shown,
        lines=lines,
        tallies=_tallies(history),
        remarks=_remarks(history, cells, signatures),
        answers=_answers(history),
        samples=samples,
    )


def newest(marks: Sequence[Mark]) -> Mark:
    """The last mark of a night that planned the cell."""
    return next((mark for mark in reversed(marks) if mark is not Missing.ABSENT), Missing.ABSENT)


def worst_of(strips: Sequence[Sequence[Mark]]) -> tuple[Mark, ...]:
    """Several cells night by night: the worst of each night."""
    return tuple(min(night, key=mark_rank) for night in zip(*strips, strict=True))


def mark_rank(mark: Mark) -> int:
    """Position in :data:`WORST_FIRST`."""
    return _PLACE[str(mark)]


def _cells(history: History) -> dict[int, CellName]:
    columns = (t.cells.c[name] for name in ("id", "key", "line", "machine", "device", "phases", "lane"))
    return {
        number: CellName(number, key, line, route_of(line), machine, device, phases, lane)
        for number, key, line, machine, device, phases, lane in _rows(history, sa.select(*columns))
    }


def _signatures(history: History) -> dict[int | None, str]:
    return {
        None: "",
        **dict(_rows(history, sa.select(t.signatures.c.id, t.signatures.c.name))),
    }


def _lines(
    history: History, shown: Sequence[RunRow], cells: Mapping[int, CellName], signatures: Mapping[int | None, str]
) -> tuple[dict[str, LineNights], list[RateSample]]:
    columns = ("run_id", "host_id", "cell_id", "verdict", "signature_id", "loads_per_second")
    query = sa.select(*(t.outcomes.c[name] for name in columns))
    query = query.where(t.outcomes.c.run_id.in_([run.number for run in shown])).order_by(*_BY_CELL)
    nights = {run.number: night for night, run in enumerate(shown)}
    marks: dict[str, bytearray] = {}
    own: dict[str, tuple[int, CellName]] = {}
    found: dict[str, tuple[int, str]] = {}
    samples: list[RateSample] = []
    for run, host, number, verdict, signature, rate in _rows(history, query):
        if number not in cells or signature not in signatures:
            continue
        cell, night, place = cells[number], nights[run], _PLACE[verdict]
        line = marks.setdefault(cell.line, bytearray([_ABSENT]) * len(shown))
        line[night] = min(line[night], place)
        if night >= own.get(cell.line, (-1, cell))[0]:
            own[cell.line] = night, cell
        if signature is not None and night >= found.get(cell.line, (-1, ""))[0]:
            found[cell.line] = night, signatures[signature]
        if rate and verdict == Verdict.OK and cell.lane in _RATED:
            samples.append(RateSample(run, host, cell, rate))
    lines = {
        name: LineNights(
            cell=own[name][1],
            marks=tuple(WORST_FIRST[place] for place in line),
            signature=found.get(name, (0, ""))[1],
        )
        for name, line in marks.items()
    }
    return lines, samples


def _tallies(history: History) -> dict[int, list[Tally]]:
    line = sa.func.min(t.cells.c.line)  # any of them: all are of one route
    query = (
        sa.select(t.outcomes.c.run_id, t.cells.c.device, line, t.outcomes.c.verdict, sa.func.count())
        .join_from(t.outcomes, t.cells)
        .group_by(t.outcomes.c.run_id, t.cells.c.device, t.cells.c.loader, t.cells.c.recorder, t.outcomes.c.verdict)
    )
    found: dict[int, list[Tally]] = {}
    for run, device, name, verdict, count in _rows(history, query):
        mark = WORST_FIRST[_PLACE[verdict]]
        found.setdefault(run, []).append(Tally(device, route_of(name), mark, count))
    return found


def _remarks(
    history: History, cells: Mapping[int, CellName], signatures: Mapping[int | None, str]
) -> dict[int, list[Remark]]:
    columns = ("run_id", "cell_id", "verdict", "failure_class", "signature_id", "known")
    verdict = t.outcomes.c.verdict
    query = sa.select(*(t.outcomes.c[name] for name in columns)).where(
        sa.or_(verdict.is_(None), verdict.not_in([str(Verdict.OK), str(Verdict.UNSUPPORTED)]))
    )
    query = query.order_by(*_BY_CELL)
    found: dict[int, list[Remark]] = {}
    for run, cell, what, kind, signature, known in _rows(history, query):
        if cell not in cells or signature not in signatures:
            continue
        mark = WORST_FIRST[_PLACE[what]]
        failure_class = FailureClass(kind) if kind else None
        found.setdefault(run, []).append(Remark(cells[cell], mark, failure_class, signatures[signature], known or ""))
    return found


def _answers(history: History) -> dict[int, list[MachineColo]]:
    loaders, recorders = t.builds.alias("loaders"), t.builds.alias("recorders")
    query = (
        sa.select(t.machines.c.run_id, t.machines.c.machine, recorders.c.label, loaders.c.label, t.machines.c.colo)
        .join_from(t.machines, loaders, loaders.c.id == t.machines.c.loader_id)
        .join(recorders, recorders.c.id == t.machines.c.recorder_id)
        .order_by(t.machines.c.machine, loaders.c.label)
    )
    found: dict[int, list[MachineColo]] = {}
    for run, machine, recorder, qemu, colo in _rows(history, query):
        found.setdefault(run, []).append(MachineColo(machine, recorder, qemu, colo))
    return found


def _rows(history: History, query: sa.Select[Any]) -> Iterator[tuple[Any, ...]]:
    with told(history.engine), history.engine.connect() as connection:
        for part in connection.execution_options(yield_per=_FETCH).execute(query).partitions():
            yield from map(tuple, part)
