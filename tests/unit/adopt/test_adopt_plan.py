# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM that somebody described, as a guest plan: what is kept, what is replaced, what is left out."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.adopt import plan as plan_module
from harness.adopt.configuration import Configuration, SaidOption, Unread, Value
from harness.adopt.plan import Adopted, Known, adopt_plan, check_adopted
from harness.devices.backends import Disk, LoneTap, Memdev, Netdev
from harness.devices.types import DeviceType
from harness.errors import UsageError
from harness.guests.origin import VmPart, Without
from harness.guests.plan import GuestPlan
from harness.qemu.listed import BOOLEAN, ENUM, NUMBER, OTHER, STRING, Listed, Listing

NUMBERED, SWITCH, TEXT = (
    Listed(type="uint32", kind=NUMBER),
    Listed(type="bool", kind=BOOLEAN),
    Listed(type="str", kind=STRING),
)
LINK = Listed(type="link<rng-backend>", kind=OTHER)
PROPERTIES: Mapping[str, Mapping[str, Listed]] = {
    "pcie-root-port": {"port": NUMBERED, "chassis": NUMBERED, "multifunction": SWITCH},
    "virtio-blk-pci": {
        "drive": TEXT,
        "bootindex": NUMBERED,
        "serial": TEXT,
        "romfile": TEXT,
        "logical_block_size": NUMBERED,
        "disable-legacy": Listed(type="OnOffAuto", kind=OTHER),
        "werror": Listed(type="BlockdevOnError", kind=ENUM, words=("report", "stop")),
    },
    "virtio-net-pci": {"netdev": TEXT, "mac": TEXT, "mq": SWITCH, "romfile": TEXT},
    "virtio-rng-pci": {"rng": LINK},
    "virtio-scsi-pci": {},
    "scsi-cd": {"drive": TEXT, "lun": NUMBERED},
    "isa-serial": {"chardev": TEXT, "index": NUMBERED},
    "isa-parallel": {"chardev": TEXT, "index": NUMBERED},
    "isa-debugcon": {"chardev": TEXT, "iobase": NUMBERED},
    "qemu-xhci": {},
    "usb-tablet": {"port": TEXT},
    "VGA": {"vgamem_mb": NUMBERED},
    "e1000": {"netdev": TEXT, "mac": TEXT},
    "ide-cd": {"drive": TEXT, "unit": NUMBERED},
    "ide-hd": {"drive": TEXT, "unit": NUMBERED},
    "floppy": {"drive": TEXT, "unit": NUMBERED},
    "AC97": {"audiodev": TEXT},
    "pc-dimm": {"memdev": Listed(type="link<memory-backend>", kind=OTHER)},
    "ipmi-bmc-sim": {"sdrfile": TEXT},
    "vhost-vsock-pci": {"guest-cid": NUMBERED},
    "vfio-pci": {"host": TEXT},
    "virtio-mystery-pci": {"fd": NUMBERED},
}
CPU: Mapping[str, Value] = {"+vmx": True, "level": "0x16", "hv-vendor-id": "abc", "model-id": "../a"}
PCI = ("pcie-root-port", "qemu-xhci", "VGA", "e1000", "AC97")


def known(machine: str = "pc-q35-7.2") -> Known:
    types = {
        name: DeviceType(
            name=name,
            category="misc",
            bus="PCI" if name.endswith("-pci") or name in PCI else "",
            alias=name.removesuffix("-pci") if name.startswith("virtio-") else "",
            properties=frozenset(properties),
        )
        for name, properties in PROPERTIES.items()
    }
    switches = {"gic-version": TEXT} | dict.fromkeys(("usb", "acpi", "hpet", "vmport"), SWITCH)
    presets = {"ICH9-LPC": {"disable_s3": NUMBERED}, "mc146818rtc": {}}
    return Known(machine=machine, types=types, listing=Listing(devices={**PROPERTIES, **presets}, machine=switches))


def option(name: str, /, **values: Value) -> SaidOption:
    return SaidOption(name=name, values=values, line=3)


