# SPDX-License-Identifier: GPL-2.0-or-later
"""Which tasks a machine has, in waves. Pure: nothing is started and nothing is read.

What a whole load breaks on is found first; the waves behind it leave that out. So tasks of one wave do not depend on
each other, and may be carried out anywhere, in any order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from harness.lanes.judge import Exclusion
from harness.lanes.lane import Lane, Request, Wave
from harness.results.key import CellKey
from harness.state.transforms import GuestMode
from harness.work.task import Task, in_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be judged on one machine.

    :param key: what the keys of all cells have in common
    :param lanes: in the order of the report
    :param modes: of the guest, for the lanes that load by a schedule
    :param like: what all tasks of the machine have in common
    """

    key: CellKey
    devices: tuple[str, ...]
    phases: tuple[str, ...]
    lanes: tuple[Lane, ...]
    modes: tuple[GuestMode, ...]
    loads: int
    like: Task


def plan_tasks(wanted: Wanted) -> list[Task]:
    """All tasks of a machine; the cells of one device are in the order of a report."""
    loads = [lane for lane in wanted.lanes if by_schedule(lane)]
    before = [(lane, GuestMode.RUNNING) for lane in wanted.lanes if lane.wave < Wave.WHOLE]
    behind = [(lane, GuestMode.RUNNING) for lane in wanted.lanes if lane.wave > Wave.OWN]
    return [
        _task(wanted, lane, mode, phases, devices)
        for lane, mode in [*before, *((lane, mode) for mode in wanted.modes for lane in loads), *behind]
        for phases, devices in lane.groups(wanted.phases, wanted.devices, wanted.like.guest)
    ]


def by_schedule(lane: Lane) -> bool:
    """Whether a lane loads by a schedule: the others are asked for once, whatever the guest does."""
    return lane.wave in (Wave.WHOLE, Wave.OWN)


def in_waves(tasks: Iterable[Task], lanes: Mapping[str, Lane]) -> list[list[Task]]:
    """The tasks by what has to be over before them; waves without a task are left out."""
    waves: dict[Wave, list[Task]] = {}
    for task in tasks:
        waves.setdefault(lanes[task.request.lane].wave_of(task.request.guest_mode), []).append(task)
    return [waves[wave] for wave in sorted(waves)]


def _task(wanted: Wanted, lane: Lane, mode: GuestMode, phases: tuple[str, ...], devices: tuple[str, ...]) -> Task:
    request = Request(
        lane=lane.name,
        machine=wanted.key.machine,
        phases=phases,
        devices=devices,
        guest_mode=mode,
        loads=wanted.loads,
    )
    like = replace(wanted.key, phases=phases, lane=lane.name, guest_mode=str(mode))
    answers = tuple(replace(like, device=name) for name in devices)
    return replace(wanted.like, request=request, answers=answers)


@dataclass(slots=True, kw_only=True)
class Chain:
    """The waves of one machine while they are carried out: each wave is told what those before it found out."""

    waves: list[list[Task]]
    known: set[Exclusion] = field(default_factory=set)
    _due: int = 0

    def next_wave(self) -> list[Task]:
        """The tasks that may be done now; none when all is done."""
        if not self.waves:
            return []
        excluded = in_order(self.known)
        wave = [replace(task, excluded=excluded) for task in self.waves.pop(0)]
        self._due = len(wave)
        return wave

    def done(self, learnt: Iterable[Exclusion]) -> list[Task]:
        """One task of the wave is done; the next wave, when it was the last."""
        self.known.update(learnt)
        self._due -= 1
        return [] if self._due else self.next_wave()
