# SPDX-License-Identifier: GPL-2.0-or-later
"""Schedules: in which order recordings are loaded. Pure; nothing is started here.

A schedule becomes a list of :class:`Checkpoint`, each of them one device buffer sent to the secondary. It starts
in the state of :attr:`Plan.incoming`, which the incoming stream of the session has brought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import cycle, islice, pairwise

from harness.errors import UsageError


class Schedule(StrEnum):
    """The order of loads."""

    SAME = "same"
    ALTERNATE = "alternate"
    WALK = "walk"
    BACK_TO_BACK = "back-to-back"


#: Back to back: loads in one device buffer. The buffer of a secondary grows by the page, so this bounds memory.
BUFFER_LOADS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One device buffer.

    :param phase: whose state is loaded
    :param repeat: how many times the row's sections stand in the buffer; each is a load
    """

    phase: str
    repeat: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What one session loads."""

    incoming: str
    checkpoints: tuple[Checkpoint, ...]

    @property
    def loads(self) -> int:
        """Loads asked for."""
        return sum(checkpoint.repeat for checkpoint in self.checkpoints)

    def phase_before(self, load: int) -> str:
        """In which state the secondary is when this load begins; 1 is the first."""
        seen, before = 0, self.incoming
        for checkpoint in self.checkpoints:
            seen += checkpoint.repeat
            if seen >= load:
                break
            before = checkpoint.phase
        return before


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadCount:
    """How many loads cells have.

    :param each: of each cell
    :param once: a schedule that goes between phases goes each way once, where that is less
    """

    each: int
    once: bool = False

    def of(self, schedule: Schedule, phases: Sequence[str]) -> int:
        """Those of a cell."""
        if not self.once or len(phases) < 2:
            return self.each
        return min(self.each, len(_order(schedule, phases)))


def plan_loads(schedule: Schedule, phases: Sequence[str], loads: int) -> LoadPlan:
    """Lay out ``loads`` loads.

    :param phases: one for same and back-to-back, two or more for alternate and walk
    :param loads: how many; a walk is repeated, and cut, to have exactly as many
    :raises UsageError: the number of phases does not fit the schedule, or loads is not positive
    """
    if loads < 1:
        raise UsageError(f"--loads {loads}: expected 1 or more")
    if schedule in (Schedule.SAME, Schedule.BACK_TO_BACK):
        if len(phases) != 1:
            raise UsageError(f"schedule {schedule} takes one phase, not {len(phases)}")
        return LoadPlan(incoming=phases[0], checkpoints=tuple(_one_phase(schedule, phases[0], loads)))
    if len(phases) < 2:
        raise UsageError(f"schedule {schedule} takes two phases or more, not {len(phases)}")
    order = islice(cycle(_order(schedule, phases)), loads)
    return LoadPlan(incoming=phases[0], checkpoints=tuple(Checkpoint(phase=phase) for phase in order))


def _order(schedule: Schedule, phases: Sequence[str]) -> list[str]:
    """The phases in turn, until a schedule that goes between them begins anew."""
    return _neighbours(phases) if schedule is Schedule.ALTERNATE else walk(phases)


def _one_phase(schedule: Schedule, phase: str, loads: int) -> list[Checkpoint]:
    if schedule is Schedule.SAME:
        return [Checkpoint(phase=phase)] * loads
    full, rest = divmod(loads, BUFFER_LOADS)
    buffers = [BUFFER_LOADS] * full + ([rest] if rest else [])
    return [Checkpoint(phase=phase, repeat=repeat) for repeat in buffers]


def _neighbours(phases: Sequence[str]) -> list[str]:
    """A B A B for each pair of neighbours: f k f k, k b k b, ..."""
    return [phase for first, second in pairwise(phases) for phase in (first, second) * 2]


def walk(phases: Sequence[str]) -> list[str]:
    """A closed walk that steps over every ordered pair once, a phase after itself included.

    :return: the phases stepped into, starting from ``phases[0]``; its length is the square of the number of phases

    An Eulerian circuit of the complete directed graph with loops (Hierholzer).
    """
    left = {phase: list(phases) for phase in phases}
    stack, circuit = [phases[0]], []
    while stack:
        here = stack[-1]
        if left[here]:
            stack.append(left[here].pop())
        else:
            circuit.append(stack.pop())
    return circuit[::-1][1:]
