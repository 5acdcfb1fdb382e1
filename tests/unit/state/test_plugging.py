# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices that are taken out and plugged in again, by a monitor that is there on paper only."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.devices.backends import Disk
from harness.errors import QemuError, UsageError
from harness.guests.machine import Machine
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.qemu.monitor import CommandRefused
from harness.state import plugging
from harness.state.plugging import replug
from harness.state.recorder import ordered_phases

MACHINE = Machine(
    accel="tcg",
    plan=GuestPlan(
        machine="pc-i440fx-7.2",
        family="pc",
        memory_mib=16,
        devices=(
            PlacedDevice(id="port", type="pcie-root-port", owner="scsi", bus="pci.0", slot="03.0"),
            PlacedDevice(id="hba", type="virtio-scsi-pci", owner="scsi", bus="port", slot="00.0"),
            PlacedDevice(id="hd", type="scsi-hd", owner="scsi", bus="hba.0", backends={"drive": "disk"}),
            PlacedDevice(id="nic", type="e1000", owner="nic", bus="pci.0", slot="04.0", properties={"mac": "x"}),
        ),
        backends={"disk": Disk(size_bytes=1 << 20, sector_bytes=4096)},
    ),
)


class FakeVm:
    """Lets go of what it is told to, unless it keeps it or refuses."""

    def __init__(self, *, keeps: tuple[str, ...] = (), refuses: str = "", ended: bool = False) -> None:
        self.there = ["hba", "hd", "nic", "port"]
        self.said: list[str] = []
        self._keeps, self._refuses, self._ended = keeps, refuses, ended

    def qmp(self, command: str, **given: Any) -> object:
        if command == "device_del":
            self.said.append(f"del {given['id']}")
            if given["id"] == self._refuses:
                raise CommandRefused(command, "no hotplug here")
            gone = ["hba", "hd"] if given["id"] == "hba" else [given["id"]]
            self.there = [name for name in self.there if name not in gone or name in self._keeps]
            return {}
        if command == "qom-list":
            return [{"name": name} for name in self.there]
        self.said.append(given["command_line"].removeprefix("device_"))
        return ""

    def deadline(self, timeout_s: float) -> Deadline:
        return Deadline(0.0)

    def ended(self) -> bool:
        return self._ended


def test_what_takes_the_others_along_is_taken_out_and_all_are_put_back() -> None:
    vm = FakeVm()
    assert replug(vm, MACHINE, ["scsi", "nic"]) == {}  # type: ignore[arg-type]
    assert vm.said == [
        "del hba",
        "del nic",
        "add virtio-scsi-pci,id=hba,bus=port,addr=00.0",
        "add scsi-hd,id=hd,bus=hba.0,drive=disk,logical_block_size=4096,physical_block_size=4096",
        "add e1000,id=nic,bus=pci.0,addr=04.0,mac=x",
    ]


def test_the_first_function_of_a_slot_comes_last_and_takes_the_others_along() -> None:
    both = tuple(
        PlacedDevice(id=f"f{number}", type="e1000", owner="two", bus="pci.0", slot=f"05.{number}") for number in (0, 1)
    )
    vm = FakeVm()
    machine = replace(MACHINE, plan=MACHINE.plan.with_devices(both))
    assert replug(vm, machine, ["two"]) == {}  # type: ignore[arg-type]
    assert [line.partition(",bus")[0] for line in vm.said] == ["del f0", "add e1000,id=f1", "add e1000,id=f0"]


def test_what_qemu_refuses_stays_and_costs_nobody_else() -> None:
    vm = FakeVm(refuses="nic")
    assert replug(vm, MACHINE, ["scsi", "nic"]) == {"nic": "no hotplug here"}  # type: ignore[arg-type]
    assert [line for line in vm.said if "nic" in line] == ["del nic"]
    assert any(line.startswith("add scsi-hd") for line in vm.said)


def test_what_the_guest_keeps_is_named_without_words_of_qemu() -> None:
    vm = FakeVm(keeps=("hba",))
    assert replug(vm, MACHINE, ["scsi", "nic"]) == {"scsi": ""}  # type: ignore[arg-type]
    assert not any("hba" in line for line in vm.said[2:])


def test_a_qemu_that_ends_is_no_device_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeVm, "deadline", lambda *_: Deadline(60.0))
    monkeypatch.setattr(plugging, "_POLL_S", 0.0)
    with pytest.raises(QemuError, match="ended while devices were unplugged"):
        replug(FakeVm(keeps=("nic",), ended=True), MACHINE, ["nic"])  # type: ignore[arg-type]


def test_one_guest_has_one_of_the_last_phases() -> None:
    assert ordered_phases(["plugged", "bound"]) == ["bound", "plugged"]
    with pytest.raises(UsageError, match="plugged and rebooted cannot be reached by one guest"):
        ordered_phases(["rebooted", "plugged"])
