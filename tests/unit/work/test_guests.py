# SPDX-License-Identifier: GPL-2.0-or-later
"""A device that QEMU does not have beside others gets another guest; nothing is started here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from harness.devices.device import Attachment, Device
from harness.engines.admission import Admission
from harness.guests.lack import Lack, Lacks
from harness.guests.planner import PlannedGuest
from harness.qemu.scope import ProcessScope
from harness.results.key import CellKey
from harness.results.plan import CellPlan
from harness.state.owners import Owners
from harness.state.recordings import Recordings, planned_guests
from harness.work import guests as module
from harness.work.guests import GuestDue, GuestOutcome, GuestRecorder

MACHINE = "pc-i440fx-7.2"
MEMORY_MIB = 16


def isa(name: str) -> Device:
    return Device(name=name, about="", default=False, attachments=(Attachment(name="dev", type=name, on="none"),))


def plan(name: str) -> CellPlan:
    return CellPlan(key=CellKey.parse(f"7.2/{MACHINE}/{name}/kernel/same"), loads=1)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[list[str], GuestOutcome]]]:
    """Records guests of devices, and those that are due behind, where some do not start or save what they should."""

    def run(
        devices: Sequence[str],
        refused: Callable[[tuple[str, ...]], dict[str, Lacks]] = lambda _: {},
        breaking: Sequence[str] = (),
    ) -> Any:
        def settles(_binary: object, guest: PlannedGuest, *_: object) -> tuple[PlannedGuest, Owners]:
            lacks = refused(guest.names)
            sections = {name: [name] for name in guest.names if name not in lacks}
            owners = Owners(sections=sections, refused={name: Lack(what=what) for name, what in lacks.items()})
            return guest.without(lacks), owners

        def admission(_binary: object, _ability: object, guest: PlannedGuest, *_: object) -> Admission:
            # where RAM blocks lie hangs on it
            assert guest.plan.memory_mib == MEMORY_MIB
            return Admission(breaking=frozenset(breaking) & set(guest.names))

        monkeypatch.setattr(module, "guest_admission", admission)
        monkeypatch.setattr(module, "settled", settles)
        monkeypatch.setattr(Recordings, "pack", lambda _self, plan: plan.planned.names)
        identity = {"kernel": {"sha256": "ab" * 32}, "initramfs": {"sha256": "ab" * 32}, "drivers": ()}
        guest: Any = SimpleNamespace(identity=identity, cpus=1, memory_mib=MEMORY_MIB, cmdline="", machines={})
        with ProcessScope() as scope:
            recordings = Recordings(fresh=False, stage=print, message=print, scope=scope)
            recorder = GuestRecorder(
                recordings=recordings, make=lambda *_: guest, accel="tcg", phases=("kernel",), scope=scope
            )
            anything: Any = SimpleNamespace(ability="any", binary=None)
            planned = planned_guests(MACHINE, "pc", [isa(name) for name in devices])
            due = [
                GuestDue(
                    recorder=anything,
                    guest=each,
                    seen=anything,
                    plans=tuple(map(plan, each.names)),
                )
                for each in planned.guests
            ]
            outcomes = []
            while due:
                outcomes.append(recorder.record(due.pop(0)))
                due += outcomes[-1].more
        return [([plan.device for plan in each.plans], each) for each in outcomes]

    return run


def test_devices_that_clash_get_guests_of_their_own(recorded: Callable[..., Any]) -> None:
    def one_port(names: tuple[str, ...]) -> dict[str, Lacks]:
        on_it = [name for name in names if name.startswith("port")]
        return dict.fromkeys(on_it[1:], Lacks.START)

    found = recorded(["port1", "x", "port2", "port3"], one_port)
    assert [names for names, _ in found] == [["port1", "x"], ["port2"], ["port3"]]
    assert not any(outcome.refused or outcome.lost for _, outcome in found)


def test_a_device_that_starts_nowhere_is_refused_once_it_is_the_first(recorded: Callable[..., Any]) -> None:
    found = recorded(["x", "bad"], lambda names: dict.fromkeys(set(names) & {"bad"}, Lacks.START))
    assert [names for names, _ in found] == [["x"], []]
    assert found[0][1].refused == []
    ((plans, lack),) = found[1][1].refused
    assert ([plan.device for plan in plans], lack.what) == (["bad"], Lacks.START)
    assert found[1][1].pack is None


def test_a_device_that_blocks_migration_does_so_alone_too(recorded: Callable[..., Any]) -> None:
    found = recorded(["x", "stuck"], lambda names: dict.fromkeys(set(names) & {"stuck"}, Lacks.MIGRATION))
    ((names, outcome),) = found
    assert names == ["x"]
    assert [lack.what for _, lack in outcome.refused] == [Lacks.MIGRATION]


def test_what_every_secondary_dies_of_gets_guests_of_its_own(recorded: Callable[..., Any]) -> None:
    """No section is to blame for it: beside others it would be held against them."""
    found = recorded(["x", "bad", "y", "worse"], breaking=["bad", "worse"])
    assert [names for names, _ in found] == [["x", "y"], ["bad"], ["worse"]]
    assert [outcome.pack for _, outcome in found] == [("x", "y"), ("bad",), ("worse",)]
    assert not any(outcome.refused or outcome.lost for _, outcome in found)
