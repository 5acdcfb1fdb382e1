# SPDX-License-Identifier: GPL-2.0-or-later
"""All other devices: one function for each element."""

from __future__ import annotations

from collections.abc import Iterator

from harness.adopt.configuration import SaidOption, Value
from harness.adopt.libvirt.chardevs import backend
from harness.adopt.libvirt.disks import scsi_place
from harness.adopt.libvirt.model import Domain, alias, device, said, virtio, virtio_options
from harness.adopt.libvirt.tree import Element

FSDRIVERS = {"": "passthrough", "passthrough": "passthrough", "mapped": "mapped", "squash": "none"}


def options(domain: Domain) -> Iterator[SaidOption]:
    """All of them."""
    builders = {
        "iommu": _iommu,
        "filesystem": _filesystem,
        "tpm": _tpm,
        "hostdev": _hostdev,
        "watchdog": _watchdog,
        "memballoon": _balloon,
        "rng": _rng,
        "shmem": _shmem,
        "panic": _panic,
        "vsock": _vsock,
        "crypto": _crypto,
        "pstore": _pstore,
    }
    for interface in domain.devices("interface"):
        if interface.get("type") == "hostdev":
            yield from _hostdev(domain, interface)
    for tag, builder in builders.items():
        for element in domain.devices(tag):
            yield from builder(domain, element)


def _iommu(domain: Domain, iommu: Element) -> Iterator[SaidOption]:
    """smmuv3 is a property of the machine."""
    model, driver = iommu.get("model"), iommu.at("driver")
    if model == "intel":
        values: dict[str, Value] = {
            "intremap": driver.yes("intremap"),
            "caching-mode": driver.yes("caching_mode"),
            "eim": driver.yes("eim"),
            "device-iotlb": driver.yes("iotlb"),
            "aw-bits": driver.number("aw_bits"),
            "dma-translation": driver.yes("dma_translation"),
        }
        yield device(domain, iommu, "intel-iommu", values)
    elif model == "amd":
        values = {"intremap": driver.yes("intremap"), "pt": driver.yes("passthrough"), "xtsup": driver.yes("xtsup")}
        yield device(domain, iommu, "amd-iommu", values)
    elif model == "virtio":
        yield device(domain, iommu, "virtio-iommu", {})
    elif model != "smmuv3":
        iommu.pass_over()


def _filesystem(domain: Domain, filesystem: Element) -> Iterator[SaidOption]:
    """virtiofs is a process of its own on the host; the rest is 9p."""
    id_, tag = alias(filesystem), filesystem.at("target").get("dir")
    filesystem.get("type"), filesystem.get("accessmode"), filesystem.has("readonly")
    driver = filesystem.at("driver")
    if driver.get("type") == "virtiofs":
        yield said("chardev", filesystem, {"backend": "socket", "id": f"chr-vu-{id_}"})
        values: dict[str, Value] = {"chardev": f"chr-vu-{id_}", "tag": tag, "queue-size": driver.number("queue")}
        yield device(domain, filesystem, "vhost-user-fs-pci", values)
        return
    yield said("fsdev", filesystem, _fsdev(filesystem, id_))
    values = {"fsdev": f"fsdev-{id_}", "mount_tag": tag, **virtio_options(filesystem)}
    yield device(domain, filesystem, virtio(domain, filesystem, "virtio-9p"), values)


def _fsdev(filesystem: Element, id_: str) -> dict[str, Value]:
    mode = filesystem.get("accessmode")
    return {
        "fsdriver": "local",
        "security_model": FSDRIVERS.get(mode, mode),
        "multidevs": filesystem.get("multidevs") or None,
        "writeout": filesystem.at("driver").get("wrpolicy") or None,
        "id": f"fsdev-{id_}",
        "path": filesystem.at("source").get("dir"),
        "readonly": "on" if filesystem.has("readonly") else None,
    }


