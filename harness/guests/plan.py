# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest is, typed: it stands in state packs and tasks, and a command line is made of it anew each time.

No path, no option of QEMU's and no text that is passed on as it stands is in it, but for the kernel's command line,
which the guest's kernel alone reads.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from typing import Annotated, Any, Final

from pydantic import Field, SerializerFunctionWrapHandler, StringConstraints, model_serializer, model_validator

from harness.devices.backends import Backend, Ident, Memdev, Model, shares_memory
from harness.devices.device import Device

Type = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._,-]{0,63}$")]
Property = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Slot = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2}\.[0-7]$")]
#: Printable and on one line.
Line = Annotated[str, StringConstraints(pattern=r"^[ -~]*$", max_length=4096)]

#: A word that says no more than itself: no path, no option.
WORD: Final = r"[A-Za-z0-9][A-Za-z0-9 ._:+-]{0,63}"
Word = Annotated[str, StringConstraints(pattern=rf"^{WORD}$")]
Count = Annotated[int, Field(ge=1, le=1024)]

#: The guest's name of the root bus.
ROOT = "0000:00"
PORT = "pcie-root-port"
#: A host bridge with a PCI bridge of its own on its bus, which all is behind (``hw/pci-bridge/pci_expander_bridge.c``).
_WITH_BRIDGE = "pxb"


class PlacedDevice(Model):
    """One device with its place.

    :param owner: the device that is judged which brought it; empty for what is there for all of them
    :param bus: id of its bus, None where QEMU finds one
    :param slot: device and function on a PCI bus
    :param backends: property to the id of a backend
    :param references: property to the id of another device, before it
    """

    id: Ident
    type: Type
    owner: str = ""
    bus: Ident | None = None
    slot: Slot | None = None
    properties: dict[Property, bool | int | str] = Field(default_factory=dict)
    backends: dict[Property, Ident] = Field(default_factory=dict)
    references: dict[Property, Ident] = Field(default_factory=dict)


class Cpu(Model):
    """A CPU model and what it has beside or instead of its own.

    :param features: as QEMU names them: ``vmx`` off, ``level`` 22, ``vendor`` a word
    """

    model: Type
    features: dict[Property, bool | int | Word] = Field(default_factory=dict)


class Topology(Model):
    """How CPUs are arranged, as far as somebody said.

    :param maxcpus: with those that may be plugged
    """

    maxcpus: Count | None = None
    sockets: Count | None = None
    dies: Count | None = None
    cores: Count | None = None
    threads: Count | None = None


class Preset(Model):
    """A property of all devices of a type, those that the machine has by itself among them (``-global``)."""

    driver: Type
    property: Property
    value: bool | int | Word


class NumaNode(Model):
    """One NUMA node.

    :param cpus: the first and the last of its CPUs
    :param memdev: the backend that is its memory
    """

    number: Annotated[int, Field(ge=0, le=127)]
    cpus: tuple[Annotated[int, Field(ge=0, le=1023)], Annotated[int, Field(ge=0, le=1023)]] | None = None
    memdev: Ident | None = None


#: Fields that ordinary guests do not use. They are left out where they are empty, so that such a plan is what it was
#: before they came: recordings are kept by it.
_SELDOM = ("cpu", "topology", "ram", "numa", "presets")


class GuestPlan(Model):
    """One guest.

    :param machine: versioned machine type, e.g. ``pc-q35-7.2``; ``family`` is its alias, e.g. ``q35``
    :param kernel: hash of what it boots, None for a machine that never boots
    :param memory_room_mib: memory that devices may bring beside the machine's own
    :param memory_slots: DIMMs that may be plugged
    :param cmdline: for the guest's kernel
    :param cpu: None for the machine's own
    :param ram: the backend that the machine's memory is, where its saved block is called by that
    """

    machine: Type
    family: Type
    machine_properties: dict[Property, bool | int] = Field(default_factory=dict)
    cpus: Count = 1
    cpu: Cpu | None = None
    topology: Topology | None = None
    ram: Ident | None = None
    numa: tuple[NumaNode, ...] = ()
    memory_mib: Annotated[int, Field(ge=1, le=1 << 24)]
    memory_room_mib: Annotated[int, Field(ge=0, le=1 << 24)] = 0
    memory_slots: Annotated[int, Field(ge=0, le=256)] = 0
    kernel: Sha256 | None = None
    initramfs: Sha256 | None = None
    cmdline: Line = ""
    devices: tuple[PlacedDevice, ...] = ()
    backends: dict[Ident, Backend] = Field(default_factory=dict)
    presets: tuple[Preset, ...] = ()

    @model_validator(mode="after")
    def _names_fit(self) -> GuestPlan:
        ids = [device.id for device in self.devices]
        for name in ids:
            if ids.count(name) > 1 or name in self.backends:
                raise ValueError(f"devices: the id {name!r} is there twice")
        for memory in self.memory_backends():
            if not isinstance(self.backends.get(memory), Memdev):
                raise ValueError(f"memory {memory!r} is not among the backends that are memory")
        for device in self.devices:
            for backend in device.backends.values():
                if backend not in self.backends:
                    raise ValueError(f"devices: {device.id} stands on {backend!r}, which is not among the backends")
            for other in device.references.values():
                if other not in ids:
                    raise ValueError(f"devices: {device.id} names {other!r}, which is not among the devices")
        return self

    @model_serializer(mode="wrap")
    def _without_seldom(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value or key not in _SELDOM}

    @property
    def seldom(self) -> bool:
        """Whether it has what a program did not know that reads ``postload.pack/4`` alone."""
        return any(getattr(self, name) for name in _SELDOM)

    @property
    def shares_memory(self) -> bool:
        """Whether a program beside QEMU has the guest's memory too."""
        return shares_memory(self.backends.values())

    def memory_backends(self) -> list[str]:
        """Backends that are the machine's own memory."""
        return [name for name in (self.ram, *(node.memdev for node in self.numa)) if name is not None]

    def of(self, owner: str) -> list[PlacedDevice]:
        """What one judged device brought."""
        return [device for device in self.devices if device.owner == owner]

    def types(self) -> list[str]:
        """QEMU device types of the guest, each once."""
        return list(dict.fromkeys(device.type for device in self.devices))

    def only(self, owners: Container[str], machine_properties: dict[str, bool | int] | None = None) -> GuestPlan:
        """The same guest with the devices of some owners alone, all in their places; what is plugged into others of
        them is not there either.

        :param machine_properties: properties of the machine beside its own
        """
        gone = {device.id for device in self.devices if device.owner and device.owner not in owners}
        gone |= hanging_on(self, gone)
        properties = {**self.machine_properties, **(machine_properties or {})}
        return self.without(gone).model_copy(update={"machine_properties": properties})

    def without(self, ids: Container[str]) -> GuestPlan:
        """The same guest without the devices of some ids, the others in their places."""
        return self.with_devices(tuple(device for device in self.devices if device.id not in ids))

    def with_devices(self, devices: tuple[PlacedDevice, ...]) -> GuestPlan:
        """The same guest with some of its devices, and the backends that these name."""
        named = {backend for device in devices for backend in device.backends.values()} | {*self.memory_backends()}
        backends = {name: backend for name, backend in self.backends.items() if name in named}
        return self.model_copy(update={"devices": devices, "backends": backends})

    def unbooted(self) -> GuestPlan:
        """The same machine with nothing to boot."""
        return self.model_copy(update={"kernel": None, "initramfs": None, "cmdline": ""})


