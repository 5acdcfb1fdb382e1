# SPDX-License-Identifier: GPL-2.0-or-later
"""Which cells a matrix has. Pure: nothing is started and nothing is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.arch import architecture_of
from harness.engines.schedule import LoadCount, Schedule
from harness.results.key import USUAL_ACCEL, USUAL_CPUS, CellKey, Route
from harness.state.transforms import GuestMode


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlan:
    """One cell to be judged, and how many loads are asked for."""

    key: CellKey
    loads: int

    @property
    def device(self) -> str:
        return self.key.device

    @property
    def phases(self) -> tuple[str, ...]:
        return self.key.phases

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.key.lane)

    @property
    def guest_mode(self) -> GuestMode:
        return GuestMode(self.key.guest_mode)


def plan_cells(
    *,
    route: Route,
    machine: str,
    devices: Sequence[str],
    phases: Sequence[str],
    schedules: Sequence[Schedule],
    guest_modes: Sequence[GuestMode],
    loads: LoadCount,
    accel: str = USUAL_ACCEL,
    cpus: int = USUAL_CPUS,
) -> list[CellPlan]:
    """The cells of one machine, row by row: a cell for each phase, and one over all phases where two are needed."""
    keys = (
        CellKey(
            route=route,
            machine=machine,
            device=device,
            phases=group,
            lane=str(schedule),
            guest_mode=str(mode),
            arch=architecture_of(machine).name,
            accel=accel,
            cpus=cpus,
        )
        for device in devices
        for mode in guest_modes
        for schedule in schedules
        for group in _groups(schedule, phases)
    )
    return [CellPlan(key=key, loads=loads.of(Schedule(key.lane), key.phases)) for key in keys]


def _groups(schedule: Schedule, phases: Sequence[str]) -> list[tuple[str, ...]]:
    if schedule in (Schedule.SAME, Schedule.BACK_TO_BACK):
        return [(phase,) for phase in phases]
    return [tuple(phases)] if len(phases) > 1 else []
