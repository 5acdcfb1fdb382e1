# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules over what four QEMUs said of their types: every type is a device or has its reason."""

from __future__ import annotations

import gzip
import json
import shlex
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from harness.devices.backends import Canbus, Disk, Ivshmem, Memdev, Netdev, Tpm, VhostDisk
from harness.devices.derive import DerivedDevices, derive_all
from harness.devices.device import Attachment
from harness.devices.recipe import load_recipe, load_recipes, recipe_text
from harness.devices.rules import Status, load_rules
from harness.devices.types import DeviceType, parse_help, with_properties
from harness.errors import ConfigError, PackError, QemuError
from harness.files import data_dir
from harness.guests.foreign import check_listed, check_plan
from harness.guests.lack import Lacks
from harness.guests.plan import guest_slot
from harness.qemu.listed import BOOLEAN, ENUM, NUMBER, OTHER, STRING, Listed, Listing
from harness.state.recordings import planned_guests

#: QEMU to the number of types that its ``-device help`` names.
VERSIONS = {"5.2": 372, "7.2": 388, "10.0": 431, "11.1": 480}
RECORDED = Path(__file__).with_name("recorded")
RECIPES = [device for device in load_recipes().devices.values() if not device.rest]


#: Properties of machines that derived devices set.
MACHINE = {name: Listed(type="bool", kind=BOOLEAN) for name in ("nvdimm", "cxl", "smm")}
#: In a pack from elsewhere these are not taken.
REFUSED = {
    *("ccid-card-passthru", "igd-passthrough-isa-bridge", "ivshmem-doorbell", "ivshmem-plain"),
    *("uefi-vars-sysbus", "uefi-vars-x64"),
}
REFUSED |= {"vhost-user-blk-pci", "vhost-user-blk-pci+modern", "virtio-gpu-gl-pci", "virtio-vga-gl", "xen-platform"}
_KINDS = {"n": NUMBER, "b": BOOLEAN, "s": STRING, "o": OTHER}


@cache
def recorded(version: str) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(gzip.decompress((RECORDED / f"{version}.json.gz").read_bytes()))
    return said


@cache
def types_in(version: str) -> dict[str, DeviceType]:
    return with_properties(parse_help(recorded(version)["help"]), recorded(version)["properties"])


@cache
def listed_in(version: str) -> dict[str, dict[str, Listed]]:
    """Recorded with a letter for its kind, an enumeration with its words."""
    return {
        name: {
            key: Listed(type="", kind=_KINDS.get(said, ENUM), words=() if said in _KINDS else tuple(said.split("/")))
            for key, said in properties.items()
        }
        for name, properties in recorded(version)["properties"].items()
    }


@cache
def derived_in(version: str) -> DerivedDevices:
    return derive_all(types_in(version), load_rules(), RECIPES)


def test_help_is_read_with_bus_alias_and_category() -> None:
    types = types_in("11.1")
    assert types["e1000"].description == "Intel Gigabit Ethernet"
    assert (types["e1000"].category, types["e1000"].bus, types["e1000"].alias) == ("network", "PCI", "e1000-82540em")
    assert (types["pc-dimm"].category, types["pc-dimm"].bus) == ("uncategorized", "")
    assert types["cxl-rp"].category == "controller"
    assert {"netdev", "mac", "romfile"} <= types["e1000"].properties
    assert types["max-x86_64-cpu"].properties == frozenset()


def test_help_of_another_form_is_refused() -> None:
    with pytest.raises(QemuError, match="-device help"):
        parse_help("there is no help\n")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_type_is_a_device_or_has_its_reason(version: str) -> None:
    derived, types = derived_in(version), types_in(version)
    assert len(types) == VERSIONS[version]
    assert not derived.rows.keys() & derived.underived.keys()
    assert derived.rows.keys() | derived.underived.keys() == types.keys()
    assert all(why.reason or why.row or why.needs for why in derived.underived.values())
    sums = Counter(why.status for why in derived.underived.values())
    assert sums[Status.CPU] == sum(1 for kind in types.values() if kind.category == "cpu")
    assert len(derived.rows) > 165


