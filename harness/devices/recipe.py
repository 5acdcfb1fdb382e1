# SPDX-License-Identifier: GPL-2.0-or-later
"""Recipes: one YAML file for each device (``docs/devices.md`` shows how to write one).

A recipe that is wrong costs itself and no other one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StringConstraints, model_validator

from harness.devices.backends import (
    Audiodev,
    Backend,
    Canbus,
    Chardev,
    Cryptodev,
    Disk,
    Fsdev,
    Ivshmem,
    Memdev,
    Model,
    Netdev,
    Tpm,
    VhostDisk,
)
from harness.devices.device import VARIANT, Attachment, BuiltIn, Device, GuestCommands, KernelName, KernelParameter
from harness.devices.saved import Registers, Rule
from harness.errors import ConfigError, UsageError
from harness.files import data_dir
from harness.stream.vmdesc import CODECS
from harness.yamlfile import load_model

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
#: Where an attachment can be, beside a bus of another one.
PLACES = ("pci", "pcie-port", "none")

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(\+[A-Za-z0-9_.-]+)?$", max_length=48)]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
#: A property, as QEMU names it: ``x-foo``, ``lan.ipaddr``.
Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$")]
Type = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._,-]*$")]
Size = Annotated[str, StringConstraints(pattern=r"^[0-9]+[KMG]?$")]


class AttachmentModel(Model):
    type: Type
    name: Word = "dev"
    on: str = "pci"
    properties: dict[Key, bool | int | str] = Field(default_factory=dict)
    backends: dict[Key, Word] = Field(default_factory=dict)
    references: dict[Key, Word] = Field(default_factory=dict)


class DiskModel(Model):
    """``pattern`` is what the guest calls the disk that ``bind`` writes the pattern to."""

    kind: Literal["disk"]
    size: Size
    medium: Literal["file", "null"] = "file"
    sector_bytes: Literal[512, 4096] = 512
    pattern: Word | None = None
    fails_at: Annotated[int, Field(ge=0)] | None = None


class MemdevModel(Model):
    """Memory, its size as people write it."""

    kind: Literal["memdev"]
    size: Size
    share: bool = False


class VhostDiskModel(Model):
    """A disk behind vhost-user, its size as people write it."""

    kind: Literal["vhost-disk"]
    size: Size


class IvshmemModel(Model):
    """Memory from an ivshmem server, its size as people write it."""

    kind: Literal["ivshmem"]
    size: Size


class _BuiltIn(Model):
    bus: str
    address: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")]
    without: dict[Word, bool | int] = Field(default_factory=dict)


#: A backend as YAML has it.
BackendModel = Annotated[
    DiskModel
    | MemdevModel
    | Netdev
    | Chardev
    | Audiodev
    | Fsdev
    | Cryptodev
    | Canbus
    | Tpm
    | VhostDiskModel
    | IvshmemModel,
    Field(discriminator="kind"),
]


class _Recipe(Model):
    name: Name
    about: str
    type: Type | None = None
    rest: bool = False
    default: bool = True
    attach: tuple[AttachmentModel, ...] = ()
    backends: dict[Word, BackendModel] = Field(default_factory=dict)
    machine: dict[Word, bool | int] = Field(default_factory=dict)
    memory_room: Size | None = Field(default=None, alias="memory-room")
    cmdline: tuple[KernelParameter, ...] = ()
    reports_errors: bool = Field(default=False, alias="reports-errors")
    within: Word | None = None
    built_in: dict[str, dict[Word, _BuiltIn]] = Field(default_factory=dict, alias="built-in")
    drivers: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    kernel_names: tuple[KernelName, ...] = ()
    decoder: str = ""
    drift: tuple[Rule, ...] = ()
    registers: tuple[Registers, ...] = ()
    guest: GuestCommands = GuestCommands()

    @model_validator(mode="after")
    def _fits_together(self) -> _Recipe:
        for complaint in _complaints(self):
            raise ValueError(complaint)
        return self


def _complaints(recipe: _Recipe) -> Iterator[str]:
    if not recipe.rest and not recipe.attach:
        yield "expected 'attach', what is added to the machine"
    names = [attachment.name for attachment in recipe.attach]
    for name in names:
        if names.count(name) > 1:
            yield f"attach: {name!r} is there twice: give each a 'name' of its own"
    for number, attachment in enumerate(recipe.attach):
        above = re.split("[.:]", attachment.on)[0]
        if attachment.on not in PLACES and above not in names[:number]:
            places = ", ".join(PLACES)
            yield f"attach: {attachment.name} is on {attachment.on!r}: expected {places}, or a bus of one before it"
        elif ":" in attachment.on and not _is_function(recipe, attachment.on):
            yield (
                f"attach: {attachment.name} is on {attachment.on!r}: expected a function from 1 to 7 of an attachment "
                "that is on pci or pcie-port and in no machine already"
            )
        for backend in attachment.backends.values():
            if backend not in recipe.backends:
                yield f"attach: {attachment.name} stands on backend {backend!r}, which is not described"
        for other in attachment.references.values():
            if other not in names[:number]:
                yield f"attach: {attachment.name} names {other!r}: expected the name of an attachment before it"
    if recipe.within is not None and recipe.within not in names:
        yield f"within: {recipe.within!r}: expected the name of an attachment"
    if recipe.type is not None and recipe.type not in [attachment.type for attachment in recipe.attach]:
        yield f"type: {recipe.type!r}: expected the type of an attachment"
    if VARIANT in recipe.name and recipe.type is None:
        yield f"name: {recipe.name!r} is a variant: expected 'type', which it is a variant of"
    for family, built in recipe.built_in.items():
        for name in set(built) - set(names):
            yield f"built-in: {family}: {name!r} is not the name of an attachment"
    if recipe.decoder and recipe.decoder not in CODECS:
        yield f"decoder: {recipe.decoder!r}: expected one of {', '.join(CODECS)}"


def _is_function(recipe: _Recipe, on: str) -> bool:
    """Whether ``NAME:FUNCTION`` is a place."""
    name, _, function = on.partition(":")
    in_slot = {attachment.name for attachment in recipe.attach if attachment.on in ("pci", "pcie-port")}
    return function in tuple("1234567") and name in in_slot - {n for built in recipe.built_in.values() for n in built}


def size_bytes(text: str) -> int:
    """``64M`` as bytes."""
    match = re.fullmatch(r"([0-9]+)([KMG]?)", text)
    if match is None:
        raise UsageError(f"{text!r} is not a size: expected a number with K, M or G behind it")
    return int(match[1]) * _UNITS[match[2]]


def load_recipe(path: Path) -> Device:
    """The device of one file.

    :raises ConfigError: the file is wrong, with line and column
    """
    return _device(load_model(path, _Recipe))


def _device(recipe: _Recipe) -> Device:
    disks = {name: backend for name, backend in recipe.backends.items() if isinstance(backend, DiskModel)}
    return Device(
        name=recipe.name,
        about=recipe.about,
        type=recipe.type or "",
        rest=recipe.rest,
        default=recipe.default,
        attachments=tuple(
            Attachment(
                name=a.name,
                type=a.type,
                on=a.on,
                properties=a.properties,
                backends=a.backends,
                references=a.references,
            )
            for a in recipe.attach
        ),
        backends={name: backend_of(backend) for name, backend in recipe.backends.items()},
        machine=recipe.machine,
        within=recipe.within or "",
        memory_room_mib=size_bytes(recipe.memory_room or "0") >> 20,
        cmdline=recipe.cmdline,
        built_in={
            family: {name: BuiltIn(bus=b.bus, address=b.address, without=b.without) for name, b in parts.items()}
            for family, parts in recipe.built_in.items()
        },
        patterns={name: disk.pattern for name, disk in disks.items() if disk.pattern is not None},
        faults={name: disk.fails_at for name, disk in disks.items() if disk.fails_at is not None},
        reports_errors=recipe.reports_errors,
        drivers=recipe.drivers,
        takes=frozenset(recipe.takes),
        kernel_names=recipe.kernel_names,
        decoder=recipe.decoder,
        drift=recipe.drift,
        registers=recipe.registers,
        guest=recipe.guest,
    )


def backend_of(model: BackendModel) -> Backend:
    """What YAML says of a backend, with its size in bytes."""
    if isinstance(model, MemdevModel):
        return Memdev(size_bytes=size_bytes(model.size), share=model.share)
    if isinstance(model, VhostDiskModel):
        return VhostDisk(size_bytes=size_bytes(model.size))
    if isinstance(model, IvshmemModel):
        return Ivshmem(size_bytes=size_bytes(model.size))
    if isinstance(model, DiskModel):
        return Disk(size_bytes=size_bytes(model.size), medium=model.medium, sector_bytes=model.sector_bytes)
    return model


def recipe_text(device: Device) -> str:
    """A recipe that :func:`load_recipe` makes the same device of."""
    parts = {
        "name": device.name,
        "about": device.about,
        "type": device.type,
        "rest": device.rest,
        "default": None if device.default else False,
        "attach": [_without_defaults(asdict(each), AttachmentModel) for each in device.attachments],
        "backends": {name: _backend_text(device, name) for name in device.backends},
        "machine": dict(device.machine),
        "memory-room": f"{device.memory_room_mib}M" if device.memory_room_mib else "",
        "cmdline": list(device.cmdline),
        "built-in": {
            family: {name: asdict(built) for name, built in parts.items()} for family, parts in device.built_in.items()
        },
        "within": device.within,
        "reports-errors": device.reports_errors,
        "drivers": list(device.drivers),
        "takes": sorted(device.takes),
        "kernel_names": list(device.kernel_names),
        "decoder": device.decoder,
        "drift": [rule.model_dump(mode="json", exclude_defaults=True) for rule in device.drift],
        "registers": [each.model_dump(mode="json", exclude_defaults=True) for each in device.registers],
        "guest": device.guest.model_dump(exclude_defaults=True),
    }
    kept = {key: value for key, value in parts.items() if value not in (None, False, "", [], {}) or key == "default"}
    kept = {key: value for key, value in kept.items() if value is not None}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def _without_defaults(found: dict[str, Any], model: type[Model]) -> dict[str, Any]:
    fields = {name: field.get_default(call_default_factory=True) for name, field in model.model_fields.items()}
    return {key: value for key, value in found.items() if value != fields[key]}


def _backend_text(device: Device, name: str) -> dict[str, Any]:
    backend = device.backends[name]
    found = {"kind": backend.kind} | backend.model_dump(exclude_defaults=True)
    if isinstance(backend, Disk | Memdev | VhostDisk | Ivshmem):
        found["size"] = size_text(found.pop("size_bytes"))
    if name in device.patterns:
        found["pattern"] = device.patterns[name]
    if name in device.faults:
        found["fails_at"] = device.faults[name]
    return found


def size_text(size: int) -> str:
    """Bytes as ``64M``, in the largest unit that fits."""
    unit = max((bytes_, name) for name, bytes_ in _UNITS.items() if size % bytes_ == 0)
    return f"{size // unit[0]}{unit[1]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipes:
    """A folder of recipes.

    :param devices: by name, in the order in which a matrix shows them: the platform last
    :param broken: by the name of the file without ``.yaml``: what is wrong with it
    """

    devices: Mapping[str, Device]
    broken: Mapping[str, ConfigError] = field(default_factory=dict)


def load_recipes(folder: Path | None = None) -> Recipes:
    """Every recipe of a folder, of the installed one by default.

    :raises UsageError: there is none
    """
    folder = folder or data_dir("devices")
    devices: dict[str, Device] = {}
    broken: dict[str, ConfigError] = {}
    for path in sorted(folder.glob("*.yaml")):
        try:
            device = load_recipe(path)
            if device.name in devices:
                raise ConfigError(path, 1, 1, f"a second recipe is named {device.name!r}")
            devices[device.name] = device
        except ConfigError as error:
            broken[path.stem] = error
    if not devices and not broken:
        raise UsageError(f"no device recipes in {folder}: expected files NAME.yaml")
    return Recipes(devices=dict(sorted(devices.items(), key=lambda item: item[1].rest)), broken=broken)
