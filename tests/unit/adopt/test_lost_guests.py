# SPDX-License-Identifier: GPL-2.0-or-later
"""An adopted guest that is lost while it is recorded: the device that does it costs itself and what hangs on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from harness.adopt.recording import without_lost
from harness.adopt.rows import SettledGuest
from harness.devices.device import Device
from harness.errors import GuestError, HarnessError, HostError, Stopped
from harness.guests.origin import LeftOut, VmOrigin, Without
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.guests.planner import PlannedGuest
from harness.qemu.disturbance import Disturbed
from harness.state.owners import Owners
from harness.state.recorder import CutShort

PHASES = ("kernel", "bound", "busy")
DEVICES = (
    PlacedDevice(id="port", type="pcie-root-port", slot="03.0", owner="pcie-root-port"),
    PlacedDevice(id="hba", type="lsi53c895a", slot="04.0", owner="lsi53c895a"),
    PlacedDevice(id="disk", type="scsi-hd", bus="hba.0", owner="scsi-hd"),
    PlacedDevice(id="net", type="e1000", slot="05.0", owner="e1000"),
    PlacedDevice(id="rng", type="virtio-rng-pci", slot="06.0", owner="virtio-rng"),
)
REST = Device(name="platform", about="", rest=True)


@pytest.fixture
def settled() -> SettledGuest:
    names = [device.owner for device in DEVICES]
    plan = GuestPlan(machine="pc-i440fx-7.2", family="pc", memory_mib=16, devices=DEVICES)
    devices = (*(Device(name=name, about="") for name in names), REST)
    owners = Owners(sections={name: [f"0/{name}"] for name in names})
    return SettledGuest(guest=PlannedGuest(devices=devices, plan=plan), owners=owners, origin=VmOrigin(name="web"))


class Guests:
    """Guests that are lost by some devices, each in a phase; what is tried is kept."""

    def __init__(self, fatal: dict[str, str] | None = None, *, named: bool = False) -> None:
        self.fatal = fatal or {}
        self.named = named
        self.tried: list[tuple[tuple[str, ...], tuple[str, ...]]] = []

    def record(self, settled: SettledGuest, phases: Sequence[str]) -> tuple[str, ...]:
        there = [device.owner for device in settled.guest.plan.devices]
        self.tried.append((tuple(there), tuple(phases)))
        for name, phase in self.fatal.items():
            if (name in there or name == "machine") and phase in phases:
                raise CutShort("QEMU died", phase=phase, device=name if self.named else "")
        return tuple(there)

    def lost(self, settled: SettledGuest, phases: Sequence[str]) -> HarnessError | None:
        try:
            self.record(settled, phases)
        except HarnessError as error:
            return error
        return None


def test_a_guest_that_is_well_is_recorded_once(settled: SettledGuest) -> None:
    guests = Guests()
    found, there = without_lost(settled, PHASES, guests.record, guests.lost)
    assert found is settled
    assert len(guests.tried) == 1
    assert len(there) == len(DEVICES)


@pytest.mark.parametrize("name", ["pcie-root-port", "scsi-hd", "e1000", "virtio-rng"])
def test_the_device_that_does_it_is_found_and_left_out(settled: SettledGuest, name: str) -> None:
    guests = Guests({name: "bound"})
    found, there = without_lost(settled, PHASES, guests.record, guests.lost)
    assert there == tuple(device.owner for device in DEVICES if device.owner != name)
    (left,) = found.origin.left_out
    assert (left.why, left.type) == (Without.LOST, next(d.type for d in DEVICES if d.owner == name))
    assert "QEMU died" in left.said
    assert name not in found.owners.sections
    # no further than to the phase that it was lost in, until it is known who did it
    assert {phases for _, phases in guests.tried[1:-1]} == {("kernel", "bound")}
    assert len(guests.tried) <= 6


def test_what_hangs_on_it_goes_with_it(settled: SettledGuest) -> None:
    guests = Guests({"lsi53c895a": "busy"})
    found, there = without_lost(settled, PHASES, guests.record, guests.lost)
    assert there == ("pcie-root-port", "e1000", "virtio-rng")
    assert [(left.why, left.id) for left in found.origin.left_out] == [(Without.LOST, "hba"), (Without.BUS, "disk")]
    assert [device.name for device in found.guest.devices] == [*there, "platform"]


def test_of_ports_that_are_judged_together_those_stay_that_do_not_hang_on_it(settled: SettledGuest) -> None:
    ports = (
        PlacedDevice(id="pxb", type="pxb-pcie", slot="01.0", owner="pxb-pcie"),
        PlacedDevice(id="p0", type="ioh3420", slot="02.0", owner="ioh3420"),
        PlacedDevice(id="p1", type="ioh3420", bus="pxb", slot="03.0", owner="ioh3420"),
        PlacedDevice(id="card", type="e1000e", bus="p0", slot="00.0", owner="e1000e"),
    )
    devices = tuple(Device(name=name, about="") for name in ("pxb-pcie", "ioh3420", "e1000e"))
    guest = PlannedGuest(devices=devices, plan=settled.guest.plan.with_devices(ports))
    guests = Guests({"pxb-pcie": "bound"})
    found, _ = without_lost(replace(settled, guest=guest), PHASES, guests.record, guests.lost)
    assert [device.id for device in found.guest.plan.devices] == ["p0", "card"]
    assert found.guest.names == ("ioh3420", "e1000e")
    assert [(left.why, left.id) for left in found.origin.left_out] == [(Without.LOST, "pxb"), (Without.BUS, "p1")]


def test_a_device_whose_command_was_under_way_is_not_looked_for(settled: SettledGuest) -> None:
    guests = Guests({"e1000": "busy"}, named=True)
    found, there = without_lost(settled, PHASES, guests.record, guests.lost)
    assert "e1000" not in there
    assert len(guests.tried) == 2
    assert found.origin.left_out[0].id == "net"


def test_two_of_them_are_found_one_after_the_other(settled: SettledGuest) -> None:
    guests = Guests({"e1000": "bound", "virtio-rng": "busy"})
    found, there = without_lost(settled, PHASES, guests.record, guests.lost)
    assert there == ("pcie-root-port", "lsi53c895a", "scsi-hd")
    assert {left.id for left in found.origin.left_out} == {"net", "rng"}


def test_a_machine_that_is_lost_by_itself_is_nobodys_fault(settled: SettledGuest) -> None:
    guests = Guests({"machine": "kernel"})
    with pytest.raises(CutShort):
        without_lost(settled, PHASES, guests.record, guests.lost)
    assert guests.tried[1:] == [((), ("kernel",))]


@pytest.mark.parametrize("error", [HostError("no space"), Stopped(), Disturbed("", ())])
def test_what_the_host_does_is_no_devices_fault(settled: SettledGuest, error: Exception) -> None:
    def fails(*_: object) -> None:
        raise error

    with pytest.raises(type(error)):
        without_lost(settled, PHASES, fails, lambda *_: pytest.fail("nobody is looked for"))


def test_a_guest_error_without_a_phase_is_looked_into_all_the_same(settled: SettledGuest) -> None:
    def fails(found: SettledGuest, _: Sequence[str]) -> int:
        if "e1000" in found.guest.names:
            raise GuestError("gone")
        return len(found.guest.names)

    def lost(found: SettledGuest, phases: Sequence[str]) -> HarnessError | None:
        return GuestError("gone") if "e1000" in found.guest.names and tuple(phases) == PHASES else None

    found, count = without_lost(settled, PHASES, fails, lost)
    assert count == 4
    assert found.origin.left_out == (LeftOut(why=Without.LOST, id="net", type="e1000", said="gone"),)