@pytest.mark.parametrize("version", VERSIONS)
def test_another_name_leads_to_a_device_or_to_what_has_its_own_reason(version: str) -> None:
    derived = derived_in(version)
    names = {*derived.devices, *(device.name for device in RECIPES)}
    for name, why in derived.underived.items():
        if why.status is Status.ALIAS:
            assert why.row in names or why.row in derived.underived, name


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("family", ["pc", "q35"])
def test_what_was_derived_can_be_planned_alone(version: str, family: str) -> None:
    """An id that QEMU would not take, or an attachment that names nothing, fails here."""
    refused: set[Lacks] = set()
    for device in derived_in(version).devices.values():
        planned = planned_guests("pc-i440fx-7.2" if family == "pc" else "pc-q35-7.2", family, [device])
        refused |= {lack.what for lack in planned.refused.values()}
    assert refused <= {Lacks.PORTS}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_derived_device_is_the_same_when_its_recipe_is_read_again(version: str, tmp_path: Path) -> None:
    file = tmp_path / "device.yaml"
    for device in derived_in(version).devices.values():
        file.write_text(recipe_text(device))
        assert load_recipe(file) == device, device.name


@pytest.mark.parametrize("recipe", [*RECIPES, load_recipes().devices["platform"]], ids=lambda recipe: recipe.name)
def test_a_written_recipe_is_the_same_when_it_is_written_again(recipe: object, tmp_path: Path) -> None:
    file = tmp_path / "device.yaml"
    file.write_text(recipe_text(recipe))  # type: ignore[arg-type]
    assert load_recipe(file) == recipe


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pack_with_a_derived_device_can_travel(version: str) -> None:
    """But for a few that are refused by what they could do, were they another's."""
    refused = {}
    for device in derived_in(version).devices.values():
        plan = planned_guests("pc-q35-7.2", "q35", [device]).guests[0].plan
        listing = Listing(devices={name: listed_in(version).get(name, {}) for name in plan.types()}, machine=MACHINE)
        try:
            check_plan(plan, "tcg")
            check_listed(plan, listing, "qemu")
        except PackError as error:
            refused[device.name] = str(error)
    assert set(refused) <= REFUSED, refused


def test_devices_stand_on_what_their_properties_and_bus_want() -> None:
    devices = derived_in("11.1").devices
    assert devices["e1000"].backends == {"netdev": Netdev()}
    assert devices["e1000"].attachments == (
        Attachment(name="dev", type="e1000", properties={"romfile": ""}, backends={"netdev": "netdev"}),
    )
    assert [(a.name, a.type, a.on) for a in devices["usb-storage"].attachments] == [
        ("xhci", "qemu-xhci", "pci"),
        ("dev", "usb-storage", "xhci.0"),
    ]
    assert devices["usb-storage"].backends == {"drive": Disk(size_bytes=64 << 20)}
    assert devices["pci-ipmi-bt"].attachments[1].references == {"bmc": "bmc"}
    assert devices["ctucan_pci"].backends == {"canbus0": Canbus(), "canbus1": Canbus()}
    assert devices["ivshmem-plain"].backends == {"memdev": Memdev(size_bytes=4 << 20, share=True)}
    doorbell = devices["ivshmem-doorbell"]
    assert doorbell.backends == {"chardev": Ivshmem(size_bytes=4 << 20)}
    # a peer does not migrate
    assert doorbell.attachments[0].properties == {"master": True}
    assert (devices["nvdimm"].machine, devices["nvdimm"].memory_room_mib) == ({"nvdimm": True}, 256)
    assert devices["isa-serial"].attachments[0].on == "none"
    assert devices["nvme"].attachments[0].properties == {"serial": "nvme", "romfile": ""}


def test_a_device_is_called_by_the_type_that_it_stands_for() -> None:
    device = derived_in("7.2").devices["usb-kbd"]
    assert (device.aliases, device.default) == (("usb-kbd",), False)
    subject = device.subject
    assert subject is not None
    assert subject.type == "usb-kbd"


def test_what_has_a_recipe_is_not_derived_again() -> None:
    derived = derived_in("7.2")
    assert derived.rows["virtio-blk-pci"][0] == "virtio-blk"
    assert "virtio-blk-pci" not in derived.devices
    assert derived.underived["virtio-blk-device"].row == "virtio-blk"


def test_a_type_that_stands_on_what_is_not_there_says_so() -> None:
    types = {name: kind for name, kind in types_in("7.2").items() if name != "qemu-xhci"}
    why = derive_all(types, load_rules()).underived["usb-kbd"]
    assert (why.status, why.needs) == (Status.NEEDS, ("qemu-xhci",))


def test_a_controller_has_something_to_do_where_that_is_there() -> None:
    types = types_in("7.2")
    assert [a.type for a in derived_in("7.2").devices["usb-ehci"].attachments] == ["usb-ehci", "usb-storage"]
    left = {name: kind for name, kind in types.items() if name not in ("usb-storage", "nvme-ns")}
    derived = derive_all(left, load_rules())
    assert [a.type for a in derived.devices["usb-ehci"].attachments] == ["usb-ehci"]
    # a variant is what its parts make of it
    assert "nvme+ns3" in derived_in("7.2").devices
    assert "nvme+ns3" not in derived.devices


