# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses on PCI buses for devices that have none, as libvirt gives them: src/qemu/qemu_domain_address.c.

A device of PCI Express gets a root port of its own, one of conventional PCI a slot of a bridge. Devices are placed
twice, as libvirt does it: at first to see which ports and bridges are missing, then for good, bridges before all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from harness.adopt.libvirt.model import VIRTIO_MODELS, Domain, screens
from harness.adopt.libvirt.tree import Element

#: Models of controllers: the slots that they offer, and whether these are of PCI Express.
BUSES = {
    "pci-root": (range(1, 32), False),
    "pcie-root": (range(1, 32), None),
    "pci-bridge": (range(1, 32), False),
    "pcie-to-pci-bridge": (range(1, 32), False),
    "dmi-to-pci-bridge": (range(32), None),
    "pcie-root-port": (range(1), True),
    "pcie-switch-upstream-port": (range(32), None),
    "pcie-switch-downstream-port": (range(1), True),
    "pci-expander-bus": (range(32), False),
    "pcie-expander-bus": (range(32), None),
}
#: Controllers that stand on a bus of one model.
ON = {
    "pcie-root-port": ("pcie-root",),
    "pcie-expander-bus": ("pcie-root",),
    "pci-expander-bus": ("pci-root",),
    "dmi-to-pci-bridge": ("pcie-root",),
    "pcie-switch-upstream-port": ("pcie-root-port", "pcie-switch-downstream-port"),
    "pcie-switch-downstream-port": ("pcie-switch-upstream-port",),
    "pci-bridge": ("pci-root", "dmi-to-pci-bridge", "pci-bridge", "pcie-to-pci-bridge"),
}
#: Where a machine has its own devices: slots of its root bus that nobody gets.
CHIPSET = {"q35": {(0x1F, 0), (0x1F, 2), (0x1F, 3)}, "i440fx": {(1, 0), (1, 1), (1, 3)}}
#: ICH9's USB 2 controller and its companions: functions of one slot.
USB_FUNCTIONS = {"ich9-ehci1": 7, "ich9-uhci1": 0, "ich9-uhci2": 1, "ich9-uhci3": 2}
#: Models of devices that are of PCI Express, and elements that are all of it.
EXPRESS_MODELS = {"virtio", "virtio-scsi", "e1000e", "igb", "qemu-xhci", "nec-xhci", *VIRTIO_MODELS}
EXPRESS_TAGS = ("disk", "filesystem", "rng", "vsock", "input", "memballoon", "hostdev", "memory")


@dataclass(slots=True)
class _Bus:
    """A bus with its taken slots and functions.

    :param shared: slots of which root ports have some functions, and may have more
    """

    number: int
    model: str
    taken: set[tuple[int, int]] = field(default_factory=set)
    shared: set[int] = field(default_factory=set)

    def free(self) -> int | None:
        """The first slot of which no function is taken."""
        used = {slot for slot, _ in self.taken}
        slots, _ = BUSES[self.model]
        return next((slot for slot in slots if slot not in used), None)

    def accepts(self, *, express: bool) -> bool:
        """Whether a device may be plugged in here."""
        return BUSES[self.model][1] is express


def place(domain: Domain) -> None:
    """Addresses for all devices of PCI, and the ports and bridges that they need.

    :raises UsageError: there is no bus for one
    """
    if not (domain.pcie or domain.i440fx):
        return
    _forget_empty(domain)
    _missing_buses(domain)
    _chipset(domain)
    waiting = [device for device in _devices(domain) if not device.has("address")]
    if waiting or any(not one.has("address") for one in _controllers(domain)):
        alone = len(domain.controllers("pci")) == 1
        _grow(domain, waiting)
        if alone and domain.pcie and waiting:
            _add(domain, "pcie-root-port")
    buses = _buses(domain)
    for controller in _controllers(domain):
        _place_controller(controller, buses)
    for device in waiting:
        if not device.has("address"):
            _place_device(domain, device, buses)
    _place_integrated(domain, buses[0])
    _share(domain)
    _number(domain)


