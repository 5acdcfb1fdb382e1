# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest plan from elsewhere may ask of QEMU: nothing that reaches for the host.

A plan holds no option and no path, and its backends are made anew from their shape. What is left is what a device can
do by itself. So each device type and each property must be one that the loading QEMU lists; its value is a number, a
boolean or a word of an enumeration, as that QEMU has it. A string is taken from a short list of properties that are no
more than strings (``romfile``, ``sdrfile`` and many others open files). Types that stand on the host's own hardware,
processes or files are refused by name and by the properties that give them away.

:func:`check_plan` can be asked without a QEMU; :func:`check_listed` holds a plan against one.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from harness.arch import architecture_of, family_of
from harness.devices.backends import (
    Audiodev,
    Canbus,
    Chardev,
    Cryptodev,
    Disk,
    Fsdev,
    Ivshmem,
    LoneTap,
    Memdev,
    Model,
    Netdev,
    Tpm,
    VhostDisk,
)
from harness.errors import PackError
from harness.guests.plan import WORD, GuestPlan, PlacedDevice
from harness.qemu.cmdline import on_command_line
from harness.qemu.listed import BOOLEAN, ENUM, NUMBER, STRING, Listed, Listing

#: Types that stand on the host's own hardware, processes, files or sound.
_HOST_TYPES = (
    *("*vfio*", "vhost*", "*vhost-*", "xen*", "usb-host*", "usb-mtp", "usb-braille", "u2f-*", "canokey", "ivshmem*"),
    *("*loader", "*passthr*", "*tpm-proxy", "*rutabaga*", "*-gl", "*-gl-pci", "virtio-input-host*", "x-*"),
    *("pvrdma", "ccid-card-emulated", "hv-syndbg", "igd-*", "scsi-generic", "scsi-block", "sev-*"),
    *("tdx-*", "sgx-*", "*nitro*", "migration"),
)
#: Properties that only such types have.
HOST_PROPERTIES = frozenset(
    {"sysfsdev", "hostbus", "hostaddr", "hostdevice", "hostport", "host_ip", "vhostfd", "vhostdev", "wwpn"}
    | {"evdev", "hidraw", "rootdir", "fsdev", "file", "fd", "ibdev", "jsonfile", "kernel", "tpmdev", "guest-cid"}
    | {"wayland-socket-path"}
)
#: Properties whose strings are no more than strings.
_STRINGS = frozenset(
    {"mac", "serial", "model", "ver", "wwn", "device_id", "drive-id", "product_id", "product", "vendor"}
    | {"mount_tag", "name", "port", "masterbus"}
)
_WORD = re.compile(WORD)
#: What a device option says beside its properties: these are the plan's own fields.
_OWN_KEYS = frozenset({"id", "bus", "addr", "driver"})
#: Properties of machines that are about the machine alone.
MACHINE_PROPERTIES = frozenset(
    {
        "acpi",
        "cxl",
        "hpet",
        "i8042",
        "kernel-irqchip",
        "nvdimm",
        "pcspk",
        "pit",
        "sata",
        "smbus",
        "smm",
        "usb",
        "vmport",
    }
    | {"gic-version", "highmem", "its", "mte", "ras", "secure", "virtualization"}
)
#: Those that a QEMU lists as text, and that are no more than a number.
_NUMBERED = {"gic-version": (2, 3, 4)}
#: Features of CPUs that are words and no switches.
_CPU_WORDS = frozenset({"vendor", "model-id", "hv-vendor-id", "hv-stimer-direct"})
_ACCELS = frozenset({"kvm", "tcg"})
#: By kind of backend: the properties that name one.
BACKEND_KEYS: dict[type[Model], re.Pattern[str]] = {
    Disk: re.compile(r"drive"),
    Netdev: re.compile(r"netdev"),
    LoneTap: re.compile(r"netdev"),
    Chardev: re.compile(r"chardev[0-7]?"),
    Audiodev: re.compile(r"audiodev"),
    Memdev: re.compile(r"memdev|lsa|pmrdev|(non)?volatile-memdev|persistent-memdev"),
    Fsdev: re.compile(r"fsdev"),
    Cryptodev: re.compile(r"cryptodev"),
    Canbus: re.compile(r"canbus[0-7]?"),
    Tpm: re.compile(r"tpmdev"),
    VhostDisk: re.compile(r"chardev"),
    Ivshmem: re.compile(r"chardev"),
}
#: Properties that name another device of the plan.
REFERENCE_KEYS = frozenset({"bmc", "subsys", "target", "primary-bus"})
#: Enumerations whose values a QEMU does not list.
_ENUMS = {"OnOffAuto": ("on", "off", "auto"), "LostTickPolicy": ("discard", "delay", "slew")}
#: Files of the host that a guest may be without: said by an empty string.
_EMPTY = frozenset({"romfile"})
_BUILT_IN_BUSES = frozenset({"ide", "usb-bus"})
_BUS_TAIL = re.compile(r"\.[0-9]{1,3}")


