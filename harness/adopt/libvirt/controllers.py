# SPDX-License-Identifier: GPL-2.0-or-later
"""Controllers: PCI bridges and ports, USB, SCSI, SATA, IDE, floppy, virtio-serial, smart cards; and hubs."""

from __future__ import annotations

from collections.abc import Iterator

from harness.adopt.configuration import SaidOption, Value
from harness.adopt.libvirt.model import Domain, alias, device, said, virtio, virtio_options
from harness.adopt.libvirt.pci import BUSES
from harness.adopt.libvirt.tree import Element

#: Models of PCI controllers and what QEMU calls them where <model name=> says nothing.
PCI = {
    "pci-bridge": "pci-bridge",
    "dmi-to-pci-bridge": "i82801b11-bridge",
    "pcie-root-port": "pcie-root-port",
    "pcie-switch-upstream-port": "x3130-upstream",
    "pcie-switch-downstream-port": "xio3130-downstream",
    "pci-expander-bus": "pxb",
    "pcie-expander-bus": "pxb-pcie",
    "pcie-to-pci-bridge": "pcie-pci-bridge",
}
USB = {
    "piix3-uhci": "piix3-usb-uhci",
    "piix4-uhci": "piix4-usb-uhci",
    "ehci": "usb-ehci",
    "ich9-ehci1": "ich9-usb-ehci1",
    "ich9-uhci1": "ich9-usb-uhci1",
    "ich9-uhci2": "ich9-usb-uhci2",
    "ich9-uhci3": "ich9-usb-uhci3",
    "vt82c686b-uhci": "vt82c686b-usb-uhci",
    "pci-ohci": "pci-ohci",
    "nec-xhci": "nec-usb-xhci",
    "qemu-xhci": "qemu-xhci",
}
#: First ports of companions that do not say which of their leader they have.
FIRST_PORTS = {"ich9-uhci1": 0, "ich9-uhci2": 2, "ich9-uhci3": 4}
#: None is a virtio device.
SCSI = {
    "virtio-scsi": None,
    "virtio-transitional": None,
    "virtio-non-transitional": None,
    "lsilogic": "lsi",
    "auto": "lsi",
    "lsisas1068": "mptsas1068",
    "lsisas1078": "megasas",
    "vmpvscsi": "pvscsi",
    "am53c974": "am53c974",
    "dc390": "dc-390",
}


def options(domain: Domain) -> Iterator[SaidOption]:
    """All that the machine does not have built in."""
    for controller in domain.controllers("pci"):
        yield from _pci(domain, controller)
    builders = {
        "usb": _usb,
        "scsi": _scsi,
        "sata": _sata,
        "virtio-serial": _virtio_serial,
        "nvme": _nvme,
        "ide": _built_in,
    }
    for controller in domain.devices("controller"):
        if controller.get("type") not in {"pci", "fdc", "ccid", *builders}:
            controller.pass_over()
    for type_, builder in builders.items():
        for controller in domain.controllers(type_):
            yield from builder(domain, controller)
    for controller in domain.controllers("fdc"):
        yield from _floppies(domain, controller)
    for hub in domain.devices("hub"):
        hub.get("type")
        yield device(domain, hub, "usb-hub", {})
    for controller in domain.controllers("ccid"):
        yield device(domain, controller, "usb-ccid", {})


def _pci(domain: Domain, controller: Element) -> Iterator[SaidOption]:
    """qemuBuildControllerPCIDevProps; bus 0 is the machine's."""
    model, target = controller.choice("model", BUSES), controller.at("target")
    hotplug = target.yes("hotplug")
    if model in ("pci-root", "pcie-root"):
        yield from _root(domain, controller, hotplug)
        return
    driver = controller.at("model").get("name") or PCI[model]
    node = target.at("node").words()
    numbers: dict[str, Value] = {
        "chassis_nr": target.number("chassisNr") if model == "pci-bridge" else None,
        "bus_nr": target.number("busNr"),
        "numa_node": int(node) if node.isdecimal() else None,
        "port": target.number("port"),
        "chassis": target.number("chassis"),
    }
    memory = target.number("memReserve")
    reserve: dict[str, Value] = {"mem-reserve": None if memory is None else memory << 10}
    yield device(domain, controller, driver, {**numbers, "hotplug": hotplug, **reserve})


def _root(domain: Domain, controller: Element, hotplug: bool | None) -> Iterator[SaidOption]:
    if (hole := controller.first("pcihole64")) is not None:
        host = "q35-pcihost" if domain.pcie else "i440FX-pcihost"
        size = f"{hole.size() >> 10}K"
        yield said("global", hole, {"driver": host, "property": "pci-hole64-size", "value": size})
    if hotplug is not None and domain.i440fx:
        values = {"driver": "PIIX4_PM", "property": "acpi-root-pci-hotplug", "value": "on" if hotplug else "off"}
        yield said("global", controller, values)


def _usb(domain: Domain, controller: Element) -> Iterator[SaidOption]:
    if (model := controller.choice("model", ("none", *USB))) == "none":
        return
    ports, first = controller.number("ports"), controller.at("master").number("startport")
    first = FIRST_PORTS.get(model) if first is None else first
    if first is not None:
        # its ports are those of the controller that leads it, by which others name both
        master = domain.bus("usb", controller.number("index") or 0, controller)
        companion: dict[str, Value] = {"masterbus": f"{master}.0", "firstport": first, "id": None}
        yield device(domain, controller, USB[model], companion)
        return
    yield device(domain, controller, USB[model], {"p2": ports, "p3": ports})


def _scsi(domain: Domain, controller: Element) -> Iterator[SaidOption]:
    model, driver = controller.choice("model", SCSI), controller.at("driver")
    values: dict[str, Value] = {
        "num_queues": driver.number("queues"),
        "cmd_per_lun": driver.number("cmd_per_lun"),
        "max_sectors": driver.number("max_sectors"),
        "ioeventfd": driver.yes("ioeventfd"),
        **virtio_options(controller),
    }
    yield device(domain, controller, SCSI[model] or virtio(domain, controller, "virtio-scsi"), values)


def _sata(domain: Domain, controller: Element) -> Iterator[SaidOption]:
    if not (domain.q35 and controller.number("index") == 0):
        yield device(domain, controller, "ahci", {})


def _virtio_serial(domain: Domain, controller: Element) -> Iterator[SaidOption]:
    sizes = {"max_ports": controller.number("ports"), "vectors": controller.number("vectors")}
    yield device(
        domain, controller, virtio(domain, controller, "virtio-serial"), {**sizes, **virtio_options(controller)}
    )


def _nvme(domain: Domain, controller: Element) -> Iterator[SaidOption]:
    serial = controller.at("serial").words() or alias(controller)
    yield device(domain, controller, "nvme", {"serial": serial})


def _built_in(domain: Domain, controller: Element) -> Iterator[SaidOption]:
    """The machine's own. Its model and place are those that it has."""
    controller.get("model")
    yield from ()


def _floppies(domain: Domain, controller: Element) -> Iterator[SaidOption]:
    """A pc has one built in."""
    turns: dict[str, Value] = {}
    for disk in domain.devices("disk"):
        if disk.at("target").get("bus") == "fdc" and (order := disk.at("boot").number("order")) is not None:
            turns["bootindexB" if disk.at("address").number("unit") else "bootindexA"] = order
    if domain.q35:
        yield said("device", controller, {"driver": "isa-fdc", **turns})
        return
    for name, turn in turns.items():
        yield said("global", controller, {"driver": "isa-fdc", "property": name, "value": str(turn)})
