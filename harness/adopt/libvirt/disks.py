# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks: images, and the devices that the guest sees."""

from __future__ import annotations

from collections.abc import Iterator

from harness.adopt.configuration import SaidOption, Value
from harness.adopt.libvirt.model import Domain, alias, device, said, virtio, virtio_options
from harness.adopt.libvirt.tree import Element

#: Where in <source> a disk of a type says where it lies, and with which driver QEMU reads that.
SOURCES = {"file": ("file", "file"), "block": ("dev", "host_device"), "dir": ("dir", "vvfat")}
#: Formats of images that libvirt spells otherwise than QEMU.
FORMATS = {"iso": "raw", "dir": "raw", "fat": "raw", "": "raw"}
#: Controllers of SCSI whose disks have a target and no unit.
ONE_UNIT = ("lsilogic", "")
#: Modes of <driver cache=> in which the guest sees a disk that keeps what was written.
WRITE_CACHE = {"none": "on", "writeback": "on", "unsafe": "on", "writethrough": "off", "directsync": "off"}


def options(domain: Domain) -> Iterator[SaidOption]:
    """Images and devices of all disks."""
    disks = domain.devices("disk")
    last = 1
    numbers = []
    for disk in reversed(disks):  # libvirt counts its images from the last disk's
        numbers.append(last)
        last += 1 + len(list(_backings(disk)))
    for number, disk in zip(reversed(numbers), disks, strict=True):
        yield from _disk(domain, disk, number)


def _disk(domain: Domain, disk: Element, number: int) -> Iterator[SaidOption]:
    bus = disk.at("target").get("bus")
    image = bool(disk.at("source").attributes)
    disk.get("type")
    disk.has("readonly")
    if image and disk.get("type") != "vhostuser" and bus in BUILDERS and bus != "sd":
        yield from _images(disk, number)
    drive: dict[str, Value] = {"drive": _node(number) if image else None}
    if disk.get("type") == "vhostuser":
        yield from _vhost_user(domain, disk)
    elif bus in BUILDERS:
        yield BUILDERS[bus](domain, disk, drive)
    else:
        disk.pass_over()


def _node(number: int) -> str:
    return f"libvirt-{number}-format"


def _backings(disk: Element) -> Iterator[Element]:
    """The images behind its own, from the nearest on."""
    behind = disk.at("backingStore")
    while behind.has("source"):
        yield behind
        behind = behind.at("backingStore")


def _images(disk: Element, number: int) -> Iterator[SaidOption]:
    """What holds its content, the farthest first. Caches, threads and limits are the host's business."""
    backings = list(_backings(disk))
    for behind, image in reversed(list(enumerate(backings, start=number + 1))):
        more = {"backing": _node(behind + 1)} if behind - number < len(backings) else {}
        yield from _image(image, _node(behind), image.at("format").get("type", "raw"), {"read-only": True, **more})
    driver = disk.at("driver")
    values: dict[str, Value] = {
        "read-only": disk.has("readonly") or disk.get("device") == "cdrom",
        "discard": "unmap" if driver.get("discard") == "unmap" else None,
        "backing": _node(number + 1) if backings else None,
    }
    yield from _image(disk, _node(number), driver.get("type", "raw"), values)


def _image(disk: Element, node: str, format_: str, values: dict[str, Value]) -> Iterator[SaidOption]:
    type_, source = disk.get("type", "file"), disk.at("source")
    storage = node.replace("format", "storage")
    where, driver = SOURCES.get(type_, ("name", source.get("protocol") or type_))
    if driver == "host_device" and disk.get("device") == "cdrom":
        driver = "host_cdrom"
    lies = {"filename": source.get(where)} if type_ in SOURCES else _elsewhere(source)
    yield said("blockdev", disk, {"driver": driver, **lies, "node-name": storage})
    yield said(
        "blockdev", disk, {"node-name": node, **values, "driver": FORMATS.get(format_, format_), "file": storage}
    )


def _elsewhere(source: Element) -> dict[str, Value]:
    """Where an image lies that another host has: named, never opened."""
    host = source.at("host")
    server: Value = {"host": host.get("name"), "port": host.get("port")} if source.has("host") else None
    return {"name": source.get("name") or source.get("volume") or None, "server": server}


def _common(domain: Domain, disk: Element) -> dict[str, Value]:
    """What disks of all buses have: qemuBuildDiskDeviceProps."""
    driver, sizes, geometry = disk.at("driver"), disk.at("blockio"), disk.at("geometry")
    lun = disk.get("device") == "lun"
    werror = driver.get("error_policy")
    usual = werror if werror != "enospace" else ""
    return {
        "share-rw": True if disk.has("shareable") else None,
        "logical_block_size": sizes.number("logical_block_size"),
        "physical_block_size": sizes.number("physical_block_size"),
        "discard_granularity": sizes.number("discard_granularity"),
        "cyls": geometry.number("cyls"),
        "heads": geometry.number("heads"),
        "secs": geometry.number("secs"),
        "bios-chs-trans": geometry.get("trans") or None,
        "wwn": _wwn(disk),
        "rotation_rate": disk.at("target").number("rotation_rate"),
        "vendor": disk.at("vendor").words() or None,
        "model" if _bus(disk) in ("ide", "sata") else "product": disk.at("product").words() or None,
        "write-cache": None if lun else WRITE_CACHE.get(driver.get("cache", "none" if disk.has("shareable") else "")),
        "serial": None if lun else _serial(disk) or None,
        "werror": werror.replace("enospace", "enospc") or None,
        "rerror": driver.get("rerror_policy", usual) or None,
    }


