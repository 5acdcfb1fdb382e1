# SPDX-License-Identifier: GPL-2.0-or-later
"""In which order things are given out, and how many at a time."""

from __future__ import annotations

from harness.work.queue import Queue


def test_the_lowest_rank_goes_first_and_then_who_came_first() -> None:
    queue: Queue[str] = Queue(2)
    assert not queue
    for thing, rank in (("machine", 2), ("late", 1), ("urgent", 0), ("later", 1)):
        queue.add(thing, (rank, 0))
    assert list(queue.take()) == [("urgent", False), ("late", False)]
    assert list(queue.take()) == []
    queue.done(waits=False)
    assert list(queue.take()) == [("later", False)]
    queue.done(waits=False)
    queue.done(waits=False)
    assert list(queue.take()) == [("machine", False)]
    assert queue
    queue.done(waits=False)
    assert not queue


def test_what_waits_is_given_out_beside_the_others() -> None:
    queue: Queue[str] = Queue(1)
    for thing, waits in (("a", False), ("b", False), ("leak", True), ("leak too", True)):
        queue.add(thing, (0, 0), waits=waits)
    assert list(queue.take()) == [("a", False), ("leak", True)]
    queue.done(waits=True)
    assert list(queue.take()) == [("leak too", True)]
    queue.done(waits=False)
    assert list(queue.take()) == [("b", False)]
