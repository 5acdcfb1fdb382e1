# SPDX-License-Identifier: GPL-2.0-or-later
"""A run of many devices at one glance: a line for each device on each machine, worst first, and what to look at next.

Tables of every phase and lane are for some devices. Of more than :data:`FEW` rows the terminal and ``matrix.md`` have
this overview in their place, and the page has the tables on demand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.arch import family_of
from harness.report.coverage import share_text
from harness.report.view import Block, pair_text
from harness.results.coverage import sum_of
from harness.results.document import Cell, Colo, ColoAnswer, DeviceCoverage, MatrixDoc
from harness.results.verdict import Verdict, rank, worst

#: Rows, of a device on a machine, that are still told phase by phase.
FEW = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewRow:
    """One device on one machine family.

    :param answers: for each QEMU of the overview; None where the device has no cell
    :param state: how much of the state that it can have was loaded; empty when that is not known
    :param cell: the worst of its cells, None when all are ok
    """

    family: str
    device: str
    answers: tuple[ColoAnswer | None, ...]
    state: str
    cell: str | None

    @property
    def verdict(self) -> Verdict:
        """The worst on any QEMU."""
        return worst(answer.verdict for answer in self.answers if answer is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """All devices of a run.

    :param qemus: how each QEMU is called, or each pair of them
    """

    qemus: tuple[str, ...]
    rows: tuple[OverviewRow, ...]

    @property
    def is_long(self) -> bool:
        """Whether it is told in place of the tables."""
        return sum(answer is not None for row in self.rows for answer in row.answers) > FEW

    @property
    def odd(self) -> tuple[OverviewRow, ...]:
        """Those that are not ok everywhere."""
        return tuple(row for row in self.rows if row.verdict is not Verdict.OK)

    @property
    def fine(self) -> tuple[str, ...]:
        """``pc: ahci, e1000``: a text for each family with the devices that are ok everywhere."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            if row.verdict is Verdict.OK:
                found.setdefault(row.family, []).append(row.device)
        return tuple(f"{family}: {', '.join(names)}" for family, names in found.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class ColoRow:
    """The devices of one machine with one answer."""

    machine: str
    colo: Colo
    devices: tuple[str, ...]


def overview(doc: MatrixDoc) -> Overview:
    """The devices of a document, worst first, then in the order of the run."""
    cells: dict[tuple[str, str], list[Cell]] = {}
    for cell in doc.cells:
        cells.setdefault((family_of(cell.machine), cell.device), []).append(cell)
    answers: dict[tuple[str, str, str], ColoAnswer] = {}
    for result in doc.machines:
        recorder = result.record_qemu or result.qemu
        for answer in result.devices:
            answers[f"{recorder.sha256} {result.qemu.sha256}", family_of(result.machine), answer.device] = answer
    states: dict[tuple[str, str], list[DeviceCoverage]] = {}
    for each in doc.coverage:
        states.setdefault((family_of(each.machine), each.device), []).append(each)
    qemus = {f"{c.record_qemu.sha256} {c.load_qemu.sha256}": pair_text(c) for c in doc.cells}
    rows = [
        OverviewRow(
            family=family,
            device=device,
            answers=tuple(answers.get((qemu, family, device)) for qemu in qemus),
            state=_state(states.get((family, device), [])),
            cell=_worst(found),
        )
        for (family, device), found in cells.items()
    ]
    told = (row for row in rows if any(row.answers))
    return Overview(qemus=tuple(qemus.values()), rows=tuple(sorted(told, key=lambda row: rank(row.verdict))))


def colo_rows(blocks: Iterable[Block]) -> tuple[ColoRow, ...]:
    """Which devices a COLO guest may have: for each machine the devices of each answer, the worst answer first."""
    return tuple(
        ColoRow(machine=block.title, colo=colo, devices=devices)
        for block in blocks
        for colo in Colo
        if (devices := tuple(each.device for each in block.result.devices if each.colo is colo))
    )


def grid_of(doc: MatrixDoc) -> dict[str, object]:
    """Every verdict of a document in little space, for the tables that a page makes on demand.

    ``columns`` are lanes with their phases, ``verdicts`` all verdicts, ``rows`` by ``FAMILY/DEVICE`` a list of: QEMU,
    loads acknowledged, and a letter for each column: ``a`` for the first verdict and so on, ``.`` for no cell.
    A second look, without what was blamed, is a row of its own.
    """
    columns = list(dict.fromkeys((cell.lane, "+".join(cell.phases)) for cell in doc.cells))
    place = {column: number for number, column in enumerate(columns)}
    letters = {verdict: chr(ord("a") + number) for number, verdict in enumerate(Verdict)}
    rows: dict[tuple[str, str, bool], list[str]] = {}
    loads: dict[tuple[str, str, bool], int] = {}
    for cell in doc.cells:
        row = (f"{family_of(cell.machine)}/{cell.device}", pair_text(cell), cell.is_rest)
        rows.setdefault(row, ["."] * len(columns))[place[cell.lane, "+".join(cell.phases)]] = letters[cell.verdict]
        loads[row] = loads.get(row, 0) + cell.loads_acked
    told: dict[str, list[list[object]]] = {}
    for (name, qemu, is_rest), words in rows.items():
        title = f"{qemu}, without what was blamed" if is_rest else qemu
        told.setdefault(name, []).append([title, loads[name, qemu, is_rest], "".join(words)])
    return {"columns": columns, "verdicts": [str(verdict) for verdict in Verdict], "rows": told}


def _worst(cells: Sequence[Cell]) -> str | None:
    cell = min(cells, key=lambda c: rank(c.verdict))
    return None if cell.verdict is Verdict.OK else cell.id


def _state(coverage: Sequence[DeviceCoverage]) -> str:
    return share_text(sum_of(coverage)) if coverage else ""