def device(kind: str, /, **values: Value) -> SaidOption:
    return option("device", driver=kind, **values)


def adopted(*options: SaidOption, machine: str = "pc-q35-7.2", defaults: bool = False) -> Adopted:
    said = options if defaults else (option("nodefaults"), *options)
    found = adopt_plan(Configuration(name="web01", options=said, source="web01.args"), known(machine))
    check_adopted(found, known(machine), "qemu", "tcg")
    return found


def places(plan: GuestPlan) -> list[tuple[str, str, str | None, str | None]]:
    return [(each.id, each.type, each.bus, each.slot) for each in plan.devices]


def test_a_disk_and_a_network_keep_their_places_and_lose_what_is_behind_them() -> None:
    found = adopted(
        device("pcie-root-port", id="pci.1", bus="pcie.0", addr="0x2", port="16", chassis="1", multifunction="on"),
        option("blockdev", driver="file", filename="/etc/shadow", **{"node-name": "store"}),
        option("blockdev", driver="qcow2", file="store", **{"node-name": "form"}),
        device("virtio-blk-pci", id="vda", bus="pci.1", addr="0x0", drive="form", bootindex="1", werror="stop"),
        option("netdev", type="tap", id="hostnet0", script="/bin/sh"),
        device("virtio-net", id="net0", netdev="hostnet0", mac="52:54:00:aa:bb:cc", mq="on"),
    )
    assert places(found.plan) == [
        ("pci.1", "pcie-root-port", "pcie.0", "02.0"),
        ("vda", "virtio-blk-pci", "pci.1", "00.0"),
        ("net0", "virtio-net-pci", "pcie.0", "01.0"),
    ]
    port, disk, net = found.plan.devices
    assert port.properties == {"port": 16, "chassis": 1, "multifunction": True}
    assert disk.properties == {"werror": "stop"}
    assert net.properties == {"mac": "52:54:00:aa:bb:cc", "mq": True}
    assert found.plan.backends[disk.backends["drive"]] == Disk(size_bytes=1 << 30)
    assert [(r.part, r.id, r.was, r.stands, r.guessed) for r in found.origin.replaced[:2]] == [
        (VmPart.DISK, "form", "qcow2 on file", "scratch disk", True),
        (VmPart.NETWORK, "hostnet0", "tap", "user", False),
    ]
    assert "shadow" not in repr(found)
    assert "/bin/sh" not in repr(found)


def test_what_is_not_known_of_a_domain_is_named_by_path_and_line() -> None:
    unread = (Unread(path="devices/flux", line=7), Unread(path="devices/input@mood", line=8))
    said = Configuration(options=(option("nodefaults"),), source="web01.xml", unread=unread)
    found = adopt_plan(said, known("pc-q35-7.2"))
    assert [(each.why, each.type, each.names) for each in found.origin.left_out] == [
        (Without.UNREAD, "devices/flux", ("7",)),
        (Without.UNREAD, "devices/input@mood", ("8",)),
    ]


def test_what_stands_on_the_host_or_is_not_there_is_left_out_by_name() -> None:
    found = adopted(
        device("vfio-pci", id="gpu", host="0000:01:00.0"),
        device("vhost-vsock-pci", id="vsock0"),
        device("virtio-mystery-pci", id="odd"),
        device("virtio-net", id="n", vhostfd="3"),
        device("virtio-future-pci", id="new"),
        device("usb-tablet", id="t", bus="gone.0"),
        device("virtio-blk-pci", id="vda", drive="d", **{"queue-size": "256", "serial": "../x/y"}),
        option("drive", id="d", file="/x", **{"if": "none"}),
        option("plugin", file="/x.so"),
        option("fw_cfg", name="opt/x", file="/etc/shadow"),
    )
    assert [(each.why, each.id, each.type, each.names) for each in found.origin.left_out] == [
        (Without.OPTION, "", "plugin", ("file",)),
        (Without.OPTION, "", "fw_cfg", ("name", "file")),
        (Without.HOST, "gpu", "vfio-pci", ()),
        (Without.HOST, "vsock0", "vhost-vsock-pci", ()),
        (Without.HOST, "odd", "virtio-mystery-pci", ("fd",)),
        (Without.HOST, "n", "virtio-net", ("vhostfd",)),
        (Without.TYPE, "new", "virtio-future-pci", ()),
        (Without.BUS, "t", "usb-tablet", ("gone.0",)),
        (Without.UNKNOWN, "vda", "virtio-blk-pci", ("queue-size",)),
        (Without.REFUSED, "vda", "virtio-blk-pci", ("serial",)),
    ]
    assert [each.id for each in found.plan.devices] == ["vda"]


