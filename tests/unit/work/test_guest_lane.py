# SPDX-License-Identifier: GPL-2.0-or-later
"""One guest answers for all of its devices: when one breaks it, the others are asked without that one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from made_cells import symptom

from harness.colo.messages import Step
from harness.engines.evidence import Break
from harness.engines.setting import Setting
from harness.experiments.guestlife import GuestClock, GuestLife, LifeCheck
from harness.guests.machine import DiskKind
from harness.lanes import guest
from harness.lanes.checks import perform
from harness.lanes.guest import guest_check
from harness.lanes.judge import Bench, Exclusion, ExclusionReason
from harness.oracles.isolate import Blame
from harness.qemu.disturbance import Disturbance, Hindered, attempt, current_account
from harness.qemu.process import Exit
from harness.report.sentences import cause_text
from harness.results.cause import Undecided, Why
from harness.results.document import Cell
from harness.results.outcome import Isolation, IsolationWay
from harness.results.verdict import Verdict

ROWS = ("ahci", "virtio-blk", "platform")
CLOCK = GuestClock(asked_s=0.0, answered_s=0.1, beats=1, up_s=1.0, epoch_s=1)
LATER = GuestClock(asked_s=2.0, answered_s=2.1, beats=41, up_s=3.0, epoch_s=3)

#: How a guest ends, by what is not loaded; None for one that is well.
Ends = Callable[[Setting], dict[str, Any] | None]
CRASHED: dict[str, Any] = {
    "loads_acked": 3,
    "broken": Break(step=Step.LOAD, load=4, phase="bound", kind="closed", symptom=symptom("closed")),
    "exit": Exit(status=-11, signal="SIGSEGV"),
}
#: It loaded, failed over, and said nothing any more.
RESET: dict[str, Any] = {"events": ("RESET",)}


@pytest.fixture
def asked(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Cell]]:
    """Asks a guest, with what a search for a section alone finds; its cells by device."""

    def ask(ends: Ends, *, section: str | None = None, resets: bool = False) -> dict[str, Cell]:
        own = tuple(entry.name for entry in bench.buffers.pack.manifest.devices)

        def life(setting: Setting, **_: object) -> GuestLife:
            broke = ends(setting)
            given: dict[str, Any] = {"clocks": (CLOCK, LATER), "checks": tuple(map(check, own[:-1]))}
            if broke is not None:
                given = broke
            whole: dict[str, Any] = {
                "phase": "bound", "devices": own, "kernel_names": {}, "disks": DiskKind.REPLICATION,
                "loads_asked": 30, "loads_acked": 30, **given,
            }  # fmt: skip
            return GuestLife(**whole)

        found = None
        if section is not None:
            how = Isolation(way=IsolationWay.ALONE, loads=1, together=resets, of=1)
            anything: Any = None
            found = Blame(sections=(section,), how=how, judgement=anything)
        monkeypatch.setattr(guest, "guest_life", life)

        def find(*given: object) -> Blame | None:
            # the guest's incoming stream was taken without what is refused
            assert given[-1] == bench.refused
            return found

        monkeypatch.setattr(Bench, "isolator", lambda *_, **__: SimpleNamespace(find=find))
        bench.ability = replace(bench.ability, resets_before_load=resets)
        return {cell.device: cell for cell in perform(guest_check("bound", ROWS), bench)}

    return ask


def check(device: str) -> LifeCheck:
    return LifeCheck(device=device, status=0, said="", seconds=0.5)


def verdicts(cells: dict[str, Cell]) -> tuple[str, ...]:
    return tuple(cells[row].verdict for row in ROWS)


def own(bench: Bench, device: str) -> list[str]:
    return bench.buffers.pack.sections_of(device)


def test_a_section_that_breaks_a_load_is_its_own_devices_finding_alone(
    asked: Callable[..., dict[str, Cell]], bench: Bench
) -> None:
    label = own(bench, "ahci")[0]
    cells = asked(lambda setting: None if label in setting.excluded else CRASHED, section=label)
    assert verdicts(cells) == ("crash", "ok", "ok")
    ahci, disk = cells["ahci"], cells["virtio-blk"]
    assert (ahci.blamed, ahci.loads_acked, ahci.excluded) == ((label,), 3, ())
    assert (disk.loads_acked, disk.excluded, disk.shared_with) == (30, (label,), "")
    assert cells["platform"].shared_with == disk.id
    assert label in bench.known(("bound",))


def test_the_device_without_which_the_guest_answers_has_the_finding(
    asked: Callable[..., dict[str, Cell]], bench: Bench
) -> None:
    mine = set(own(bench, "virtio-blk"))
    cells = asked(lambda setting: None if mine <= setting.excluded else RESET)
    assert verdicts(cells) == ("ok", "guest-fault", "ok")
    assert set(cells["virtio-blk"].blamed) == mine


def test_a_device_that_was_not_loaded_has_no_fault_of_its_own_and_is_not_well_either(
    asked: Callable[..., dict[str, Cell]], bench: Bench
) -> None:
    """Its section is known to break: its driver then meets a device in another state than it left it in."""
    (label,) = own(bench, "ahci")
    bench.tell([Exclusion(section=label, reason=ExclusionReason.BROKE, phase="bound")])
    stuck = {"clocks": (CLOCK, LATER), "checks": (replace(check("ahci"), status=1, said="stuck"), check("virtio-blk"))}
    for ends in (stuck, None):
        cells = asked(lambda _, ends=ends: ends)
        assert verdicts(cells) == ("harness-error", "ok", "ok")
        (cause,) = cells["ahci"].outcome.causes
        assert isinstance(cause, Undecided)
        assert (cause.why, cause.sections) == (Why.LEFT_OUT, (label,))


def test_what_does_not_come_again_is_nobodys_and_keeps_nobody_from_an_answer(
    asked: Callable[..., dict[str, Cell]],
) -> None:
    ends = [RESET]
    cells = asked(lambda _: ends.pop() if ends else None)
    assert verdicts(cells) == ("ok", "ok", "flaky")
    crashes = [CRASHED]
    cells = asked(lambda _: crashes.pop() if crashes else None)
    assert verdicts(cells) == ("ok", "ok", "crash")
    repeats = cells["platform"].outcome.repeats
    assert repeats is not None
    assert (repeats.seen, repeats.of) == (1, 2)


def test_where_a_build_resets_a_guest_that_two_loads_in_a_buffer_break_is_asked_behind_one(
    asked: Callable[..., dict[str, Cell]],
) -> None:
    cells = asked(lambda setting: CRASHED if setting.resets else None, resets=True)
    assert verdicts(cells) == ("ok", "ok", "crash")


def test_what_cannot_be_asked_at_all_is_no_error_of_this_program(asked: Callable[..., dict[str, Cell]]) -> None:
    cells = asked(lambda _: CRASHED)
    assert verdicts(cells) == ("unsupported", "unsupported", "crash")
    assert cause_text(cells["ahci"].outcome.causes[0]).startswith("not asked: its guest broke")


def test_where_the_host_had_a_hand_in_it_it_is_tried_again(asked: Callable[..., dict[str, Cell]]) -> None:
    calls: list[Setting] = []
    with attempt():
        current_account().ended(Hindered(how=Disturbance.ENDED, signal="SIGTERM"))
        cells = asked(lambda setting: calls.append(setting) or CRASHED)  # type: ignore[func-returns-value]
    assert {cells["ahci"].verdict, cells["virtio-blk"].verdict} == {Verdict.HARNESS_ERROR}
    assert len(calls) == 1
