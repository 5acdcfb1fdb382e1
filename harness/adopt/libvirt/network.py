# SPDX-License-Identifier: GPL-2.0-or-later
"""Network interfaces."""

from __future__ import annotations

from collections.abc import Iterator

from harness.adopt.configuration import SaidOption, Value
from harness.adopt.libvirt.model import VIRTIO_MODELS, Domain, alias, device, said, virtio, virtio_options
from harness.adopt.libvirt.tree import Element

#: Offloads in <host> and <guest> of a virtio <driver>, and their properties.
HOST = {
    "csum": "csum",
    "gso": "gso",
    "tso4": "host_tso4",
    "tso6": "host_tso6",
    "ecn": "host_ecn",
    "ufo": "host_ufo",
    "mrg_rxbuf": "mrg_rxbuf",
}
GUEST = {
    "csum": "guest_csum",
    "tso4": "guest_tso4",
    "tso6": "guest_tso6",
    "ecn": "guest_ecn",
    "ufo": "guest_ufo",
}
#: What a type of interface is to QEMU; the rest is a tap device.
BACKENDS = {"user": "user", "vhostuser": "vhost-user", "vdpa": "vhost-vdpa", "udp": "socket"}
SOCKETS = ("server", "client", "mcast")


def options(domain: Domain) -> Iterator[SaidOption]:
    """A netdev and a device for each; an interface that is a host's device is a hostdev."""
    for interface in domain.devices("interface"):
        if interface.get("type") != "hostdev":
            yield _backend(interface)
            yield _interface(domain, interface)


def _backend(interface: Element) -> SaidOption:
    type_, queues = interface.get("type"), interface.at("driver").number("queues")
    kind = "socket" if type_ in SOCKETS else BACKENDS.get(type_, "tap")
    values: dict[str, Value] = {"type": kind, "id": f"host{alias(interface)}"}
    if kind in ("tap", "vhost-user") and queues and queues > 1:
        values["queues"] = queues
    if kind == "tap" and interface.at("driver").get("name") == "vhost":
        values["vhost"] = True
    return said("netdev", interface, values)


def _is_virtio(interface: Element) -> bool:
    return _model(interface) in ("virtio", *VIRTIO_MODELS)


def _model(interface: Element) -> str:
    """virDomainNetModelType; a backend in another process wants virtio."""
    usual = "virtio" if interface.get("type") in ("vdpa", "vhostuser") else "rtl8139"
    model = interface.at("model").get("type", usual)
    return model.lower() if model.lower() in ("virtio", *VIRTIO_MODELS) else model


def _interface(domain: Domain, interface: Element) -> SaidOption:
    """qemuBuildNicDevProps."""
    driver = virtio(domain, interface, "virtio-net") if _is_virtio(interface) else _model(interface)
    values = {
        **(_virtio_values(interface) if _is_virtio(interface) else {}),
        "host_mtu": interface.at("mtu").number("size") if _is_virtio(interface) else None,
        "failover": True if interface.at("teaming").get("type") == "persistent" else None,
        "netdev": f"host{alias(interface)}",
        "mac": interface.at("mac").get("address").lower() or None,
    }
    return device(domain, interface, driver, values)


def _virtio_values(interface: Element) -> dict[str, Value]:
    driver = interface.at("driver")
    queues = driver.number("queues") or 1
    txmode = {"iothread": "bh", "timer": "timer"}.get(driver.get("txmode"))
    host = {key: driver.at("host").yes(name) for name, key in HOST.items()}
    guest = {key: driver.at("guest").yes(name) for name, key in GUEST.items()}
    several: dict[str, Value] = {"mq": True, "vectors": 2 * queues + 2} if queues > 1 else {}
    return {
        **virtio_options(interface),
        "tx": txmode,
        "ioeventfd": driver.yes("ioeventfd"),
        "event_idx": driver.yes("event_idx"),
        **host,
        **guest,
        **several,
        "rx_queue_size": driver.number("rx_queue_size"),
        "tx_queue_size": driver.number("tx_queue_size"),
        "rss": driver.yes("rss"),
        "hash": driver.yes("rss_hash_report"),
    }
