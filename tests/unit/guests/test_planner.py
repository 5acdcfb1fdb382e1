# SPDX-License-Identifier: GPL-2.0-or-later
"""The planner: slots are given out, what clashes lives apart, and what has no place costs itself alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness.arch import RootBus
from harness.devices.backends import Disk, Netdev
from harness.devices.device import Attachment, BuiltIn, Device, GuestCommands
from harness.guests.lack import Lack, Lacks
from harness.guests.plan import GuestPlan, PlacedDevice, guest_command, guest_slot
from harness.guests.planner import PlannedGuest, plan_guests

PC = RootBus(name="pci.0", slots=range(3, 6), has_ports=False)
Q35 = RootBus(name="pcie.0", slots=range(3, 31), has_ports=True)
PLATFORM = Device(name="platform", about="", rest=True)


def base(family: str) -> GuestPlan:
    return GuestPlan(machine=f"{family}-1", family=family, memory_mib=16)


def pci(name: str, on: str = "pci", **more: Any) -> Device:
    return Device(name=name, about="", attachments=(Attachment(name="dev", type=f"{name}-pci", on=on),), **more)


AHCI = Device(
    name="ahci",
    about="",
    attachments=(
        Attachment(name="hba", type="ich9-ahci"),
        Attachment(name="hd", type="ide-hd", on="hba.0", backends={"drive": "disk"}),
    ),
    backends={"disk": Disk(size_bytes=1024)},
    built_in={"q35": {"hba": BuiltIn(bus="ide.0", address="0000:00:1f.2", without={"sata": False})}},
    guest=GuestCommands(unbind="pci_unbind {slot}"),
)
NET = Device(
    name="net",
    about="",
    attachments=(Attachment(name="dev", type="virtio-net-pci", backends={"netdev": "net"}),),
    backends={"net": Netdev()},
)


def names(guest: PlannedGuest) -> list[str]:
    return [device.name for device in guest.devices]


def test_slots_are_given_out_in_order() -> None:
    planned = plan_guests(PC, base("pc"), [PLATFORM, AHCI, NET])
    (guest,) = planned.guests
    assert names(guest) == ["ahci", "net", "platform"]
    assert guest.plan.devices == (
        PlacedDevice(id="ahci-hba", type="ich9-ahci", owner="ahci", bus="pci.0", slot="03.0"),
        PlacedDevice(id="ahci-hd", type="ide-hd", owner="ahci", bus="ahci-hba.0", backends={"drive": "ahci-disk"}),
        PlacedDevice(
            id="net-dev", type="virtio-net-pci", owner="net", bus="pci.0", slot="04.0", backends={"netdev": "net-net"}
        ),
    )
    assert guest.plan.backends == {"ahci-disk": Disk(size_bytes=1024), "net-net": Netdev()}
    assert guest_command(AHCI, "unbind", guest.plan) == "pci_unbind 0000:00:03.0"
    assert guest_slot(NET, guest.plan) == "0000:00:04.0"


def test_what_the_machine_has_built_in_is_used() -> None:
    (guest,) = plan_guests(Q35, base("q35"), [AHCI, NET, PLATFORM]).guests
    assert [(d.id, d.bus, d.slot) for d in guest.plan.devices] == [
        ("ahci-hd", "ide.0", None),
        ("net-dev", "pcie.0", "03.0"),
    ]
    assert guest_slot(AHCI, guest.plan) == "0000:00:1f.2"
    less = guest.without(frozenset({"ahci"}))
    assert less.plan.machine_properties == {"sata": False}
    assert [(d.id, d.slot) for d in less.plan.devices] == [("net-dev", "03.0")]
    assert (list(less.plan.backends), names(less)) == (["net-net"], ["net", "platform"])
    assert guest.without(frozenset()).plan == guest.plan


def test_a_root_port_of_its_own() -> None:
    (guest,) = plan_guests(Q35, base("q35"), [pci("a"), pci("x", "pcie-port"), pci("y", "pcie-port")]).guests
    assert [(d.id, d.type, d.bus, d.slot, d.properties) for d in guest.plan.devices] == [
        ("a-dev", "a-pci", "pcie.0", "03.0", {}),
        ("x-dev-port", "pcie-root-port", "pcie.0", "04.0", {"chassis": 1, "slot": 1}),
        ("x-dev", "x-pci", "x-dev-port", "00.0", {}),
        ("y-dev-port", "pcie-root-port", "pcie.0", "05.0", {"chassis": 2, "slot": 2}),
        ("y-dev", "y-pci", "y-dev-port", "00.0", {}),
    ]
    assert guest_slot(pci("y", "pcie-port"), guest.plan) == "$(pci_below 0000:00:05.0)"
    assert not guest.without(frozenset({"x", "y", "a"})).plan.devices


def test_a_root_port_that_is_judged_itself_has_a_slot_as_any_device() -> None:
    port = Device(name="port", about="", attachments=(Attachment(name="dev", type="pcie-root-port"),))
    (guest,) = plan_guests(Q35, base("q35"), [pci("x", "pcie-port"), port]).guests
    assert guest_slot(port, guest.plan) == "0000:00:04.0"


def behind_a_host_bridge(bridge: str, on: str = "host") -> Device:
    host = Attachment(name="host", type=bridge, properties={"bus_nr": 128})
    ports = [Attachment(name=name, type="port-pci", on="host") for name in ("port", "spare")]
    return Device(
        name="x", about="", type="x-pci", attachments=(host, *ports, Attachment(name="dev", type="x-pci", on=on))
    )


def test_behind_a_host_bridge_of_its_own_a_device_has_that_ones_bus() -> None:
    """The bridge itself is in a slot of the first bus, and the guest does not see all of them there."""
    device = behind_a_host_bridge("pxb-cxl")
    (guest,) = plan_guests(Q35, base("q35"), [device]).guests
    assert [(d.id, d.bus, d.slot) for d in guest.plan.devices] == [
        ("x-host", "pcie.0", "03.0"),
        ("x-port", "x-host", "00.0"),
        ("x-spare", "x-host", "01.0"),
        ("x-dev", "x-host", "02.0"),
    ]
    assert guest_slot(device, guest.plan) == "0000:80:02.0"
    # what is below a port there is looked for below that, and of a bridge alone nothing is
    below = behind_a_host_bridge("pxb-cxl", on="port")
    (guest,) = plan_guests(Q35, base("q35"), [below]).guests
    assert guest_slot(below, guest.plan) == "0000:80:00.0"
    alone = Device(name="y", about="", attachments=(Attachment(name="dev", type="pxb", properties={"bus_nr": 128}),))
    (guest,) = plan_guests(PC, base("pc"), [alone]).guests
    assert guest_slot(alone, guest.plan) == "0000:00:03.0"


def test_pxb_has_a_bridge_on_its_bus_that_all_is_behind() -> None:
    device = behind_a_host_bridge("pxb")
    (guest,) = plan_guests(PC, base("pc"), [device]).guests
    assert guest_slot(device, guest.plan) == "$(cd /sys/bus/pci/devices/0000:80:00.0 && echo ????:??:02.0)"


def test_the_guest_looks_where_the_attachment_is_that_a_device_stands_for() -> None:
    parts = (Attachment(name="first", type="a-pci"), Attachment(name="dev", type="b-pci"))
    device = Device(name="b", about="", type="b-pci", attachments=parts)
    (guest,) = plan_guests(Q35, base("q35"), [device]).guests
    assert guest_slot(device, guest.plan) == "0000:00:04.0"


@pytest.mark.parametrize(("on", "bus", "slot"), [("pci", "pcie.0", "03"), ("pcie-port", "two-dev-port", "00")])
def test_a_further_function_is_in_the_slot_of_the_first(on: str, bus: str, slot: str) -> None:
    more = Attachment(name="more", type="three-pci", on="dev:3")
    device = Device(name="two", about="", attachments=(Attachment(name="dev", type="two-pci", on=on), more))
    (guest,) = plan_guests(Q35, base("q35"), [device, NET]).guests
    places = {placed.id: (placed.bus, placed.slot) for placed in guest.plan.devices}
    assert (places["two-dev"], places["two-more"]) == ((bus, f"{slot}.0"), (bus, f"{slot}.3"))
    assert places["net-dev"] == ("pcie.0", "04.0")


def test_a_machine_without_ports_refuses_that_device_alone() -> None:
    planned = plan_guests(PC, base("pc"), [pci("x", "pcie-port"), pci("a"), PLATFORM])
    assert planned.refused == {"x": Lack(what=Lacks.PORTS, machine="pc-1")}
    assert [names(guest) for guest in planned.guests] == [["a", "platform"]]
    # the slot that it had been given is free again
    assert planned.guests[0].plan.devices[0].slot == "03.0"


def test_names_that_clash_need_two_guests() -> None:
    one, two, three = (pci(name, takes=frozenset({"eth0"})) for name in ("one", "two", "three"))
    planned = plan_guests(PC, base("pc"), [one, two, pci("a"), three, PLATFORM])
    assert [names(guest) for guest in planned.guests] == [
        ["one", "a", "platform"],
        ["two", "platform"],
        ["three", "platform"],
    ]
    assert planned.refused == {}


def stick(name: str, attachment: str, backend: str) -> Device:
    attached = Attachment(name=attachment, type="usb-storage", on="none", backends={"drive": backend})
    return Device(name=name, about="", attachments=(attached,), backends={backend: Disk(size_bytes=1024)})


def test_a_device_and_its_backend_may_share_a_name() -> None:
    below = Attachment(name="lun", type="scsi-hd", on="disk.0")
    usb = stick("usb-disk", "disk", "disk")
    usb = replace(usb, attachments=(*usb.attachments, below))
    (guest,) = plan_guests(PC, base("pc"), [usb]).guests
    assert [(d.id, d.bus, d.backends) for d in guest.plan.devices] == [
        ("usb-disk-disk-dev", None, {"drive": "usb-disk-disk"}),
        ("usb-disk-lun", "usb-disk-disk-dev.0", {}),
    ]
    assert list(guest.plan.backends) == ["usb-disk-disk"]


def test_names_that_join_to_one_id_need_two_guests() -> None:
    planned = plan_guests(PC, base("pc"), [stick("usb", "disk-dev", "a"), stick("usb-disk", "dev", "b")])
    assert [[d.id for d in guest.plan.devices] for guest in planned.guests] == [["usb-disk-dev"], ["usb-disk-dev"]]
    assert planned.refused == {}


def test_a_device_whose_own_ids_clash_costs_itself_alone() -> None:
    two = tuple(Attachment(name=name, type="t", on="none") for name in ("disk", "disk-dev"))
    planned = plan_guests(PC, base("pc"), [replace(stick("usb", "x", "disk"), attachments=two), pci("a")])
    assert planned.refused == {"usb": Lack(what=Lacks.IDS, names=("usb-disk-dev",))}
    assert [names(guest) for guest in planned.guests] == [["a"]]


def test_more_than_fit_need_two_guests() -> None:
    planned = plan_guests(PC, base("pc"), [pci(name) for name in "abcd"])
    assert [names(guest) for guest in planned.guests] == [["a", "b", "c"], ["d"]]
    assert [device.slot for device in planned.guests[1].plan.devices] == ["03.0"]


def test_one_more_device_changes_nothing_for_the_default_ones() -> None:
    with_it = plan_guests(PC, base("pc"), [AHCI, pci("x", default=False), NET, PLATFORM])
    without_it = plan_guests(PC, base("pc"), [AHCI, NET, PLATFORM])
    assert with_it.guests[0] == without_it.guests[0]
    assert names(with_it.guests[1]) == ["x", "platform"]


@pytest.mark.parametrize("devices", [[], [PLATFORM]])
def test_the_platform_alone_has_a_guest(devices: list[Device]) -> None:
    (guest,) = plan_guests(PC, base("pc"), devices).guests
    assert (guest.plan, list(guest.devices)) == (base("pc"), devices)


def test_a_machine_without_a_known_bus_takes_what_needs_none() -> None:
    planned = plan_guests(None, base("microvm"), [pci("a"), pci("b", "none"), PLATFORM])
    assert planned.refused == {"a": Lack(what=Lacks.BUS, machine="microvm-1")}
    assert [(d.id, d.bus, d.slot) for d in planned.guests[0].plan.devices] == [("b-dev", None, None)]


def test_a_plan_holds_together() -> None:
    one = {"id": "a", "type": "t"}
    with pytest.raises(ValueError, match="the id 'a' is there twice"):
        GuestPlan.model_validate({"machine": "m", "family": "m", "memory_mib": 1, "devices": [one, one]})
    with pytest.raises(ValueError, match="a stands on 'b'"):
        GuestPlan.model_validate(
            {"machine": "m", "family": "m", "memory_mib": 1, "devices": [{**one, "backends": {"drive": "b"}}]}
        )


@pytest.mark.parametrize("name", ["a,b", "a=b", "../a", "1a", ""])
def test_a_name_that_would_be_more_than_a_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="id"):
        PlacedDevice(id=name, type="t")


def test_a_name_that_begins_with_a_digit_becomes_an_id() -> None:
    (guest,) = plan_guests(PC, base("pc"), [pci("82801")]).guests
    assert guest.plan.devices[0].id == "d82801-dev"


def test_the_default_devices_have_the_first_guest_whoever_is_named_first() -> None:
    planned = plan_guests(PC, base("pc"), [pci("x", default=False), AHCI, PLATFORM])
    assert [names(guest) for guest in planned.guests] == [["ahci", "platform"], ["x", "platform"]]


def test_a_type_with_a_comma_becomes_an_id() -> None:
    (guest,) = plan_guests(PC, base("pc"), [pci("xlnx,efuse")]).guests
    assert guest.plan.devices[0].id == "xlnx-efuse-dev"


def test_devices_that_want_another_machine_share_a_guest_of_their_own() -> None:
    wanting = [pci(name, default=False, machine={"nvdimm": True}) for name in ("a", "b")]
    planned = plan_guests(PC, base("pc"), [wanting[0], pci("x", default=False), wanting[1]])
    assert [(names(guest), guest.plan.machine_properties) for guest in planned.guests] == [
        (["a", "b"], {"nvdimm": True}),
        (["x"], {}),
    ]


def test_many_devices_fill_one_guest_after_the_other() -> None:
    many = [pci(f"d{number}", default=False) for number in range(150)]
    bus = RootBus(name="pci.0", slots=range(3, 32), has_ports=False)
    planned = plan_guests(bus, base("pc"), many)
    assert [len(guest.devices) for guest in planned.guests] == [29] * 5 + [5]
    assert planned.refused == {}


def test_devices_of_one_type_are_spread_over_guests_that_are_equally_full() -> None:
    variants = [replace(pci("net", default=False), name=f"net+{number}", type="net-pci") for number in range(5)]
    others = [pci(f"d{number}", default=False) for number in range(40)]
    bus = RootBus(name="pci.0", slots=range(3, 32), has_ports=False)
    planned = plan_guests(bus, base("pc"), [*variants, *others])
    assert [sum(name.startswith("net+") for name in names(guest)) for guest in planned.guests] == [2, 2, 1]
    assert [len(guest.devices) for guest in planned.guests] == [15, 15, 15]


def test_what_a_guest_has_one_of_is_placed_first_so_that_no_guest_is_for_it_alone() -> None:
    dogs = [pci(f"dog{number}", default=False, takes=frozenset({"watchdog"})) for number in range(3)]
    planned = plan_guests(PC, base("pc"), [*(pci(f"d{number}", default=False) for number in range(6)), *dogs])
    assert [names(guest)[0] for guest in planned.guests] == ["dog0", "dog1", "dog2"]
    assert [len(guest.devices) for guest in planned.guests] == [3, 3, 3]


def test_a_disk_that_is_going_to_fail_has_a_guest_of_its_own() -> None:
    """What a QEMU makes of its halted request, it makes of the whole incoming stream."""
    more: dict[str, Any] = {"default": False}
    disk: dict[str, Any] = {"backends": {"drive": Disk(size_bytes=1024)}, "faults": {"drive": 1}}
    devices = [pci("a", **more), pci("b", **more, **disk), pci("c", **more, **disk), pci("d", **more)]
    devices += [replace(AHCI, faults={"disk": 1}), NET]
    failing = plan_guests(Q35, base("q35"), devices, failing=True)
    assert [names(guest) for guest in failing.guests] == [["ahci", "net"], ["a", "d"], ["b"], ["c"]]
    assert [names(guest) for guest in plan_guests(Q35, base("q35"), devices).guests] == [
        ["ahci", "net"],
        ["a", "b", "c", "d"],
    ]
