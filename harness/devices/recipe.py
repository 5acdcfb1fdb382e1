# SPDX-License-Identifier: GPL-2.0-or-later
"""Recipes: one YAML file for each device (``docs/devices.md`` shows how to write one).

A recipe that is wrong costs itself and no other one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from harness.devices.backends import Backend, Chardev, Disk, Model, Netdev
from harness.devices.device import Attachment, BuiltIn, Device, GuestCommands, KernelName
from harness.devices.saved import Registers, Rule
from harness.errors import ConfigError, UsageError
from harness.files import data_dir
from harness.stream.vmdesc import CODECS
from harness.yamlfile import load_model

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
#: Where an attachment can be, beside a bus of another one.
PLACES = ("pci", "pcie-port", "none")

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
Type = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._,-]*$")]
Size = Annotated[str, StringConstraints(pattern=r"^[0-9]+[KMG]?$")]


class _Attachment(Model):
    type: Type
    name: Word = "dev"
    on: str = "pci"
    properties: dict[Word, bool | int | str] = Field(default_factory=dict)
    backends: dict[Word, Word] = Field(default_factory=dict)


class _Disk(Model):
    """``pattern`` is what the guest calls the disk that ``bind`` writes the pattern to."""

    kind: Literal["disk"]
    size: Size
    medium: Literal["file", "null"] = "file"
    sector_bytes: Literal[512, 4096] = 512
    pattern: Word | None = None
    fails_at: Annotated[int, Field(ge=0)] | None = None


class _BuiltIn(Model):
    bus: str
    address: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$")]
    without: dict[Word, bool | int] = Field(default_factory=dict)


_Backend = Annotated[_Disk | Netdev | Chardev, Field(discriminator="kind")]


class _Recipe(Model):
    name: Name
    about: str
    rest: bool = False
    default: bool = True
    attach: tuple[_Attachment, ...] = ()
    backends: dict[Word, _Backend] = Field(default_factory=dict)
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
        above = attachment.on.partition(".")[0]
        if attachment.on not in PLACES and above not in names[:number]:
            places = ", ".join(PLACES)
            yield f"attach: {attachment.name} is on {attachment.on!r}: expected {places}, or a bus of one before it"
        for backend in attachment.backends.values():
            if backend not in recipe.backends:
                yield f"attach: {attachment.name} stands on backend {backend!r}, which is not described"
    for family, built in recipe.built_in.items():
        for name in set(built) - set(names):
            yield f"built-in: {family}: {name!r} is not the name of an attachment"
    if recipe.decoder and recipe.decoder not in CODECS:
        yield f"decoder: {recipe.decoder!r}: expected one of {', '.join(CODECS)}"


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
    disks = {name: backend for name, backend in recipe.backends.items() if isinstance(backend, _Disk)}
    return Device(
        name=recipe.name,
        about=recipe.about,
        rest=recipe.rest,
        default=recipe.default,
        attachments=tuple(
            Attachment(name=a.name, type=a.type, on=a.on, properties=a.properties, backends=a.backends)
            for a in recipe.attach
        ),
        backends={name: _backend(backend) for name, backend in recipe.backends.items()},
        built_in={
            family: {name: BuiltIn(bus=b.bus, address=b.address, without=b.without) for name, b in parts.items()}
            for family, parts in recipe.built_in.items()
        },
        patterns={name: disk.pattern for name, disk in disks.items() if disk.pattern is not None},
        faults={name: disk.fails_at for name, disk in disks.items() if disk.fails_at is not None},
        drivers=recipe.drivers,
        takes=frozenset(recipe.takes),
        kernel_names=recipe.kernel_names,
        decoder=recipe.decoder,
        drift=recipe.drift,
        registers=recipe.registers,
        guest=recipe.guest,
    )


def _backend(backend: _Disk | Netdev | Chardev) -> Backend:
    if not isinstance(backend, _Disk):
        return backend
    return Disk(size_bytes=size_bytes(backend.size), medium=backend.medium, sector_bytes=backend.sector_bytes)


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
