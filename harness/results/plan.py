# SPDX-License-Identifier: GPL-2.0-or-later
"""Which cells a matrix has. Pure: nothing is started and nothing is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.engines.schedule import Schedule
from harness.state.transforms import GuestMode

#: 14 cells a row with all phases and schedules, so 1,400 loads for each device on each machine.
DEFAULT_LOADS = 100
#: Stands in a cell's id between the QEMU that recorded and the one that loads.
PAIR_MARK = ".."


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlan:
    """One cell to be judged.

    :param machine: versioned machine type
    :param loads: how many loads are asked for
    """

    machine: str
    device: str
    phases: tuple[str, ...]
    schedule: Schedule
    guest_mode: GuestMode
    loads: int

    @property
    def where(self) -> str:
        """The phase, or ``all`` for the schedules that go over several."""
        return self.phases[0] if len(self.phases) == 1 else "all"

    def id(self, qemu: str) -> str:
        """Stable name of the cell under one QEMU, or a pair of them (:func:`pair_label`)."""
        mode = "" if self.guest_mode is GuestMode.RUNNING else f"/{self.guest_mode}"
        return f"{qemu}/{self.machine}/{self.device}/{self.where}/{self.schedule}{mode}"


def pair_label(recorded: str, loaded: str) -> str:
    """How cell ids name their QEMU: one, or ``RECORDED..LOADED`` when another one recorded."""
    return loaded if recorded == loaded else f"{recorded}{PAIR_MARK}{loaded}"


def plan_cells(
    *,
    machine: str,
    devices: Sequence[str],
    phases: Sequence[str],
    schedules: Sequence[Schedule],
    guest_modes: Sequence[GuestMode],
    loads: int,
) -> list[CellPlan]:
    """The cells of one machine, row by row: a cell for each phase, and one over all phases where two are needed."""
    cells = []
    for device in devices:
        for mode in guest_modes:
            for schedule in schedules:
                for group in _groups(schedule, phases):
                    cells.append(
                        CellPlan(
                            machine=machine,
                            device=device,
                            phases=group,
                            schedule=schedule,
                            guest_mode=mode,
                            loads=loads,
                        )
                    )
    return cells


def _groups(schedule: Schedule, phases: Sequence[str]) -> list[tuple[str, ...]]:
    if schedule in (Schedule.SAME, Schedule.BACK_TO_BACK):
        return [(phase,) for phase in phases]
    return [tuple(phases)] if len(phases) > 1 else []
