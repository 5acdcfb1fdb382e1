# SPDX-License-Identifier: GPL-2.0-or-later
"""Cells spread over shards: each cell in one of them, guests whole where that is as good, and the same plan for all."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from harness.devices.recipe import load_recipes
from harness.engines.schedule import Schedule
from harness.errors import UsageError
from harness.lanes.registry import LANES
from harness.qemu.binary import QemuBinary
from harness.results.key import CellKey, Route
from harness.state.transforms import GuestMode
from harness.work.asked import Options
from harness.work.planning import with_causes
from harness.work.shards import Shard, foresee, spread
from harness.work.share import Share

PHASES = ("firmware", "kernel", "bound", "busy")


@pytest.fixture
def options(binary: QemuBinary) -> Options:
    recipes = load_recipes().devices
    return Options(
        binaries=(binary,), accel="tcg", machines=tuple(machine.name for machine in binary.machines)[:2],
        profiles=tuple(recipes.values()), devices=("ahci", "platform", "virtio-blk"), phases=PHASES,
        schedules=tuple(Schedule), guest_modes=(GuestMode.RUNNING,), loads=100, jobs=1, run_s=0.0,
    )  # fmt: skip


def key(device: str = "ahci", phases: tuple[str, ...] = ("bound",), lane: str = "same", **more: object) -> CellKey:
    route = Route(recorder="7.2.22", loader="7.2.22")
    return CellKey(route=route, machine="pc-q35-7.2", device=device, phases=phases, lane=lane, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 40])
def test_each_cell_is_in_one_shard(options: Options, shards: int) -> None:
    guests = foresee(options)
    found = Counter(str(cell) for lot in spread(guests, shards) for cell in lot)
    assert found == {str(cell): 1 for guest in guests for cell in guest.cells}
    assert len(found) > 20


def test_all_lanes_are_foreseen(options: Options) -> None:
    assert {cell.lane for guest in foresee(options) for cell in guest.cells} == {
        *map(str, Schedule), "drift", "leak", "guest",
    }  # fmt: skip


def test_as_many_guests_as_shards_stay_whole(options: Options) -> None:
    guests = foresee(options)
    lots = spread(guests, len(guests))
    assert sorted(map(len, lots)) == sorted(len(guest.cells) for guest in guests)


def test_a_guest_is_divided_where_that_ends_the_run_sooner(options: Options) -> None:
    guests = foresee(replace(options, machines=options.machines[:1]))
    first, second = spread(guests[:1], 2)
    assert first
    assert second


def test_no_more_parts_than_there_is_work(options: Options) -> None:
    small = replace(options, machines=options.machines[:1], phases=("bound",), schedules=(Schedule.SAME,), quick=True)
    lots = spread(foresee(small), 4)
    assert [bool(lot) for lot in lots] == [True, False, False, False]


def test_what_is_no_device_there_is_one_shards_too(options: Options) -> None:
    there = options.binaries[0]
    bare = replace(options, binaries=(replace(there, devices=frozenset()),), machines=options.machines[:1])
    lots = spread(foresee(bare), 2)
    assert {cell.device for lot in lots for cell in lot} == {"ahci", "platform", "virtio-blk"}


def test_a_plan_is_named_by_what_is_asked(options: Options) -> None:
    names = {Shard(number=number, of=3).share(options)[1].plan for number in (1, 2, 3)}
    assert len(names) == 1
    other = Shard(number=1, of=3).share(replace(options, loads=99))[1].plan
    assert other not in names


@pytest.mark.parametrize("text", ["", "2", "0/3", "4/3", "1/0", "a/b", "-1/3", "1/3/5"])
def test_what_is_no_shard_is_said(text: str) -> None:
    with pytest.raises(UsageError, match="expected NUMBER/SHARDS"):
        Shard.parse(text)


def test_a_task_comes_with_those_of_earlier_waves_in_its_phases(options: Options) -> None:
    tasks = foresee(options)[0].tasks
    kept = with_causes(
        tasks, LANES, lambda task: (task.request.lane, task.request.phases) == ("back-to-back", ("bound",))
    )
    assert {(task.request.lane, task.request.phases) for task in kept} == {
        ("back-to-back", ("bound",)), ("same", ("bound",)), ("alternate", PHASES), ("walk", PHASES),
    }  # fmt: skip


def test_a_cell_that_nobody_foresaw_stands_for_one_of_its_lane() -> None:
    bound, leak, other = key(), key(lane="leak"), key("platform")
    share = Share([leak], [bound, leak, other])
    assert share.has(str(key(lane="leak", phases=("kernel",))))
    assert share.has(str(replace(leak, rest=1)))
    assert not share.has(str(key(phases=("kernel",))))
    assert share.foreseen(str(key(lane="guest"))) == str(bound)
    assert share.foreseen(str(key("virtio-net"))) == str(key("virtio-net"))


def test_a_guest_without_a_cell_of_the_share_is_known() -> None:
    share = Share([key("platform")], [key(), key("platform")])
    assert share.has_row(key(), {"ahci", "platform"})
    assert not share.has_row(key(), {"ahci"})


@pytest.mark.parametrize(
    ("quick", "loads", "walked"), [(False, 100, 100), (True, 100, 16), (True, 7, 7), (True, 1000, 1000), (False, 7, 7)]
)
def test_a_quick_walk_is_as_long_as_was_asked_for_and_else_one_round(
    options: Options, quick: bool, loads: int, walked: int
) -> None:
    count = replace(options, quick=quick, loads=loads).load_count
    assert count.of(Schedule.WALK, PHASES) == walked
    assert count.of(Schedule.SAME, PHASES[:1]) == loads
