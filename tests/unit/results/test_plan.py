# SPDX-License-Identifier: GPL-2.0-or-later
"""Which cells a matrix has, and in which order."""

from __future__ import annotations

from typing import Any

from harness.engines.schedule import LoadCount, Schedule
from harness.results.key import Route
from harness.results.plan import CellPlan, plan_cells
from harness.state.transforms import GuestMode


def planned(**changes: Any) -> list[CellPlan]:
    given: dict[str, Any] = {
        "route": Route(recorder="7.2.22", loader="7.2.22"),
        "machine": "pc-q35-7.2",
        "devices": ["ahci", "platform"],
        "phases": ["kernel", "bound"],
        "schedules": tuple(Schedule),
        "guest_modes": [GuestMode.RUNNING],
        "loads": LoadCount(each=7),
    }
    return plan_cells(**{**given, **changes})


def test_a_row_has_a_cell_for_each_phase_or_one_over_all() -> None:
    assert [(c.device, c.key.where, str(c.schedule)) for c in planned()] == [
        (device, where, schedule)
        for device in ("ahci", "platform")
        for schedule, where in (
            ("same", "kernel"), ("same", "bound"), ("alternate", "kernel+bound"), ("walk", "kernel+bound"),
            ("back-to-back", "kernel"), ("back-to-back", "bound"),
        )
    ]  # fmt: skip
    assert {c.loads for c in planned()} == {7}
    assert [c.phases for c in planned(schedules=[Schedule.WALK])] == [("kernel", "bound")] * 2


def test_one_phase_has_nothing_to_walk_to() -> None:
    assert {str(c.schedule) for c in planned(phases=["bound"])} == {"same", "back-to-back"}


def test_all_phases_and_schedules_are_fourteen_cells_a_row() -> None:
    assert len(planned(devices=["ahci"], phases=["a", "b", "c", "d", "e", "f"])) == 14


def test_ids_are_unique_and_say_what_differs() -> None:
    ids = [str(c.key) for c in planned(guest_modes=[GuestMode.RUNNING, GuestMode.PARKED])]
    assert len(set(ids)) == len(ids) == 24
    assert ids[0] == "7.2.22/pc-q35-7.2/ahci/kernel/same"
    assert ids[2] == "7.2.22/pc-q35-7.2/ahci/kernel+bound/alternate"
    assert ids[6] == "7.2.22/pc-q35-7.2/ahci/kernel/same/parked"


def test_nothing_asked_is_nothing_planned() -> None:
    for name in ("devices", "phases", "schedules", "guest_modes"):
        assert planned(**{name: []}) == []