def check_plan(plan: GuestPlan, accel: str) -> None:
    """Check what can be checked without a QEMU.

    :raises PackError: a part that could run a program of this host, or reach a file or network of it; says which, what
        was met, and what was expected
    """
    if accel not in _ACCELS:
        raise PackError(f"accel: {accel!r}: expected one of {', '.join(sorted(_ACCELS))}")
    _check_machine(plan)
    for name, backend in plan.backends.items():
        if isinstance(backend, Netdev) and backend.type != "user":
            raise PackError(
                f"plan: backend {name}: a {backend.type} device belongs to the host that recorded; expected type user"
            )
    for device in plan.devices:
        _check_device(plan, device)


def check_listed(plan: GuestPlan, listing: Listing, binary: str) -> None:
    """Hold a plan against what the QEMU that loads lists.

    :param binary: named in errors
    :raises PackError: a device type or property that it does not list, or a value that does not fit its type. A machine
        type that it does not have it refuses itself
    """
    for key, setting in plan.machine_properties.items():
        _check_value(f"plan: machine: property {key!r}", key, setting, listing.machine.get(key), binary)
    for preset in plan.presets:
        check_override(preset.driver, preset.property, on_command_line(preset.value), listing, binary)
    for device in plan.devices:
        where = f"plan: device {device.id}"
        listed = listing.devices.get(device.type)
        if listed is None:
            raise PackError(f"{where}: type {device.type}: expected a device type that {binary} lists")
        # a backend of the plan is made anew, and none of them reaches for the host
        told = sorted(HOST_PROPERTIES & listed.keys() - device.backends.keys())
        if told:
            raise PackError(f"{where}: {device.type} stands on the host's own {told[0]}; no such type is taken")
        if "audiodev" in listed and "audiodev" not in device.backends:
            raise PackError(f"{where}: {device.type} would use the host's sound; expected a backend of its own")
        for key, value in device.properties.items():
            _check_value(f"{where}: {key}={value!r}", key, value, listed.get(key), binary)
        for key in (*device.backends, *device.references):
            if key not in listed:
                raise PackError(f"{where}: {key}: expected a property of {device.type} that {binary} lists")


def check_override(driver: str, key: str, value: str, listing: Listing, binary: str) -> None:
    """Check a property that is set in the QEMU that loads (``-global``), as those of a plan are.

    :param listing: of that driver, among others
    :raises PackError: says what was met, and what was expected
    """
    where = f"global {driver}.{key}={value!r}"
    if is_of_host(driver) or key in HOST_PROPERTIES | _OWN_KEYS:
        raise PackError(f"{where}: expected a property of a device that does not stand on the host's own")
    if driver not in listing.devices:
        raise PackError(f"{where}: expected a device type that {binary} lists")
    number = int(value) if value.isascii() and value.isdigit() else value
    _check_value(where, key, number, listing.devices[driver].get(key), binary)