@pytest.mark.parametrize("version", VERSIONS)
def test_each_ahci_of_a_guest_has_a_disk(version: str) -> None:
    controllers = {n: d for n, d in derived_in(version).devices.items() if n.startswith("ich9-ahci+")}
    assert "ich9-ahci+bridge" in controllers
    for name, device in controllers.items():
        assert "ide-hd" in [attachment.type for attachment in device.attachments], name


@pytest.mark.parametrize("version", VERSIONS)
def test_a_network_card_without_its_control_queue_has_nothing_that_goes_through_it(version: str) -> None:
    # what Linux asks for: virtnet_validate_features in drivers/net/virtio_net.c, but for what is off by itself
    wants = {"ctrl_rx", "ctrl_vlan", "guest_announce", "ctrl_mac_addr"}
    (card,) = derived_in(version).devices["virtio-net-pci+nocontrol"].attachments
    assert {name for name, value in card.properties.items() if value is False} >= {"ctrl_vq", *wants}


def test_room_for_memory_and_properties_of_the_machine_are_planned() -> None:
    devices = derived_in("7.2").devices
    planned = planned_guests("pc-q35-7.2", "q35", [devices["nvdimm"], devices["pc-dimm"]]).guests
    # what asks for another machine has a guest of its own
    assert [guest.plan.machine_properties for guest in planned] == [{"nvdimm": True}, {}]
    assert [(guest.plan.memory_room_mib, guest.plan.memory_slots) for guest in planned] == [(256, 1)] * 2
    (guest,) = planned_guests("pc-q35-7.2", "q35", [devices["virtio-pmem-pci"], devices["pc-dimm"]]).guests
    assert (guest.plan.memory_room_mib, guest.plan.memory_slots) == (512, 2)


def test_a_disk_behind_vhost_user_has_a_guest_of_its_own() -> None:
    """That guest's memory is shared: nobody else's shall be."""
    derived = derived_in("7.2")
    disk = derived.devices["vhost-user-blk-pci"]
    assert disk.backends == {"chardev": VhostDisk(size_bytes=64 << 20)}
    assert derived.underived["vhost-user-blk"].row == disk.name
    assert derived.underived["vhost-user-fs-pci"].status is Status.NEEDS
    planned = planned_guests("pc-q35-7.2", "q35", [disk, derived.devices["e1000"]]).guests
    assert [(guest.names, guest.plan.shares_memory) for guest in planned] == [
        (("vhost-user-blk-pci",), True),
        (("e1000",), False),
    ]


def test_what_wants_parameters_of_the_kernel_shares_a_guest_with_its_like() -> None:
    devices = derived_in("7.2").devices
    chip = devices["tpm-tis"]
    assert chip.backends == {"tpmdev": Tpm()}
    planned = planned_guests("pc-q35-7.2", "q35", [chip, devices["tpm-crb"], devices["e1000"], devices["edu"]]).guests
    assert [guest.names for guest in planned] == [("tpm-tis",), ("tpm-crb",), ("e1000", "edu")]


def test_ids_are_short_enough_for_block_nodes_and_differ() -> None:
    """A node has 31 characters, and ``-faults`` comes behind a disk's."""
    devices = derived_in("11.1").devices.values()
    ids = [device.node(name) for device in devices for name in device.backends]
    assert max(map(len, ids)) <= 24
    assert len(set(ids)) == len(ids)


def test_the_guest_looks_for_drivers_and_is_told_where_what_is_on_no_pci_bus_is() -> None:
    devices = derived_in("7.2").devices
    assert devices["e1000+multifunction"].guest.bind == 'auto_bind e1000+multifunction "{slot}" ""'
    assert devices["isa-serial"].guest.bind == 'auto_bind isa-serial "{slot}" "tty:ttyS1"'
    assert devices["isa-parallel"].guest.bind == 'auto_bind isa-parallel "{slot}" "pnp:PNP0400@parport_pc@lp"'
    assert devices["e1000"].reaches("busy")