def _tpm(domain: Domain, tpm: Element) -> Iterator[SaidOption]:
    model, id_ = tpm.get("model", "tpm-tis"), alias(tpm)
    kind = tpm.at("backend").get("type")
    if kind == "passthrough":
        yield said(
            "tpmdev", tpm, {"type": "passthrough", "id": f"tpm-{id_}", "path": tpm.at("backend/device").get("path")}
        )
    else:
        yield said("chardev", tpm, {"backend": "socket", "id": "chrtpm"})
        yield said("tpmdev", tpm, {"type": "emulator", "id": f"tpm-{id_}", "chardev": "chrtpm"})
    driver = "tpm-tis-device" if model == "tpm-tis" and not domain.x86 else model
    yield device(domain, tpm, driver, {"tpmdev": f"tpm-{id_}"})


def _hostdev(domain: Domain, hostdev: Element) -> Iterator[SaidOption]:
    """A device of the host's: named, for whoever plans says that it is not judged."""
    if hostdev.at("address").get("type") == "unassigned":
        return
    source, type_ = hostdev.at("source"), hostdev.get("type")
    address = source.at("address")
    if type_ == "usb":
        bus, number = address.number("bus") or 0, address.number("device") or 0
        device_ = {"hostdevice": f"/dev/bus/usb/{bus:03d}/{number:03d}"}
        yield device(domain, hostdev, "usb-host", device_ if address.attributes else _usb_ids(source))
    elif type_ in ("pci", "hostdev"):
        numbers = [address.number(name) or 0 for name in ("domain", "bus", "slot", "function")]
        host = "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)
        ramfb = hostdev.yes("ramfb") or None
        shown: dict[str, Value] = {"display": hostdev.get("display") or None, "ramfb": ramfb}
        driver = "vfio-pci-nohotplug" if ramfb else "vfio-pci"
        yield device(domain, hostdev, driver, {"host": host, **shown, **_teaming(hostdev)})
    elif type_ == "mdev":
        path = f"/sys/bus/mdev/devices/{address.get('uuid')}"
        ramfb = hostdev.yes("ramfb") or None
        shown = {"display": hostdev.get("display") or None, "ramfb": ramfb}
        driver = "vfio-pci-nohotplug" if ramfb else hostdev.get("model", "vfio-pci")
        yield device(domain, hostdev, driver, {"sysfsdev": path, **shown})
    elif type_ == "scsi":
        node = f"libvirt-{alias(hostdev)}-backend"
        yield said("blockdev", hostdev, {"driver": "host_device", "node-name": node})
        yield device(domain, hostdev, "scsi-generic", {**scsi_place(domain, hostdev), "drive": node})
    elif type_ == "scsi_host":
        wwpn = {"wwpn": source.get("wwpn") or None}
        yield device(domain, hostdev, virtio(domain, hostdev, "vhost-scsi"), wwpn)
    else:
        hostdev.pass_over()


def _teaming(hostdev: Element) -> dict[str, Value]:
    """The virtio device that it stands behind."""
    teaming = hostdev.at("teaming")
    return {"failover_pair_id": teaming.get("persistent") or None} if teaming.get("type") == "transient" else {}


def _usb_ids(source: Element) -> dict[str, Value]:
    return {"vendorid": source.at("vendor").number("id"), "productid": source.at("product").number("id")}


def _watchdog(domain: Domain, watchdog: Element) -> Iterator[SaidOption]:
    """itco is part of a q35."""
    if (model := watchdog.get("model")) != "itco":
        yield device(domain, watchdog, model, {})
    action = watchdog.get("action", "reset")
    yield said("watchdog-action", watchdog, {"value": "pause" if action == "dump" else action})


def _balloon(domain: Domain, balloon: Element) -> Iterator[SaidOption]:
    if balloon.get("model", "virtio") != "none":
        more = {"deflate-on-oom": balloon.yes("autodeflate"), "free-page-reporting": balloon.yes("freePageReporting")}
        driver = virtio(domain, balloon, "virtio-balloon")
        yield device(domain, balloon, driver, {**virtio_options(balloon), **more})


