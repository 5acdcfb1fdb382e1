# SPDX-License-Identifier: GPL-2.0-or-later
"""Features read through PCI config space, against devices made of a table of registers."""

from __future__ import annotations

import re
from typing import Any

import pytest

from harness.errors import QemuError
from harness.facts.model import WhyNotKnown
from harness.facts.virtio import backends, offered
from harness.qemu.cmdline import Option

# config space of a modern device: capabilities at 0x40 (device config), 0x50 (window, its data at 0x60), 0x70 (common)
MODERN = {
    0x00: 0x10411AF4, 0x10: 0x00000000, 0x2C: 0x11001AF4, 0x34: 0x40,
    0x40: 4 << 24 | 16 << 16 | 0x50 << 8 | 0x09, 0x48: 0x2000,
    0x50: 5 << 24 | 20 << 16 | 0x70 << 8 | 0x09,
    0x70: 1 << 24 | 16 << 16 | 0x00 << 8 | 0x09, 0x74: 4, 0x78: 0x3000,
}  # fmt: skip
LEGACY = {0x00: 0x10011AF4, 0x10: 0x00000001, 0x2C: 0x00021AF4, 0x34: 0x00}
MSIX_ONLY = {0x00: 0x10451AF4, 0x10: 0, 0x2C: 0x11001AF4, 0x34: 0x40, 0x40: 0x11}


class FakeVm:
    """The monitor of a machine with these devices.

    :param devices: slot to config space and feature bits
    """

    def __init__(self, devices: dict[int, tuple[dict[int, int], int]], buses: list[dict[str, Any]]) -> None:
        self.devices = devices
        self.buses = buses
        self.address = 0
        self.window = {"bar": 0, "offset": 0, "length": 0}
        self.select = 0
        self.answer = "portl[{port:#06x}] = {value:#x}\r\n"

    def qmp(self, command: str, **arguments: Any) -> Any:
        if command == "query-pci":
            return self.buses
        assert command == "human-monitor-command"
        line = arguments["command_line"]
        if match := re.fullmatch(r"o /w (0x[0-9a-f]+) (0x[0-9a-f]+)", line):
            return self.write(int(match[1], 16), int(match[2], 16))
        match = re.fullmatch(r"i /xw (0x[0-9a-f]+)", line)
        assert match, line
        port = int(match[1], 16)
        # C prints a zero without 0x
        value = self.read(port)
        text = self.answer.format(port=port, value=value)
        return text if value else text.replace("= 0x0", "= 00000000")

    def current(self) -> tuple[dict[int, int], int, int]:
        assert self.address >> 31 == 1
        config, bits = self.devices[self.address >> 11 & 31]
        return config, bits, self.address & 0xFC

    def write(self, port: int, value: int) -> str:
        if port == 0xCF8:
            self.address = value
            return ""
        assert port == 0xCFC
        config, _, register = self.current()
        if register in (0x54, 0x58, 0x5C):
            self.window[{0x54: "bar", 0x58: "offset", 0x5C: "length"}[register]] = value
        elif register == 0x60:
            assert self.window == {"bar": 4, "offset": 0x3000, "length": 4}
            self.select = value
        else:
            config[register] = value | 1 if register == 0x10 else value
        return ""

    def read(self, port: int) -> int:
        if port == 0xC000:
            config, bits = next(v for v in self.devices.values() if v[0].get(0x10) == 0xC001 and v[0].get(0x04) == 1)
            return bits & 0xFFFFFFFF
        config, bits, register = self.current()
        if register == 0x60 and self.window["offset"] == 0x3004:
            return bits >> 32 * self.select & 0xFFFFFFFF
        return config.get(register, 0)


def entry(slot: int, device: int, name: str = "", bus: int = 0) -> dict[str, Any]:
    return {"bus": bus, "slot": slot, "function": 0, "qdev_id": name, "id": {"vendor": 0x1AF4, "device": device}}


def test_modern_and_legacy_devices_are_read_through_two_ports() -> None:
    net = (1 << 65) | (1 << 32) | (1 << 0) | (1 << 15)
    blk = (1 << 9) | (1 << 28)
    host_bridge = {"bus": 0, "slot": 0, "function": 0, "qdev_id": "", "id": {"vendor": 0x8086, "device": 0x1237}}
    fake = FakeVm({5: ({**MODERN}, net), 4: ({**LEGACY}, blk)}, [])
    fake.buses = [{"bus": 0, "devices": [host_bridge, entry(5, 0x1041, "n0"), entry(4, 0x1001)]}]
    found, missed = offered(fake)  # type: ignore[arg-type]
    assert missed == {}
    assert [(f.slot, f.device, f.id, f.bits) for f in found] == [
        ("00:04.0", "virtio-blk", "", blk),
        ("00:05.0", "virtio-net", "n0", net),
    ]
    assert found[1].to_json("tap") == {
        "device": "virtio-net", "id": "n0", "slot": "00:05.0", "backend": "tap", "bits": f"{net:#x}",
        "features": ["VIRTIO_NET_F_CSUM", "VIRTIO_NET_F_MRG_RXBUF", "VIRTIO_F_VERSION_1",
                     "VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO"],
    }  # fmt: skip


def test_what_cannot_be_reached_is_told_with_its_reason() -> None:
    behind = entry(1, 0x1042, "deep", bus=1)
    bridge = {
        "bus": 0, "slot": 2, "function": 0, "qdev_id": "rp", "id": {"vendor": 0x1B36, "device": 0xC},
        "pci_bridge": {"bus": {"number": 0}, "devices": [behind]},
    }  # fmt: skip
    fake = FakeVm({3: ({**MSIX_ONLY}, 1)}, [{"bus": 0, "devices": [bridge, entry(3, 0x1045)]}])
    found, missed = offered(fake)  # type: ignore[arg-type]
    assert found == []
    assert set(missed) == {"deep", "00:03.0"}
    assert missed["deep"]["why"] is WhyNotKnown.BEHIND_BRIDGE
    assert missed["00:03.0"] == {"why": WhyNotKnown.NO_INTERFACE, "said": "00:03.0"}


def test_a_monitor_that_prints_something_else_is_an_error() -> None:
    fake = FakeVm({4: ({**LEGACY}, 0)}, [{"bus": 0, "devices": [entry(4, 0x1001)]}])
    fake.answer = "unknown command: 'i'"
    with pytest.raises(QemuError, match="expected a number, got \"unknown command: 'i'\""):
        offered(fake)  # type: ignore[arg-type]


def test_a_device_stands_on_its_backend() -> None:
    options = [
        Option(name="netdev", first="tap", props={"id": "n", "vhost": "on"}),
        Option(name="netdev", first="user", props={"id": "u"}),
        Option(name="blockdev", first="qcow2", props={"node-name": "d"}),
        Option(name="drive", props={"id": "old", "format": "raw", "if": "none"}),
        Option(name="device", first="virtio-net-pci", props={"id": "a", "netdev": "n"}),
        Option(name="device", first="virtio-net-pci", props={"id": "b", "netdev": "u"}),
        Option(name="device", first="virtio-blk-pci", props={"id": "c", "drive": "d"}),
        Option(name="device", first="virtio-blk-pci", props={"id": "e", "drive": "old"}),
        Option(name="device", first="virtio-rng-pci", props={"id": "f"}),
        Option(name="device", first="virtio-net-pci", props={"netdev": "u"}),
    ]
    assert backends(options) == {"a": "tap+vhost", "b": "user", "c": "qcow2", "e": "raw"}
