# SPDX-License-Identifier: GPL-2.0-or-later
"""Character devices: backends, and serial, parallel, console, channel, redirdev and smartcard devices."""

from __future__ import annotations

from collections.abc import Iterator

from harness.adopt.configuration import SaidOption, Value
from harness.adopt.libvirt.model import Domain, alias, device, said, switch
from harness.adopt.libvirt.tree import Element

#: Types of libvirt's, as QEMU calls them: see qemuBuildChardevCommand.
BACKENDS = {"unix": "socket", "tcp": "socket", "dev": "serial", "spicevmc": "spicevmc", "dbus": "dbus"}
#: Types of a <serial>'s <target>, or models, that are devices.
SERIALS = {
    "isa-serial": "isa-serial",
    "isa-debugcon": "isa-debugcon",
    "isa-debug": "isa-debugcon",
    "usb-serial": "usb-serial",
    "pci-serial": "pci-serial",
}
#: What they emulate is the machine's: such a serial is -serial.
BUILT_IN = ("pl011", "16550a", "system-serial")


def options(domain: Domain) -> Iterator[SaidOption]:
    """All of them. A console that is a serial device is no device of its own."""
    for serial in domain.devices("serial"):
        yield from _serial(domain, serial)
    for parallel in domain.devices("parallel"):
        yield backend(parallel, f"char{alias(parallel)}", parallel)
        yield device(domain, parallel, "isa-parallel", {"chardev": f"char{alias(parallel)}"})
    for channel in domain.devices("channel"):
        yield from _channel(domain, channel)
    for console in domain.devices("console"):
        yield from _console(domain, console)
    for redirection in domain.devices("redirdev"):
        yield from _redirection(domain, redirection)
    for smartcard in domain.devices("smartcard"):
        yield from _smartcard(domain, smartcard)


def backend(element: Element, id_: str, said_by: Element, name: str = "") -> SaidOption:
    """The -chardev of an element with ``type`` and <source>.

    :param name: of a channel of SPICE, in the place of its own
    """
    type_ = element.get("type", "pty")
    values: dict[str, Value] = {"backend": BACKENDS.get(type_, type_), "id": id_, **_ends(element, type_)}
    values["name"] = name or element.at("source").get("channel") or None
    log = element.at("log")
    values |= {"logfile": log.get("file") or None, "logappend": log.get("append") or None}
    return said("chardev", said_by, values)


def _ends(element: Element, type_: str) -> dict[str, Value]:
    source = element.at("source")
    if type_ in ("unix", "tcp"):
        return _socket(element, source)
    if type_ == "udp":
        return _udp(element.all("source"))
    if type_ == "qemu-vdagent":
        mouse = {"client": "on", "server": "off"}.get(source.at("mouse").get("mode"))
        return {"clipboard": source.at("clipboard").get("copypaste") and "on", "mouse": mouse}
    path = source.get("path") or (element.get("path") if type_ == "pty" else "")
    return {"path": path if type_ != "pty" and path else None, "append": switch(source.yes("append"))}


def _socket(element: Element, source: Element) -> dict[str, Value]:
    server = source.get("mode", "connect" if element.tag == "redirdev" else "bind") == "bind"
    listening: dict[str, Value] = {"server": "on", "wait": "off"} if server else {}
    telnet = "on" if element.at("protocol").get("type") == "telnet" else None
    place: dict[str, Value] = {"host": source.get("host"), "port": source.get("service"), "telnet": telnet}
    return {**({"path": source.get("path")} if element.get("type") == "unix" else place), **listening}


def _udp(sources: list[Element]) -> dict[str, Value]:
    """One <source> is where it listens, the other where it sends to."""
    ends: dict[str, Value] = {}
    for source in sources:
        keys = ("localaddr", "localport") if source.get("mode") == "bind" else ("host", "port")
        ends |= dict(zip(keys, (source.get("host"), source.get("service")), strict=True))
    return ends


