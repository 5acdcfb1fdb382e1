# SPDX-License-Identifier: GPL-2.0-or-later
"""Ask a history: runs, the cells of a run, a cell through the runs, signatures with when they were seen.

::

    with open_history("history.db") as history:
        for run in history.runs(limit=30):            # the newest first
            print(run.name, run.state, run.counts)
        last = history.run("last")                    # or last~1, baseline, a run's name or the beginning of it
        for outcome in history.cells(last):           # planned ones that were not judged have verdict None
            print(outcome.cell, outcome.verdict, outcome.signature)
        history.through(line="7.2/pc-q35-7.2/ahci/bound/same")   # the same cell in each run, the newest first
        history.signatures()                          # first and last seen, on which QEMUs, hosts and cells

All that comes back is frozen, and none of it holds the database. Times are ISO 8601 in UTC. A cell has its key as text,
and its ``line``: the key without the last number of its QEMUs and without ``+rest``, by which nights are compared.
Nothing here changes the history, but for :func:`open_history`, which marks runs that were killed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

import sqlalchemy as sa
import zstandard

from harness.errors import UsageError
from harness.results.document import Cell, MachineResult, read_model
from harness.results.key import route_of
from harness.results.verdict import FINDINGS, UNDECIDED, FailureClass, Verdict
from harness.store import tables as t
from harness.store.engine import opened, told
from harness.store.importing import heal
from harness.store.states import Excuse, ExcuseKind, Reproduced
from harness.store.write import RateKind, RunState

BASELINE = "baseline"
_MAX_SHOWN = 6
#: SQLite takes no more than 32,766 values in one statement.
_CHUNK = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run.

    :param number: of its row; a later run of the same history has a greater one, unless it was imported
    :param host: its name, empty where the run did not say
    :param folder: of its reports, on that host; empty where nobody knows
    :param planned: cells that were to be judged, and those that came besides
    :param counts: how many cells came to each verdict
    :param marks: names that it was given, such as ``baseline``
    """

    number: int
    name: str
    started: str
    seconds: float
    state: RunState
    command: tuple[str, ...]
    program: str
    host: str
    folder: str
    planned: int
    counts: Mapping[Verdict, int]
    marks: tuple[str, ...] = ()

    @property
    def judged(self) -> int:
        return sum(self.counts.values())

    @property
    def findings(self) -> int:
        return sum(count for verdict, count in self.counts.items() if verdict.is_finding)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRow:
    """A QEMU binary; ``label`` is how cells named it first."""

    sha256: str
    version: str
    build: str
    path: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRow:
    """What a cell came to in a run on a host.

    :param run: name of the run
    :param cell: key as text
    :param line: key without the last number of its QEMUs and without ``+rest``
    :param phases: as they stand in the key
    :param verdict: None when it was planned and not judged; all below is then empty
    :param signature: of its finding, or of what the host did
    :param known: link of the known issue that it is
    :param seen: of ``tries`` sessions it came in so many; None where it was not repeated
    :param loader: of the build that loaded, the hash
    """

    run: str
    cell: str
    line: str
    machine: str
    device: str
    phases: str
    lane: str
    host: str
    verdict: Verdict | None
    failure_class: FailureClass | None = None
    signature: str = ""
    known: str = ""
    seen: int | None = None
    tries: int | None = None
    loads_asked: int = 0
    loads_acked: int = 0
    seconds: float = 0.0
    loads_per_second: float = 0.0
    loader: str = ""
    recorder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureRow:
    """A finding through all runs.

    :param first_run: in which it was seen first, by time, and which may be pruned; ``first_seen`` is when it started
    :param runs: in how many it was seen, of those that are kept
    :param cells: keys of the cells that had it, sorted
    :param qemus: labels of the QEMUs that loaded, sorted
    :param known: link of a known issue that it was held for, the last; ``known_until`` is its last day, None where it
        has none
    """

    name: str
    kind: str
    function: str
    assertion: str
    file: str
    section: str
    family: str
    first_run: str
    first_seen: str
    last_run: str
    last_seen: str
    runs: int
    cells: tuple[str, ...]
    devices: tuple[str, ...]
    qemus: tuple[str, ...]
    hosts: tuple[str, ...]
    known: str = ""
    known_until: date | None = None


