# SPDX-License-Identifier: GPL-2.0-or-later
"""What all reports share: blocks, rows and entries of the document, findings grouped, answers in words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from harness.arch import family_of
from harness.names import LANES, PHASES
from harness.report import sentences
from harness.report.text import number, plural
from harness.results.document import Cell, Colo, MachineResult, MatrixDoc, Qemu
from harness.results.signature import look_of
from harness.results.verdict import FailureClass, Verdict, rank, worst
from harness.text import one_line

SCHEDULE_MEANING = {
    "plain": "an ordinary migration into a new process, one load in each phase",
    "early": "the same with the device state twice in the stream, without a reset between the two loads",
    "postcopy": "the same by postcopy: the guest runs before its memory is there",
    "same": "the same recorded moment again and again: A A A",
    "alternate": "two moments in turn: A B A B",
    "walk": "every ordered pair of moments",
    "back-to-back": "the same section many times in one device buffer, the guest never runs in between",
    "drift": "state saved after one load against state saved after many",
    "leak": "what a load leaves behind in memory, descriptors and threads",
    "io-error": "a secondary that loads the state of a failed disk, its own disk healthy or failing too",
    "reset": "every ordered pair of moments, the machine reset before each load",
    "guest": "after the loads the guest lives on: disks, network, clock, kernel log",
}
PHASE_MEANING = {
    "firmware": "in the firmware, before a kernel",
    "kernel": "kernel up, no driver for the device yet",
    "bound": "driver bound, idle",
    "busy": "I/O in flight",
    "unbound": "driver unbound",
    "rebound": "driver bound again",
    "suspended": "suspended to RAM (S3) by the guest",
    "plugged": "hot-plugged into the running guest; the secondary has it on its command line",
    "rebooted": "reset by the guest after use, firmware has run again",
    "io-error": "after an I/O error",
}
#: More rows than that in one table, or findings one after the other, are not read.
MANY_ROWS = 40
MANY_FINDINGS = 50
#: More reasons than that in one answer are counted.
MANY_REASONS = 6
#: More names than that in one sentence are counted.
MANY_NAMES = 12
SPANNING = frozenset({"alternate", "walk"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a block: a schedule or an oracle; ``phase`` is None for cells that go over several phases."""

    schedule: str
    phase: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One place in a table: nearly always one cell. Never empty."""

    cells: tuple[Cell, ...]

    @property
    def verdict(self) -> Verdict:
        return worst(cell.verdict for cell in self.cells)

    @property
    def loads(self) -> str:
        """Loads acknowledged, and of how many when some are missing."""
        return loads_text(self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableField:
    """One field of a table, ``width`` columns wide; ``entry`` is None where nothing was judged."""

    entry: Entry | None
    width: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A device of a block: the cells of one QEMU pair, with or without the blamed sections."""

    device: str
    without: tuple[str, ...]
    pair: str
    variant: str
    entries: dict[Column, Entry]

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for entry in self.entries.values() for cell in entry.cells)

    @property
    def verdict(self) -> Verdict:
        return worst(cell.verdict for cell in self.cells)

    @property
    def label(self) -> str:
        """Such as ``platform without 0000:00:1f.0/ICH9LPC``."""
        return self.device + (f" without {', '.join(self.without)}" if self.without else "")

    @property
    def lanes(self) -> tuple[str, ...]:
        """Schedules and oracles that it has cells for, in the order of the table."""
        return _ordered({column.schedule for column in self.entries}, LANES)

    def places(self, lane: str, phases: Sequence[str]) -> list[TableField]:
        """The line of one lane: an entry or nothing for each phase, or one entry over all of them."""
        whole = self.entries.get(Column(schedule=lane, phase=None))
        single = [TableField(entry=self.entries.get(Column(schedule=lane, phase=phase))) for phase in phases]
        if whole is None:
            return single
        used = [number for number, place in enumerate(single, 1) if place.entry]
        before = single[: used[-1]] if used else []
        return [*before, TableField(entry=whole, width=max(1, len(phases) - len(before)))]

    def of_schedule(self, schedule: str) -> list[Cell]:
        return [cell for column, entry in self.entries.items() if column.schedule == schedule for cell in entry.cells]


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One machine type on one loading QEMU."""

    result: MachineResult
    machine: str
    """The machine type, with what is unusual about its CPUs."""
    answer: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    has_pairs: bool
    """True when some states were recorded by another QEMU than the one that loads."""

    @property
    def title(self) -> str:
        return _title(self.machine, self.result.record_qemu, self.result.qemu)

    @property
    def told_rows(self) -> tuple[Row, ...]:
        """The rows for a text that is read from top to bottom: of very many those that are not ok."""
        if len(self.rows) <= MANY_ROWS:
            return self.rows
        return tuple(row for row in self.rows if row.verdict is not Verdict.OK)

    @property
    def left_out(self) -> str:
        """What :attr:`told_rows` leaves out, in words; empty when it is nothing."""
        rows = [row for row in self.rows if row.verdict is Verdict.OK] if len(self.rows) > MANY_ROWS else []
        cells = sum(len(row.cells) for row in rows)
        return (
            f"{plural(len(rows), 'more row')} with {plural(cells, 'cell')} {'is' if len(rows) == 1 else 'are'} ok"
            if rows
            else ""
        )

    @property
    def schedules(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(column.schedule for column in self.columns))

    @property
    def phases(self) -> tuple[str, ...]:
        return _ordered({column.phase for column in self.columns if column.phase is not None}, PHASES)

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for row in self.rows for cell in row.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a report says of a cell that is not ok; texts are of :mod:`harness.report.sentences`."""

    text: str
    section: str | None = None
    phase: str | None = None
    load: int | None = None
    log: str = ""
    exit: str | None = None
    isolated: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingGroup:
    """The same finding in one or many cells; ``finding`` is that of the first."""

    verdict: Verdict
    finding: Finding
    cells: tuple[Cell, ...]

    @property
    def classes(self) -> tuple[FailureClass, ...]:
        return tuple(dict.fromkeys(c.failure_class for c in self.cells if c.failure_class is not None))

    @property
    def controls(self) -> tuple[str, ...]:
        """What the controls gave, each text once."""
        return tuple(sentences.once(sentences.controls_text(c.outcome) for c in self.cells))

    @property
    def signatures(self) -> tuple[str, ...]:
        """Names of the failure, the same on every version."""
        return tuple(dict.fromkeys(c.signature for c in self.cells if c.signature))

    @property
    def known(self) -> tuple[str, ...]:
        """The known issues that it is."""
        return tuple(dict.fromkeys(c.known for c in self.cells if c.known))

    @property
    def machines(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(f"{c.machine} on QEMU {pair_text(c)}" for c in self.cells))

    @property
    def blocks(self) -> tuple[str, ...]:
        """Titles of the blocks that it is in."""
        return tuple(dict.fromkeys(map(block_title, self.cells)))

    @property
    def title(self) -> str:
        return self.finding.section or ", ".join(dict.fromkeys(cell.device for cell in self.cells))

    @property
    def first(self) -> str:
        """Phase and load at which the first cell saw it."""
        phase = self.finding.phase or ", ".join(self.cells[0].phases)
        return phase if self.finding.load is None else f"{phase}, load {number(self.finding.load)}"


