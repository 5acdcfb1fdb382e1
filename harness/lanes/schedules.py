# SPDX-License-Identifier: GPL-2.0-or-later
"""The lanes that load by a schedule: one phase again and again, phases in turn, and back to back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from harness.devices.device import Device
from harness.engines.schedule import Schedule
from harness.lanes.judge import Bench, OnLoads, RunControls, judge_cell, take_turns
from harness.lanes.lane import Group, Lane, Reached, Request, Wave, all_in_one, by_phase
from harness.names import PLATFORM
from harness.results.document import Cell
from harness.results.plan import CellPlan


def judge_request(bench: Bench, request: Request, on_loads: OnLoads, control: RunControls | None) -> Iterator[Cell]:
    """The cells of each device; the platform's first, so that what it breaks is known to the others."""
    like = replace(bench.machine_key, phases=request.phases, lane=request.lane, guest_mode=str(request.guest_mode))
    devices = sorted(request.devices, key=lambda name: name != PLATFORM)
    plans = [CellPlan(key=replace(like, device=device), loads=request.loads) for device in devices]
    take_turns(plans, bench, on_loads)
    for plan in plans:
        yield from judge_cell(plan, bench, on_loads, control)


def over_all(phases: Sequence[str], reached: Reached, guest: Sequence[Device]) -> list[Group]:
    """One request over all phases, where there are two to go between."""
    return all_in_one(phases, reached, guest) if len(phases) > 1 else []


LANES = (
    Lane(
        name=str(Schedule.SAME),
        wave=Wave.WHOLE,
        seconds=0.4,
        groups=by_phase,
        judge=judge_request,
    ),
    Lane(
        name=str(Schedule.ALTERNATE),
        wave=Wave.WHOLE,
        seconds=0.8,
        groups=over_all,
        judge=judge_request,
    ),
    Lane(
        name=str(Schedule.WALK),
        wave=Wave.WHOLE,
        seconds=1.5,
        groups=over_all,
        judge=judge_request,
    ),
    Lane(
        name=str(Schedule.BACK_TO_BACK),
        wave=Wave.OWN,
        seconds=0.1,
        groups=by_phase,
        judge=judge_request,
    ),
)