def test_a_machine_without_nodefaults_has_what_qemu_gives_it() -> None:
    found = adopted(
        option("drive", file="/x.img", format="raw", size="64M"),
        option("drive", **{"if": "virtio", "file": "/y.img"}),
        device("virtio-rng-pci"),
        machine="pc-i440fx-7.2",
        defaults=True,
    )
    assert places(found.plan) == [
        ("device-0", "VGA", "pci.0", "02.0"),
        ("device-1", "e1000", "pci.0", "03.0"),
        ("device-2", "isa-parallel", None, None),
        ("device-3", "ide-hd", "ide.0", None),
        ("device-4", "ide-cd", "ide.1", None),
        ("device-5", "floppy", None, None),
        ("device-6", "virtio-rng-pci", "pci.0", "04.0"),
        ("device-7", "virtio-blk-pci", "pci.0", "05.0"),
    ]
    disk = found.plan.devices[3]
    assert found.plan.backends[disk.backends["drive"]] == Disk(size_bytes=64 << 20)
    assert not found.plan.devices[4].backends
    assert not found.plan.devices[5].backends
    assert VmPart.CONSOLE not in [each.part for each in found.origin.replaced]


def test_cpus_memory_and_machine_are_what_was_said() -> None:
    found = adopted(
        option("machine", type="pc-q35-7.2", accel="kvm", hpet="off", usb="off", vmport="auto", **{"x-odd": "1"}),
        option("cpu", model="host", **CPU),
        option("smp", cpus="4", sockets="2", cores="2"),
        option("m", size="4194304k", slots="2", maxmem="8G"),
        option("object", id="m0", size="256M", **{"qom-type": "memory-backend-file", "mem-path": "/dev/mem"}),
        device("pc-dimm", id="dimm0", memdev="m0"),
        option("global", **{"ICH9-LPC.disable_s3": "1"}),
        option("global", driver="isa-fdc", property="driveA", value="x"),
    )
    plan = found.plan
    assert plan.machine_properties == {"hpet": False, "usb": False}
    assert plan.cpu is not None
    assert plan.cpu.model == "max"
    assert plan.cpus == 4
    assert plan.topology is not None
    assert plan.topology.sockets == 2
    assert (plan.memory_mib, plan.memory_room_mib, plan.memory_slots) == (4096, 4096, 2)
    assert plan.backends["m0"] == Memdev(size_bytes=256 << 20)
    assert [(p.driver, p.property, p.value) for p in plan.presets] == [("ICH9-LPC", "disable_s3", True)]
    refused = {each.type: each.names for each in found.origin.left_out}
    assert refused["machine"] == ("x-odd",)
    assert refused["isa-fdc"] == ("driveA",)


@pytest.mark.parametrize(("said", "kept"), [("3", {"gic-version": 3}), ("host", {}), ("/dev/x", {})])
def test_a_property_of_the_machine_that_is_a_number_is_kept(said: str, kept: dict[str, int]) -> None:
    assert adopted(option("machine", type="q35", **{"gic-version": said})).plan.machine_properties == kept


