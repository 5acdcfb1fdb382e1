# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person sees, hears and touches: graphics, video, sound, audio and input."""

from __future__ import annotations

from collections.abc import Iterator

from harness.adopt.configuration import SaidOption, Value
from harness.adopt.libvirt.model import Domain, alias, audio_id, device, said, screens, virtio, virtio_options
from harness.adopt.libvirt.tree import Element

#: Models of <video>: as the first, with VGA, and as another; see qemuBuildVideoDevStr. None: virtio.
VIDEO = {
    "vga": ("VGA", "VGA"),
    "cirrus": ("cirrus-vga", "cirrus-vga"),
    "vmvga": ("vmware-svga", "vmware-svga"),
    "qxl": ("qxl-vga", "qxl"),
    "virtio": ("virtio-vga", "virtio-gpu"),
    "bochs": ("bochs-display", "bochs-display"),
    "ramfb": ("ramfb", "ramfb"),
}
SOUND = {
    "ich6": "intel-hda",
    "ich9": "ich9-intel-hda",
    "ac97": "AC97",
    "es1370": "ES1370",
    "sb16": "sb16",
    "usb": "usb-audio",
    "virtio": "virtio-sound",
}
CODECS = {"duplex": "hda-duplex", "micro": "hda-micro", "output": "hda-output"}
USB_INPUT = {"mouse": "usb-mouse", "tablet": "usb-tablet", "keyboard": "usb-kbd"}
VIRTIO_INPUT = {
    "mouse": "virtio-mouse",
    "tablet": "virtio-tablet",
    "keyboard": "virtio-keyboard",
    "passthrough": "virtio-input-host",
}
#: Beneath qxl's figures, libvirt's own where nobody said: KiB.
QXL = {"ram": 65536, "vram": 65536, "vgamem": 16384}


def options(domain: Domain) -> Iterator[SaidOption]:
    """All of them. Graphics is where a picture goes on the host, and shows the guest nothing."""
    for graphics in domain.devices("graphics"):
        yield from _graphics(graphics)
    if not domain.devices("graphics"):
        yield said("display", domain.root, {"type": "none"})
    for audio in domain.devices("audio"):
        values = {"id": f"audio{audio.get('id', '1')}", "driver": AUDIO.get(audio.get("type"), audio.get("type"))}
        yield said("audiodev", audio, values)
    for number, video in enumerate(screens(domain)):
        yield from _video(domain, video, first=number == 0)
    for sound in domain.devices("sound"):
        yield from _sound(domain, sound)
    for input_ in domain.devices("input"):
        yield from _input(domain, input_)


#: Types of <audio> that QEMU spells otherwise.
AUDIO = {"pulseaudio": "pa", "file": "wav"}


def _graphics(graphics: Element) -> Iterator[SaidOption]:
    type_ = graphics.get("type")
    if type_ in ("vnc", "spice"):
        yield said(type_, graphics, {})
    else:
        values = {"type": {"desktop": "sdl", "rdp": "dbus"}.get(type_, type_)}
        yield said("display", graphics, {**values, "rendernode": graphics.at("gl").get("rendernode") or None})


def _video(domain: Domain, video: Element, *, first: bool) -> Iterator[SaidOption]:
    model = video.at("model")
    if (type_ := model.get("type")) == "none":
        return
    if type_ not in VIDEO:
        video.pass_over()
        return
    driver = _video_driver(domain, video, model, VIDEO[type_][0 if first and domain.x86 else 1])
    values = {**_video_values(model, type_), **virtio_options(video)}
    if driver.startswith("vhost-user"):
        values["chardev"] = f"chr-vu-{alias(video)}"
        yield said("chardev", video, {"backend": "socket", "id": values["chardev"]})
    yield device(domain, video, driver, values)


def _video_driver(domain: Domain, video: Element, model: Element, driver: str) -> str:
    accelerated = model.at("acceleration").yes("accel3d")
    vhost = video.at("driver").get("name") == "vhostuser"
    if driver == "virtio-vga":
        return "vhost-user-vga" if vhost else "virtio-vga-gl" if accelerated else driver
    if driver == "virtio-gpu":
        base = "vhost-user-gpu" if vhost else "virtio-gpu-gl" if accelerated else driver
        return virtio(domain, video, base)
    return driver


def _video_values(model: Element, type_: str) -> dict[str, Value]:
    heads, memory = model.number("heads"), {name: model.number(name) for name in ("ram", "vram", "vram64", "vgamem")}
    size = {"xres": model.at("resolution").number("x"), "yres": model.at("resolution").number("y")}
    if type_ == "qxl":
        ram, vram, vgamem = (memory[name] or usual for name, usual in QXL.items())
        sizes = {"ram_size": ram << 10, "vram_size": vram << 10, "vgamem_mb": vgamem >> 10}
        return {"max_outputs": heads or 1, **sizes, "vram64_size_mb": (memory["vram64"] or 0) >> 10, **size}
    if type_ == "virtio":
        return {"max_outputs": heads or 1, **size, "blob": model.yes("blob")}
    if type_ == "bochs":
        return {"vgamem": (memory["vram"] or 16384) << 10, **size}
    if type_ in ("vga", "vmvga"):
        return {"vgamem_mb": (memory["vram"] or 16384) >> 10, **size}
    return {}


def _sound(domain: Domain, sound: Element) -> Iterator[SaidOption]:
    if (model := sound.get("model")) == "pcspk":
        return  # a property of the machine
    if model not in SOUND:
        sound.pass_over()
        return
    if model not in ("ich6", "ich9"):
        more = {"streams": sound.number("streams") or 2, **virtio_options(sound)} if model == "virtio" else {}
        driver = virtio(domain, sound, SOUND[model]) if model == "virtio" else SOUND[model]
        several = sound.yes("multichannel") if model == "usb" else None
        yield device(domain, sound, driver, {"audiodev": audio_id(sound), "multi": several, **more})
        return
    yield device(domain, sound, SOUND[model], {})
    kinds = [codec.get("type") for codec in sound.all("codec")] or ["duplex"]
    for number, kind in enumerate(kinds):
        values = {"driver": CODECS.get(kind, kind), "id": f"{alias(sound)}-codec{number}"}
        place: dict[str, Value] = {"bus": f"{alias(sound)}.0", "cad": number, "audiodev": audio_id(sound)}
        yield said("device", sound, {**values, **place})


def _input(domain: Domain, input_: Element) -> Iterator[SaidOption]:
    """PS/2 devices are the machine's own."""
    type_, bus, source = input_.get("type"), input_.get("bus"), input_.at("source")
    if type_ == "evdev":
        grab = True if source.get("grab") == "all" else None
        values = {"id": alias(input_), "evdev": source.get("dev"), "repeat": source.yes("repeat"), "grab_all": grab}
        yield said("object", input_, {"qom-type": "input-linux", **values})
    elif bus == "usb" and type_ in USB_INPUT:
        yield device(domain, input_, USB_INPUT[type_], {})
    elif bus == "virtio" and type_ in VIRTIO_INPUT:
        evdev: dict[str, Value] = {"evdev": source.get("evdev") or None}
        driver = virtio(domain, input_, VIRTIO_INPUT[type_])
        yield device(domain, input_, driver, {**evdev, **virtio_options(input_)})
    elif bus != "ps2":
        input_.pass_over()