def _forget_empty(domain: Domain) -> None:
    """An address of zeros is none: virPCIDeviceAddressIsEmpty."""
    for device in _placed(domain):
        if _place(device.at("address"))[:2] == (0, 0) and not device.at("address").number("domain"):
            device.children.remove(device.at("address"))


def _controllers(domain: Domain) -> list[Element]:
    return [one for one in domain.controllers("pci") if one.get("model") not in ("pci-root", "pcie-root")]


def _missing_buses(domain: Domain) -> None:
    """Controllers of buses that addresses name and nobody describes."""
    numbers = [number for device in _placed(domain) if (number := device.at("address").number("bus"))]
    numbers += [number for one in domain.controllers("pci") if (number := one.number("index"))]
    for number in range(1, min(max(numbers, default=0), 255) + 1):
        if not domain.controller("pci", number):
            _add(domain, "pcie-root-port" if domain.pcie else "pci-bridge", number)


def _placed(domain: Domain) -> list[Element]:
    devices = [device for part in domain.root.all("devices") for device in part.children]
    return [device for device in devices if device.at("address").get("type") == "pci"]


def _add(domain: Domain, model: str, number: int | None = None) -> int:
    taken = {one.number("index") for one in domain.controllers("pci")}
    number = next(n for n in itertools.count() if n not in taken) if number is None else number
    domain.root.at("devices").add("controller", type="pci", index=str(number), model=model)
    return number


def _buses(domain: Domain) -> list[_Bus]:
    """All buses, with what is taken of them."""
    buses = {}
    for one in domain.controllers("pci"):
        number = one.number("index") or 0
        buses[number] = _Bus(number, one.choice("model", BUSES))
    family = "q35" if domain.q35 else "i440fx" if domain.i440fx else ""
    buses[0].taken |= CHIPSET.get(family, set())
    for device in _placed(domain):
        address = device.at("address")
        if (number := address.number("bus") or 0) not in buses:
            raise address.wrong(f"bus={number}: there is no such PCI controller")
        slot = address.number("slot") or 0
        buses[number].taken.add((slot, address.number("function") or 0))
        if device.get("model") == "pcie-root-port" and address.yes("multifunction") is not False:
            buses[number].shared.add(slot)
    return [buses[number] for number in sorted(buses)]


def _give(element: Element, bus: int, slot: int, function: int = 0) -> None:
    places = {"bus": f"{bus:#04x}", "slot": f"{slot:#04x}", "function": f"{function:#x}"}
    element.add("address", type="pci", domain="0x0000", **places)


def _share(domain: Domain) -> None:
    """The first function of a slot says so when there are others, unless somebody said otherwise."""
    places = [(one.at("address"), *_place(one.at("address"))) for one in _placed(domain)]
    several = {(bus, slot) for _, bus, slot, function in places if function}
    for address, bus, slot, function in places:
        if function == 0 and (bus, slot) in several:
            address.attributes.setdefault("multifunction", "on")


def _place(address: Element) -> tuple[int, int, int]:
    return address.number("bus") or 0, address.number("slot") or 0, address.number("function") or 0


def _chipset(domain: Domain) -> None:
    """What has its own place: qemuDomainValidateDevicePCISlotsChipsets."""
    root = _buses(domain)[0]
    first = next(iter(_screens(domain)), None)
    slot = 1 if domain.q35 else 2
    if domain.x86 and first and not first.has("address") and not any(used == slot for used, _ in root.taken):
        _give(first, 0, slot)
    if domain.q35:
        _chipset_q35(domain, root)
    for one in domain.controllers("usb") if domain.i440fx else []:
        if one.get("model") == "piix3-uhci" and not one.has("address") and (1, 2) not in root.taken:
            _give(one, 0, 1, 2)
            root.taken.add((1, 2))