def explain_line(group: FindingGroup, run: str = "") -> str:
    """What to type to learn more of a finding.

    :param run: folder of the run, where it is not the usual one
    """
    return explain_cell(group.cells[0].id, run)


def explain_cell(cell: str, run: str = "") -> str:
    """The same for a cell."""
    return shlex.join(["postload", "explain", cell, *(["--run", run] if run else [])])


def pair_text(cell: Cell) -> str:
    """``7.2.22``, or ``7.2.22 -> 10.0.13`` when another QEMU recorded; builds when versions do not tell."""
    return _pair(cell.record_qemu, cell.load_qemu)


def _title(machine: str, recorded: Qemu | None, loaded: Qemu) -> str:
    return f"{machine} on QEMU {_pair(recorded or loaded, loaded)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionTable:
    """What each device came to on each QEMU.

    :param rows: family of the machine, device, and the worst verdict on each of ``qemus``; None where it has no cell
    """

    qemus: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[Verdict | None, ...]], ...]


def by_version(doc: MatrixDoc) -> VersionTable | None:
    """The devices by the QEMUs of a run; None where none was judged on two, or where one records and another loads."""
    qemus = tuple(dict.fromkeys(str(cell.key.route) for cell in doc.cells))
    if any(cell.record_qemu.sha256 != cell.load_qemu.sha256 for cell in doc.cells):
        return None
    found: dict[tuple[str, str], dict[str, list[Verdict]]] = {}
    for cell in doc.cells:
        row = found.setdefault((family_of(cell.machine), cell.device), {})
        row.setdefault(str(cell.key.route), []).append(cell.verdict)
    if all(len(verdicts) < 2 for verdicts in found.values()):
        return None
    rows = (
        (family, device, tuple(worst(verdicts[qemu]) if qemu in verdicts else None for qemu in qemus))
        for (family, device), verdicts in found.items()
    )
    return VersionTable(qemus=qemus, rows=tuple(rows))


