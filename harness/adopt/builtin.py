# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU makes devices of that nobody called ``-device``: ``-vga``, ``-drive if=virtio``, ``-serial``, and what it
adds by itself where ``-nodefaults`` is not said (``system/vl.c``: ``qemu_create_default_devices``).

Each becomes a ``device`` as it could have been said, in QEMU's order, so that what finds its slot by itself gets the
same one. Other short options have been written out before (:mod:`harness.adopt.aliases`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from harness.adopt.configuration import Configuration, SaidOption, Value
from harness.adopt.scalars import as_boolean, as_number, as_text

#: By ``-vga`` (``system/vl.c``: ``vga_interfaces``).
_VGA: Mapping[str, str] = {
    "std": "VGA",
    "cirrus": "cirrus-vga",
    "vmware": "vmware-svga",
    "qxl": "qxl-vga",
    "virtio": "virtio-vga",
}
_DISPLAYS = frozenset(
    {"VGA", "cirrus-vga", "isa-cirrus-vga", "isa-vga", "qxl", "qxl-vga", "secondary-vga", "ati-vga", "vmware-svga"}
    | {"virtio-vga", "virtio-vga-gl", "virtio-gpu-pci", "vhost-user-vga", "bochs-display", "ramfb"}
)
_ATA = frozenset({"ide-cd", "ide-hd", "scsi-cd", "scsi-hd"})
#: By family of machines: the network card that is there by default.
_NICS: Mapping[str, str] = {"pc": "e1000", "q35": "e1000e", "virt": "virtio-net-pci"}
#: By family: devices on one IDE bus of the chipset.
_ON_ONE_BUS: Mapping[str, int] = {"pc": 2, "q35": 1}
_INTERFACES = frozenset({"ide", "virtio", "floppy", "none", "pflash"})
#: Stands for a backend that has no id, and that nobody said more of.
UNNAMED: Final = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Expanded:
    """A configuration in which every device is one.

    :param devices: options of name ``device``
    :param console: what its first serial port leads to, None where it has none
    :param flash: whether its firmware is in flash memory
    :param odd: options that make no device here
    """

    devices: tuple[SaidOption, ...]
    console: str | None = None
    flash: bool = False
    odd: tuple[SaidOption, ...] = field(default=())


def expand(configuration: Configuration, family: str) -> Expanded:
    """All devices of a configuration, those that QEMU adds among them."""
    said, serials = configuration.named("device"), configuration.named("serial")
    defaults = not configuration.named("nodefaults")
    drives = list(_drives(configuration))
    of_pc = defaults and family in _ON_ONE_BUS
    devices = [
        *_display(configuration, said, of_pc),
        *_network(configuration, family, defaults),
        *_ports(serials, configuration.named("parallel"), said, of_pc),
        *(_drive_device(drive, family) for drive in drives if drive.interface in ("ide", "floppy")),
        *_default_drives(drives, said, family, of_pc),
        *said,
        *(_drive_device(drive, family) for drive in drives if drive.interface == "virtio"),
    ]
    first = as_text(serials[0].values.get("backend")) if serials else ""
    console = first or ("default" if defaults and not serials and not _has(said, "isa-serial") else None)
    return Expanded(
        devices=tuple(devices),
        console=None if console == "none" else console,
        flash=any(drive.interface == "pflash" for drive in drives),
        odd=tuple(drive.option for drive in drives if drive.interface not in _INTERFACES),
    )


def _has(devices: list[SaidOption], *types: str) -> bool:
    return any(device.values.get("driver") in types for device in devices)


def _display(configuration: Configuration, devices: list[SaidOption], defaults: bool) -> Iterator[SaidOption]:
    asked = configuration.named("vga")
    name = as_text(next(iter(asked[-1].values.values()), "")) if asked else ""
    if not asked and defaults and not _has(devices, *_DISPLAYS):
        name = "std"
    if name in _VGA:
        yield SaidOption(name="device", values={"driver": _VGA[name]}, line=asked[-1].line if asked else 1)


def _network(configuration: Configuration, family: str, defaults: bool) -> Iterator[SaidOption]:
    """The card that is there when nobody said anything of networks."""
    if defaults and not configuration.named("netdev", "nic", "net"):
        yield SaidOption(name="device", values={"driver": _NICS.get(family, "e1000"), "netdev": UNNAMED})


def _ports(
    serials: list[SaidOption], parallels: list[SaidOption], devices: list[SaidOption], defaults: bool
) -> Iterator[SaidOption]:
    """Ports behind the first serial one, which is the console."""
    for number, line in enumerate(serials):
        if number and line.values.get("backend") != "none":
            values: dict[str, Value] = {"driver": "isa-serial", "index": number, "chardev": UNNAMED}
            yield SaidOption(name="device", values=values, line=line.line)
    if defaults and not parallels and not _has(devices, "isa-parallel"):
        parallels = [SaidOption(name="parallel", values={})]
    for number, line in enumerate(parallels):
        if line.values.get("backend") != "none":
            values = {"driver": "isa-parallel", "index": number, "chardev": UNNAMED}
            yield SaidOption(name="device", values=values, line=line.line)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drive:
    name: str
    option: SaidOption
    interface: str
    index: int


def _drives(configuration: Configuration) -> Iterator[_Drive]:
    """Drives with their numbers: one without takes the next that is free."""
    taken: dict[str, set[int]] = {}
    for place, option in enumerate(configuration.options):
        if option.name != "drive":
            continue
        interface = as_text(option.values.get("if")) or "ide"
        used = taken.setdefault(interface, set())
        index = _number(option)
        if index is None:
            index = next(number for number in range(len(used) + 1) if number not in used)
        used.add(index)
        yield _Drive(name=drive_name(option, place), option=option, interface=interface, index=index)


def drive_name(option: SaidOption, place: int) -> str:
    """The id of a drive, or what it is called here where it has none.

    :param place: among the options of the configuration
    """
    return as_text(option.values.get("id")) or f"{UNNAMED}{place}"


def _number(option: SaidOption) -> int | None:
    index, bus, unit = (as_number(option.values.get(key)) for key in ("index", "bus", "unit"))
    if index is not None:
        return min(index, 1 << 16)
    return None if bus is None and unit is None else min(2 * (bus or 0) + (unit or 0), 1 << 16)


def _drive_device(drive: _Drive, family: str) -> SaidOption:
    values: dict[str, Value] = {}
    said = drive.option.values
    cd = said.get("media") == "cdrom"
    if drive.interface == "virtio":
        values["driver"] = "virtio-blk-pci"
        if "addr" in said:
            values["addr"] = said["addr"]
    elif drive.interface == "floppy":
        values |= {"driver": "floppy", "unit": drive.index}
    else:
        on_one = _ON_ONE_BUS.get(family, 2)
        values |= {"driver": "ide-cd" if cd else "ide-hd", "bus": f"ide.{drive.index // on_one}"}
        values["unit"] = drive.index % on_one
    # an empty drive of a CD or a floppy
    if "file" in said or drive.interface == "virtio" or not (cd or drive.interface == "floppy"):
        values["drive"] = drive.name
    values |= {key: said[key] for key in ("serial", "werror", "rerror") if key in said}
    return SaidOption(name="device", values=values, line=drive.option.line)


def _default_drives(
    drives: list[_Drive], devices: list[SaidOption], family: str, defaults: bool
) -> Iterator[SaidOption]:
    """An empty CD drive, and on machines that have a controller for it a floppy drive."""
    if not defaults:
        return
    if not _has(devices, *_ATA) and not any(d.interface == "ide" and d.index == 2 for d in drives):
        bus = "ide.1" if family == "pc" else "ide.2"
        yield SaidOption(name="device", values={"driver": "ide-cd", "bus": bus, "unit": 0})
    if family == "pc" and not _has(devices, "isa-fdc", "floppy") and not any(d.interface == "floppy" for d in drives):
        yield SaidOption(name="device", values={"driver": "floppy", "unit": 0})


def usb_of_machine(values: Mapping[str, Value]) -> bool:
    """Whether ``-machine`` asks for USB."""
    return as_boolean(values.get("usb")) is True
