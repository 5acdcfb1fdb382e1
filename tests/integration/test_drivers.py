# SPDX-License-Identifier: GPL-2.0-or-later
"""The wide guest on a real QEMU: drivers are found by modalias, each kind of device is made to move, and what cannot
says why. ``python tests/bench/drivers.py`` tries many more."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from harness.devices.backends import Backend, Chardev, Disk, Netdev
from harness.errors import GuestError
from harness.guests.build import Guest, build_guest
from harness.guests.console import Console
from harness.guests.machine import Boot, Machine, firmware_sink
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.guests.recipe import load_recipe
from harness.qemu.binary import QemuBinary
from harness.qemu.process import new_workdir
from harness.qemu.vm import Vm

DISK, NET, LINE = Disk(size_bytes=16 << 20), Netdev(), Chardev()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A device, and the least phase that it does not reach, with what the guest says then."""

    types: tuple[str, ...]
    backends: tuple[tuple[int, str, Backend], ...] = ()
    properties: dict[str, bool | int | str] = field(default_factory=dict)
    of_disk: dict[str, bool | int | str] = field(default_factory=dict)
    pci: bool = True
    hint: str = ""
    ends_before: str = ""
    says: str = ""


def nic(name: str) -> Case:
    return Case(types=(name,), backends=((0, "netdev", NET),), properties={"rombar": 0})


def disk_on(adapter: str, disk: str = "scsi-hd", **of_disk: bool | int | str) -> Case:
    return Case(types=(adapter, disk), backends=((1, "drive", DISK),), of_disk=of_disk)


CASES = {
    **{name: nic(name) for name in ("e1000", "pcnet", "rtl8139", "vmxnet3", "virtio-net-pci")},
    **{name: disk_on(name) for name in ("am53c974", "megasas", "virtio-scsi-pci")},
    "mptsas1068": disk_on("mptsas1068", wwn=0x5000000000000001),
    "ahci-cd": disk_on("ich9-ahci", "ide-cd"),
    "nvme": Case(types=("nvme",), backends=((0, "drive", DISK),), properties={"serial": "one"}),
    "usb-kbd": Case(types=("qemu-xhci", "usb-kbd")),
    "usb-storage": disk_on("nec-usb-xhci", "usb-storage"),
    "usb-net": Case(types=("pci-ohci", "usb-net"), backends=((1, "netdev", NET),)),
    "pci-serial": Case(types=("pci-serial",), backends=((0, "chardev", LINE),)),
    "isa-serial": Case(
        types=("isa-serial",), backends=((0, "chardev", LINE),), properties={"index": 1}, pci=False, hint="tty:ttyS1"
    ),
    "virtconsole": Case(types=("virtio-serial-pci", "virtconsole"), backends=((1, "chardev", LINE),)),
    "virtio-rng-pci": Case(types=("virtio-rng-pci",)),
    "virtio-keyboard-pci": Case(types=("virtio-keyboard-pci",)),
    "bochs-display": Case(types=("bochs-display",)),
    "i6300esb": Case(types=("i6300esb",)),
    "virtio-mouse-pci": Case(types=("virtio-mouse-pci",), ends_before="busy", says="only the host can move it"),
    "pvpanic-pci": Case(types=("pvpanic-pci",), ends_before="busy", says="nothing below"),
    "edu": Case(
        types=("edu",), ends_before="bind", says="no driver of this guest's kernel takes pci:v00001234d000011E8"
    ),
}


@pytest.fixture(scope="module")
def wide_guest() -> Guest:
    return build_guest(load_recipe().widened())


