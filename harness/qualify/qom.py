# SPDX-License-Identifier: GPL-2.0-or-later
"""What a QEMU says of its virtio devices before any guest runs: their properties, and who set them.

A feature's property stands on the transport (``virtio-net-pci``) as an alias of the device's own
(``virtio-net-device``, child ``virtio-backend``), and ``qom-get`` gives its value after the machine type, ``-global``
and ``-device`` have had their say. Which of them it was, QEMU does not keep: that is found from the command line,
from the machine type's list (``query-machines`` with ``compat-props``, QEMU 9.1) and from the default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from harness.errors import QemuError
from harness.guests.machine import Machine, firmware_sink
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.monitor import CommandRefused
from harness.qemu.process import new_workdir
from harness.qemu.vm import Vm
from harness.qualify.explained import Origin, SetBy

_PLACES = ("/machine/peripheral", "/machine/peripheral-anon", "/machine/unattached")
_BACKEND = "virtio-backend"
_ROOT = "0000:00"
#: Types whose compat properties and globals reach every PCI virtio device.
_ANCESTORS = ("virtio-pci", "virtio-device", "pci-device")


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtioDevice:
    """One virtio device of a machine that has not run.

    :param ident: its ``id``, or "" for one without
    :param section_path: what its section's idstr has in front of the slash, such as ``0000:00:05.0``
    :param driver: type of the transport, such as ``virtio-net-pci``
    :param inner: type of the device behind it, such as ``virtio-net-device``
    :param values: properties that were asked for; one that the build does not have is missing
    :param defaults: their defaults before the machine type and the command line
    :param drive: what its ``drive`` or ``netdev`` names, or ""
    """

    ident: str
    section_path: str
    driver: str
    inner: str
    values: Mapping[str, object]
    defaults: Mapping[str, object]
    drive: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QomAnswers:
    """The virtio devices of a machine, by ``section_path``, and the machine type's compat properties.

    :param compat: (type, property) to value; None when this build does not tell
    :param options: the command line, without what the program itself adds
    """

    machine: str
    devices: Mapping[str, VirtioDevice]
    compat: Mapping[tuple[str, str], str] | None
    options: Sequence[Option] = field(default_factory=tuple)


@contextmanager
def stopped(binary: QemuBinary, machine: Machine) -> Iterator[Vm]:
    """A QEMU of a machine, stopped before its first instruction.

    :raises QemuError: it does not start
    """
    workdir = new_workdir()
    machine.make_files(workdir)
    with Vm(machine.command(binary.path, workdir, firmware_sink()), workdir=workdir) as vm:
        yield vm


def ask_virtio(binary: QemuBinary, machine: Machine, properties: Iterable[str]) -> QomAnswers:
    """Start a QEMU of this machine, and ask it for these properties of each of its virtio devices.

    :raises QemuError: it does not start, or dies of a question
    """
    wanted = frozenset(properties)
    with stopped(binary, machine) as vm:
        found = [_device(vm, path, driver, wanted) for path, driver in _proxies(vm)]
        compat = _compat(vm, machine.name)
    return QomAnswers(
        machine=machine.name,
        devices={device.section_path: device for device in found},
        compat=compat,
        options=machine.options,
    )


def origin(answers: QomAnswers, device: VirtioDevice, name: str) -> Origin | None:
    """Who gave a property its value; None when nothing tells."""
    given = _on_device(answers.options, device, name) or _by_global(answers.options, device, name)
    if given:
        return given
    if answers.compat is not None:
        for kind in (device.driver, device.inner, *_ANCESTORS):
            for spelling in _spellings(name):
                if (kind, spelling) in answers.compat:
                    value = answers.compat[kind, spelling]
                    return Origin(
                        by=SetBy.MACHINE_TYPE, driver=kind, property=spelling, value=value, machine=answers.machine
                    )
    default = device.defaults.get(name)
    if default is None:
        return None
    if device.values.get(name) == default:
        return Origin(by=SetBy.DEFAULT, value=_word(default))
    return Origin(by=SetBy.NOT_DEFAULT, value=_word(default), machine=answers.machine)


def backend_kind(answers: QomAnswers, device: VirtioDevice) -> str:
    """The type of a device's backend, such as ``user``; "" when no option tells."""
    for option in answers.options:
        if option.name == "netdev" and option.props.get("id") == device.drive:
            return str(option.first or option.props.get("type", ""))
        if option.name == "blockdev" and option.props.get("node-name") == device.drive:
            return str(option.first or option.props.get("driver", ""))
    return ""


