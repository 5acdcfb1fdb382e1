# SPDX-License-Identifier: GPL-2.0-or-later
"""What is likely to tell something comes first: failed last time, another build, not seen for long."""

from __future__ import annotations

from made_cells import QEMU
from made_runs import crashed, judged, write_nights

from harness.nights.order import order_of
from harness.results.key import CellKey
from harness.results.verdict import Verdict
from harness.store.read import History

PLACES = [f"pc-q35-7.2/ahci/{phase}/same" for phase in ("firmware", "kernel", "bound", "busy", "unbound")]
FIRMWARE, KERNEL, BOUND, BUSY, UNBOUND = PLACES
KEYS = [CellKey.parse(f"7.2.22/{place}") for place in PLACES]


def places(history: History, build: str) -> list[str]:
    order = order_of(history, KEYS, {"7.2.22": build})
    return [key.where for key in sorted(KEYS, key=lambda key: order.of([key]))]


def test_failed_then_never_judged_then_the_oldest(history: History) -> None:
    write_nights(
        history.engine,
        [
            [judged(FIRMWARE), judged(KERNEL), judged(BOUND)],
            [judged(FIRMWARE), judged(BOUND)],
            [judged(FIRMWARE), crashed(BUSY), judged(KERNEL, Verdict.HOST)],
        ],
    )
    assert places(history, QEMU.sha256) == ["busy", "unbound", "kernel", "bound", "firmware"]


def test_a_build_that_was_not_asked_yet_comes_before_what_is_only_old(history: History) -> None:
    write_nights(history.engine, [[judged(FIRMWARE), judged(KERNEL)], [judged(FIRMWARE)]])
    order = order_of(history, KEYS, {"7.2.22": "ab" * 32})
    assert {order.of([key]) for key in KEYS} == {1}
    order = order_of(history, KEYS, {"7.2.22": QEMU.sha256})
    assert order.of(KEYS[:1]) > order.of(KEYS[1:2]) > order.of(KEYS[2:3])


def test_the_next_point_release_is_another_build_of_the_same_cells(history: History) -> None:
    write_nights(history.engine, [[crashed(BOUND), judged(BUSY)]])
    later = [CellKey.parse(f"7.2.23/{place}") for place in (BOUND, BUSY)]
    order = order_of(history, later, {"7.2.23": "ab" * 32})
    assert [order.of([key]) for key in later] == [0, 1]


def test_an_empty_history_has_no_order(history: History) -> None:
    order = order_of(history, KEYS, {"7.2.22": QEMU.sha256})
    assert len({order.of([key]) for key in KEYS}) == 1
