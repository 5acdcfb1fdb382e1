# SPDX-License-Identifier: GPL-2.0-or-later
"""What libvirt adds to a domain when it is defined: devices that nobody named, indexes, ids and addresses.

``virsh dumpxml`` prints all of it but the ids of a domain that does not run, so that most domains are as good as
complete. One that was written by hand is not.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator

from harness.adopt.libvirt import pci, usb
from harness.adopt.libvirt.model import Domain, screens
from harness.adopt.libvirt.tree import Element

#: Disks of a controller: where the number of a target, that of ``sdc`` is 2, comes to lie.
UNITS = {"ide": 4, "sata": 6, "scsi": 15, "fdc": 2, "nvme": 256}
#: Names of targets: letters, or a controller and a namespace.
TARGET = re.compile(r"(?:(ubd|xvd|[vshf]d)([a-z]{1,3})|nvme(\d{1,3})n([1-9]\d{0,2}))", re.ASCII)
#: libvirt has no such limits, and no machine has room for more.
MOST_CONTROLLERS = 256
MOST_DEVICES = 1000
#: The SCSI controller itself.
OWN_UNIT = 7
#: Prefixes of a disk's target that tell its bus: virDomainDiskDefParseXML.
PREFIXES = {"nvme": "nvme", "vd": "virtio", "sd": "scsi", "hd": "ide", "fd": "fdc", "ubd": "uml", "xvd": "xen"}
#: Ids of elements that are counted each for itself: qemuAssignDeviceAliases.
ALIASES = {
    "interface": "net",
    "filesystem": "fs",
    "sound": "sound",
    "video": "video",
    "input": "input",
    "hostdev": "hostdev",
    "redirdev": "redir",
    "parallel": "parallel",
    "serial": "serial",
    "channel": "channel",
    "console": "console",
    "hub": "hub",
    "shmem": "shmem",
    "smartcard": "smartcard",
    "memballoon": "balloon",
    "rng": "rng",
    "watchdog": "watchdog",
    "tpm": "tpm",
    "panic": "panic",
    "vsock": "vsock",
    "iommu": "iommu",
    "crypto": "crypto",
    "pstore": "pstore",
}
MODULES = {"dimm": "dimm", "nvdimm": "nvdimm", "virtio-mem": "virtiomem", "virtio-pmem": "virtiopmem"}


def complete(root: Element) -> Domain:
    """The domain of that root, to which what it lacks is added.

    :raises UsageError: it is no domain of QEMU's, or something in it has no place
    """
    _expect_domain(root)
    domain = Domain(root)
    if not root.has("devices"):
        root.add("devices")
    _controllers(domain)
    _usual_devices(domain)
    _disks(domain)
    _ports(domain)
    _named_controllers(domain)
    _models(domain)
    pci.place(domain)
    _modules(domain)
    _aliases(domain)
    usb.place(domain)
    _boot_order(domain)
    return domain


def _expect_domain(root: Element) -> None:
    if root.tag != "domain":
        raise root.wrong("expected a libvirt domain: <domain type='kvm'>")
    if (type_ := root.get("type")) not in ("kvm", "qemu", "hvf"):
        raise root.wrong(f"type={type_!r}: expected a domain of QEMU's: kvm or qemu")
    if (kind := root.at("os/type").words()) != "hvm":
        raise root.at("os").wrong(f"<type> is {kind!r}: expected hvm")
    devices = [device for part in root.all("devices") for device in part.children]
    if len(devices) > MOST_DEVICES:
        raise devices[MOST_DEVICES].wrong(f"more than {MOST_DEVICES} devices: expected a libvirt domain")


def _devices(domain: Domain) -> Element:
    return domain.root.at("devices")


def _controllers(domain: Domain) -> None:
    """Indexes, and what a machine has built in."""
    if len(domain.devices("controller")) > MOST_CONTROLLERS:
        raise domain.root.wrong(f"more than {MOST_CONTROLLERS} controllers: expected a libvirt domain")
    groups: dict[str, set[str]] = {}
    for controller in domain.devices("controller"):
        if not controller.get("index"):
            controller.attributes["index"] = _next_index(domain, controller, groups)
        if controller.get("model") in pci.USB_FUNCTIONS:
            groups.setdefault(controller.get("index"), set()).add(controller.get("model"))
    if not domain.controller("pci", 0) and (domain.pcie or domain.i440fx):
        _add_controller(domain, "pci", 0, "pcie-root" if domain.pcie else "pci-root")
    if not domain.controllers("usb") and (domain.q35 or domain.i440fx):
        _add_controller(domain, "usb", 0, "qemu-xhci" if domain.q35 else "piix3-uhci")
    if domain.q35 and not domain.controller("sata", 0):
        _add_controller(domain, "sata", 0, "")


def _next_index(domain: Domain, controller: Element, groups: dict[str, set[str]]) -> str:
    """The first that is free; one of ICH9's USB controllers belongs to those before it that lack its model."""
    model = controller.get("model")
    if model in pci.USB_FUNCTIONS and (last := next(reversed(groups), None)) is not None and model not in groups[last]:
        return last
    taken = {other.get("index") for other in domain.controllers(controller.get("type"))}
    return str(next(index for index in itertools.count() if str(index) not in taken))