def _serial(domain: Domain, serial: Element) -> Iterator[SaidOption]:
    id_, target = f"char{alias(serial)}", serial.at("target")
    yield backend(serial, id_, serial)
    type_, model = target.get("type"), target.at("model").get("name")
    if model in BUILT_IN or (not domain.x86 and type_ in ("", "system-serial")):
        yield said("serial", serial, {"chardev": id_})
        return
    driver = SERIALS.get(model) or SERIALS.get(type_) or "isa-serial"
    index = target.number("port") if driver == "isa-serial" else None
    yield device(domain, serial, driver, {"chardev": id_, "index": index})


def _channel(domain: Domain, channel: Element) -> Iterator[SaidOption]:
    id_, target = f"char{alias(channel)}", channel.at("target")
    spice = "vdagent" if channel.get("type") in ("spicevmc", "qemu-vdagent") else ""
    yield backend(channel, id_, channel, spice)
    if target.get("type") == "guestfwd":
        forward = f"tcp:{target.get('address')}:{target.get('port')}-chardev:{id_}"
        values: dict[str, Value] = {"type": "user", "guestfwd": [{"str": forward}], "id": alias(channel)}
        yield said("netdev", channel, values)
        return
    usual = "com.redhat.spice.0" if spice else None
    values = {"chardev": id_, "name": target.get("name") or usual}
    yield device(domain, channel, "virtserialport", values)


def _console(domain: Domain, console: Element) -> Iterator[SaidOption]:
    console.get("type"), console.get("tty")
    if console.at("target").get("type") != "virtio":
        return
    yield backend(console, f"char{alias(console)}", console)
    yield device(domain, console, "virtconsole", {"chardev": f"char{alias(console)}"})


def _redirection(domain: Domain, redirection: Element) -> Iterator[SaidOption]:
    id_ = f"char{alias(redirection)}"
    yield backend(redirection, id_, redirection, "usbredir" if redirection.get("type") == "spicevmc" else "")
    yield device(domain, redirection, "usb-redir", {"chardev": id_, "filter": _filter(domain)})


def _filter(domain: Domain) -> str | None:
    """Which USB devices may be redirected, as usbredir spells that."""
    rules = [rule for filter_ in domain.devices("redirfilter") for rule in filter_.all("usbdev")]
    return "|".join(_filter_rule(rule) for rule in rules) or None


def _filter_rule(rule: Element) -> str:
    class_, vendor, product = (rule.number(name) for name in ("class", "vendor", "product"))
    parts = [
        "-1" if class_ is None or class_ < 0 else f"0x{class_:02X}",
        *("-1" if number is None or number < 0 else f"0x{number:04X}" for number in (vendor, product)),
        _usb_version(rule),
        "1" if rule.yes("allow") else "0",
    ]
    return ":".join(parts)


def _usb_version(rule: Element) -> str:
    major, _, minor = rule.get("version").partition(".")
    return f"0x{int(major):02d}{minor[:2].ljust(2, '0')}" if major.isdecimal() and minor.isdecimal() else "-1"


def _smartcard(domain: Domain, smartcard: Element) -> Iterator[SaidOption]:
    mode = smartcard.get("mode")
    if mode == "passthrough":
        id_ = f"char{alias(smartcard)}"
        yield backend(smartcard, id_, smartcard, "smartcard" if smartcard.get("type") == "spicevmc" else "")
        yield device(domain, smartcard, "ccid-card-passthru", {"chardev": id_})
        return
    certificates = {f"cert{n}": one.words() for n, one in enumerate(smartcard.all("certificate"), start=1)}
    kind = "certificates" if mode == "host-certificates" else "nss-emulated"
    usual = "/etc/pki/nssdb" if mode == "host-certificates" else None
    database = smartcard.at("database").words() or usual
    yield device(domain, smartcard, "ccid-card-emulated", {"backend": kind, **certificates, "db": database})