def test_memory_is_called_as_it_was_for_its_saved_blocks_are() -> None:
    ram = option("object", id="big", size="512M", share="on", **{"qom-type": "memory-backend-memfd"})
    said = option("machine", **{"type": "q35", "memory-backend": "big"})
    plan = adopted(ram, said, option("m", size="512")).plan
    assert (plan.ram, plan.backends) == ("big", {"big": Memdev(size_bytes=512 << 20, share=True)})
    nodes = [
        option("object", id=f"ram-node{n}", size="256M", **{"qom-type": "memory-backend-ram"}) for n in range(2)
    ] + [
        option("numa", type="node", nodeid="0", cpus="0-1", memdev="ram-node0"),
        option("numa", type="node", nodeid="1", cpus=["2"], memdev="ram-node1"),
    ]  # fmt: skip
    plan = adopted(*nodes, option("m", size="512"), option("smp", cpus="3")).plan
    assert [(n.number, n.cpus, n.memdev) for n in plan.numa] == [(0, (0, 1), "ram-node0"), (1, (2, 2), "ram-node1")]
    assert set(plan.backends) == {"ram-node0", "ram-node1"}
    # what is not all of the memory is not taken, and neither is what a plan cannot say
    assert len(adopted(*nodes, option("m", size="1G")).origin.left_out) == 2
    found = adopted(*nodes, option("numa", type="node", nodeid="2", cpus=["3", "5"]), option("m", size="512"))
    assert (found.plan.numa, len(found.origin.left_out)) == ((), 3)