def _word(value: object) -> str:
    return {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _spellings(name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((name, name.replace("-", "_"), name.replace("_", "-"))))


def _on_device(options: Sequence[Option], device: VirtioDevice, name: str) -> Origin | None:
    for option in options:
        if option.name != "device" or not device.ident or option.props.get("id") != device.ident:
            continue
        for spelling in _spellings(name):
            if spelling in option.props:
                return Origin(by=SetBy.DEVICE, property=spelling, value=_word(option.props[spelling]))
    return None


def _by_global(options: Sequence[Option], device: VirtioDevice, name: str) -> Origin | None:
    """The last ``-global`` that reaches the property, in both of its forms."""
    found = None
    for option in options:
        if option.name != "global":
            continue
        for driver, prop, value in _globals_of(option):
            if prop in _spellings(name) and _reaches(driver, device):
                found = Origin(by=SetBy.GLOBAL, driver=driver, property=prop, value=_word(value))
    return found


def _globals_of(option: Option) -> Iterator[tuple[str, str, object]]:
    if "driver" in option.props:
        yield str(option.props["driver"]), str(option.props.get("property", "")), option.props.get("value", "")
        return
    text = {} if option.first is None else dict([option.first.partition("=")[::2]])
    for key, value in {**text, **option.props}.items():
        driver, _, prop = key.rpartition(".")
        yield driver, prop, value


def _reaches(driver: str, device: VirtioDevice) -> bool:
    return driver in (device.driver, device.inner, *_ANCESTORS) or driver == f"{device.driver}-base"


def _proxies(vm: Vm) -> Iterator[tuple[str, str]]:
    """QOM path and type of everything that has a virtio device behind it."""
    for place in _PLACES:
        for child in _children(vm, place):
            path = f"{place}/{child['name']}"
            kind = child["type"][len("child<") : -1]
            if kind.startswith("virtio-") and any(c["name"] == _BACKEND for c in _children(vm, path)):
                yield path, kind


def _children(vm: Vm, path: str) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = vm.qmp("qom-list", path=path)
    except CommandRefused:
        return []
    return [entry for entry in entries if entry["type"].startswith("child<")]


def _device(vm: Vm, path: str, driver: str, wanted: frozenset[str]) -> VirtioDevice:
    place, _, name = path.rpartition("/")
    behind = f"{path}/{_BACKEND}"
    defaults = {
        entry["name"]: entry["default-value"]
        for entry in vm.qmp("device-list-properties", typename=driver)
        if "default-value" in entry
    }
    values = {prop: value for prop in sorted(wanted) if (value := _get(vm, path, behind, prop)) is not None}
    return VirtioDevice(
        ident=name if place == _PLACES[0] else "",
        section_path=_section_path(vm, path),
        driver=driver,
        inner=str(_get(vm, behind, behind, "type") or ""),
        values=values,
        defaults={prop: value for prop, value in defaults.items() if prop in wanted},
        drive=str(_get(vm, behind, behind, "drive") or _get(vm, behind, behind, "netdev") or ""),
    )


def _get(vm: Vm, path: str, behind: str, prop: str) -> object:
    """A property of the transport, else of the device; None where neither has it."""
    for place in dict.fromkeys((path, behind)):
        try:
            value: object = vm.qmp("qom-get", path=place, property=prop)
        except CommandRefused:
            continue
        return value
    return None


def _section_path(vm: Vm, path: str) -> str:
    """``pcibus_get_dev_path`` (``hw/pci/pci.c``): domain and root bus, then slot and function of each level."""
    slots: list[str] = []
    while True:
        try:
            slots.insert(0, _slot(vm.qmp("qom-get", path=path, property="addr")))
            bus = str(vm.qmp("qom-get", path=path, property="parent_bus"))
        except CommandRefused:
            return ":".join([_ROOT, *slots])
        path = bus.rpartition("/")[0]


def _slot(addr: object) -> str:
    """``qdev_prop_pci_devfn`` gives device and function as one number, of which three bits are the function."""
    return f"{addr >> 3:02x}.{addr & 7:x}" if isinstance(addr, int) else str(addr)


def _compat(vm: Vm, machine: str) -> dict[tuple[str, str], str] | None:
    try:
        machines = vm.qmp("query-machines", compat_props=True)
    except CommandRefused:
        return None
    except QemuError:
        return None
    for entry in machines:
        if entry["name"] == machine:
            return {(p["qom-type"], p["property"]): p["value"] for p in entry.get("compat-props", [])}
    return None
