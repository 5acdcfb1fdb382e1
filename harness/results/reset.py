# SPDX-License-Identifier: GPL-2.0-or-later
"""The reset table: which devices need that the machine is reset before a load, and what the reset costs.

A fold of cells. Where a build does not reset before a load, all lanes load into a used device but ``reset``. Where it
does, only loads that stand in one buffer do: ``back-to-back``, and what drift and leaks are looked for by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.names import MIGRATIONS, RESET
from harness.results.document import Cell, DeviceReset, GuestReset, MachineResult, Milliseconds, ResetNeed, read_model
from harness.results.verdict import Verdict, worst

#: Lanes that load into a used device whatever the build does before a buffer.
_IN_ONE_BUFFER = ("early", "back-to-back", "drift", "leak")
#: Lanes that load into a new process once.
_FRESH = tuple(lane for lane in MIGRATIONS if lane not in _IN_ONE_BUFFER)


def reset_table(machines: Iterable[MachineResult], cells: Sequence[Cell]) -> tuple[DeviceReset, ...]:
    """A line for each device that the lane ``reset`` was asked of, in the order of the cells."""
    resets = {
        (machine.machine, (machine.record_qemu or machine.qemu).sha256, machine.qemu.sha256): machine.resets_before_load
        for machine in machines
    }
    asked = {cell.key.row for cell in cells if cell.lane == RESET}
    rows: dict[str, list[Cell]] = {}
    for cell in cells if asked else ():
        rows.setdefault(cell.key.row, []).append(cell)
    return tuple(
        _line(row, own, resets.get((own[0].machine, own[0].record_qemu.sha256, own[0].load_qemu.sha256)))
        for row, own in rows.items()
        if row in asked
    )


def _line(row: str, cells: Sequence[Cell], resets: bool | None) -> DeviceReset:
    used = [cell for cell in cells if _into_used(cell, resets)]
    reset = [cell for cell in cells if cell.lane not in _FRESH and not _into_used(cell, resets)]
    broken = [cell for cell in used if cell.verdict.is_finding and cell.verdict is not Verdict.LEAK]
    without = _worst(broken) or _worst(used)
    worst_cells = [cell for cell in broken if cell.verdict is without]
    costs = next((cell.details for cell in cells if cell.lane == RESET and "guest" in cell.details), {})
    return DeviceReset(
        row=row,
        machine=cells[0].machine,
        device=cells[0].device,
        resets=resets,
        need=_need(without, worst_cells, [cell for cell in reset if cell.verdict is not Verdict.LEAK]),
        without=without,
        behind=_worst(reset),
        failure_class=next((cell.failure_class for cell in worst_cells if cell.failure_class), None),
        sections=tuple(dict.fromkeys(section for cell in broken for section in cell.blamed)),
        leaks=any(cell.verdict is Verdict.LEAK for cell in used),
        part=_read(Milliseconds, costs.get(cells[0].device, {}), "part"),
        guest=_read(GuestReset, costs, "guest"),
    )


def _into_used(cell: Cell, resets: bool | None) -> bool:
    return cell.lane not in (*_FRESH, RESET) and (not resets or cell.lane in _IN_ONE_BUFFER)


def _worst(cells: Sequence[Cell]) -> Verdict | None:
    judged = [cell.verdict for cell in cells if not cell.verdict.is_undecided]
    return worst(judged) if judged else None


def _need(without: Verdict | None, broken: Sequence[Cell], behind: Sequence[Cell]) -> ResetNeed:
    """Leaks are told apart: a reset gives back nothing that a load lost.

    What breaks in the incoming stream breaks in a new process, which no reset helps.
    """
    if without is None or without is Verdict.UNSUPPORTED:
        return ResetNeed.UNKNOWN
    if without in (Verdict.OK, Verdict.LEAK):
        return ResetNeed.NO
    if any(cell.outcome.load == 0 for cell in broken):
        return ResetNeed.NO_HELP
    told = _worst(behind)
    if told is None or told is Verdict.UNSUPPORTED:
        return ResetNeed.UNKNOWN
    return ResetNeed.YES if told is Verdict.OK else ResetNeed.NO_HELP


def _read(model: Any, costs: Mapping[str, Any], name: str) -> Any:
    return read_model(model, costs[name], name) if costs.get(name) else None