def _chipset_q35(domain: Domain, root: _Bus) -> None:
    for one in domain.controllers("sata"):
        if one.number("index") == 0 and not one.has("address"):
            _give(one, 0, 0x1F, 2)
    sounds = [sound for sound in domain.devices("sound") if sound.get("model") == "ich9" and not sound.has("address")]
    if sounds and (0x1B, 0) not in root.taken:
        _give(sounds[0], 0, 0x1B)
    bridges = [
        one for one in _controllers(domain) if one.get("model") == "dmi-to-pci-bridge" and not one.has("address")
    ]
    if bridges and (0x1E, 0) not in root.taken:
        _give(bridges[0], 0, 0x1E)
    free = [slot for slot in (0x1D, 0x1A) if not any(used == slot for used, _ in root.taken)]
    for index in dict.fromkeys(one.get("index") for one in domain.controllers("usb")):
        companions = [one for one in domain.controllers("usb") if one.get("index") == index]
        if companions[0].get("model") in USB_FUNCTIONS and not companions[0].has("address") and free:
            _give_companions(companions, 0, free.pop(0))


def _give_companions(companions: list[Element], bus: int, slot: int) -> None:
    for one in companions:
        if not one.has("address"):
            function = USB_FUNCTIONS.get(one.get("model"), 0)
            _give(one, bus, slot, function)


def _devices(domain: Domain) -> Iterator[Element]:
    """All that want a place on a PCI bus, in libvirt's order: qemuDomainAssignDevicePCISlots."""
    yield from domain.devices("filesystem")
    yield from (one for one in domain.devices("interface") if one.at("model").get("type") != "usb-net")
    yield from (one for one in domain.devices("sound") if one.get("model") not in ("sb16", "pcspk", "usb"))
    yield from (one for one in domain.devices("controller") if _wants(domain, one))
    yield from (one for one in domain.devices("disk") if one.at("target").get("bus") == "virtio")
    yield from (one for one in domain.devices("hostdev") if one.get("type") in ("pci", "mdev", "scsi_host"))
    yield from (one for one in domain.devices("memballoon") if one.get("model") != "none")
    yield from domain.devices("rng")
    yield from (one for one in domain.devices("watchdog") if one.get("model") == "i6300esb")
    yield from _screens(domain)
    yield from domain.devices("shmem")
    yield from (one for one in domain.devices("input") if one.get("bus") == "virtio")
    yield from (one for one in domain.devices("serial") if one.at("target").get("type") == "pci-serial")
    yield from (one for one in domain.devices("memory") if one.get("model") in ("virtio-mem", "virtio-pmem"))
    yield from domain.devices("vsock")
    yield from domain.devices("crypto")


def _integrated(domain: Domain) -> Iterator[Element]:
    """What stands on the root bus itself."""
    yield from (one for one in domain.devices("iommu") if one.get("model") == "virtio")
    yield from (one for one in domain.devices("panic") if one.get("model") == "pvpanic")


def _screens(domain: Domain) -> list[Element]:
    return [video for video in screens(domain) if video.at("model").get("type") not in ("none", "ramfb")]


def _wants(domain: Domain, controller: Element) -> bool:
    type_ = controller.get("type")
    built_in = domain.q35 and controller.number("index") == 0
    return (
        type_ in ("scsi", "virtio-serial", "nvme")
        or (type_ == "usb" and controller.get("model") != "none")
        or (type_ == "sata" and not built_in)
    )


def _express(domain: Domain, device: Element) -> bool:
    """Whether it is of PCI Express: qemuDomainDeviceCalculatePCIConnectFlags."""
    if not domain.pcie:
        return False
    models = {device.get("model"), device.at("model").get("type")}
    if "virtio-transitional" in models:
        return False
    if device.tag in EXPRESS_TAGS or (device.tag == "interface" and device.get("type") == "hostdev"):
        return True
    if device.tag == "controller" and device.get("type") in ("virtio-serial", "nvme"):
        return True
    return device.tag != "crypto" and bool(models & EXPRESS_MODELS)


def _grow(domain: Domain, waiting: list[Element]) -> None:
    """Adds ports and bridges until there is a place for each."""
    buses = _buses(domain)
    for controller in _controllers(domain):
        if controller.has("address") or controller.get("model") == "pcie-root-port":
            continue
        if found := _under(controller, buses):
            found[0].taken.add((found[1], 0))
        elif controller.get("model") == "pcie-to-pci-bridge":
            _reserve(domain, buses, express=True)
    done: set[str] = set()
    for device in waiting:
        if device.has("address"):
            continue
        if device.tag == "controller" and device.get("model") in USB_FUNCTIONS:
            if device.get("index") in done:
                continue
            done.add(device.get("index"))
        _reserve(domain, buses, express=_express(domain, device))