def _serial(disk: Element) -> str:
    """libvirt puts a backslash before each space, and the guest sees it."""
    serial = disk.at("serial")
    return serial.text.replace(" ", "\\ ") if serial.words() else ""


def _bus(disk: Element) -> str:
    return disk.at("target").get("bus")


def _wwn(disk: Element) -> int | None:
    text = disk.at("wwn").words()
    if not text:
        return None
    try:
        return int(text, 16)
    except ValueError:
        raise disk.at("wwn").wrong(f"{text!r}: expected 16 hexadecimal digits") from None


def _kind(disk: Element, bus: str) -> str:
    return f"{bus}-cd" if disk.get("device") == "cdrom" else f"{bus}-hd"


def _virtio(domain: Domain, disk: Element, drive: dict[str, Value]) -> SaidOption:
    driver = disk.at("driver")
    values = {
        **virtio_options(disk),
        "ioeventfd": driver.yes("ioeventfd"),
        "event_idx": driver.yes("event_idx"),
        "num-queues": driver.number("queues"),
        "queue-size": driver.number("queue_size"),
    }
    return device(domain, disk, virtio(domain, disk, "virtio-blk"), {**values, **drive, **_common(domain, disk)})


def _scsi(domain: Domain, disk: Element, drive: dict[str, Value]) -> SaidOption:
    """A disk of an lsi has no channel and no unit of its own."""
    lun = disk.get("device") == "lun"
    names = {} if lun else {"device_id": _serial(disk) or f"drive-{alias(disk)}"}
    removable: dict[str, Value] = {"removable": disk.at("target").yes("removable")}
    values = {**scsi_place(domain, disk), **names, **drive, **removable, **_common(domain, disk)}
    return device(domain, disk, "scsi-block" if lun else _kind(disk, "scsi"), values)


def scsi_place(domain: Domain, element: Element) -> dict[str, Value]:
    address = element.at("address")
    index = address.number("controller") or 0
    controller = domain.controller("scsi", index)
    bus, target, unit = (address.number(name) or 0 for name in ("bus", "target", "unit"))
    there = {"bus": f"{domain.bus('scsi', index, element)}.0"}
    if controller and controller.get("model") in ONE_UNIT:
        return {**there, "scsi-id": unit}
    return {**there, "channel": bus, "scsi-id": target, "lun": unit}


def _ide(domain: Domain, disk: Element, drive: dict[str, Value]) -> SaidOption:
    address = disk.at("address")
    place: dict[str, Value] = {"bus": f"ide.{address.number('bus') or 0}", "unit": address.number("unit") or 0}
    return device(domain, disk, _kind(disk, "ide"), {**place, **drive, **_common(domain, disk)})


def _sata(domain: Domain, disk: Element, drive: dict[str, Value]) -> SaidOption:
    address = disk.at("address")
    controller = domain.bus("sata", address.number("controller") or 0, disk)
    place = {"bus": f"{controller}.{address.number('unit') or 0}"}
    return device(domain, disk, _kind(disk, "ide"), {**place, **drive, **_common(domain, disk)})


def _usb(domain: Domain, disk: Element, drive: dict[str, Value]) -> SaidOption:
    removable = disk.at("target").yes("removable")
    model = {"usb-bot": "usb-bot", "usb-uas": "usb-uas"}.get(disk.get("model"), "usb-storage")
    return device(domain, disk, model, {**drive, "removable": removable, **_common(domain, disk)})


def _floppy(domain: Domain, disk: Element, drive: dict[str, Value]) -> SaidOption:
    """When it is booted is a property of its controller."""
    values = {"unit": disk.at("address").number("unit") or 0, **drive, **_common(domain, disk), "bootindex": None}
    return device(domain, disk, "floppy", values)


def _sd(domain: Domain, disk: Element, drive: dict[str, Value]) -> SaidOption:
    """QEMU's machines plug in a card that is said in the old way."""
    file = disk.at("source").get("file") or disk.at("source").get("dev")
    values = {"if": "sd", "index": "0", "file": file or None, "format": disk.at("driver").get("type", "raw")}
    return said("drive", disk, values)


def _nvme(domain: Domain, disk: Element, drive: dict[str, Value]) -> SaidOption:
    address = disk.at("address")
    place: dict[str, Value] = {
        "bus": domain.bus("nvme", address.number("controller") or 0, disk),
        "nsid": (address.number("unit") or 0) + 1,
    }
    return device(domain, disk, "nvme-ns", {**place, **drive, **_common(domain, disk)})


def _vhost_user(domain: Domain, disk: Element) -> Iterator[SaidOption]:
    """Another process is the disk: named, for whoever plans says that it is not judged."""
    disk.get("device")
    chardev, driver = f"chr-vu-{alias(disk)}", disk.at("driver")
    yield said("chardev", disk, {"backend": "socket", "id": chardev, "path": disk.at("source").get("path")})
    values = {"chardev": chardev, "num-queues": driver.number("queues"), "queue-size": driver.number("queue_size")}
    yield device(domain, disk, "vhost-user-blk-pci", {**virtio_options(disk), **values})


#: By the bus of a disk's target.
BUILDERS = {
    "virtio": _virtio,
    "scsi": _scsi,
    "ide": _ide,
    "sata": _sata,
    "usb": _usb,
    "fdc": _floppy,
    "sd": _sd,
    "nvme": _nvme,
}
