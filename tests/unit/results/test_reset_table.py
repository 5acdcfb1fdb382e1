# SPDX-License-Identifier: GPL-2.0-or-later
"""Which devices need a reset before a load. What a build does by itself decides how its cells are read."""

from __future__ import annotations

import pytest
from made_cells import QEMU, ended, made_cell

from harness.colo.messages import Step
from harness.results.document import DeviceReset, MachineResult, ResetNeed
from harness.results.reset import reset_table
from harness.results.verdict import FailureClass, Verdict

OK, CRASH, DRIFT, LEAK = Verdict.OK, Verdict.CRASH, Verdict.DRIFT, Verdict.LEAK
SPAN = {"low": 1.0, "median": 2.0, "high": 3.0}
GUEST = {"phase": "bound", "samples": 40, "reset": SPAN, "load": SPAN, "added": SPAN}


def line(resets: bool | None, **lanes: Verdict) -> DeviceReset:
    """The line of one device whose lanes came to these verdicts."""
    machine = MachineResult(machine="pc-q35-7.2", qemu=QEMU, resets_before_load=resets)
    cells = [
        made_cell(f"pc-q35-7.2/ahci/bound/{lane.replace('_', '-')}", verdict, blamed=("x",) if verdict is CRASH else ())
        for lane, verdict in lanes.items()
    ]
    (found,) = reset_table([machine], cells)
    return found


@pytest.mark.parametrize(
    ("lanes", "without", "behind", "need"),
    [
        ({"same": OK, "back_to_back": OK, "reset": OK}, OK, OK, ResetNeed.NO),
        ({"same": CRASH, "reset": OK}, CRASH, OK, ResetNeed.YES),
        ({"same": OK, "drift": DRIFT, "reset": OK}, DRIFT, OK, ResetNeed.YES),
        ({"same": CRASH, "reset": CRASH}, CRASH, CRASH, ResetNeed.NO_HELP),
        ({"same": CRASH, "reset": Verdict.HARNESS_ERROR}, CRASH, None, ResetNeed.UNKNOWN),
        ({"same": Verdict.HOST, "reset": OK}, None, OK, ResetNeed.UNKNOWN),
        ({"reset": OK}, None, OK, ResetNeed.UNKNOWN),
        ({"early": CRASH, "reset": OK}, CRASH, OK, ResetNeed.YES),
        ({"plain": CRASH, "same": OK, "reset": OK}, OK, OK, ResetNeed.NO),
    ],
)
def test_a_build_that_does_not_reset_loads_into_a_used_device_in_each_lane_but_one(
    lanes: dict[str, Verdict], without: Verdict | None, behind: Verdict | None, need: ResetNeed
) -> None:
    found = line(False, **lanes)
    assert (found.without, found.behind, found.need) == (without, behind, need)


@pytest.mark.parametrize(
    ("lanes", "without", "behind", "need"),
    [
        ({"same": OK, "back_to_back": CRASH, "reset": OK}, CRASH, OK, ResetNeed.YES),
        ({"same": CRASH, "back_to_back": CRASH, "reset": OK}, CRASH, CRASH, ResetNeed.NO_HELP),
        ({"same": CRASH, "back_to_back": OK, "reset": OK}, OK, CRASH, ResetNeed.NO),
        ({"same": OK, "reset": OK}, None, OK, ResetNeed.UNKNOWN),
    ],
)
def test_a_build_that_resets_loads_into_a_used_device_within_one_buffer_alone(
    lanes: dict[str, Verdict], without: Verdict | None, behind: Verdict | None, need: ResetNeed
) -> None:
    found = line(True, **lanes)
    assert (found.without, found.behind, found.need) == (without, behind, need)


def test_a_leak_is_told_apart_from_what_a_reset_mends() -> None:
    found = line(False, same=OK, leak=LEAK, reset=OK)
    assert (found.need, found.without, found.leaks) == (ResetNeed.NO, LEAK, True)
    found = line(False, same=CRASH, leak=LEAK, reset=OK)
    assert (found.need, found.without, found.leaks) == (ResetNeed.YES, CRASH, True)


def test_no_reset_helps_what_breaks_in_a_new_process() -> None:
    machine = MachineResult(machine="pc-q35-7.2", qemu=QEMU, resets_before_load=False)
    broke = made_cell("pc-q35-7.2/ahci/bound/same", CRASH, causes=(ended(step=Step.INCOMING, load=0),))
    reset = made_cell("pc-q35-7.2/ahci/bound/reset", Verdict.HARNESS_ERROR)
    (found,) = reset_table([machine], [broke, reset])
    assert (found.need, found.behind) == (ResetNeed.NO_HELP, None)


def test_a_line_says_what_broke_and_what_the_reset_costs() -> None:
    machine = MachineResult(machine="pc-q35-7.2", qemu=QEMU, resets_before_load=False)
    broke = made_cell(
        "pc-q35-7.2/ahci/bound/same", CRASH, blamed=("ICH9",), failure_class=FailureClass.STALE_WITHOUT_RESET
    )
    reset = made_cell("pc-q35-7.2/ahci/bound/reset", details={"guest": GUEST, "ahci": {"part": SPAN}})
    other = made_cell("pc-q35-7.2/platform/bound/same")
    (found,) = reset_table([machine], [broke, reset, other])
    assert (found.device, found.sections, found.failure_class) == ("ahci", ("ICH9",), FailureClass.STALE_WITHOUT_RESET)
    assert found.guest is not None
    assert found.part is not None
    assert (found.guest.phase, found.guest.added.high, found.part.low) == ("bound", 3.0, 1.0)


def test_a_run_that_was_not_asked_has_no_table() -> None:
    assert reset_table([], [made_cell("pc-q35-7.2/ahci/bound/same", CRASH)]) == ()