@pytest.mark.parametrize("version", ["7.2", "10.0", "11.1"])
def test_what_is_behind_a_cxl_host_bridge_is_looked_for_on_the_bus_of_that(version: str) -> None:
    devices = derived_in(version).devices

    def slot(name: str) -> str | None:
        (guest,) = planned_guests("pc-q35-7.2", "q35", [devices[name]]).guests
        return guest_slot(devices[name], guest.plan)

    for name in ("cxl-rp", "cxl-upstream", "cxl-downstream", "cxl-type3"):
        assert slot(name) == "0000:80:00.0"
    if "cxl-switch-mailbox-cci" in devices:
        assert slot("cxl-switch-mailbox-cci") == "0000:00:05.0"
    assert devices["pxb-cxl"].guest.bind.startswith("auto_none the kernel of a guest does not see it, for QEMU ")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_guests_shell_can_read_each_command(version: str) -> None:
    """One that it takes for unfinished, such as words with an apostrophe, is waited for."""
    lines = {line for device in derived_in(version).devices.values() for _, line in device.guest}
    assert lines
    for line in lines:
        try:
            shlex.split(line)
        except ValueError as error:
            pytest.fail(f"{line}: {error}")


def test_a_display_on_the_isa_bus_is_alone_in_a_machine_without_smm() -> None:
    devices = derived_in("7.2").devices
    displays = [devices[name] for name in ("isa-vga", "isa-cirrus-vga", "e1000")]
    planned = planned_guests("pc-q35-7.2", "q35", displays).guests
    assert [(guest.names, guest.plan.machine_properties) for guest in planned] == [
        (("isa-vga",), {"smm": False}),
        (("isa-cirrus-vga",), {"smm": False}),
        (("e1000",), {}),
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_would_take_the_guests_kernel_with_it_is_not_unbound_and_says_why(version: str) -> None:
    devices = derived_in(version).devices
    staying = {name: d.guest for name, d in devices.items() if " panics " in d.guest.unbind}
    assert {n for n, d in devices.items() if d.guest.unbind.startswith("auto_none ")} == {*staying, "vmcoreinfo"}
    # the packages of the later ones have no spice
    assert set(staying) - {"qxl", "qxl-vga"} == {"am53c974", "dc390", "scsi-cd+am53c974"}
    assert version in ("10.0", "11.1") or {"qxl", "qxl-vga"} <= set(staying)
    for name, guest in staying.items():
        assert guest.unbind.startswith("auto_none Linux 6.1 panics when "), name
        # the other commands are those of every device
        assert (guest.busy, guest.rebind) == (f"auto_busy {name}", f"auto_rebind {name}")


def test_a_guest_has_one_of_what_its_kernel_or_its_ports_have_once() -> None:
    devices = derived_in("10.0").devices
    taking = {name for name, device in devices.items() if "watchdog" in device.takes}
    assert {"i6300esb", "ib700", "isa-ipmi-kcs", "isa-ipmi-bt", "pci-ipmi-kcs", "pci-ipmi-bt"} <= taking
    assert {name for name, d in devices.items() if "ide-ports" in d.takes} >= {"piix3-ide", "piix4-ide", "ide-cd+piix3"}
    guests = planned_guests("pc-i440fx-10.0", "pc", [devices[name] for name in sorted(taking)]).guests
    assert [len(guest.devices) for guest in guests] == [1] * len(taking)


@pytest.mark.parametrize("version", VERSIONS)
def test_names_that_a_guest_has_once_are_those_of_the_device(version: str) -> None:
    """Two ports of one name do not start, and of two folders with one tag a guest mounts either."""
    words = [
        value
        for device in derived_in(version).devices.values()
        for attachment in device.attachments
        for key, value in attachment.properties.items()
        if (attachment.type, key) in (("virtserialport", "name"), ("virtio-9p-pci", "mount_tag"))
    ]
    assert {"virtio-serial-pci", "virtio-serial-pci+legacy", "virtserialport", "virtio-9p-pci+modern"} <= set(words)
    assert len(words) == len(set(words))


def test_a_drive_is_saved_with_what_it_is_plugged_into() -> None:
    devices = derived_in("7.2").devices
    assert {name: devices[name].within for name in ("ide-hd", "ide-cd+piix3", "floppy", "virtconsole", "scsi-hd")} == {
        "ide-hd": "hba",
        "ide-cd+piix3": "hba",
        "floppy": "fdc",
        "virtconsole": "serial",
        "scsi-hd": "",
    }


Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(text: str) -> Path:
        (tmp_path / "mine.yaml").write_text(text)
        return tmp_path

    return written


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules:\n  - status: needs\n", "expected 'reason' with 'status'"),
        ("rules:\n  - reason: alone\n", "expected 'reason' with 'status'"),
        ("rules:\n  - status: judged\n    reason: x\n", "status"),
        ("rules:\n  - wehn: {}\n", "did you mean 'when'"),
        ("rules:\n  - same-as: {'(': x}\n", "no regular expression"),
        ("rules:\n  - needs: {drive: {kind: tape}}\n", "tape"),
    ],
)
def test_a_wrong_rule_is_said_with_its_file(write: Write, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"mine\.yaml:") as caught:
        load_rules(write(text))
    assert said in str(caught.value)


