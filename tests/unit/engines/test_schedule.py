# SPDX-License-Identifier: GPL-2.0-or-later
"""Schedules: exactly as many loads as asked for, and every transition that a walk promises."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.engines.schedule import BUFFER_LOADS, LoadCount, Schedule, plan_loads, walk
from harness.errors import UsageError

NAMES = ("firmware", "kernel", "bound", "busy", "unbound", "rebound")


def phases_for(schedule: Schedule, count: int) -> tuple[str, ...]:
    return NAMES[:1] if schedule in (Schedule.SAME, Schedule.BACK_TO_BACK) else NAMES[: max(count, 2)]


@given(schedule=st.sampled_from(Schedule), count=st.integers(1, 6), loads=st.integers(1, 700))
def test_exactly_as_many_loads_as_asked(schedule: Schedule, count: int, loads: int) -> None:
    phases = phases_for(schedule, count)
    plan = plan_loads(schedule, phases, loads)
    assert plan.loads == loads
    assert sum(c.repeat for c in plan.checkpoints) == loads
    assert all(1 <= c.repeat <= BUFFER_LOADS for c in plan.checkpoints)
    assert {plan.incoming, *(c.phase for c in plan.checkpoints)} <= set(phases)
    assert plan.incoming == phases[0]


@given(st.permutations(NAMES), st.integers(1, 6))
def test_a_walk_takes_every_ordered_pair_once_and_comes_home(names: list[str], count: int) -> None:
    phases = names[:count]
    steps = [phases[0], *walk(phases)]
    taken = Counter(pairwise(steps))
    assert taken == Counter((a, b) for a in phases for b in phases)
    assert steps[-1] == phases[0]


def test_a_walk_that_is_repeated_has_no_seam() -> None:
    plan = plan_loads(Schedule.WALK, NAMES[:3], 27)
    steps = [plan.incoming, *(c.phase for c in plan.checkpoints)]
    assert set(Counter(pairwise(steps)).values()) == {3}


def test_same_loads_one_phase_each_in_its_own_buffer() -> None:
    plan = plan_loads(Schedule.SAME, ["busy"], 3)
    assert [(c.phase, c.repeat) for c in plan.checkpoints] == [("busy", 1)] * 3


def test_alternate_goes_to_and_fro_between_neighbours() -> None:
    plan = plan_loads(Schedule.ALTERNATE, ["a", "b", "c"], 10)
    assert "".join(c.phase for c in plan.checkpoints) == "ababbcbcab"


@pytest.mark.parametrize(
    ("loads", "buffers"),
    [(1, [1]), (99, [99]), (100, [100]), (101, [100, 1]), (250, [100, 100, 50])],
)
def test_back_to_back_fills_buffers(loads: int, buffers: list[int]) -> None:
    plan = plan_loads(Schedule.BACK_TO_BACK, ["a"], loads)
    assert [c.repeat for c in plan.checkpoints] == buffers


@pytest.mark.parametrize("loads", [0, -1])
@pytest.mark.parametrize("schedule", Schedule)
def test_no_loads_are_refused(schedule: Schedule, loads: int) -> None:
    with pytest.raises(UsageError, match=f"--loads {loads}"):
        plan_loads(schedule, phases_for(schedule, 2), loads)


@pytest.mark.parametrize(
    ("schedule", "phases"),
    [
        (Schedule.SAME, []),
        (Schedule.SAME, ["a", "b"]),
        (Schedule.BACK_TO_BACK, []),
        (Schedule.BACK_TO_BACK, ["a", "b"]),
        (Schedule.ALTERNATE, []),
        (Schedule.ALTERNATE, ["a"]),
        (Schedule.WALK, []),
        (Schedule.WALK, ["a"]),
    ],
)
def test_the_wrong_number_of_phases_is_refused(schedule: Schedule, phases: list[str]) -> None:
    with pytest.raises(UsageError, match=f"schedule {schedule} takes .* not {len(phases)}"):
        plan_loads(schedule, phases, 10)


@pytest.mark.parametrize(
    ("schedule", "phases", "each", "once"),
    [
        (Schedule.SAME, ["a"], 100, 100),
        (Schedule.BACK_TO_BACK, ["a"], 100, 100),
        (Schedule.ALTERNATE, ["a", "b", "c"], 100, 8),
        (Schedule.WALK, ["a", "b", "c"], 100, 9),
        (Schedule.WALK, ["a", "b", "c"], 4, 4),
    ],
)
def test_each_way_between_phases_once(schedule: Schedule, phases: list[str], each: int, once: int) -> None:
    assert LoadCount(each=each).of(schedule, phases) == each
    assert LoadCount(each=each, once=True).of(schedule, phases) == once