def _reserve(domain: Domain, buses: list[_Bus], *, express: bool) -> None:
    found = _find(buses, express=express)
    if found is None:
        if not express and domain.pcie:
            _reserve(domain, buses, express=True)
        conventional = "pcie-to-pci-bridge" if domain.pcie else "pci-bridge"
        model = "pcie-root-port" if express else conventional
        if len(buses) > 255:
            raise domain.root.wrong("more devices than there are PCI buses")
        buses.append(_Bus(_add(domain, model), model))
        found = _find(buses, express=express)
    if found:
        bus, slot = found
        bus.taken.add((slot, 0))


def _find(buses: list[_Bus], *, express: bool) -> tuple[_Bus, int] | None:
    for bus in buses:
        if bus.accepts(express=express) and (slot := bus.free()) is not None:
            return bus, slot
    return None


def _place_controller(controller: Element, buses: list[_Bus]) -> None:
    model = controller.get("model")
    if controller.has("address"):
        return
    if model == "pcie-root-port":
        _place_port(controller, buses[0])
        return
    if (found := _under(controller, buses)) is None:
        raise controller.wrong("there is no PCI bus for it")
    bus, slot = found
    bus.taken.add((slot, 0))
    _give(controller, bus.number, slot)


def _under(controller: Element, buses: list[_Bus]) -> tuple[_Bus, int] | None:
    """Where a bridge or a switch finds room."""
    number, model = controller.number("index") or 0, controller.get("model")
    if model == "pcie-to-pci-bridge":
        return _find([bus for bus in buses if bus.number != number], express=True)
    fitting = [bus for bus in buses if bus.model in ON[model] and bus.number < number]
    return next(((bus, slot) for bus in fitting if (slot := bus.free()) is not None), None)


def _place_port(port: Element, root: _Bus) -> None:
    """Root ports share slots: eight functions each."""
    used = {slot for slot, _ in root.taken}
    free = ((slot, number) for slot in range(1, 32) for number in range(8) if (slot, number) not in root.taken)
    found = next(((slot, number) for slot, number in free if slot in root.shared or slot not in used), None)
    if found is None:
        raise port.wrong("there is no slot for it on bus 0")
    root.shared.add(found[0])
    root.taken.add(found)
    _give(port, 0, *found)


def _place_device(domain: Domain, device: Element, buses: list[_Bus]) -> None:
    found = _find(buses, express=_express(domain, device))
    if found is None:
        raise device.wrong("there is no PCI bus for it")
    bus, slot = found
    bus.taken.add((slot, 0))
    if device.tag == "controller" and device.get("model") in USB_FUNCTIONS:
        companions = [one for one in domain.controllers("usb") if one.get("index") == device.get("index")]
        _give_companions(companions, bus.number, slot)
    else:
        _give(device, bus.number, slot)


def _place_integrated(domain: Domain, root: _Bus) -> None:
    for device in _integrated(domain):
        if not device.has("address"):
            if (slot := root.free()) is None:
                raise device.wrong("there is no slot for it on bus 0")
            root.taken.add((slot, 0))
            _give(device, 0, slot)


def _number(domain: Domain) -> None:
    """Numbers of chassis and ports: the end of qemuDomainAssignPCIAddresses."""
    for one in _controllers(domain):
        target = one.first("target") or one.add("target")
        address, model, index = one.at("address"), one.get("model"), one.get("index")
        slot, function = address.number("slot") or 0, address.number("function") or 0
        if model in ("pci-expander-bus", "pcie-expander-bus") and not target.get("busNr"):
            numbers = [number for other in _controllers(domain) if (number := other.at("target").number("busNr"))]
            target.attributes["busNr"] = str(min([256, *numbers]) - 2)
        if model == "pci-bridge":
            target.attributes.setdefault("chassisNr", index)
        if model in ("pcie-root-port", "pcie-switch-downstream-port"):
            target.attributes.setdefault("chassis", index)
            port = slot << 3 | function if model == "pcie-root-port" else slot
            target.attributes.setdefault("port", f"{port:#x}")