class Glance(NamedTuple):
    """The least of an outcome, for comparisons of many; as in :class:`OutcomeRow`.

    :param run: number of the run
    """

    run: int
    line: str
    cell: str
    verdict: Verdict | None
    signature: str
    known: str
    loader: str

    @property
    def is_finding(self) -> bool:
        return self.verdict is not None and self.verdict.is_finding

    @property
    def is_judged(self) -> bool:
        """It says something about the device: neither not judged, nor undecided."""
        return self.verdict is not None and not self.verdict.is_undecided


class Sighting(NamedTuple):
    """A finding in a cell in a run.

    :param started: when the run did
    """

    signature: str
    line: str
    run: str
    started: str
    known: str

    @property
    def qemu(self) -> str:
        """The route, by the lines of releases of its QEMUs."""
        return route_of(self.line)


@dataclass(frozen=True, slots=True, kw_only=True)
class RateRow:
    """A speed in a run, and that of its control in the same run: hosts differ, ratios less so."""

    run: str
    kind: RateKind
    subject: str
    value: float
    control: float
    samples: int

    @property
    def ratio(self) -> float:
        return self.value / self.control


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """An answer of a reproducer.

    :param label: how cells name the build
    :param at: when it was asked
    :param script: folder of the bundle, empty where nobody kept it
    """

    signature: str
    build: BuildRow
    label: str
    answer: Reproduced
    at: str
    run: str = ""
    script: str = ""


@contextmanager
def open_history(text: str) -> Iterator[History]:
    """A history by the path of its file or by its URL, runs that were killed marked as such.

    :raises UsageError: there is none, or a newer postload wrote it
    :raises HostError: it cannot be read
    """
    with opened(text) as engine:
        heal(engine)
        yield History(engine)


