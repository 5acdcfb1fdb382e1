# SPDX-License-Identifier: GPL-2.0-or-later
"""What a stopped QEMU shows of its machine besides the state that it saves: memory map, PCI, devices, disks, links.

A register that a load forgets is in no saved field that differs: its effect is. Everything is a line of text by what
it is about, so that two looks are compared as sets. Host paths and addresses of this process are not in it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from harness.qemu.monitor import CommandRefused
from harness.qemu.vm import Vm

#: What a look is about, in the order of a report.
ABOUT = ("memory", "device", "interrupts", "pci", "block", "network", "chardev", "usb", "mouse")
#: Raised when a look at the same machine gives other lines: two looks are compared only when they are of one version.
VERSION = 2
#: Part, then text: ``("memory", "memory: 00000000fed00000-00000000fed003ff (prio 0, i/o): hpet")``.
Line = tuple[str, str]
Look = Counter[Line]

_TABLES = {"usb": "info usb", "network": "info network"}
#: Interrupt requests of the first of two controllers; bit 0 is the timer's, whose line goes up by itself.
_REQUESTS = re.compile(r"(?<=^pic0: irr=)[0-9a-f]{2}")
#: Numbers of file descriptors and the like, which every process gives anew.
_HOSTS = re.compile(r"(fd=|fd:|0x[0-9a-f]{9,})[0-9]*|/[\w./-]*postload[\w./-]*")


def look_at(vm: Vm) -> Look:
    """One look at a machine that does not run.

    :raises QemuError: QEMU is gone
    """
    found: Look = Counter()
    for about, lines in _parts(vm):
        found.update((about, _HOSTS.sub("", line)) for line in lines)
    return found


def look_to_json(look: Look) -> bytes:
    """As it is kept in a state pack."""
    lines = [[*line, count] for line, count in sorted(look.items())]
    return json.dumps({"version": VERSION, "lines": lines}, separators=(",", ":")).encode()


def look_from_json(data: bytes) -> Look | None:
    """What :func:`look_to_json` gave; None for a look that a program of another version took.

    :raises ValueError: it is something else
    """
    found = json.loads(data)
    if not isinstance(found, dict) or found.get("version") != VERSION:
        return None
    return Counter({(str(about), str(line)): int(count) for about, line, count in found["lines"]})


def _parts(vm: Vm) -> Iterator[tuple[str, Iterator[str]]]:
    yield "memory", _memory(_hmp(vm, "info mtree"))
    yield "device", _tree(_hmp(vm, "info qtree"))
    pic = (line for line in _hmp(vm, "info pic").splitlines() if line.startswith("pic"))
    yield "interrupts", (_REQUESTS.sub(lambda irr: f"{int(irr[0], 16) & ~1:02x}", line) for line in pic)
    for about, command in _TABLES.items():
        yield about, (line.rstrip() for line in _hmp(vm, command).splitlines() if line.strip())
    for about, command, keys in (
        # its io-status is the host's disk, which failed where the phase io-error was recorded
        ("block", "query-block", ("device", "qdev", "locked", "tray_open", "removable")),
        ("chardev", "query-chardev", ("label", "frontend-open")),
        ("mouse", "query-mice", ("name", "index", "current", "absolute")),
    ):
        yield about, _rows(vm, command, keys)
    yield "pci", (line for bus in _qmp(vm, "query-pci") for line in _bus(bus))


def _hmp(vm: Vm, line: str) -> str:
    try:
        return str(vm.qmp("human-monitor-command", command_line=line))
    except CommandRefused:
        return ""


def _qmp(vm: Vm, command: str) -> list[Any]:
    try:
        return list(vm.qmp(command))
    except CommandRefused:
        return []


def _memory(text: str) -> Iterator[str]:
    """``info mtree``: each region below the address space, or the alias that it is in."""
    space = ""
    for line in text.splitlines():
        if not line.strip():
            continue
        if not line.startswith(" "):
            space = line.strip()
            yield space
        else:
            yield f"{space}: {line.strip()}"


def _tree(text: str) -> Iterator[str]:
    """``info qtree``: each property below its device, each device below its bus."""
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        above = [(d, name) for d, name in above if d < depth]
        word = line.strip()
        yield " / ".join([*(name for _, name in above), word])
        if word.startswith(("dev:", "bus:")):
            above.append((depth, word))


def _rows(vm: Vm, command: str, keys: tuple[str, ...]) -> Iterator[str]:
    for entry in _qmp(vm, command):
        yield ", ".join(f"{key}={entry[key]}" for key in keys if key in entry)


def _bus(bus: dict[str, Any]) -> Iterator[str]:
    for device in bus["devices"]:
        where = f"{bus['bus']:02x}:{device['slot']:02x}.{device['function']}"
        yield f"{where} irq {device.get('irq')}"
        for region in device["regions"]:
            yield f"{where} BAR {region['bar']} {region['type']} at {region['address']:#x} of {region['size']}"
        if bridge := device.get("pci_bridge"):
            yield f"{where} bridge {bridge['bus']}"
            yield from _bus({"bus": bridge["bus"]["secondary"], "devices": bridge.get("devices", [])})
