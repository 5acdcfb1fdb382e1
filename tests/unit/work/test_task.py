# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks as data, and the waves that they come in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from harness.devices.device import Device, GuestCommands
from harness.engines.schedule import LoadCount
from harness.errors import UsageError
from harness.lanes.judge import Exclusion, ExclusionReason
from harness.lanes.lane import Request
from harness.lanes.registry import LANES
from harness.names import MIGRATIONS, ORACLES, RESET, SCHEDULES
from harness.qemu.cmdline import Option
from harness.results.key import CellKey
from harness.state.transforms import GuestMode
from harness.work.planning import Chain, Wanted, in_waves, plan_tasks
from harness.work.task import QemuFile, RecordingFile, Task, in_order

BROKE = Exclusion(section="i8259", reason=ExclusionReason.BROKE, phase="bound", twice=True)
REFUSED = Exclusion(section="0000:00:05.0/virtio-net", reason=ExclusionReason.REFUSED)
AHCI = Device(name="ahci", about="a disk", faults={"disk": 5000}, guest=GuestCommands(busy="write"))
LIKE = Task(
    recording=RecordingFile(path="/packs/pc", content="ab" * 32),
    loader=QemuFile(path="/usr/bin/qemu", sha256="cd" * 32),
    request=Request(lane="", machine="pc-i440fx-7.2", phases=(), devices=()),
    answers=(),
    guest=(AHCI,),
)
TASK = replace(
    LIKE,
    request=Request(
        lane="same", machine="pc-i440fx-7.2", phases=("bound",), devices=("ahci",), guest_mode=GuestMode.PARKED, loads=7
    ),
    answers=(CellKey.parse("7.2/pc-i440fx-7.2/ahci/bound/same/parked"),),
    excluded=(REFUSED, BROKE),
    came=True,
    run_s=0.05,
    pair=True,
    overrides=(Option(name="global", props={"driver": "e1000", "mitigation": False, "queues": 2}),),
    budget_s=2.5,
)


def test_a_task_goes_to_json_and_back() -> None:
    text = TASK.to_json()
    assert "\n" not in text
    assert Task.from_json(text) == TASK
    assert json.loads(text)["excluded"][1] == {"section": "i8259", "reason": "broke", "phase": "bound", "twice": True}


def test_tasks_of_one_place_meet_there_whatever_options_the_loader_has() -> None:
    places = {TASK.place: "with an option", replace(TASK, overrides=()).place: "without"}
    assert places[Task.from_json(TASK.to_json()).place] == "with an option"
    assert len(places) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [({"loader": {"path": "/x"}}, "loader.sha256"), ({"answers": "ahci"}, "answers"), ({"request": None}, "request")],
)
def test_what_is_no_task_is_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=f"not a task: {said}"):
        Task.from_json(json.dumps({**json.loads(TASK.to_json()), **change}))


def wanted(devices: Sequence[str] = ("ahci", "platform"), **more: object) -> Wanted:
    given: dict[str, object] = {
        "key": CellKey.parse("7.2/pc-i440fx-7.2/x/bound/same"),
        "phases": ("kernel", "bound"),
        "lanes": tuple(LANES[name] for name in (*MIGRATIONS, "same", "walk", "back-to-back", "drift")),
        "modes": (GuestMode.RUNNING,), "loads": LoadCount(each=5), "like": LIKE, **more,
    }  # fmt: skip
    return Wanted(**{"reached": dict.fromkeys(devices, given["phases"]), **given})  # type: ignore[arg-type]


def shown(tasks: list[Task]) -> list[str]:
    return [f"{task.request.lane} {'+'.join(task.request.devices)} {'+'.join(task.request.phases)}" for task in tasks]


def test_what_breaks_the_whole_state_is_known_before_the_rest_begins() -> None:
    tasks = plan_tasks(wanted())
    assert [shown(wave) for wave in in_waves(tasks, LANES)] == [
        ["plain ahci+platform kernel+bound"],
        ["early ahci+platform kernel+bound", "postcopy ahci+platform kernel+bound"],
        ["same ahci+platform kernel", "same ahci+platform bound", "walk ahci+platform kernel+bound"],
        ["back-to-back ahci+platform kernel", "back-to-back ahci+platform bound"],
        ["drift ahci+platform kernel", "drift ahci+platform bound"],
    ]  # fmt: skip
    assert [task.request.loads for task in tasks] == [5] * len(tasks)