@pytest.fixture(scope="module")
def vm(binary: QemuBinary, wide_guest: Guest) -> Iterator[Vm]:
    machine = binary.machine("pc")
    assert machine is not None
    placed: list[PlacedDevice] = []
    backends: dict[str, Backend] = {}
    for number, (name, case) in enumerate(CASES.items()):
        for part, kind in enumerate(case.types):
            own = {key: f"b-{name}-{key}" for at, key, _ in case.backends if at == part}
            backends |= {f"b-{name}-{key}": backend for at, key, backend in case.backends if at == part}
            on_pci = case.pci and part == 0
            placed.append(
                PlacedDevice(
                    id=f"{name}-{part}",
                    type=kind,
                    bus="pci.0" if on_pci else f"{name}-0.0" if part else None,
                    slot=f"{3 + number:02x}.0" if on_pci else None,
                    properties=case.properties if part == 0 else case.of_disk,
                    backends=own,
                )
            )
    plan = GuestPlan(
        machine=machine.name,
        family="pc",
        memory_mib=wide_guest.memory_mib,
        cmdline=wide_guest.cmdline,
        devices=tuple(placed),
        backends=backends,
    )
    workdir = new_workdir()
    guest = Machine(plan=plan, accel="tcg", boot=Boot(kernel=wide_guest.kernel, initramfs=wide_guest.initramfs))
    guest.make_files(workdir)
    with Vm(guest.command(binary.path, workdir, firmware_sink()), workdir=workdir) as vm:
        yield vm


@pytest.fixture(scope="module")
def console(vm: Vm) -> Console:
    vm.qmp("cont")
    console = Console(vm.console, vm.process.clock)
    console.wait_ready(120)
    return console


def raised_lines(vm: Vm) -> int:
    """The interrupt lines of PCI devices that are raised, as a mask of those from 8 on."""
    text = str(vm.qmp("human-monitor-command", command_line="info pic"))
    match = re.search(r"pic1: irr=(\w+).* elcr=(\w+)", text)
    assert match is not None
    return int(match[1], 16) & int(match[2], 16)


def test_a_line_that_a_device_without_a_driver_raises_is_taken_back(vm: Vm, console: Console) -> None:
    slot = f"0000:00:{3 + list(CASES).index('edu'):02x}.0"
    # register 0x60 of edu raises its line (docs/specs/edu.rst); firmware has given it its address
    console.run(f"read -r start rest < /sys/bus/pci/devices/{slot}/resource; devmem $((start + 0x60)) 32 1")
    assert raised_lines(vm)
    console.run("intx_off")
    assert not raised_lines(vm)


def status(console: Console, command: str) -> tuple[int, str]:
    try:
        return 0, console.run(command, 60)
    except GuestError as error:
        match = re.search(r"failed with status (\d+): (.*)", str(error), re.DOTALL)
        if match is None:
            raise
        return int(match[1]), match[2]


def test_each_device_goes_as_far_as_it_can_and_says_why_no_further(console: Console) -> None:
    slots = {name: f"0000:00:{3 + number:02x}.0" if CASES[name].pci else "" for number, name in enumerate(CASES)}
    left = dict(CASES)
    for step in ("bind", "busy", "check", "life", "idle", "unbind", "rebind", "life"):
        for name, case in list(left.items()):
            arguments = f"{slots[name]!r} {case.hint!r}" if step == "bind" else ""
            code, said = status(console, f"auto_{step} {name} {arguments}")
            if case.ends_before == step:
                assert code == 3, f"{name}: {step}: {said}"
                assert case.says in said
                assert said.strip().count("\n") == 0
                del left[name]
            else:
                assert code == 0, f"{name}: {step}: {said}"
        if step == "unbind":
            # what was bound is not: by sysfs, not by what the command said
            drivers = console.run("ls -d /sys/bus/pci/devices/*/driver")
            assert not [name for name in left if slots[name] and slots[name] in drivers]
    assert len(left) == 21


def test_what_stands_still_is_told(console: Console) -> None:
    assert status(console, "auto_check never") == (3, "never was not bound")
    code, said = status(console, "auto_bind gone 0000:00:1f.7")
    assert (code, said.strip()) == (1, "there is no PCI device 0000:00:1f.7")
    code, said = status(console, "auto_bind lost '' nothing:at*all")
    assert (code, said.strip()) == (3, "the guest has no nothing at*all")
    # bound again by the test above, and nothing runs
    code, said = status(console, "auto_check nvme")
    assert code == 1
    assert "nvme0n1 did not move" in said