class History:
    """Reads one history; each method is one transaction.

    :raises HostError: the database cannot be read; so do all methods
    """

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine

    def runs(self, *, limit: int | None = None, before: RunRow | None = None) -> list[RunRow]:
        """Runs, the newest first.

        :param before: only those that are older
        """
        query = _RUNS.order_by(t.runs.c.started.desc(), t.runs.c.id.desc()).limit(limit)
        return self._run_rows(query if before is None else self._older(query, before))

    def run(self, text: str) -> RunRow:
        """The run that a user means: ``last``, ``last~1`` (the one before), ``baseline``, a name or its beginning.

        :raises UsageError: there is none, or several; names some
        """
        if text == "last" or text.startswith("last~"):
            back = text.removeprefix("last").removeprefix("~") or "0"
            if not back.isdigit():
                raise UsageError(f"{text!r} is no run: expected last, last~1, {BASELINE} or a run's name")
            found = self.runs(limit=int(back) + 1)
            if len(found) <= int(back):
                raise UsageError(f"no run {text!r}: the history has {len(found)}")
            return found[-1]
        marked = sa.select(t.marks.c.run_id).where(t.marks.c.name == text)
        if rows := self._run_rows(_RUNS.where(t.runs.c.id.in_(marked))):
            return rows[0]
        if text == BASELINE:
            raise UsageError("no run is the baseline yet: name one by postload baseline set RUN")
        rows = self._run_rows(_RUNS.where(t.runs.c.name.startswith(text, autoescape=True)).limit(_MAX_SHOWN))
        same = [row for row in rows if row.name == text] or rows
        if len(same) != 1:
            shown = ", ".join(row.name for row in rows)
            raise UsageError(f"{text!r} is the beginning of several runs: {shown}" if rows else f"no run {text!r}")
        return same[0]

    def cells(self, run: RunRow) -> list[OutcomeRow]:
        """Every cell of a run, judged or only planned, sorted by key."""
        return self._outcomes(_OUTCOMES.where(t.outcomes.c.run_id == run.number).order_by(t.cells.c.key))

    def through(
        self,
        *,
        cell: str | None = None,
        line: str | None = None,
        device: str | None = None,
        lines: Collection[str] | None = None,
        signature: str | None = None,
        runs: Sequence[RunRow] | None = None,
    ) -> list[OutcomeRow]:
        """Outcomes through the runs, the newest run first, then by key; all conditions hold.

        :param cell: key as text
        :param line: as :attr:`OutcomeRow.line`, and ``lines`` several of them
        :param device: name of the device
        :param signature: name of the signature
        :param runs: only these
        """
        query = _OUTCOMES.order_by(t.runs.c.started.desc(), t.runs.c.id.desc(), t.cells.c.key)
        equal = ((t.cells.c.key, cell), (t.cells.c.line, line), (t.cells.c.device, device))
        for column, value in (*equal, (t.signatures.c.name, signature)):
            query = query if value is None else query.where(column == value)
        if runs is not None:
            query = query.where(t.outcomes.c.run_id.in_([run.number for run in runs]))
        if lines is None:
            return self._outcomes(query)
        order = {run.name: place for place, run in enumerate(runs or self.runs())}
        found = [row for part in _parts(sorted(lines)) for row in self._outcomes(query.where(t.cells.c.line.in_(part)))]
        return sorted(found, key=lambda row: (order[row.run], row.cell))

    def glances(self, number: int) -> list[Glance]:
        """The least of each cell of the run of a number."""
        return self._glances(_GLANCES.where(t.outcomes.c.run_id == number))

    def glances_to_compare(self, runs: Collection[int], before: RunRow, after: RunRow) -> list[Glance]:
        """Of some runs the cells, by line, that a comparison of two of them has anything to say of.

        These are lines that have a finding in one of the runs, that the two say nothing of, or that the earlier one
        has alone. All others passed.

        :param runs: numbers of runs, of the two among them
        """
        lines = sa.select(t.cells.c.line).join_from(t.outcomes, t.cells)
        verdict, number = t.outcomes.c.verdict, t.outcomes.c.run_id
        failed = lines.where(number.in_(runs), t.outcomes.c.signature_id.is_not(None), verdict.in_(_texts(FINDINGS)))
        silent = lines.where(
            number.in_([before.number, after.number]), sa.or_(verdict.is_(None), verdict.in_(_texts(UNDECIDED)))
        )
        left = lines.where(number == before.number).except_(lines.where(number == after.number))
        told = sa.union(failed, silent, left.subquery().select())
        return self._glances(_GLANCES.where(number.in_(runs), t.cells.c.line.in_(told)))

    def glances_where_it_failed(self, runs: Collection[int], among: Collection[int]) -> list[Glance]:
        """Of some runs the cells, by line, that have a finding in one of others.

        :param runs: numbers of runs, and ``among`` of those that are looked through for findings
        """
        failed = t.outcomes.c.verdict.in_(_texts(FINDINGS))
        lines = sa.select(t.cells.c.line).join_from(t.outcomes, t.cells)
        lines = lines.where(t.outcomes.c.run_id.in_(among), t.outcomes.c.signature_id.is_not(None), failed)
        return self._glances(_GLANCES.where(t.outcomes.c.run_id.in_(runs), t.cells.c.line.in_(lines)))

    def seen_before(self, run: RunRow, until: RunRow) -> dict[str, set[str]]:
        """The findings of a run, and on which lines they were seen until an earlier one; by name of the signature.

        A finding that was seen in runs that are pruned is seen on a line with an empty name.
        """
        mine = t.outcomes.c.run_id == run.number
        of_run = sa.select(t.outcomes.c.signature_id).where(mine, t.outcomes.c.signature_id.is_not(None))
        names = sa.select(t.signatures.c.id, t.signatures.c.name, t.signatures.c.first_seen)
        rows = self._rows(names.where(t.signatures.c.id.in_(of_run)))
        found = {row.id: (row.name, {""} if row.first_seen else set()) for row in rows}
        earlier = sa.select(t.outcomes.c.signature_id, t.cells.c.line).join_from(t.outcomes, t.cells)
        earlier = earlier.join(t.runs, t.runs.c.id == t.outcomes.c.run_id)
        time = sa.tuple_(t.runs.c.started, t.runs.c.id) <= sa.tuple_(until.started, until.number)
        earlier = earlier.where(time, t.outcomes.c.signature_id.in_(of_run))
        for number, line in map(tuple, self._rows(earlier.distinct())):
            found[number][1].add(line)
        return dict(found.values())

    def numbers_before(self, run: RunRow | None, limit: int) -> list[int]:
        """Numbers of runs that are older than one, or of all, the newest first."""
        query = sa.select(t.runs.c.id)
        query = query if run is None else self._older(query, run)
        query = query.order_by(t.runs.c.started.desc(), t.runs.c.id.desc())
        return [number for (number,) in self._rows(query.limit(limit))]

    def keys(self, part: str) -> list[str]:
        """Keys of cells that hold a text, or whose line does, sorted."""
        holds = (column.contains(part, autoescape=True) for column in (t.cells.c.key, t.cells.c.line))
        return [key for (key,) in self._rows(sa.select(t.cells.c.key).where(sa.or_(*holds)).order_by(t.cells.c.key))]

    def devices(self) -> list[str]:
        """Names of all devices that have cells, sorted."""
        return [name for (name,) in self._rows(sa.select(t.cells.c.device).distinct().order_by(t.cells.c.device))]

    def signature_names(self, part: str) -> list[str]:
        """Names of signatures that hold a text, sorted."""
        query = sa.select(t.signatures.c.name).where(t.signatures.c.name.contains(part, autoescape=True))
        return [name for (name,) in self._rows(query.order_by(t.signatures.c.name))]

    def signatures(
        self, *, name: str | None = None, device: str | None = None, host: bool = False
    ) -> list[SignatureRow]:
        """Findings, those seen last first.

        :param name: this one alone
        :param device: those of its cells, with what these cells alone say
        :param host: with those that name what a host did, which are no findings
        """
        query = _SIGHTINGS if host else _SIGHTINGS.where(t.signatures.c.kind != "host")
        query = query if name is None else query.where(t.signatures.c.name == name)
        query = query if device is None else query.where(t.cells.c.device == device)
        seen: dict[int, list[Any]] = {}
        for row in self._rows(query):
            seen.setdefault(row.signature_id, []).append(row)
        days = self._last_days()
        found = [_signature_row(rows, days) for rows in seen.values()]
        return sorted(found, key=lambda each: (each.last_seen, each.last_run, each.name), reverse=True)

    def sightings(self, name: str | None = None) -> list[Sighting]:
        """Where findings were seen, the oldest run first.

        :param name: of the signature, for this one alone
        """
        query = _SIGHTINGS.where(t.signatures.c.kind != "host")
        query = query if name is None else query.where(t.signatures.c.name == name)
        return [Sighting(row.name, row.line, row.run, row.started, row.known or "") for row in self._rows(query)]

    def builds_seen(self, name: str | None = None) -> set[tuple[str, str]]:
        """Which findings were seen on which builds: names of signatures with the hash of the build that loaded.

        :param name: of the signature, for this one alone
        """
        query = (
            sa.select(t.signatures.c.name, t.builds.c.sha256)
            .join_from(t.outcomes, t.signatures)
            .join(t.builds, t.builds.c.id == t.outcomes.c.loader_id)
            .distinct()
        )
        query = query if name is None else query.where(t.signatures.c.name == name)
        return {(row.name, row.sha256) for row in self._rows(query)}

    def log(self, run: RunRow, cell: str) -> Cell | None:
        """The whole of a cell that was not plainly ok, with its causes and what QEMU printed.

        :return: None when it was ok, or is kept no more
        """
        query = (
            sa.select(t.logs.c.cell)
            .join_from(t.logs, t.cells)
            .where(t.logs.c.run_id == run.number, t.cells.c.key == cell)
        )
        rows = self._rows(query)
        if not rows:
            return None
        text = zstandard.ZstdDecompressor().decompress(rows[0].cell)
        return Cell.from_json(json.loads(text))

    def machines(self, run: RunRow) -> list[MachineResult]:
        """The answers of a run for its machines; undecided while it goes on."""
        query = sa.select(t.machines.c.document).where(t.machines.c.run_id == run.number)
        query = query.order_by(t.machines.c.machine, t.machines.c.loader_id, t.machines.c.recorder_id)
        return [read_model(MachineResult, json.loads(text), "a machine") for (text,) in self._rows(query)]

    def builds(self, run: RunRow | None = None) -> list[BuildRow]:
        """QEMUs, or those that loaded or recorded in a run, by version."""
        query = sa.select(t.builds)
        if run is not None:
            mine = t.machines.c.run_id == run.number
            ids = sa.select(t.machines.c.loader_id).where(mine).union(sa.select(t.machines.c.recorder_id).where(mine))
            query = query.where(t.builds.c.id.in_(ids))
        return [_build(row) for row in self._rows(query.order_by(t.builds.c.label, t.builds.c.sha256))]

    def rates(self, *, kind: RateKind | None = None, subject: str | None = None) -> list[RateRow]:
        """Speeds through the runs, the newest run first, then by subject."""
        query = sa.select(t.runs.c.name.label("run"), t.rates).join_from(t.rates, t.runs)
        query = query.order_by(t.runs.c.started.desc(), t.runs.c.id.desc(), t.rates.c.kind, t.rates.c.subject)
        query = query if kind is None else query.where(t.rates.c.kind == kind)
        query = query if subject is None else query.where(t.rates.c.subject == subject)
        return [
            RateRow(
                run=row.run,
                kind=RateKind(row.kind),
                subject=row.subject,
                value=row.value,
                control=row.control,
                samples=row.samples,
            )
            for row in self._rows(query)
        ]

    def reproductions(self, signature: str | None = None) -> list[Reproduction]:
        """What reproducers said, the newest answer first."""
        query = (
            sa.select(t.reproductions, t.builds, t.signatures.c.name.label("signature"), t.runs.c.name.label("run"))
            .join_from(t.reproductions, t.builds)
            .join(t.signatures)
            .outerjoin(t.runs, t.runs.c.id == t.reproductions.c.run_id)
            .order_by(t.reproductions.c.at.desc(), t.reproductions.c.id.desc())
        )
        query = query if signature is None else query.where(t.signatures.c.name == signature)
        return [
            Reproduction(
                signature=row.signature,
                build=_build(row),
                label=row.label,
                answer=Reproduced(row.answer),
                at=row.at,
                run=row.run or "",
                script=row.script,
            )
            for row in self._rows(query)
        ]

    def excuses(self, runs: Iterable[RunRow]) -> dict[int, list[Excuse]]:
        """What of the findings of some runs does not count, by the numbers of the runs."""
        found: dict[int, list[Excuse]] = {}
        for part in _parts([run.number for run in runs]):
            for row in self._rows(sa.select(t.excuses).where(t.excuses.c.run_id.in_(part))):
                excuse = Excuse(
                    kind=ExcuseKind(row.kind),
                    line=row.line,
                    signature=row.signature,
                    link=row.link,
                    until=_day(row.until),
                )
                found.setdefault(row.run_id, []).append(excuse)
        return found

    def _last_days(self) -> dict[tuple[str, str], date | None]:
        """Until when known issues excuse, by signature and link, as the newest run says that was held against them."""
        query = sa.select(t.excuses.c.signature, t.excuses.c.link, t.excuses.c.until).join_from(t.excuses, t.runs)
        query = query.where(t.excuses.c.kind == ExcuseKind.KNOWN).order_by(t.runs.c.started, t.runs.c.id)
        return {(name, link): _day(until) for name, link, until in map(tuple, self._rows(query))}

    def _older(self, query: sa.Select[Any], run: RunRow) -> sa.Select[Any]:
        """Of a query over runs those that began before one."""
        return query.where(sa.tuple_(t.runs.c.started, t.runs.c.id) < sa.tuple_(run.started, run.number))

    def _glances(self, query: sa.Select[Any]) -> list[Glance]:
        return [
            Glance(run, line, cell, _VERDICTS[verdict], signature or "", known or "", loader or "")
            for run, line, cell, verdict, signature, known, loader in map(tuple, self._rows(query))
        ]

    def _rows(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        with told(self.engine), self.engine.connect() as connection:
            return connection.execute(query).all()

    def _outcomes(self, query: sa.Select[Any]) -> list[OutcomeRow]:
        return [_outcome(row._mapping) for row in self._rows(query)]

    def _run_rows(self, query: sa.Select[Any]) -> list[RunRow]:
        rows = self._rows(query)
        numbers = [row.id for row in rows]
        counts: dict[int, dict[Verdict | None, int]] = {number: {} for number in numbers}
        for part in _parts(numbers):
            counted = (
                sa.select(t.outcomes.c.run_id, t.outcomes.c.verdict, sa.func.count())
                .where(t.outcomes.c.run_id.in_(part))
                .group_by(t.outcomes.c.run_id, t.outcomes.c.verdict)
            )
            for number, verdict, count in map(tuple, self._rows(counted)):
                counts[number][None if verdict is None else Verdict(verdict)] = count
        marks: dict[int, list[str]] = {}
        for name, number in map(
            tuple, self._rows(sa.select(t.marks.c.name, t.marks.c.run_id).order_by(t.marks.c.name))
        ):
            marks.setdefault(number, []).append(name)
        return [_run_row(row, counts[row.id], marks.get(row.id, ())) for row in rows]


_RUNS = sa.select(t.runs, t.hosts.c.name.label("host")).join_from(t.runs, t.hosts)
_LOADERS, _RECORDERS = t.builds.alias("loaders"), t.builds.alias("recorders")
#: Columns are named as the fields of :class:`OutcomeRow`.
_OUTCOMES = (
    sa.select(
        t.runs.c.name.label("run"),
        t.cells.c.key.label("cell"),
        *(t.cells.c[name] for name in ("line", "machine", "device", "phases", "lane")),
        t.hosts.c.name.label("host"),
        *(t.outcomes.c[name] for name in ("verdict", "failure_class", "seen", "tries")),
        sa.func.coalesce(t.signatures.c.name, "").label("signature"),
        sa.func.coalesce(t.outcomes.c.known, "").label("known"),
        *(
            sa.func.coalesce(t.outcomes.c[name], 0).label(name)
            for name in ("loads_asked", "loads_acked", "seconds", "loads_per_second")
        ),
        sa.func.coalesce(_LOADERS.c.sha256, "").label("loader"),
        sa.func.coalesce(_RECORDERS.c.sha256, "").label("recorder"),
    )
    .join_from(t.outcomes, t.runs)
    .join(t.cells)
    .join(t.hosts, t.hosts.c.id == t.outcomes.c.host_id)
    .outerjoin(t.signatures)
    .outerjoin(_LOADERS, _LOADERS.c.id == t.outcomes.c.loader_id)
    .outerjoin(_RECORDERS, _RECORDERS.c.id == t.outcomes.c.recorder_id)
)
_GLANCES = (
    sa.select(
        t.outcomes.c.run_id,
        t.cells.c.line,
        t.cells.c.key,
        t.outcomes.c.verdict,
        t.signatures.c.name,
        t.outcomes.c.known,
        t.builds.c.sha256,
    )
    .join_from(t.outcomes, t.cells)
    .outerjoin(t.signatures)
    .outerjoin(t.builds, t.builds.c.id == t.outcomes.c.loader_id)
)
_SIGHTINGS = (
    sa.select(
        t.outcomes.c.signature_id,
        t.signatures,
        t.runs.c.name.label("run"),
        t.runs.c.started,
        t.cells.c.key,
        t.cells.c.line,
        t.cells.c.device,
        t.cells.c.loader,
        t.hosts.c.name.label("host"),
        t.outcomes.c.known,
    )
    .join_from(t.outcomes, t.signatures)
    .join(t.runs, t.runs.c.id == t.outcomes.c.run_id)
    .join(t.cells)
    .join(t.hosts, t.hosts.c.id == t.outcomes.c.host_id)
    .order_by(t.runs.c.started, t.runs.c.id)
)
_VERDICTS: Mapping[str | None, Verdict | None] = {None: None, **{str(verdict): verdict for verdict in Verdict}}
_CLASSES: Mapping[str | None, FailureClass | None] = {None: None, **{str(each): each for each in FailureClass}}


def _outcome(row: sa.RowMapping) -> OutcomeRow:
    enums = {"verdict": _VERDICTS[row["verdict"]], "failure_class": _CLASSES[row["failure_class"]]}
    return OutcomeRow(**{**row, **enums})


def _run_row(row: Any, counts: Mapping[Verdict | None, int], marks: Iterable[str]) -> RunRow:
    return RunRow(
        number=row.id,
        name=row.name,
        started=row.started,
        seconds=row.seconds,
        state=RunState(row.state),
        command=tuple(json.loads(row.command)),
        program=row.program,
        host=row.host,
        folder=row.folder,
        planned=sum(counts.values()),
        counts={verdict: counts[verdict] for verdict in Verdict if verdict in counts},
        marks=tuple(marks),
    )


def _build(row: Any) -> BuildRow:
    return BuildRow(sha256=row.sha256, version=row.version, build=row.build, path=row.path, label=row.label)


def _signature_row(rows: Sequence[Any], days: Mapping[tuple[str, str], date | None]) -> SignatureRow:
    """Of its sightings, the oldest first.

    :param days: until when known issues excuse, by signature and link
    """
    first, last = rows[0], rows[-1]
    known = next((row.known for row in reversed(rows) if row.known), "")
    pruned = bool(first.first_seen) and first.first_seen < first.started
    return SignatureRow(
        name=first.name,
        kind=first.kind,
        function=first.function,
        assertion=first.assertion,
        file=first.file,
        section=first.section,
        family=first.family,
        first_run=first.first_run if pruned else first.run,
        first_seen=first.first_seen if pruned else first.started,
        last_run=last.run,
        last_seen=last.started,
        runs=len({row.run for row in rows}),
        cells=tuple(sorted({row.key for row in rows})),
        devices=tuple(sorted({row.device for row in rows})),
        qemus=tuple(sorted({row.loader for row in rows})),
        hosts=tuple(sorted({row.host for row in rows if row.host})),
        known=known,
        known_until=days.get((first.name, known)),
    )


def _day(text: str) -> date | None:
    return date.fromisoformat(text) if text else None


def _texts(verdicts: Iterable[Verdict]) -> list[str]:
    return [str(verdict) for verdict in verdicts]


def _parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (values[first : first + _CHUNK] for first in range(0, len(values), _CHUNK))
