# SPDX-License-Identifier: GPL-2.0-or-later
"""Which tasks a machine has, in waves. Pure: nothing is started and nothing is read.

What a whole load breaks on is found first; the waves behind it leave that out. So tasks of one wave do not depend on
each other, and may be carried out anywhere, in any order; nor do tasks that have no phase in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.engines.schedule import LoadCount, Schedule
from harness.lanes.judge import Exclusion
from harness.lanes.lane import Lane, Reached, Request, Wave
from harness.lanes.registry import LANES
from harness.results.key import CellKey
from harness.state.transforms import GuestMode
from harness.work.task import Task, in_order


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be judged on one machine.

    :param key: what the keys of all cells have in common
    :param reached: by each device to be judged, those of the phases that it has reached
    :param lanes: in the order of the report
    :param modes: of the guest, for the lanes that load by a schedule
    :param like: what all tasks of the machine have in common
    """

    key: CellKey
    reached: Reached
    phases: tuple[str, ...]
    lanes: tuple[Lane, ...]
    modes: tuple[GuestMode, ...]
    loads: LoadCount
    like: Task


def plan_tasks(wanted: Wanted) -> list[Task]:
    """All tasks of a machine; the cells of one device are in the order of a report."""
    loads = [lane for lane in wanted.lanes if by_schedule(lane)]
    before = [(lane, GuestMode.RUNNING) for lane in wanted.lanes if lane.wave < Wave.WHOLE]
    behind = [(lane, GuestMode.RUNNING) for lane in wanted.lanes if lane.wave > Wave.OWN]
    return [
        _task(wanted, lane, mode, phases, devices)
        for lane, mode in [*before, *((lane, mode) for mode in wanted.modes for lane in loads), *behind]
        for phases, devices in lane.groups(wanted.phases, wanted.reached, wanted.like.guest)
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


def with_causes(tasks: Sequence[Task], lanes: Mapping[str, Lane], wanted: Callable[[Task], bool]) -> list[Task]:
    """The wanted ones, and all of earlier waves that load one of their phases: what these break on is left out."""
    kept: set[tuple[CellKey, ...]] = set()
    later: set[str] = set()
    for wave in reversed(in_waves(tasks, lanes)):
        found = [task for task in wave if wanted(task) or not later.isdisjoint(task.request.phases)]
        kept |= {task.answers for task in found}
        later |= {phase for task in found for phase in task.request.phases}
    return [task for task in tasks if task.answers in kept]


def _task(wanted: Wanted, lane: Lane, mode: GuestMode, phases: tuple[str, ...], devices: tuple[str, ...]) -> Task:
    request = Request(
        lane=lane.name,
        machine=wanted.key.machine,
        phases=phases,
        devices=devices,
        guest_mode=mode,
        loads=wanted.loads.of(Schedule(lane.name), phases) if by_schedule(lane) else wanted.loads.each,
    )
    like = replace(wanted.key, phases=phases, lane=lane.name, guest_mode=str(mode))
    answers = tuple(replace(like, device=name) for name in devices)
    return replace(wanted.like, request=request, answers=answers)


class Chain:
    """The tasks of one machine while they are carried out.

    A task waits for those tasks of earlier waves that load one of its phases, and for no others. What these found out
    in its phases is left out, so that a task is the same whoever was done first.

    :param waves: what :func:`in_waves` gave
    :param number: of the machine in its run
    :param known: what is left out from the first wave on, if it was found in one of a task's phases
    """

    def __init__(self, waves: Sequence[Sequence[Task]], number: int = 0, known: Iterable[Exclusion] = ()) -> None:
        self.number = number
        long = [task for wave in waves for task in wave if LANES[task.request.lane].waits]
        self._long = {phase for task in long for phase in task.request.phases}
        self._waiting = [(number, task) for number, wave in enumerate(waves) for task in wave]
        self._wave_of = {task.answers: number for number, task in self._waiting}
        self._undone = Counter((number, phase) for number, task in self._waiting for phase in task.request.phases)
        self._known = {(-1, exclusion) for exclusion in known}

    def ready(self) -> list[Task]:
        """The tasks that may be done now and were not given out yet."""
        ready: list[tuple[int, Task]] = []
        left: list[tuple[int, Task]] = []
        for number, task in self._waiting:
            (ready if self._may_begin(number, task) else left).append((number, task))
        self._waiting = left
        return [replace(task, excluded=self._excluded(number, task)) for number, task in ready]

    def done(self, task: Task, learnt: Iterable[Exclusion]) -> list[Task]:
        """A task is done; those that waited for it."""
        number = self._wave_of[task.answers]
        self._undone.subtract((number, phase) for phase in task.request.phases)
        self._known.update((number, exclusion) for exclusion in learnt)
        over = any(not self._undone[number, phase] for phase in task.request.phases)
        return self.ready() if over else []

    @property
    def over(self) -> bool:
        """Whether all tasks are done."""
        return not self._waiting and not any(self._undone.values())

    def rank(self, task: Task) -> tuple[int, int]:
        """What the longest tasks wait for goes first, then one machine after the other."""
        return int(self._long.isdisjoint(task.request.phases)), self.number

    def _may_begin(self, number: int, task: Task) -> bool:
        return not any(self._undone[earlier, phase] for phase in task.request.phases for earlier in range(number))

    def _excluded(self, number: int, task: Task) -> tuple[Exclusion, ...]:
        known = {exclusion for earlier, exclusion in self._known if earlier < number}
        phases = ("", *task.request.phases)  # what is refused is so in all
        return in_order(exclusion for exclusion in known if exclusion.phase in phases)