def block_title(cell: Cell) -> str:
    """The title of the block that a cell is in."""
    return _title(cell.key.machine_text, cell.record_qemu, cell.load_qemu)


def _machine(result: MachineResult, cells: Sequence[Cell]) -> str:
    return cells[0].key.machine_text if cells else result.machine


def _pair(a: Qemu, b: Qemu) -> str:
    if a == b or a.sha256 == b.sha256:
        return b.version
    if a.version != b.version:
        return f"{a.version} -> {b.version}"
    return f"{a.version} ({a.build or a.sha256[:8]}) -> {b.version} ({b.build or b.sha256[:8]})"


def sessions(cells: Iterable[Cell]) -> list[Cell]:
    """One cell for each session: what a session loaded for several devices counts once in a total."""
    return list({cell.shared_with or cell.id: cell for cell in cells}.values())


def loads_text(cells: Iterable[Cell]) -> str:
    """``1,400``, or ``6/1,400`` when not all were acknowledged."""
    cells = sessions(cells)
    acked, asked = sum(c.loads_acked for c in cells), sum(c.loads_asked for c in cells)
    return number(acked) if acked >= asked else f"{number(acked)}/{number(asked)}"


def rate(cells: Iterable[Cell]) -> float:
    """Loads a second over the time spent loading, 0 when unknown."""
    timed = [cell for cell in sessions(cells) if cell.loads_per_second > 0]
    seconds = sum(cell.loads_acked / cell.loads_per_second for cell in timed)
    return sum(cell.loads_acked for cell in timed) / seconds if seconds else 0.0


def totals_text(cells: Sequence[Cell]) -> str:
    """Loads and their speed, as far as any was measured."""
    speed = rate(cells)
    text = f"{plural(sum(cell.own_loads for cell in cells), 'load')} acknowledged"
    return f"{text}, {number(speed)} loads/s while loading" if speed else text


def rate_text(cells: Sequence[Cell]) -> str:
    """The rate for a table; nothing for oracles, which do not load as fast as they can."""
    return number(rate(cells)) if any(cell.by_load for cell in cells) else ""


