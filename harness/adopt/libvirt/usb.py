# SPDX-License-Identifier: GPL-2.0-or-later
"""Ports for USB devices that have none, as libvirt gives them: virDomainUSBAddressSet in src/conf/domain_addr.c."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.adopt.libvirt.model import Domain
from harness.adopt.libvirt.tree import Element
from harness.adopt.place import quoted

#: Ports of a controller where nobody said: virDomainUSBAddressControllerModelToPorts.
PORTS = {"piix3-uhci": 2, "piix4-uhci": 2, "vt82c686b-uhci": 2, "pci-ohci": 3, "ehci": 6, "ich9-ehci1": 6}
HUB_PORTS = 8
#: Through hubs: ``1.3`` (virDomainDeviceUSBAddressParseXML).
_PORT = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9}){0,3}")
#: Controllers whose ports are those of another one, and what stands for none at all.
COMPANIONS = ("ich9-uhci1", "ich9-uhci2", "ich9-uhci3", "none")


def place(domain: Domain) -> None:
    """An address for each USB device.

    :raises UsageError: there are no ports left, nor a port for a hub; or one is named that is none
    """
    free = dict(_ports(domain))
    for hub in domain.devices("hub"):
        _plug_hub(free, hub)
    devices = [device for device in _devices(domain) if not _placed(device)]
    for device in _devices(domain):
        if _placed(device):
            _take(free, device)
    missing = len(devices) - len(free)
    for _ in range(-(-(missing + 1) // (HUB_PORTS - 1)) if missing > 0 else 0):
        hub = domain.root.at("devices").add("hub", type="usb")
        hub.add("alias", name=f"hub{len(domain.devices('hub')) - 1}")
        _plug_hub(free, hub)
    for device in devices:
        _plug(free, device)


def _ports(domain: Domain) -> Iterator[tuple[tuple[int, str], None]]:
    """Ports of all controllers, in the order in which they are given away."""
    for controller in domain.controllers("usb"):
        if controller.has("master") or controller.get("model") in COMPANIONS:
            continue
        count = controller.number("ports") or PORTS.get(controller.get("model"), 4)
        for port in range(1, min(count, 15) + 1):
            yield (controller.number("index") or 0, str(port)), None


def _devices(domain: Domain) -> Iterator[Element]:
    """virDomainUSBDeviceDefForeach."""
    yield from (one for one in domain.devices("hostdev") if one.get("type") == "usb")
    yield from (one for one in domain.devices("disk") if one.at("target").get("bus") == "usb")
    yield from (one for one in domain.devices("interface") if one.at("model").get("type") == "usb-net")
    yield from domain.controllers("ccid")
    yield from (one for one in domain.devices("input") if one.get("bus") == "usb")
    yield from (one for one in domain.devices("serial") if one.at("target").get("type") == "usb-serial")
    yield from (one for one in domain.devices("sound") if one.get("model") == "usb")
    yield from (one for one in domain.devices("redirdev") if one.get("bus") == "usb")


def _placed(device: Element) -> bool:
    return device.at("address").get("type") == "usb" and bool(device.at("address").get("port"))


def _take(free: dict[tuple[int, str], None], device: Element) -> str:
    address = device.at("address")
    port = address.get("port")
    if not _PORT.fullmatch(port):
        raise device.wrong(f"expected a USB port such as 2 or 1.3, found {quoted(port)}")
    free.pop((address.number("bus") or 0, port), None)
    return port


def _plug(free: dict[tuple[int, str], None], device: Element) -> None:
    if not free:
        raise device.wrong("there is no USB port for it")
    address = device.first("address") or device.add("address", type="usb")
    named = [place for place in free if place[0] == address.number("bus")] if address.get("bus") else []
    bus, port = min(named or free, key=_depth)
    del free[bus, port]
    address.attributes.update(bus=str(bus), port=port)


def _depth(place: tuple[int, str]) -> tuple[int, list[tuple[int, int]]]:
    """A hub's own ports come before those of the hubs at its ports: virDomainUSBAddressFindFreePort."""
    *hubs, last = (int(number) for number in place[1].split("."))
    return place[0], [*((1, number) for number in hubs), (0, last)]


def _plug_hub(free: dict[tuple[int, str], None], hub: Element) -> None:
    """A hub takes one port, and its own come behind all others."""
    if not _placed(hub):
        _plug(free, hub)
    port = _take(free, hub)
    bus = hub.at("address").number("bus") or 0
    free |= {(bus, f"{port}.{number}"): None for number in range(1, HUB_PORTS + 1)}