def test_each_cell_is_answered_by_one_task() -> None:
    tasks = plan_tasks(wanted(modes=tuple(GuestMode), devices=("ahci",)))
    cells = [str(key).removeprefix("7.2/pc-i440fx-7.2/ahci/") for task in tasks for key in task.answers]
    assert cells == [
        "kernel+bound/plain", "kernel+bound/early", "kernel+bound/postcopy",
        "kernel/same", "bound/same", "kernel+bound/walk", "kernel/back-to-back", "bound/back-to-back",
        "kernel/same/parked", "bound/same/parked", "kernel+bound/walk/parked", "kernel/back-to-back/parked",
        "bound/back-to-back/parked",
        "kernel/drift", "bound/drift",
    ]  # fmt: skip


def test_a_parked_guest_comes_with_the_waves_that_load_alone() -> None:
    lanes = (LANES["same"],)
    tasks = plan_tasks(wanted(modes=(GuestMode.PARKED, GuestMode.RUNNING), lanes=lanes, phases=("bound",)))
    waves = in_waves(tasks, LANES)
    assert [[task.request.guest_mode for task in wave] for wave in waves] == [[GuestMode.RUNNING], [GuestMode.PARKED]]


def test_one_phase_is_not_walked_and_no_device_has_no_task() -> None:
    lanes = tuple(LANES.values())
    lone = {task.request.lane for task in plan_tasks(wanted(lanes=lanes, phases=("kernel",)))}
    assert lone == {"plain", "early", "postcopy", "same", "back-to-back", "leak", "drift", "reset"}
    assert plan_tasks(wanted(lanes=lanes, devices=())) == []


def test_an_own_phase_is_for_the_devices_that_can_fail_in_it() -> None:
    tasks = plan_tasks(wanted(lanes=(LANES["io-error"],), phases=("bound", "io-error"), devices=("ahci", "virtio-net")))
    assert shown(tasks) == ["io-error ahci io-error"]


def test_a_device_has_tasks_in_the_phases_that_it_has_reached() -> None:
    reached = {"ahci": ("kernel", "bound"), "virtio-rng-pci": ("kernel",), "lost": ()}
    tasks = plan_tasks(wanted(reached=reached, lanes=tuple(LANES[name] for name in ("same", "walk", "leak", "guest"))))
    assert shown(tasks) == [
        "same ahci+virtio-rng-pci kernel", "same ahci bound", "walk ahci+virtio-rng-pci kernel+bound",
        "leak virtio-rng-pci kernel", "leak ahci bound", "guest ahci bound",
    ]  # fmt: skip


def test_the_lanes_of_a_report_are_those_of_the_registry() -> None:
    assert tuple(LANES) == (*MIGRATIONS, *SCHEDULES, *ORACLES, RESET)
    assert len(LANES) == 12


def test_the_waves_of_a_machine_pass_on_what_is_known() -> None:
    chain = Chain(waves=in_waves(plan_tasks(wanted(lanes=(LANES["plain"], LANES["same"], LANES["drift"]))), LANES))
    (plain,) = chain.ready()
    assert plain.excluded == ()
    kernel, bound = chain.done(plain, [REFUSED])
    assert [kernel.excluded, bound.excluded] == [(REFUSED,), (REFUSED,)]
    (drift_bound,) = chain.done(bound, [BROKE])
    (drift_kernel,) = chain.done(kernel, [])
    assert drift_bound.excluded == in_order([BROKE, REFUSED])
    assert drift_kernel.excluded == (REFUSED,)
    assert [chain.done(drift_bound, []), chain.done(drift_kernel, []), chain.ready()] == [[], [], []]


def test_what_comes_of_a_wave_is_no_news_to_the_same_wave() -> None:
    chain = Chain(in_waves(plan_tasks(wanted(lanes=(LANES["same"], LANES["walk"], LANES["drift"]))), LANES))
    kernel, bound, walk = chain.ready()
    assert chain.done(bound, [BROKE]) == []
    assert walk.excluded == ()
    (late,) = [task for task in chain.done(walk, []) if task.request.phases == ("bound",)]
    assert late.excluded == (BROKE,)
    assert [task.request.phases for task in chain.done(kernel, [])] == [("kernel",)]


def test_what_the_longest_task_waits_for_goes_first_on_each_machine() -> None:
    waves = in_waves(plan_tasks(wanted(lanes=(LANES["same"], LANES["walk"], LANES["leak"]))), LANES)
    chain = Chain(waves, 3)
    assert [(task.request.lane, task.request.phases, chain.rank(task)) for task in waves[0]] == [
        ("same", ("kernel",), (1, 3)), ("same", ("bound",), (0, 3)), ("walk", ("kernel", "bound"), (0, 3)),
    ]  # fmt: skip