def _add_controller(domain: Domain, type_: str, index: int, model: str) -> None:
    controller = _devices(domain).add("controller", type=type_, index=str(index))
    if model:
        controller.attributes["model"] = model


def _usual_devices(domain: Domain) -> None:
    """A balloon, a screen where there is something to show it, sound for whoever plays."""
    if not domain.devices("memballoon") and domain.x86:
        _devices(domain).add("memballoon", model="virtio")
    if domain.devices("graphics") and not domain.devices("video"):
        _devices(domain).add("video").add("model", type="cirrus" if domain.x86 else "virtio")
    for video in domain.devices("video"):
        if not video.has("model"):
            video.add("model", type="cirrus" if domain.x86 else "virtio")
    for interface in [] if domain.x86 else domain.devices("interface"):
        if not interface.has("model"):
            interface.add("model", type="virtio")
    for panic in [] if domain.x86 else domain.devices("panic"):
        panic.attributes.setdefault("model", "pvpanic")
    _reorder(domain, "video", screens(domain))
    if not domain.devices("audio"):
        graphics = [one.get("type") for one in domain.devices("graphics")]
        _devices(domain).add("audio", id="1", type="spice" if graphics[-1:] == ["spice"] else "none")


def _disks(domain: Domain) -> None:
    """Buses and places of drives."""
    for disk in domain.devices("disk"):
        target = disk.at("target")
        if not (name := TARGET.fullmatch(target.get("dev"))):
            raise disk.wrong(f"target dev={target.get('dev')!r}: expected a name such as vda, sdb or fda")
        prefix, number = (name[1], _letters(name[2])) if name[1] else ("nvme", int(name[4]) - 1)
        if not target.get("bus"):
            target.attributes["bus"] = _usual_bus(disk, prefix)
        if target.get("bus") in UNITS and not disk.has("address"):
            controller = {"controller": name[3]} if name[3] else {}
            disk.add("address", **{"type": "drive", **_drive(target.get("bus"), number), **controller})

    _sort_disks(domain)
    _host_scsi(domain)


def _reorder(domain: Domain, tag: str, elements: list[Element]) -> None:
    """Put elements of one name into the places that they have among them."""
    rest = iter(elements)
    for part in domain.root.all("devices"):
        part.children = [next(rest) if child.tag == tag else child for child in part.children]


def _sort_disks(domain: Domain) -> None:
    """libvirt keeps disks of a bus in the order of their targets: virDomainDiskInsert."""
    placed: list[tuple[str, int, Element]] = []
    for disk in domain.devices("disk"):
        bus, order = _bus(disk), _order(disk)
        same = [(number, other) for number, (name, other, _) in enumerate(placed) if name == bus]
        after = [number for number, other in same if other > order]
        placed.insert(after[0] if after else same[-1][0] + 1 if same else len(placed), (bus, order, disk))
    _reorder(domain, "disk", [disk for _, _, disk in placed])


def _bus(disk: Element) -> str:
    return disk.at("target").get("bus")


def _order(disk: Element) -> int:
    name = TARGET.fullmatch(disk.at("target").get("dev"))
    return _letters(name[2]) if name and name[2] else int(name[4]) if name else 0