def test_a_later_rule_wins_and_mappings_grow_together(write: Write) -> None:
    rules = load_rules(
        write(
            "rules:\n"
            "  - {when: {bus: [PCI]}, on: pci, properties: {a: 1, b: 1}, needs: {drive: {kind: disk, size: 1M}}}\n"
            "  - {when: {types: [toy]}, on: pcie-port, properties: {b: 2}}\n"
            "  - {when: {types: [toy]}, variant: fast, properties: {fast: true}}\n"
            "  - {when: {types: [other]}, properties: {b: 3}}\n"
        )
    )
    derived = derive_all({"toy": DeviceType(name="toy", category="misc", bus="PCI")}, rules)
    assert derived.rows == {"toy": ["toy", "toy+fast"]}
    toy, fast = derived.devices.values()
    assert toy.attachments[0] == Attachment(
        name="dev", type="toy", on="pcie-port", properties={"a": 1, "b": 2}, backends={"drive": "drive"}
    )
    assert fast.attachments[0].properties == {"a": 1, "b": 2, "fast": True}
    assert (fast.aliases, fast.node("dev")) == ((), "toy--fast-dev")


def test_the_shipped_rules_load() -> None:
    assert len(load_rules(data_dir("devices") / "rules")) > 40


@pytest.mark.parametrize(("version", "there"), [("5.2", False), ("7.2", True), ("11.1", True)])
def test_a_device_is_put_behind_a_bridge_below_a_root_port_where_qemu_takes_it(version: str, there: bool) -> None:
    device = derived_in(version).devices.get("e1000+pcie-bridge")
    assert (device is not None) is there
    if device is not None:
        plan = planned_guests("pc-q35-7.2", "q35", [device]).guests[0].plan
        port, bridge, nic = plan.of(device.name)
        assert [port.type, bridge.type, nic.type] == ["pcie-root-port", "pcie-pci-bridge", "e1000"]
        assert (bridge.bus, nic.bus) == (port.id, bridge.id)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_disk_fails_where_qemu_can_stop_for_it_and_else_says_that_it_cannot(version: str) -> None:
    devices = derived_in(version).devices
    failing = {name for name, device in devices.items() if device.faults}
    reporting = {name for name, device in devices.items() if device.reports_errors}
    assert not failing & reporting
    adapters = {"am53c974", "dc390", "lsi53c810", "lsi53c895a", "megasas", "megasas-gen2", "mptsas1068", "pvscsi"}
    hosts = {"qemu-xhci", "nec-usb-xhci", "usb-ehci", "pci-ohci", "piix3-usb-uhci", "usb-bot", "usb-storage"}
    assert failing >= adapters | hosts | {"virtio-scsi-pci", "scsi-hd", "scsi-cd", "ide-hd", "ide-cd", "piix3-ide"}
    assert reporting >= {"nvme", "nvme-ns", "sd-card"}
    assert not {"e1000", "usb-kbd"} & (failing | reporting)
    hd = devices["scsi-hd"]
    assert hd.failing() == {"scsi-hd-drive": 98304}
    assert (hd.guest.fail, hd.guest.failed) == ("auto_fail scsi-hd 98304", "auto_failed scsi-hd")
    assert (hd.reaches("io-error"), devices["nvme"].reaches("io-error"), devices["e1000"].reaches("io-error")) == (
        True, True, False,
    )  # fmt: skip
    for device in devices.values():
        sizes = {name: backend.size_bytes for name, backend in device.backends.items() if isinstance(backend, Disk)}
        assert all(sector * 512 < sizes[name] for name, sector in device.faults.items()), device.name


@pytest.mark.parametrize("version", VERSIONS)
def test_controllers_of_one_guest_have_serials_of_their_own(version: str) -> None:
    """A kernel may not bind a second NVMe controller whose serial, of 20 characters at most, is that of the first."""
    attached = [a for device in derived_in(version).devices.values() for a in device.attachments]
    serials = [str(a.properties["serial"]) for a in attached if a.type in ("nvme", "ufs")]
    assert len(set(serials)) == len(serials) > 1
    assert max(map(len, serials)) <= 20