def hanging_on(plan: GuestPlan, ids: Collection[str], *, whole: bool = False) -> frozenset[str]:
    """Ids of some devices of a plan and of all that cannot be there without them: what is plugged into them, or names
    them.

    :param whole: and what else a judged device brought that has one of these
    """
    lost = set(ids)
    while True:
        owners = {device.owner for device in plan.devices if whole and device.id in lost} - {""}
        more = {d.id for d in plan.devices if d.id not in lost and (d.owner in owners or needs(d, plan) & lost)}
        if not more:
            return frozenset(lost)
        lost |= more


def standing_on(plan: GuestPlan, ids: Collection[str]) -> frozenset[str]:
    """Ids of some devices of a plan and of all that they need."""
    found = set(ids)
    while more := {name for d in plan.devices if d.id in found for name in needs(d, plan)} - found:
        found |= more
    return frozenset(found)


def needs(device: PlacedDevice, plan: GuestPlan) -> frozenset[str]:
    """Ids of the devices that one is plugged into, or names."""
    bridge = above(device, plan)
    return frozenset({*device.references.values(), *([] if bridge is None else [bridge.id])})


def apart_from_ports(placed: Sequence[PlacedDevice]) -> list[PlacedDevice]:
    """What a judged device brought, without the root ports and host bridges that it is behind."""
    buses = {each.bus for each in placed}
    return [each for each in placed if each.id not in buses or (each.type != PORT and root_bus(each) is None)]


def root_bus(placed: PlacedDevice) -> str | None:
    """The guest's name of the root bus that a host bridge beside the machine's own makes, such as ``pxb-pcie``."""
    number = placed.properties.get("bus_nr")
    return f"0000:{number:02x}" if isinstance(number, int) else None


def above(placed: PlacedDevice, plan: GuestPlan) -> PlacedDevice | None:
    """The device of the plan whose bus another one is on."""
    bus = placed.bus or ""
    names = (bus, bus.rpartition(".")[0])
    return next((each for each in plan.devices if each.id in names), None)


def guest_slot(device: Device, plan: GuestPlan) -> str | None:
    """The PCI address of a device as the guest's shell finds it, None for one that is on no PCI bus: of the attachment
    that it stands for, or of the first that has a slot.

    What is below a port or a bridge has the number of a bus that firmware gave it: the guest looks for it. What is
    plugged into a controller has that one's.
    """
    built = device.built_in.get(plan.family, {})
    first = device.attachments[0].name if device.attachments else ""
    if first in built:
        return built[first].address
    own = apart_from_ports(plan.of(device.name))
    slots = [placed for placed in own if placed.slot is not None]
    subject = [placed for placed in slots if device.subject and placed.type == device.subject.type]
    placed = next(iter([*subject, *slots, *own]), None)
    while placed is not None and placed.slot is None:
        placed = above(placed, plan)
    return None if placed is None else pci_address(placed, plan)


def pci_address(placed: PlacedDevice, plan: GuestPlan) -> str:
    """Of a device that has a slot, for the guest's shell; see :func:`guest_slot`."""
    bridge = above(placed, plan)
    if bridge is None or bridge.slot is None:
        return f"{ROOT}:{placed.slot}"
    bus = root_bus(bridge)
    if bus is not None and bridge.type != _WITH_BRIDGE:
        return f"{bus}:{placed.slot}"
    if bridge.type == PORT and placed.slot == "00.0":
        return f"$(pci_below {pci_address(bridge, plan)})"
    at = pci_address(bridge, plan) if bus is None else f"{bus}:00.0"
    return f"$(cd /sys/bus/pci/devices/{at} && echo ????:??:{placed.slot})"


def guest_command(device: Device, what: str, plan: GuestPlan) -> str:
    """A guest command of a device by its name, with its address filled in."""
    text: str = getattr(device.guest, what)
    return text.replace("{slot}", guest_slot(device, plan) or "")