def _host_scsi(domain: Domain) -> None:
    """Units for SCSI devices of the host: virDomainHostdevAssignAddress."""
    hosts = [one for one in domain.devices("hostdev") if one.get("type") == "scsi"]
    disks = [disk for disk in domain.devices("disk") if _bus(disk) == "scsi"]
    addresses = [one.at("address") for one in (*hosts, *disks) if one.has("address")]
    taken = {(address.number("controller") or 0, address.number("unit") or 0) for address in addresses}
    for host in hosts:
        if not host.has("address"):
            free = ((number, unit) for number in itertools.count() for unit in range(OWN_UNIT))
            controller, unit = next(place for place in free if place not in taken)
            taken.add((controller, unit))
            places = {"controller": str(controller), "bus": "0", "target": "0", "unit": str(unit)}
            host.add("address", type="drive", **places)


def _usual_bus(disk: Element, prefix: str) -> str:
    if disk.get("device") == "floppy":
        return "fdc"
    return PREFIXES[prefix] if disk.get("device") != "cdrom" or prefix != "sd" else "scsi"


def _letters(letters: str) -> int:
    """``a`` is 0, ``z`` 25, ``aa`` 26."""
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1


def _drive(bus: str, number: int) -> dict[str, str]:
    """virDomainDiskDefAssignAddress."""
    controller, unit = divmod(number, UNITS[bus])
    channel = 0
    if bus == "ide":
        channel, unit = divmod(unit, 2)
    if bus == "scsi" and unit >= OWN_UNIT:
        unit += 1
    return {"controller": str(controller), "bus": str(channel), "target": "0", "unit": str(unit)}


def _ports(domain: Domain) -> None:
    """Places of channels, consoles and smart cards."""
    channels = [one for one in domain.devices("channel") if one.at("target").get("type") == "virtio"]
    addresses = [one.at("address") for one in channels]
    taken = {(one.number("controller") or 0, one.number("port") or 0) for one in addresses}
    for channel in channels:
        address = channel.first("address")
        if address is None or not address.number("port"):
            named = address.number("controller") if address else None
            controller, port = next(place for place in _serial_ports(domain, named) if place not in taken)
            taken.add((controller, port))
            places = {"controller": str(controller), "bus": "0", "port": str(port)}
            (address or channel.add("address", type="virtio-serial")).attributes.update(places)
    _serials(domain)
    for number, smartcard in enumerate(domain.devices("smartcard")):
        if not smartcard.has("address"):
            smartcard.add("address", type="ccid", controller="0", slot=str(number))


def _serial_ports(domain: Domain, named: int | None) -> Iterator[tuple[int, int]]:
    """Ports of a controller, or of all from the first on; port 0 is for a console."""
    for number in [named] if named is not None else itertools.count():
        controller = domain.controller("virtio-serial", number)
        ports = controller.number("ports") if controller else None
        yield from ((number, port) for port in range(1, ports or 31))
    if named is not None:
        yield from _serial_ports(domain, None)


def _serials(domain: Domain) -> None:
    """A console that says nothing is a serial device; ports of serials are counted."""
    plain = [one for one in domain.devices("console") if one.at("target").get("type", "serial") == "serial"]
    if plain and not domain.devices("serial"):
        serial = _devices(domain).add("serial", type=plain[0].get("type", "pty"))
        serial.children += plain[0].all("source") + plain[0].all("log") + plain[0].all("protocol")
        serial.add("target", port="0")
    elif domain.devices("serial") and not plain:
        first = Element("console", domain.root.source, domain.root.line, {"type": "pty"})
        first.add("target", type="serial", port="0")
        _devices(domain).children.insert(0, first)
    for tag in ("serial", "parallel"):
        for number, serial in enumerate(domain.devices(tag)):
            target = serial.first("target") or serial.add("target")
            target.attributes.setdefault("port", str(number))


def _named_controllers(domain: Domain) -> None:
    """Controllers that an address names and nobody describes."""
    for type_, index in sorted(set(_named(domain))):
        if index >= MOST_CONTROLLERS:
            raise domain.root.wrong(
                f"an address names the {type_} controller {index}: expected at most {MOST_CONTROLLERS}"
            )
        for number in range(index + 1) if type_ in UNITS else [index]:
            if not domain.controller(type_, number):
                _add_controller(domain, type_, number, "")


def _named(domain: Domain) -> Iterator[tuple[str, int]]:
    for disk in domain.devices("disk"):
        if (bus := disk.at("target").get("bus")) in UNITS:
            yield bus, disk.at("address").number("controller") or 0
    for tag in ("channel", "console", "smartcard", "hostdev"):
        for device in domain.devices(tag):
            type_ = {"drive": "scsi"}.get(kind := device.at("address").get("type"), kind)
            if type_ in ("scsi", "virtio-serial", "ccid"):
                yield type_, device.at("address").number("controller") or 0
    if any(console.at("target").get("type") == "virtio" for console in domain.devices("console")):
        yield "virtio-serial", 0