def _check_machine(plan: GuestPlan) -> None:
    families = architecture_of(plan.machine).families
    if not plan.machine.startswith(tuple(families)) or family_of(plan.machine) != plan.family:
        known = ", ".join(f"{prefix}*" for prefix in families)
        raise PackError(f"plan: machine {plan.machine!r} of family {plan.family!r}: expected a type such as {known}")
    for key in plan.machine_properties:
        if key not in MACHINE_PROPERTIES:
            raise PackError(f"plan: machine: property {key!r}: expected one of {', '.join(sorted(MACHINE_PROPERTIES))}")
    if plan.cpu is not None and plan.cpu.model == "host":
        raise PackError("plan: cpu: model 'host' is the host's own; expected a model of QEMU's, such as 'max'")
    for key, value in ({} if plan.cpu is None else plan.cpu.features).items():
        if isinstance(value, str) and key not in _CPU_WORDS:
            raise PackError(f"plan: cpu: {key}={value!r}: expected a number or a boolean")


def _check_device(plan: GuestPlan, device: PlacedDevice) -> None:
    where = f"plan: device {device.id}"
    if is_of_host(device.type):
        raise PackError(f"{where}: {device.type} stands on the host's own hardware or files; no such type is taken")
    if device.bus is not None and not _is_bus(plan, device.bus):
        raise PackError(f"{where}: bus {device.bus!r}: expected the machine's root bus or that of a device of the plan")
    for key, value in device.properties.items():
        if key in _OWN_KEYS:
            raise PackError(f"{where}: property {key!r}: expected it in the plan's own field")
        if isinstance(value, str) and not _WORD.fullmatch(value) and not (value == "" and key in _EMPTY):
            raise PackError(f"{where}: {key}={value!r}: expected a word of at most 64 letters, digits and ' ._:+-'")
    for key, name in device.backends.items():
        pattern = BACKEND_KEYS.get(type(plan.backends[name]))
        if key in device.properties or pattern is None or not pattern.fullmatch(key):
            wanted = "no such property" if pattern is None else pattern.pattern
            raise PackError(f"{where}: {key} names {name}, a {plan.backends[name].kind}: expected {wanted}")
    for key in device.references:
        if key in device.properties or key in device.backends or key not in REFERENCE_KEYS:
            raise PackError(f"{where}: {key} names another device: expected one of {', '.join(sorted(REFERENCE_KEYS))}")


def is_of_host(driver: str) -> bool:
    """Whether a device type stands on the host's own hardware, processes, files or sound, by its name."""
    return any(fnmatchcase(driver, pattern) for pattern in _HOST_TYPES)


def _is_bus(plan: GuestPlan, bus: str) -> bool:
    """The root bus, one that the chipset has (``ide.0``, ``usb-bus.0``), or one of a device: its id, with a number or
    without."""
    root = architecture_of(plan.machine).buses.get(plan.family)
    names = {device.id for device in plan.devices} | _BUILT_IN_BUSES
    return (root is not None and bus == root.name) or any(
        bus.startswith(name) and (bus == name or _BUS_TAIL.fullmatch(bus[len(name) :])) for name in names
    )


def _check_value(where: str, key: str, value: bool | int | str, listed: Listed | None, binary: str) -> None:
    if listed is None:
        raise PackError(f"{where}: expected a property that {binary} lists")
    wanted = {
        NUMBER: "a number",
        BOOLEAN: "a boolean",
        ENUM: f"one of {', '.join(listed.words)}",
        STRING: f"no string but of {', '.join(sorted(_STRINGS))}",
    }.get(listed.kind, "no such property in a pack that travels")
    if not fits(key, value, listed):
        raise PackError(f"{where}: its type is {listed.type}; expected {wanted}")


def fits(key: str, value: bool | int | str, listed: Listed) -> bool:
    """Whether a property of this name and type takes a value, and no more than that comes of it."""
    word = on_command_line(value)
    if key in _NUMBERED:
        return value in _NUMBERED[key] and not isinstance(value, bool)
    if listed.type in _ENUMS:
        return word in _ENUMS[listed.type]
    if listed.kind == NUMBER:
        return isinstance(value, int) and not isinstance(value, bool)
    if listed.kind == BOOLEAN:
        return isinstance(value, bool) or value in ("on", "off")
    if listed.kind == ENUM:
        return word in listed.words
    return listed.kind == STRING and isinstance(value, str) and (key in _STRINGS or (value == "" and key in _EMPTY))
