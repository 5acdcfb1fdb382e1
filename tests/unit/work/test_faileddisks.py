# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle of failed disks: each device answers for its own request, and nobody for another's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import pytest
from made_cells import symptom

from harness.colo.messages import Step
from harness.devices.device import Device, GuestCommands
from harness.engines.evidence import Break
from harness.engines.setting import Setting
from harness.experiments.ioerror import ANSWERED, LOADS, WAITING, Interval, IoErrors
from harness.lanes import faileddisks
from harness.lanes.checks import perform
from harness.lanes.faileddisks import io_error_check
from harness.lanes.judge import Bench
from harness.qemu.process import Exit
from harness.results.document import Cell
from harness.results.verdict import FailureClass, Verdict

GUEST = GuestCommands(fail="fail", failed="failed")
AHCI = Device(name="ahci", about="", faults={"disk": 9}, guest=GUEST)
BLK = Device(name="virtio-blk", about="", faults={"disk": 9}, guest=GUEST)
PLATFORM = Device(name="platform", about="", rest=True)

Sessions = list[tuple[int, tuple[str, ...], tuple[str, ...]]]
#: Whether a session breaks, and the requests that are lost in it: told loads, failing disks, and what is left out.
Qemu = Callable[[int, Collection[str], Collection[str]], tuple[bool, set[str]]]


@pytest.fixture
def judged(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, Cell], Sessions]]:
    sessions: Sessions = []

    def run(qemu: Qemu, rows: tuple[str, ...] = ("ahci", "virtio-blk")) -> Any:
        def fake(setting: Setting, *, faults: Mapping[str, int], asked: Mapping[str, str], loads: int) -> IoErrors:
            breaks, lost = qemu(loads, faults, setting.excluded)
            sessions.append((loads, tuple(faults), tuple(asked)))
            held = {disk: 1 for disk in faults if disk.removesuffix("-disk") not in lost}
            after = Interval(status="io-error" if held else "running", held=held)
            seen = IoErrors(
                phase="io-error",
                faults=faults,
                once=False,
                loads_asked=loads,
                loads_acked=loads,
                intervals=(after,) * loads,
                after=after,
                requests={name: WAITING if name in lost else ANSWERED for name in asked},
            )
            broken = Break(step=Step.LOAD, kind="closed", symptom=symptom("closed"), load=1, phase="io-error")
            return (
                replace(seen, loads_acked=0, broken=broken, exit=Exit(status=-11, signal="SIGSEGV")) if breaks else seen
            )

        monkeypatch.setattr(faileddisks, "io_errors", fake)
        made = replace(bench, devices=(AHCI, BLK, PLATFORM))
        check = replace(io_error_check(rows), phases=("bound",))
        return {cell.device: cell for cell in perform(check, made)}, sessions

    return run


def test_one_session_on_healthy_disks_and_one_on_failing_ones_are_enough(judged: Callable[..., Any]) -> None:
    cells, sessions = judged(lambda *_: (False, set()))
    assert [cell.verdict for cell in cells.values()] == [Verdict.OK] * 2
    assert sessions == [
        (LOADS, (), ("ahci", "virtio-blk")),
        (0, ("ahci-disk", "virtio-blk-disk"), ()),
    ]


@pytest.mark.parametrize(
    ("lost_from", "found"), [(1, FailureClass.NOT_REENTRANT), (0, FailureClass.FAILS)], ids=["by-loads", "always"]
)
def test_a_lost_request_is_made_again_and_classed(
    judged: Callable[..., Any], lost_from: int, found: FailureClass
) -> None:
    cells, _ = judged(lambda loads, faults, _: (False, {"ahci"} if loads >= lost_from and not faults else set()))
    ahci = cells["ahci"].outcome
    assert (ahci.verdict, ahci.failure_class) == (Verdict.GUEST_FAULT, found)
    assert (ahci.repeats.seen, ahci.repeats.of) == (2, 2)
    assert cells["virtio-blk"].verdict is Verdict.OK


def test_a_request_that_is_not_sent_again_to_a_failing_disk_is_lost(judged: Callable[..., Any]) -> None:
    cells, _ = judged(lambda _, faults, __: (False, {"ahci"} if faults else set()))
    assert cells["ahci"].verdict is Verdict.GUEST_FAULT
    assert cells["virtio-blk"].verdict is Verdict.OK


def test_who_breaks_a_shared_session_is_seen_alone(judged: Callable[..., Any], bench: Bench) -> None:
    guilty = set(bench.buffers.pack.sections_of("ahci"))
    cells, _ = judged(lambda _, __, excluded: (not guilty <= set(excluded), set()))
    assert {name: cell.verdict for name, cell in cells.items()} == {"ahci": Verdict.CRASH, "virtio-blk": Verdict.OK}


def test_what_the_next_checkpoint_breaks_is_the_platforms(judged: Callable[..., Any]) -> None:
    rows = ("ahci", "virtio-blk", "platform")
    cells, sessions = judged(lambda loads, faults, _: (bool(faults) and loads > 1, set()), rows)
    verdicts = {name: cell.verdict for name, cell in cells.items()}
    assert verdicts == {"ahci": Verdict.OK, "virtio-blk": Verdict.OK, "platform": Verdict.CRASH}
    assert sessions[2:] == [(LOADS, ("ahci-disk",), ())] * 2
    # where no request is sent again, nothing can be said of it
    cells, _ = judged(lambda *_: (False, {"ahci", "virtio-blk"}), rows)
    assert cells["platform"].verdict is Verdict.HARNESS_ERROR