def _ordered(values: Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    """Known values in their order, then the others by name."""
    return tuple(sorted(set(values), key=lambda v: (known.index(v) if v in known else len(known), v)))


def _column(cell: Cell) -> Column:
    spans = cell.lane in SPANNING or len(cell.phases) != 1
    return Column(schedule=cell.lane, phase=None if spans else cell.phases[0])


def _columns(cells: Sequence[Cell]) -> tuple[Column, ...]:
    used = {_column(cell) for cell in cells}
    phases = (*_ordered({column.phase for column in used if column.phase is not None}, PHASES), None)
    schedules = _ordered({column.schedule for column in used}, LANES)
    wanted = (Column(schedule=s, phase=p) for s in schedules for p in phases)
    return tuple(column for column in wanted if column in used)


def _variant(cell: Cell) -> str:
    return f"{cell.engine}, {cell.guest_mode}, {cell.accel}"


def _row(cells: Sequence[Cell], columns: Sequence[Column], variant: str) -> Row:
    places: dict[Column, list[Cell]] = {column: [] for column in columns}
    for cell in cells:
        places[_column(cell)].append(cell)
    return Row(
        device=cells[0].device,
        without=tuple(dict.fromkeys(section for cell in cells for section in cell.excluded)),
        pair=pair_text(cells[0]),
        variant=variant,
        entries={column: Entry(cells=tuple(found)) for column, found in places.items() if found},
    )


def _rows(cells: Sequence[Cell], columns: Sequence[Column]) -> tuple[Row, ...]:
    """Devices in order of appearance; the rows without blamed sections stand right behind the full ones."""
    devices = {device: place for place, device in enumerate(dict.fromkeys(cell.device for cell in cells))}
    varied = _collide(cells)
    groups: dict[tuple[int, str, str, bool], list[Cell]] = {}
    for cell in cells:
        key = (devices[cell.device], pair_text(cell), _variant(cell) if varied else "", cell.is_rest)
        groups.setdefault(key, []).append(cell)
    return tuple(_row(groups[key], columns, key[2]) for key in sorted(groups))


def _collide(cells: Sequence[Cell]) -> bool:
    """True when two cells differ in engine, guest mode or accelerator alone, so that each needs a row."""
    places: dict[object, str] = {}
    for cell in cells:
        place = (cell.device, pair_text(cell), cell.is_rest, _column(cell))
        if places.setdefault(place, _variant(cell)) != _variant(cell):
            return True
    return False


def _block(result: MachineResult, cells: Sequence[Cell]) -> Block:
    columns = _columns(cells)
    return Block(
        result=result,
        machine=_machine(result, cells),
        answer=answer(result, cells),
        columns=columns,
        rows=_rows(cells, columns),
        has_pairs=any(cell.record_qemu.sha256 != cell.load_qemu.sha256 for cell in cells),
    )


def blocks(doc: MatrixDoc) -> tuple[Block, ...]:
    """One block for each machine; cells of a machine that has no answer get an undecided one."""
    results = {(m.machine, (m.record_qemu or m.qemu).sha256, m.qemu): m for m in doc.machines}
    cells: dict[tuple[str, str, Qemu], list[Cell]] = {key: [] for key in results}
    for cell in doc.cells:
        key = (cell.machine, cell.record_qemu.sha256, cell.load_qemu)
        another = None if cell.record_qemu.sha256 == cell.load_qemu.sha256 else cell.record_qemu
        results.setdefault(key, MachineResult(machine=cell.machine, qemu=cell.load_qemu, record_qemu=another))
        cells.setdefault(key, []).append(cell)
    return tuple(_block(result, cells[key]) for key, result in results.items())


def answer(result: MachineResult, cells: Sequence[Cell]) -> str:
    """One sentence: can this machine type live under COLO on this QEMU?"""
    head = f"{_title(_machine(result, cells), result.record_qemu, result.qemu)}: {sentences.COLO_TEXTS[result.colo]}"
    told = result.because if len(result.because) <= MANY_REASONS else result.because[: MANY_REASONS - 1]
    reasons = "; ".join(one_line(sentences.colo_reason_text(reason)).rstrip(".") for reason in told)
    if len(told) < len(result.because):
        reasons += f"; and {plural(len(result.because) - len(told), 'more reason')}"
    if not all(map(sentences.is_whole, result.because)):
        reasons += " (see the findings)"
    if result.colo not in (Colo.SAFE, Colo.REMARKS):
        return f"{head}, because {reasons}." if reasons else f"{head}."
    passed = [cell for cell in cells if not cell.verdict.is_finding]
    names = tuple(dict.fromkeys(cell.device for cell in passed))
    devices = ", ".join(names) if len(names) <= MANY_NAMES else plural(len(names), "device")
    but = f"; but {reasons}" if reasons else ""
    own = [cell for cell in passed if cell.lane == "leak"]
    others = [cell for cell in passed if cell.lane != "leak"]
    leaks = f", and {loads_text(own)} more that looked for leaks" if own and others else ""
    return f"{head}, because all {loads_text(others or own)} loads of {devices} passed{leaks}{but}."


def finding_of(cell: Cell) -> Finding | None:
    """The cell's finding in words; None for one that is ok."""
    if cell.verdict is Verdict.OK:
        return None
    outcome = cell.outcome
    isolated = sentences.isolation_text(outcome.isolation, outcome.sections) if outcome.isolation else None
    return Finding(
        text=sentences.text_of(cell),
        section=", ".join(outcome.sections) or None,
        phase=outcome.phase,
        load=outcome.load,
        log=outcome.log,
        exit=outcome.exit,
        isolated=isolated,
    )


def finding_groups(cells: Iterable[Cell]) -> tuple[FindingGroup, ...]:
    """Every finding once, worst first, with the cells that have it."""
    groups: dict[tuple[object, ...], list[Cell]] = {}
    firsts: dict[tuple[object, ...], Finding] = {}
    for cell in cells:
        finding = finding_of(cell)
        if finding is not None:
            key = look_of(cell)
            groups.setdefault(key, []).append(cell)
            firsts.setdefault(key, finding)
    found = [FindingGroup(verdict=c[0].verdict, finding=firsts[key], cells=tuple(c)) for key, c in groups.items()]
    return tuple(sorted(found, key=lambda group: rank(group.verdict)))


def phases_of(cells: Iterable[Cell]) -> frozenset[str]:
    """The phases that have cells of their own."""
    return frozenset(column.phase for column in set(map(_column, cells)) if column.phase is not None)


def cells_text(cells: Sequence[Cell], known: Set[str] = frozenset()) -> list[str]:
    """Cells in words, a line for each machine and device: ``pc-q35-7.2 platform: same (bound, busy), walk``.

    :param known: all phases of the document (:func:`phases_of`), to say "all phases" where that is so
    """
    lines: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        head = f"{cell.machine} {cell.device}" + (" (rest)" if cell.is_rest else "")
        if cell.record_qemu.sha256 != cell.load_qemu.sha256:
            head += f" {pair_text(cell)}"
        phases = lines.setdefault(head, {}).setdefault(cell.lane, [])
        if _column(cell).phase is not None:
            phases.append(cell.phases[0])
    return [f"{head}: {_schedules_text(found, known)}" for head, found in lines.items()]


def _schedules_text(found: dict[str, list[str]], known: Set[str]) -> str:
    parts = []
    for schedule in _ordered(found, LANES):
        every = len(known) > 1 and known <= set(found[schedule])
        phases = "all phases" if every else ", ".join(_ordered(found[schedule], PHASES))
        parts.append(f"{schedule} ({phases})" if phases else schedule)
    return ", ".join(parts)


def verdict_counts(cells: Iterable[Cell]) -> dict[Verdict, int]:
    """How many cells have each verdict, worst first, without zeros."""
    cells = tuple(cells)
    counts = {verdict: sum(cell.verdict is verdict for cell in cells) for verdict in Verdict}
    return {verdict: count for verdict, count in counts.items() if count}


def anchors(cells: Iterable[Cell]) -> dict[str, str]:
    """HTML ids for cell ids; two cells never share one."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for cell in cells:
        slug = base = "cell-" + re.sub(r"[^A-Za-z0-9.]+", "-", cell.id.replace("+", "-plus-"))
        count = 2
        while slug in taken:
            slug, count = f"{base}-{count}", count + 1
        taken.add(slug)
        found.setdefault(cell.id, slug)
    return found