def _models(domain: Domain) -> None:
    """Models of controllers that say none."""
    usual = {
        "usb": "piix3-uhci" if domain.x86 else "qemu-xhci",
        "scsi": "lsilogic",
    }
    for controller in domain.devices("controller"):
        if controller.get("type") in usual:
            controller.attributes.setdefault("model", usual[controller.get("type")])


def _aliases(domain: Domain) -> None:
    """An id for each device that has none."""
    host_nets = [one for one in domain.devices("interface") if _is_host_net(one)]
    for number, interface in enumerate(host_nets):
        _name(interface, f"hostdev{number}")
    for controller in domain.devices("controller"):
        _name(controller, _controller_alias(domain, controller))
    for disk in domain.devices("disk"):
        _name(disk, _disk_alias(domain, disk))
    for tag, prefix in ALIASES.items():
        for number, element in enumerate(one for one in domain.devices(tag) if not _is_host_net(one)):
            _name(element, f"{prefix}{number + (len(host_nets) if tag == 'hostdev' else 0)}")
    others: Counter[str] = Counter()
    for memory in domain.devices("memory"):
        prefix = MODULES.get(memory.get("model"), "memory")
        slot = memory.at("address").number("slot")
        _name(memory, f"{prefix}{others[prefix] if slot is None else slot}")
        others[prefix] += 1


def _is_host_net(element: Element) -> bool:
    """An interface that is a PCI device of the host's."""
    return element.tag == "interface" and element.get("type") == "hostdev"


def _name(element: Element, name: str) -> None:
    if not element.has("alias"):
        element.add("alias", name=name)


def _controller_alias(domain: Domain, controller: Element) -> str:
    """qemuAssignDeviceControllerAlias."""
    type_, index = controller.get("type"), controller.number("index") or 0
    if type_ == "pci":
        return ("pcie.0" if domain.pcie else "pci.0") if index == 0 else f"pci.{index}"
    if (type_ == "ide" and index == 0 and domain.i440fx) or (type_ == "sata" and index == 0 and domain.q35):
        return "ide"
    return "usb" if type_ == "usb" and index == 0 else f"{type_}{index}"


def _disk_alias(domain: Domain, disk: Element) -> str:
    """qemuAssignDeviceDiskAlias."""
    bus, address = disk.at("target").get("bus"), disk.at("address")
    if bus not in UNITS:
        name = TARGET.fullmatch(disk.at("target").get("dev"))
        return f"{bus}-disk{_letters(name[2]) if name and name[2] else 0}"
    controller = domain.controller("scsi", address.number("controller") or 0)
    wide = bus == "scsi" and controller is not None and controller.get("model") != "lsilogic"
    parts = ("controller", "bus", "target", "unit") if wide else ("controller", "bus", "unit")
    return f"{bus}{'-'.join(str(address.number(part) or 0) for part in parts)}"


def _modules(domain: Domain) -> None:
    """Slots of memory modules."""
    modules = [memory for memory in domain.devices("memory") if memory.get("model") in ("dimm", "nvdimm")]
    taken = {memory.at("address").number("slot") for memory in modules}
    for memory in modules:
        if memory.at("address").get("type") != "dimm":
            slot = next(slot for slot in itertools.count() if slot not in taken)
            taken.add(slot)
            memory.add("address", type="dimm", slot=str(slot))


def _boot_order(domain: Domain) -> None:
    """<os><boot> in terms of devices: of each kind the first one has its turn."""
    turns = [boot.get("dev") for boot in domain.root.at("os").all("boot")]
    devices = [device for tag in ("disk", "interface", "hostdev", "redirdev") for device in domain.devices(tag)]
    if any(device.has("boot") for device in devices):
        return
    for number, kind in enumerate(turns or ["hd"], start=1):
        candidates = [device for device in devices if _boots_as(device) == kind]
        if candidates and Counter(turns)[kind] < 2:
            candidates[0].add("boot", order=str(number))


def _boots_as(device: Element) -> str:
    if device.tag == "disk":
        return {"cdrom": "cdrom", "floppy": "fd"}.get(device.get("device"), "hd")
    return "network" if device.tag == "interface" else ""