def _rng(domain: Domain, rng: Element) -> Iterator[SaidOption]:
    source, rate = rng.at("backend"), rng.at("rate")
    object_ = f"obj{alias(rng)}"
    kind = source.get("model", "random")
    more: dict[str, Value] = {}
    if kind == "egd":
        yield backend(source, f"char{alias(rng)}", rng)
        more = {"chardev": f"char{alias(rng)}"}
    elif kind == "random":
        more = {"filename": source.words() or "/dev/urandom"}
    yield said("object", rng, {"qom-type": f"rng-{kind}", "id": object_, **more})
    period = (rate.number("period") or 1000) if rate.get("bytes") else None
    values = {"rng": object_, "max-bytes": rate.number("bytes"), "period": period}
    yield device(domain, rng, virtio(domain, rng, "virtio-rng"), {**virtio_options(rng), **values})


def _shmem(domain: Domain, shmem: Element) -> Iterator[SaidOption]:
    model, id_ = shmem.at("model").get("type", "ivshmem"), alias(shmem)
    server, msi = shmem.first("server"), shmem.at("msi")
    role = {"master": True, "peer": False}.get(shmem.get("role"))
    if server is None:
        size = shmem.at("size").size("M") if shmem.has("size") else 4 << 20
        values: dict[str, Value] = {"mem-path": f"/dev/shm/{shmem.get('name')}", "size": size, "share": True}
        yield said("object", shmem, {"qom-type": "memory-backend-file", "id": f"shmmem-{id_}", **values})
        yield device(domain, shmem, model, {"memdev": f"shmmem-{id_}", "master": role})
        return
    yield said("chardev", server, {"backend": "socket", "id": f"char{id_}", "path": server.get("path")})
    values = {"chardev": f"char{id_}", "vectors": msi.number("vectors"), "ioeventfd": msi.yes("ioeventfd")}
    values["master"] = role
    yield device(domain, shmem, model, values)


def _panic(domain: Domain, panic: Element) -> Iterator[SaidOption]:
    """hyperv's is a property of the CPU."""
    model = panic.get("model", "isa")
    if model == "isa":
        yield said("device", panic, {"driver": "pvpanic", "ioport": panic.at("address").number("iobase")})
    elif model == "pvpanic":
        yield device(domain, panic, "pvpanic-pci", {"id": None})
    elif model != "hyperv":
        panic.pass_over()


def _vsock(domain: Domain, vsock: Element) -> Iterator[SaidOption]:
    cid = vsock.at("cid").number("address")
    driver = virtio(domain, vsock, "vhost-vsock")
    yield device(domain, vsock, driver, {**virtio_options(vsock), "guest-cid": cid})


def _crypto(domain: Domain, crypto: Element) -> Iterator[SaidOption]:
    source, object_ = crypto.at("backend"), f"obj{alias(crypto)}"
    crypto.get("model")
    kind = {"builtin": "cryptodev-backend-builtin", "lkcf": "cryptodev-backend-lkcf"}.get(source.get("model"), "")
    yield said("object", crypto, {"qom-type": kind, "id": object_, "queues": source.number("queues")})
    yield device(domain, crypto, "virtio-crypto-pci", {"cryptodev": object_, **virtio_options(crypto)})


def _pstore(domain: Domain, pstore: Element) -> Iterator[SaidOption]:
    """Where a guest that crashes leaves its last words."""
    if pstore.get("backend") != "acpi-erst":
        pstore.pass_over()
        return
    size = pstore.at("size").size()
    values: dict[str, Value] = {"mem-path": pstore.at("path").words(), "size": size, "share": True}
    yield said("object", pstore, {"qom-type": "memory-backend-file", "id": f"mem{alias(pstore)}", **values})
    yield device(domain, pstore, "acpi-erst", {"memdev": f"mem{alias(pstore)}"})
