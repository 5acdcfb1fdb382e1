# SPDX-License-Identifier: GPL-2.0-or-later
"""What a configuration says of the host's side of devices, by kind and shape only: nothing here names a file or peer.

What becomes of it is a typed backend of :mod:`harness.devices.backends` that is empty, silent and reaches nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from harness.adopt.builtin import UNNAMED, drive_name
from harness.adopt.configuration import Configuration, SaidOption, Value
from harness.adopt.scalars import as_boolean, as_size, as_text, as_word
from harness.devices.backends import (
    Audiodev,
    Backend,
    Canbus,
    Chardev,
    Cryptodev,
    Disk,
    Fsdev,
    LoneTap,
    Memdev,
    Model,
    Netdev,
    Tpm,
)
from harness.guests.origin import VmPart

#: What a disk, a CD, a floppy and memory have where nobody said.
DISK_BYTES: Final = 1 << 30
CD_BYTES: Final = 16 << 20
FLOPPY_BYTES: Final = 1440 << 10
MEMORY_BYTES: Final = 128 << 20
_SECTOR: Final = 512
_MOST_DISK: Final = 1 << 50
_MOST_MEMORY: Final = 1 << 40
#: Ports whose guest is told whether somebody has the far end open.
_PORTS: Final = frozenset({"virtserialport", "virtconsole"})
#: Networks whose cards have headers for offloads (``has_vnet_hdr`` in ``net/``).
_TAPS: Final = frozenset({"tap", "bridge", "vhost-user", "vhost-vdpa", "netmap"})
_MOST_QUEUES: Final = 64
#: A chain of block nodes is no longer than this, and no circle.
_DEEPEST: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SaidBackend:
    """One backend.

    :param kind: the class that stands for it
    :param was: its kind and shape in words
    :param size_bytes: None where nobody said
    :param empty: a drive without a medium
    :param queues: of a tap; 0 where it has no headers for offloads
    """

    kind: type[Model]
    was: str
    size_bytes: int | None = None
    share: bool = False
    empty: bool = False
    queues: int = 1


#: By class: what of a VM it stands for.
PARTS: Mapping[type[Model], VmPart] = {
    Disk: VmPart.DISK,
    Netdev: VmPart.NETWORK,
    Chardev: VmPart.LINE,
    Audiodev: VmPart.SOUND,
    Memdev: VmPart.MEMDEV,
    Fsdev: VmPart.FILES,
    Cryptodev: VmPart.CIPHERS,
    Canbus: VmPart.CANBUS,
    Tpm: VmPart.TPM,
}
#: By option: the class, the key of its name, and the key of its kind.
_OPTIONS: Mapping[str, tuple[type[Model], str, str]] = {
    "netdev": (Netdev, "id", "type"),
    "chardev": (Chardev, "id", "backend"),
    "audiodev": (Audiodev, "id", "driver"),
    "fsdev": (Fsdev, "id", "fsdriver"),
    "tpmdev": (Tpm, "id", "type"),
}


def said_backends(configuration: Configuration) -> dict[tuple[type[Model], str], SaidBackend]:
    """All backends by class and name."""
    nodes = {as_text(option.values.get("node-name")): option for option in configuration.named("blockdev")}
    found = dict(_said(configuration))
    found |= {(Disk, name): _node(option.values, nodes) for name, option in nodes.items() if name}
    return found


def _said(configuration: Configuration) -> Iterator[tuple[tuple[type[Model], str], SaidBackend]]:
    for place, option in enumerate(configuration.options):
        values = option.values
        if option.name == "drive":
            yield (Disk, drive_name(option, place)), _drive(option)
        elif option.name in _OPTIONS:
            kind, key, type_key = _OPTIONS[option.name]
            was = as_word(values.get(type_key)) or as_word(values.get("type")) or "other"
            yield (kind, as_text(values.get(key))), SaidBackend(kind=kind, was=was, queues=_queues(was, values))
        elif option.name == "object":
            yield from _object(values)


def _queues(was: str, values: Mapping[str, Value]) -> int:
    """Queues of a network whose cards have the headers of a tap; 0 of any other."""
    if was not in _TAPS or as_boolean(values.get("vnet_hdr")) is False:
        return 0
    files = as_text(values.get("fds"))
    said = len(files.split(":")) if files else as_size(values.get("queues")) or 1
    return min(max(said, 1), _MOST_QUEUES)


def _object(values: Mapping[str, Value]) -> Iterator[tuple[tuple[type[Model], str], SaidBackend]]:
    was, name = as_word(values.get("qom-type")) or "other", as_text(values.get("id"))
    if was.startswith("memory-backend-"):
        size, share = as_size(values.get("size")), as_boolean(values.get("share")) is True
        yield (Memdev, name), SaidBackend(kind=Memdev, was=was, size_bytes=size, share=share)
    elif was.startswith("cryptodev-"):
        yield (Cryptodev, name), SaidBackend(kind=Cryptodev, was=was)
    elif was == "can-bus":
        yield (Canbus, name), SaidBackend(kind=Canbus, was=was)


def _drive(option: SaidOption) -> SaidBackend:
    values = option.values
    form = as_word(values.get("format")) or as_word(values.get("driver")) or "raw"
    file = values.get("file")
    empty = file in (None, "") and not any(key.startswith(("file", "driver")) for key in values)
    size = as_size(values.get("size"))
    return SaidBackend(kind=Disk, was=f"{form} on {_protocol(file)}", size_bytes=size, empty=empty)


def _protocol(file: Value) -> str:
    """What an image is reached by, of which a path or address is not kept."""
    if isinstance(file, Mapping):
        return as_word(file.get("driver")) or "other"
    text = as_text(file)
    head, colon, rest = text.partition(":")
    return head if colon and rest and head.isalnum() and 1 < len(head) < 16 else "file"


def _node(values: Mapping[str, Value], nodes: Mapping[str, SaidOption]) -> SaidBackend:
    """A block node and those below it."""
    drivers: list[str] = []
    size: int | None = None
    below: Mapping[str, Value] | None = values
    while below is not None and len(drivers) < _DEEPEST:
        drivers.append(as_word(below.get("driver")) or "other")
        size = size if size is not None else as_size(below.get("size"))
        file = below.get("file") or below.get("image")
        named = nodes.get(file) if isinstance(file, str) else None
        below = file if isinstance(file, Mapping) else named.values if named is not None else None
    return SaidBackend(kind=Disk, was=" on ".join(drivers)[:80], size_bytes=size)


def unsaid(kind: type[Model]) -> SaidBackend:
    """A backend of which nothing was said."""
    return SaidBackend(kind=kind, was="default", queues=0)


def is_unnamed(name: str) -> bool:
    """Whether a backend has no id in the configuration."""
    return name.startswith(UNNAMED)


def made(said: SaidBackend, device_type: str, *, state: bool = False) -> tuple[Backend, bool]:
    """What stands for a backend, and whether its size is a guess.

    :param device_type: that it is for
    :param state: it is for a saved state, which a card loads only behind what has the offloads that it was saved with
    """
    if said.kind is Disk:
        cd, floppy = device_type.endswith("-cd"), device_type == "floppy"
        usual = CD_BYTES if cd else FLOPPY_BYTES if floppy else DISK_BYTES
        size = usual if said.size_bytes is None else said.size_bytes // _SECTOR * _SECTOR
        guessed = said.size_bytes is None or not _SECTOR <= size <= _MOST_DISK
        return Disk(size_bytes=usual if guessed else size, medium="null" if cd else "file"), guessed
    if said.kind is Memdev:
        wanted = said.size_bytes or 0
        guessed = not 4096 <= wanted <= _MOST_MEMORY
        return Memdev(size_bytes=MEMORY_BYTES if guessed else wanted, share=said.share), guessed
    if said.kind is Netdev and state and said.queues and device_type.startswith("virtio-net"):
        return LoneTap(queues=said.queues), False
    if said.kind is Chardev and device_type in _PORTS:
        return Chardev(type="ringbuf"), False
    backend: Backend = _FIXED[said.kind]
    return backend, False


_FIXED: Mapping[type[Model], Backend] = {
    Netdev: Netdev(),
    Chardev: Chardev(),
    Audiodev: Audiodev(),
    Fsdev: Fsdev(),
    Cryptodev: Cryptodev(),
    Canbus: Canbus(),
    Tpm: Tpm(),
}

#: What each is called when it stands for something, beside its class.
STANDS: Mapping[type[Model], str] = {
    Disk: "scratch disk",
    Netdev: "user",
    LoneTap: "lone tap",
    Chardev: "null",
    Audiodev: "none",
    Memdev: "memory-backend-ram",
    Fsdev: "synth",
    Cryptodev: "cryptodev-backend-builtin",
    Canbus: "can-bus",
    Tpm: "swtpm",
}
