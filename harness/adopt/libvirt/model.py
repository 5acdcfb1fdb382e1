# SPDX-License-Identifier: GPL-2.0-or-later
"""A domain in which nothing is left out, and how its elements become options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.adopt.configuration import SaidOption, Value
from harness.adopt.libvirt.tree import Element

#: What a virtio device's model adds to its type, see qemuBuildVirtioDevGetConfigDev.
VIRTIO_MODELS = {"virtio-transitional": "-transitional", "virtio-non-transitional": "-non-transitional"}

#: Attributes of <driver> that each virtio device may have, and their properties: qemuBuildVirtioOptionsStr.
VIRTIO_OPTIONS = {
    "iommu": "iommu_platform",
    "ats": "ats",
    "packed": "packed",
    "page_per_vq": "page-per-vq",
    "queue_reset": "queue_reset",
}


@dataclass(frozen=True, slots=True)
class Domain:
    """A completed domain: each device has its alias and, where it needs one, its address."""

    root: Element

    @property
    def machine(self) -> str:
        """Its machine type, such as ``pc-q35-7.2``; libvirt's ``pc`` where nobody said."""
        return self.root.at("os/type").get("machine", "pc")

    @property
    def arch(self) -> str:
        """Its architecture, such as ``x86_64``."""
        return self.root.at("os/type").get("arch", "x86_64")

    @property
    def x86(self) -> bool:
        """Whether it is a PC of some kind."""
        return self.arch in ("x86_64", "i686")

    @property
    def q35(self) -> bool:
        """Whether its machine is a q35."""
        return self.x86 and "q35" in self.machine

    @property
    def i440fx(self) -> bool:
        """Whether its machine is an i440fx."""
        return self.x86 and (self.machine == "pc" or self.machine.startswith(("pc-i440fx", "pc-0", "pc-1")))

    @property
    def virt(self) -> bool:
        """Whether its machine is the ``virt`` of Arm and others."""
        return not self.x86 and self.machine.startswith("virt")

    @property
    def pcie(self) -> bool:
        """Whether its root bus is PCI Express."""
        return self.q35 or self.virt

    @property
    def emulator(self) -> str:
        """The program that runs it; empty where nobody said."""
        return next((emulator.words() for emulator in self.devices("emulator")), "")

    def devices(self, tag: str) -> list[Element]:
        """The elements of that name in <devices>."""
        return [device for part in self.root.all("devices") for device in part.all(tag)]

    def controllers(self, type_: str) -> list[Element]:
        """The controllers of that type."""
        return [controller for controller in self.devices("controller") if controller.get("type") == type_]

    def controller(self, type_: str, index: int) -> Element | None:
        """A controller by its index; of USB the one that leads its companions."""
        fitting = [controller for controller in self.controllers(type_) if controller.number("index") == index]
        return min(fitting, key=lambda one: "uhci" in one.get("model"), default=None)

    def bus(self, type_: str, index: int, asking: Element) -> str:
        """The id of a controller.

        :raises UsageError: it is not there
        """
        if not (found := self.controller(type_, index)):
            raise asking.wrong(f"there is no <controller type={type_!r} index='{index}'>")
        return alias(found)


def screens(domain: Domain) -> list[Element]:
    """The elements <video>, the primary one first."""
    return sorted(domain.devices("video"), key=lambda video: video.at("model").yes("primary") is not True)


def switch(state: bool | None) -> str | None:
    """``on`` or ``off``, None where nobody said."""
    return {True: "on", False: "off", None: None}[state]


def audio_id(sound: Element) -> str:
    """The id of what a device sounds through."""
    return f"audio{sound.at('audio').get('id', '1')}"


def alias(element: Element) -> str:
    """A device's id."""
    return element.at("alias").get("name")


def said(name: str, element: Element, values: Mapping[str, Value]) -> SaidOption:
    """An option, without the values that are None."""
    present = {key: value for key, value in values.items() if value is not None}
    return SaidOption(name=name, values=present, line=element.line)


def device(domain: Domain, element: Element, driver: str, values: Mapping[str, Value]) -> SaidOption:
    """A -device for an element: with its id, its place, its turn in booting and its ROM."""
    common = {"id": alias(element) or None, **place(domain, element), **boot(element)}
    return said("device", element, {"driver": driver, **common, **values})


def place(domain: Domain, element: Element) -> dict[str, Value]:
    """Bus and place on it of whatever has an address: qemuBuildDeviceAddressProps.

    Addresses of drives are the business of their disks.
    """
    address = element.at("address")
    places = {"pci": _pci, "usb": _usb, "virtio-serial": _virtio_serial, "ccid": _ccid, "isa": _isa, "dimm": _dimm}
    found = places.get(address.get("type"))
    return {**(found(domain, address) if found else {}), "acpi-index": element.at("acpi").number("index")}


def _pci(domain: Domain, address: Element) -> dict[str, Value]:
    slot, function = address.number("slot") or 0, address.number("function") or 0
    bus = address.number("bus") or 0
    return {
        "bus": domain.bus("pci", bus, address) if bus else "pcie.0" if domain.pcie else "pci.0",
        "addr": f"{slot:#x}.{function:#x}" if function else f"{slot:#x}",
        "multifunction": address.yes("multifunction"),
    }


def _usb(domain: Domain, address: Element) -> dict[str, Value]:
    bus = domain.bus("usb", address.number("bus") or 0, address)
    return {"bus": f"{bus}.0", "port": address.get("port") or None}


def _virtio_serial(domain: Domain, address: Element) -> dict[str, Value]:
    bus = domain.bus("virtio-serial", address.number("controller") or 0, address)
    return {"bus": f"{bus}.{address.number('bus') or 0}", "nr": address.number("port") or 0}


def _ccid(domain: Domain, address: Element) -> dict[str, Value]:
    return {"bus": f"{domain.bus('ccid', address.number('controller') or 0, address)}.0"}


def _isa(domain: Domain, address: Element) -> dict[str, Value]:
    return {"iobase": address.number("iobase"), "irq": address.number("irq")}


def _dimm(domain: Domain, address: Element) -> dict[str, Value]:
    return {"slot": address.number("slot"), "addr": address.number("base")}


def boot(element: Element) -> dict[str, Value]:
    """A device's turn in booting, and its option ROM."""
    rom = element.at("rom")
    file = "" if rom.yes("enabled") is False else rom.get("file") or None
    bar = {True: 1, False: 0, None: None}[rom.yes("bar")]
    return {"bootindex": element.at("boot").number("order"), "rombar": bar, "romfile": file}


def virtio(domain: Domain, element: Element, base: str) -> str:
    """The type of a virtio device: by its bus, and by its model."""
    model = next((VIRTIO_MODELS[said] for said in _models(element) if said in VIRTIO_MODELS), "")
    if element.at("address").get("type") == "virtio-mmio":
        return f"{base}-device"
    return f"{base}-pci{model}"


def _models(element: Element) -> Iterator[str]:
    yield element.get("model")
    yield element.at("model").get("type")


def virtio_options(element: Element) -> dict[str, Value]:
    """What <driver> says that any virtio device may be told."""
    driver = element.at("driver")
    return {key: driver.yes(name) for name, key in VIRTIO_OPTIONS.items()}
