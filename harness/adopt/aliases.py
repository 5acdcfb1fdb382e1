# SPDX-License-Identifier: GPL-2.0-or-later
"""Short and old options as the ones that they stand for (``system/vl.c: qemu_init``).

What stays as it is: options of which only the machine knows what they come to (``vga``, ``serial``, ``parallel``,
``nographic``, ``nodefaults``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from harness.adopt.configuration import SaidOption, Value
from harness.adopt.nics import EARLY, LATE, with_nics
from harness.adopt.place import TextPlace, quoted
from harness.adopt.values import read_options

Said = tuple[str, dict[str, Value]]
Expansion = Callable[[Mapping[str, Value], TextPlace], Iterator[Said]]


def expanded(options: Sequence[SaidOption], source: str) -> list[SaidOption]:
    """Options with short forms written out; what stands for several comes in QEMU's order.

    :raises UsageError: an argument that QEMU does not take
    """
    written: list[SaidOption] = []
    for option in options:
        expand = _EXPANSIONS.get(option.name)
        if expand is None:
            written.append(option)
            continue
        said = expand(option.values, TextPlace(source, option.line))
        written += [SaidOption(name=name, values=values, line=option.line) for name, values in said]
    return with_nics(written)


def _fixed(name: str, **values: Value) -> Expansion:
    """An option that stands for one with values of its own."""

    def expand(said: Mapping[str, Value], place: TextPlace) -> Iterator[Said]:
        yield name, {key.replace("_", "-"): value for key, value in values.items()}

    return expand


def _valued(name: str, key: str) -> Expansion:
    """An option whose argument is a value of another one."""

    def expand(said: Mapping[str, Value], place: TextPlace) -> Iterator[Said]:
        yield name, {key: said["value"]}

    return expand


def _drive(interface: str = "", index: int | None = None, media: str = "") -> Expansion:
    def expand(said: Mapping[str, Value], place: TextPlace) -> Iterator[Said]:
        values: dict[str, Value] = {"file": said["value"]}
        more = (("if", interface), ("index", "" if index is None else str(index)), ("media", media))
        yield "drive", values | {key: value for key, value in more if value}

    return expand


def _display(said: Mapping[str, Value], place: TextPlace) -> Iterator[Said]:
    """``-display vnc=:1`` is ``-vnc``."""
    if "vnc" in said and "type" not in said:
        yield "vnc", dict(said)
    else:
        yield "display", dict(said)


def _virtfs(said: Mapping[str, Value], place: TextPlace) -> Iterator[Said]:
    tag = said.get("mount_tag")
    if not tag or not said.get("fsdriver"):
        raise place.error("expected -virtfs FSDRIVER,path=...,mount_tag=...")
    name = said.get("id") or tag
    yield "fsdev", {key: value for key, value in said.items() if key != "mount_tag"} | {"id": name}
    yield "device", {"driver": "virtio-9p-pci", "fsdev": name, "mount_tag": tag}


def _debugcon(said: Mapping[str, Value], place: TextPlace) -> Iterator[Said]:
    name = said.get("chardev", "debugcon")
    if "chardev" not in said:
        yield "chardev", dict(said) | {"id": name}
    yield "device", {"driver": "isa-debugcon", "chardev": name}


_USB_DEVICES = {
    "audio": "usb-audio",
    "braille": "usb-braille",
    "ccid": "usb-ccid",
    "keyboard": "usb-kbd",
    "mouse": "usb-mouse",
    "tablet": "usb-tablet",
    "wacom-tablet": "usb-wacom-tablet",
    "disk": "usb-storage",
    "host": "usb-host",
    "net": "usb-net",
    "serial": "usb-serial",
    "bt": "usb-bt-dongle",
}


def _usb_device(said: Mapping[str, Value], place: TextPlace) -> Iterator[Said]:
    kind, _, argument = str(said["value"]).partition(":")
    if kind not in _USB_DEVICES:
        raise place.error(f"expected a USB device such as tablet, found {quoted(kind)}")
    yield "machine", {"usb": "on"}
    device: dict[str, Value] = {"driver": _USB_DEVICES[kind]}
    if kind == "disk":
        device["drive"] = f"usbdisk-{place.line}"
        yield "drive", {"if": "none", "id": device["drive"], "file": argument}
    elif kind == "host":
        device["host"] = argument
    yield EARLY, device


_SOUND_CARDS: Mapping[str, tuple[str, ...]] = {
    "ac97": ("AC97",),
    "adlib": ("adlib",),
    "cs4231a": ("cs4231a",),
    "es1370": ("ES1370",),
    "gus": ("gus",),
    "hda": ("intel-hda", "hda-duplex"),
    "pcspk": (),
    "sb16": ("sb16",),
    "usb": ("usb-audio",),
    "virtio": ("virtio-sound-pci",),
}
#: What `-soundhw all` makes, in QEMU's order.
_ALL_CARDS = "hda,es1370,ac97,gus,cs4231a,adlib,sb16"


def _sound(said: Mapping[str, Value], place: TextPlace) -> Iterator[Said]:
    names = str(said["value"])
    for name in (_ALL_CARDS if names == "all" else names).split(","):
        yield from _card(name, None, place)


def _card(name: str, audiodev: Value, place: TextPlace) -> Iterator[Said]:
    if name not in _SOUND_CARDS:
        raise place.error(f"expected a sound card, one of {', '.join(_SOUND_CARDS)}; found {quoted(name)}")
    for driver in _SOUND_CARDS[name]:
        takes = driver != "intel-hda" and audiodev is not None
        yield EARLY, {"driver": driver} | ({"audiodev": audiodev} if takes else {})


def _audio(said: Mapping[str, Value], place: TextPlace) -> Iterator[Said]:
    values = {"id": "audiodev0"} | dict(said)
    model = values.pop("model", None)
    if "driver" in values:
        yield "audiodev", values
    if model is not None:
        yield from _card(str(model), values["id"] if "driver" in values else None, place)


def _balloon(said: Mapping[str, Value], place: TextPlace) -> Iterator[Said]:
    kind, _, more = str(said["value"]).partition(",")
    if kind == "virtio":
        yield "device", {"driver": "virtio-balloon-pci"} | read_options(more, place)
    elif kind != "none":
        raise place.error(f"expected virtio or none, found {quoted(kind)}")


def _gdb(said: Mapping[str, Value], place: TextPlace) -> Iterator[Said]:
    yield "gdb", {"backend": "socket", "host": "", "port": "1234"}


def _redirected(said: Mapping[str, Value], place: TextPlace) -> Iterator[Said]:
    """``-redir tcp:2222::22``, ``-tftp``, ``-smb``: they open something of the host, and nothing of the guest."""
    yield from ()


_EXPANSIONS: Mapping[str, Expansion] = {
    "hda": _drive(index=0, media="disk"),
    "hdb": _drive(index=1, media="disk"),
    "hdc": _drive(index=2, media="disk"),
    "hdd": _drive(index=3, media="disk"),
    "cdrom": _drive(index=2, media="cdrom"),
    "fda": _drive("floppy", index=0),
    "fdb": _drive("floppy", index=1),
    "sd": _drive("sd"),
    "pflash": _drive("pflash"),
    "mtdblock": _drive("mtd"),
    "enable-kvm": _fixed("machine", accel="kvm"),
    "no-kvm": _fixed("machine", accel="tcg"),
    "no-kvm-irqchip": _fixed("machine", kernel_irqchip="off"),
    "no-acpi": _fixed("machine", acpi="off"),
    "no-hpet": _fixed("machine", hpet="off"),
    "no-fd-bootchk": _fixed("machine", fd_bootchk="off"),
    "usb": _fixed("machine", usb="on"),
    "std-vga": _fixed("vga", value="std"),
    "localtime": _fixed("rtc", base="localtime"),
    "startdate": _valued("rtc", "base"),
    "rtc-td-hack": _fixed("rtc", driftfix="slew"),
    "tdf": _fixed("rtc", driftfix="slew"),
    "win2k-hack": _fixed("global", driver="ide-device", property="win2k-install-hack", value="true"),
    "sdl": _fixed("display", type="sdl"),
    "curses": _fixed("display", type="curses"),
    "watchdog": _valued(LATE, "driver"),
    "display": _display,
    "virtfs": _virtfs,
    "debugcon": _debugcon,
    "usbdevice": _usb_device,
    "soundhw": _sound,
    "audio": _audio,
    "balloon": _balloon,
    "s": _gdb,
    "redir": _redirected,
    "tftp": _redirected,
    "bootp": _redirected,
    "smb": _redirected,
}
