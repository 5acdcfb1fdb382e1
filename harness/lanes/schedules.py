# SPDX-License-Identifier: GPL-2.0-or-later
"""The lanes that load by a schedule: one phase again and again, phases in turn, and back to back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.devices.device import Device
from harness.engines.schedule import Schedule
from harness.lanes.judge import Bench, OnLoads, RunControls, judge_cell
from harness.lanes.lane import Group, Lane, Reached, Request, Wave, all_in_one, by_phase
from harness.results.answer import PLATFORM
from harness.results.document import Cell
from harness.results.plan import CellPlan


def judge_request(bench: Bench, request: Request, on_loads: OnLoads, control: RunControls | None) -> Iterator[Cell]:
    """The cells of each device; the platform's first, so that what it breaks is known to the others."""
    for device in sorted(request.devices, key=lambda name: name != PLATFORM):
        key = replace(
            bench.machine_key,
            device=device,
            phases=request.phases,
            lane=request.lane,
            guest_mode=str(request.guest_mode),
        )
        yield from judge_cell(CellPlan(key=key, loads=request.loads), bench, on_loads, control)


def over_all(phases: Sequence[str], reached: Reached, guest: Sequence[Device]) -> list[Group]:
    """One request over all phases, where there are two to go between."""
    return all_in_one(phases, reached, guest) if len(phases) > 1 else []


def one_by_one(_phases: Sequence[str], reached: Reached, _guest: Sequence[Device]) -> list[Group]:
    """A request for each phase of each device."""
    return [((phase,), (device,)) for device, own in reached.items() for phase in own]


LANES = (
    Lane(
        name=str(Schedule.SAME),
        wave=Wave.WHOLE,
        groups=by_phase,
        judge=judge_request,
    ),
    Lane(
        name=str(Schedule.ALTERNATE),
        wave=Wave.WHOLE,
        groups=over_all,
        judge=judge_request,
    ),
    Lane(
        name=str(Schedule.WALK),
        wave=Wave.WHOLE,
        groups=over_all,
        judge=judge_request,
    ),
    Lane(
        name=str(Schedule.BACK_TO_BACK),
        wave=Wave.OWN,
        groups=one_by_one,
        judge=judge_request,
    ),
)