@pytest.mark.parametrize(
    ("netdev", "queues"),
    [
        ({"type": "tap", "fds": "21:22:23:24"}, 4),
        ({"type": "tap", "fd": "21", "vhost": "on"}, 1),
        ({"type": "bridge", "br": "br0"}, 1),
        ({"type": "tap", "queues": "9999"}, 64),
        ({"type": "tap", "vnet_hdr": "off"}, None),
        ({"type": "user"}, None),
    ],
)
def test_a_state_of_a_card_behind_a_tap_gets_one_with_nobody_on_it(
    netdev: dict[str, Value], queues: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = (option("nodefaults"), option("netdev", id="n", **netdev), device("virtio-net-pci", id="net0", netdev="n"))
    vm = Configuration(options=said, source="vm")
    monkeypatch.setattr(plan_module, "has_lone_taps", lambda: True)
    (backend,) = adopt_plan(vm, known(), state=True).plan.backends.values()
    assert backend == (Netdev() if queues is None else LoneTap(queues=queues))
    # a guest of ours pings, and has nobody to ping there
    assert list(adopt_plan(vm, known()).plan.backends.values()) == [Netdev()]
    monkeypatch.setattr(plan_module, "has_lone_taps", lambda: False)
    left = adopt_plan(vm, known(), state=True).origin.left_out
    assert [each.why for each in left] == ([] if queues is None else [Without.PROGRAM])


def test_a_bus_that_qemu_names_by_itself_is_the_devices_that_has_no_id() -> None:
    found = adopted(
        device("virtio-scsi-pci", id="first"),
        device("virtio-scsi-pci"),
        device("scsi-cd", bus="scsi.0"),
        device("qemu-xhci"),
        device("usb-tablet", bus="usb-bus.0"),
    )
    assert [(each.id, each.bus) for each in found.plan.devices[1:]] == [
        ("scsi0", "pcie.0"),
        ("device-0", "scsi0.0"),
        ("usb-bus0", "pcie.0"),
        ("device-1", "usb-bus0.0"),
    ]


def test_the_first_serial_port_is_the_console_and_sound_has_a_backend() -> None:
    found = adopted(
        option("chardev", id="c0", backend="pty"),
        device("isa-serial", id="serial0", chardev="c0"),
        option("chardev", id="c1", backend="socket", path="/run/x"),
        device("isa-serial", id="serial1", chardev="c1"),
        device("isa-debugcon", id="debug", chardev="c1", iobase="0x402"),
        device("AC97", id="sound0"),
    )
    assert [each.id for each in found.plan.devices] == ["serial1", "sound0"]
    assert list(found.plan.devices[1].backends) == ["audiodev"]
    assert found.origin.replaced[0].part is VmPart.CONSOLE
    assert found.origin.replaced[0].was == "pty"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            (device("virtio-blk-pci", drive="nothing"),),
            "web01.args:3: -device: drive=nothing: expected the name of one",
        ),
        ((option("device", id="x"),), "web01.args:3: -device: a device without a type"),
        ((device("VGA", addr="0x99"),), "web01.args:3: -device: addr='0x99': expected a PCI slot"),
        ((option("m", size="much"),), "web01.args:3: -m: expected a size of memory"),
        ((option("cpu", model="qemu:64"),), "web01.args:3: -cpu: expected a CPU model, found 'qemu:64'"),
        ((device("VGA", id="a"), device("VGA", id="a")), "web01.args: devices: the id 'a' is there twice"),
    ],
)
def test_what_no_qemu_would_start_is_an_error_with_its_line(options: tuple[SaidOption, ...], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        adopted(*options)
    assert said in str(raised.value)


EVIL = st.sampled_from(
    [
        *("/etc/shadow", "exec:touch x", "a,,romfile=/x", "on,file=/etc/shadow", "../x", '{"driver":"file"}', "$(id)"),
        *("on", "0x10", "disk", "unix:/run/x", "|sh", "", "\n", "d", 'json:{"driver":"file","filename":"/etc/shadow"}'),
    ]
)
NAMES = st.sampled_from(
    [
        "device",
        "drive",
        "blockdev",
        "netdev",
        "chardev",
        "machine",
        "cpu",
        "smp",
        "m",
        "global",
        "object",
        "incoming",
        "plugin",
        "readconfig",
        "rtc",
        "serial",
        "vga",
        "net",
        "usbdevice",
        "virtfs",
        "fsdev",
        "numa",
        "smbios",
        "bios",
    ]
)
KEYS = st.sampled_from(
    [
        "driver",
        "id",
        "type",
        "file",
        "filename",
        "drive",
        "netdev",
        "chardev",
        "romfile",
        "script",
        "path",
        "bus",
        "addr",
        "model",
        "size",
        "cpus",
        "property",
        "value",
        "backend",
        "qom-type",
        "node-name",
        "if",
        "fd",
        "mac",
        "serial",
    ]
)
VALUES = st.one_of(EVIL, st.sampled_from(sorted(PROPERTIES)), st.integers(-1, 9), st.booleans(), st.none())


def test_a_bus_whose_name_no_qemu_would_take_is_not_there() -> None:
    found = adopted(device("ide-hd", id="d0", bus="ide.,,0"))
    assert [(each.why, each.id) for each in found.origin.left_out] == [(Without.BUS, "d0")]


def test_no_text_of_a_hostile_configuration_is_in_a_plan() -> None:
    """Whatever it says, it is an error or a plan that passes the check of those from elsewhere."""
    taken = []

    @settings(max_examples=1000, deadline=None, derandomize=True, database=None)
    @given(
        said=st.lists(
            st.builds(SaidOption, name=NAMES, values=st.dictionaries(KEYS, st.one_of(VALUES, st.just({"a": "b"})))),
            max_size=6,
        )
    )
    def check(said: list[SaidOption]) -> None:
        try:
            found = adopt_plan(Configuration(options=tuple(said), source="evil"), known())
        except UsageError:
            return
        taken.append(found)
        check_adopted(found, known(), "qemu", "tcg")
        words = json.dumps(found.plan.model_dump(mode="json"))
        assert not any(mark in words for mark in ("/", ",,", "exec:", "$(", "|", "unix:", "{\\"))
        assert GuestPlan.model_validate_json(found.plan.model_dump_json()) == found.plan

    check()
    assert len(taken) > 300


def test_a_plan_without_anything_of_these_is_what_it_was() -> None:
    plain = GuestPlan(machine="pc-q35-7.2", family="q35", memory_mib=256)
    assert not {"cpu", "topology", "presets"} & plain.model_dump().keys()
    assert not plain.seldom
    assert adopted(option("smp", cpus="2", cores="2")).plan.seldom
