# SPDX-License-Identifier: GPL-2.0-or-later
"""What is judged in an adopted VM, and what its guest is asked to do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.adopt import rows
from harness.adopt.little import MOST_MEMDEV_BYTES
from harness.adopt.plan import Adopted
from harness.adopt.recording import for_our_guest
from harness.adopt.rows import judged_guest, settled_guest
from harness.devices.backends import Memdev
from harness.devices.derive import derive_all
from harness.devices.device import NOTHING
from harness.devices.recipe import load_recipes
from harness.devices.rules import load_rules
from harness.devices.types import DeviceType
from harness.guests.lack import Lack, Lacks
from harness.guests.origin import VmOrigin, VmPart, Without
from harness.guests.plan import GuestPlan, NumaNode, PlacedDevice, Topology, guest_command
from harness.qemu.binary import QemuBinary
from harness.state.catalogue import Offer
from harness.state.owners import Owners

KINDS = {
    "pcie-root-port": "PCI",
    "virtio-blk-pci": "PCI",
    "qemu-xhci": "PCI",
    "usb-tablet": "usb-bus",
    "usb-redir": "usb-bus",
    "ide-cd": "IDE",
    "pci-bridge": "PCI",
    "ich9-ahci": "PCI",
    "ide-hd": "IDE",
}


def offer() -> Offer:
    types = {
        name: DeviceType(name=name, category="misc", bus=bus, properties=frozenset()) for name, bus in KINDS.items()
    }
    recipes = dict(load_recipes(None).devices)
    return Offer(types=types, derived=derive_all(types, load_rules(), recipes.values()), recipes=recipes)


def placed(name: str, kind: str, bus: str | None = None, slot: str | None = None) -> PlacedDevice:
    return PlacedDevice(id=name, type=kind, bus=bus, slot=slot)


PLAN = GuestPlan(
    machine="pc-q35-7.2",
    family="q35",
    memory_mib=4096,
    memory_room_mib=4096,
    cpus=16,
    ram="pc.ram",
    numa=(NumaNode(number=0, cpus=(0, 7), memdev="ram0"), NumaNode(number=1, cpus=(8, 15), memdev="ram1")),
    topology=Topology(sockets=2, cores=8),
    backends={name: Memdev(size_bytes=1 << 30) for name in ("m0", "pc.ram", "ram0", "ram1")},
    devices=(
        placed("pci.1", "pcie-root-port", "pcie.0", "02.0"),
        placed("pci.2", "pcie-root-port", "pcie.0", "02.1"),
        placed("vda", "virtio-blk-pci", "pci.1", "00.0"),
        placed("vdb", "virtio-blk-pci", "pci.2", "00.0"),
        placed("usb", "qemu-xhci", "pcie.0", "03.0"),
        placed("input0", "usb-tablet", "usb.0"),
        placed("sr0", "ide-cd", "ide.0"),
        placed("br", "pci-bridge", "pcie.0", "04.0"),
        placed("vdc", "virtio-blk-pci", "br", "05.0"),
        PlacedDevice(id="dimm0", type="pc-dimm", properties={"node": 1, "slot": 0}, backends={"memdev": "m0"}),
    ),
)


def test_each_device_is_one_ports_are_together_and_the_rest_is_the_platform() -> None:
    guest = judged_guest(Adopted(plan=PLAN, origin=VmOrigin()), offer())
    assert {each.id: each.owner for each in guest.plan.devices} == {
        "pci.1": "pcie-root-port",
        "pci.2": "pcie-root-port",
        "vda": "virtio-blk",
        "vdb": "virtio-blk+2",
        "usb": "qemu-xhci",
        "input0": "usb-tablet",
        "sr0": "ahci",
        "br": "pci-bridge",
        "vdc": "virtio-blk+3",
        "dimm0": "pc-dimm",
    }
    assert [device.name for device in guest.devices][-1] == "platform"
    by_name = {device.name: device for device in guest.devices}
    assert by_name["virtio-blk+2"].kernel_names == offer().recipes["virtio-blk"].kernel_names
    commands = {name: guest_command(by_name[name], "bind", guest.plan) for name in by_name}
    assert commands["virtio-blk"] == 'auto_bind virtio-blk "$(pci_below 0000:00:02.0)" ""'
    assert commands["virtio-blk+3"] == (
        'auto_bind virtio-blk+3 "$(cd /sys/bus/pci/devices/0000:00:04.0 && echo ????:??:05.0)" ""'
    )
    assert commands["usb-tablet"] == 'auto_bind usb-tablet "0000:00:03.0" ""'
    assert commands["ahci"] == 'auto_bind ahci "0000:00:1f.2" ""'
    # what is behind others does not take them from their driver, and is led by them
    assert by_name["pci-bridge"].guest.unbind == by_name["usb-tablet"].guest.busy == ":"
    assert (commands["pci-bridge"], commands["pcie-root-port"]) == (":", ":")
    assert commands["qemu-xhci"] == 'auto_bind qemu-xhci "0000:00:03.0" ""'
    assert by_name["virtio-blk+2"].guest.unbind == "auto_unbind virtio-blk+2"
    assert by_name["virtio-blk+2"].guest.fail == NOTHING


@pytest.mark.parametrize("loose", [False, True])
def test_the_driver_of_an_empty_controller_is_bound_without_a_wait_for_what_is_plugged_in(loose: bool) -> None:
    """What finds its bus by itself may be in it."""
    tablet = (PlacedDevice(id="input0", type="usb-tablet" if loose else "usb-redir"),)
    plan = PLAN.with_devices((placed("usb", "qemu-xhci", "pcie.0", "03.0"), *tablet))
    guest = judged_guest(Adopted(plan=plan, origin=VmOrigin()), offer())
    command = guest_command(guest.devices[0], "bind", guest.plan)
    assert command == (
        'auto_bind qemu-xhci "0000:00:03.0" ""' if loose else 'auto_place "0000:00:03.0" "" && auto_driver'
    )
    assert (guest_command(guest.devices[0], "unbind", guest.plan) == 'pci_unbind "0000:00:03.0"') is not loose


def test_what_a_qemu_refuses_is_left_out_and_what_saves_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    guest = judged_guest(Adopted(plan=PLAN, origin=VmOrigin()), offer())
    refused = {
        "usb-tablet": Lack(what=Lacks.SECTION),
        "virtio-blk+2": Lack(what=Lacks.MIGRATION, said="blocked\nhere"),
        "virtio-blk+3": Lack(what=Lacks.START, said="no"),
    }
    owners = Owners(sections={"virtio-blk": ["x/virtio-blk"]}, refused=refused)
    monkeypatch.setattr(rows, "find_owners", lambda *_: owners)
    binary = QemuBinary(
        path="/q", version="7.2", build="", target="x86_64", sha256="0", machines=(), devices=frozenset(),
        capabilities=frozenset(),
    )  # fmt: skip
    found = settled_guest(guest, VmOrigin(), binary, "tcg")
    assert [(left.why, left.id, left.said) for left in found.origin.left_out] == [
        (Without.SECTION, "input0", ""),
        (Without.MIGRATION, "vdb", "blocked?here"),
        (Without.START, "vdc", "no"),
    ]
    assert {each.id for each in guest.plan.devices} - {each.id for each in found.guest.plan.devices} == {"vdb", "vdc"}
    assert next(each for each in found.guest.plan.devices if each.id == "input0").owner == ""
    assert not {device.name for device in found.guest.devices} & refused.keys()


def test_our_guest_has_less_memory_and_fewer_cpus_and_says_so() -> None:
    guest = judged_guest(Adopted(plan=PLAN, origin=VmOrigin()), offer())
    found, origin = for_our_guest(guest, VmOrigin(), 192)
    assert (found.plan.memory_mib, found.plan.cpus, found.plan.topology) == (192, 4, None)
    assert found.plan.backends == {"m0": Memdev(size_bytes=MOST_MEMDEV_BYTES)}
    assert (found.plan.ram, found.plan.numa) == (None, ())
    assert found.plan.devices[-1].properties == {"slot": 0}
    assert found.plan.memory_room_mib == 2 * MOST_MEMDEV_BYTES >> 20
    assert [(r.part, r.was, r.stands) for r in origin.replaced] == [
        (VmPart.MEMORY, "4096 MiB", "192 MiB"),
        (VmPart.NUMA, "nodes: 2", "1"),
        (VmPart.CPUS, "16", "4"),
    ]
    same, unchanged = for_our_guest(replace(guest, plan=found.plan), VmOrigin(), 192)
    assert (same.plan, unchanged.replaced) == (found.plan, ())
