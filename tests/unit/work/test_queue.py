# SPDX-License-Identifier: GPL-2.0-or-later
"""In which order things are given out, and how many at a time."""

from __future__ import annotations

from harness.work.queue import Queue, Takes


def test_the_lowest_rank_goes_first_and_then_who_came_first() -> None:
    queue: Queue[str] = Queue(2)
    assert not queue
    for thing, rank in (("machine", 2), ("late", 1), ("urgent", 0), ("later", 1)):
        queue.add(thing, (rank, 0))
    assert list(queue.take()) == [("urgent", Takes.CORE), ("late", Takes.CORE)]
    assert list(queue.take()) == []
    queue.done(Takes.CORE)
    assert list(queue.take()) == [("later", Takes.CORE)]
    queue.done(Takes.CORE)
    queue.done(Takes.CORE)
    assert list(queue.take()) == [("machine", Takes.CORE)]
    assert queue
    queue.done(Takes.CORE)
    assert not queue


def test_what_waits_is_given_out_beside_the_others() -> None:
    queue: Queue[str] = Queue(1)
    core, nothing = Takes.CORE, Takes.NOTHING
    for thing, takes in (("a", core), ("b", core), ("leak", nothing), ("leak too", nothing)):
        queue.add(thing, (0, 0), takes)
    assert list(queue.take()) == [("a", core), ("leak", nothing)]
    queue.done(nothing)
    assert list(queue.take()) == [("leak too", nothing)]
    queue.done(core)
    assert list(queue.take()) == [("b", core)]


def test_what_takes_half_a_core_goes_out_beside_as_many_as_there_are_cores() -> None:
    queue: Queue[str] = Queue(2)
    for number in range(4):
        queue.add(f"guest {number}", (2, 0), Takes.HALF)
    assert [thing for thing, _ in queue.take()] == ["guest 0", "guest 1", "guest 2"]
    for number in range(4):
        queue.add(f"loads {number}", (0, 0))
    # loads wait for guests that are out, and go before those that are not
    assert list(queue.take()) == []
    queue.done(Takes.HALF)
    queue.done(Takes.HALF)
    assert [thing for thing, _ in queue.take()] == ["loads 0", "loads 1"]
    queue.done(Takes.HALF)
    assert [thing for thing, _ in queue.take(hold=True)] == []
    assert [thing for thing, _ in queue.take()] == ["guest 3"]


def test_with_one_core_nothing_is_given_out_beside_what_takes_it() -> None:
    queue: Queue[str] = Queue(1)
    queue.add("guest", (2, 0), Takes.HALF)
    queue.add("loads", (0, 0))
    assert [thing for thing, _ in queue.take()] == ["loads"]
    queue.done(Takes.CORE)
    assert [thing for thing, _ in queue.take()] == ["guest"]
