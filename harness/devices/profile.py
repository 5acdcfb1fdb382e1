# SPDX-License-Identifier: GPL-2.0-or-later
"""Device profiles: one YAML file for each device, checked, with its QEMU arguments for each machine type."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from harness.errors import ConfigError, UsageError
from harness.files import data_dir
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option, Scalar
from harness.yamlfile import load_model

#: The option's own key that QEMU also takes as its first, unnamed value.
_IMPLIED = {"device": "driver", "blockdev": "driver", "netdev": "type", "object": "qom-type", "chardev": "backend"}
_OPTIONS = frozenset(_IMPLIED) | {"global", "machine", "drive"}
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Size = Annotated[str, StringConstraints(pattern=r"^[0-9]+[KMG]?$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MachinePart(_Strict):
    """What a device is on one machine family.

    :param sections: patterns of the sections it owns, ``idstr`` or ``idstr#instance_id``
    :param qemu: options, each a mapping of one option name to its properties
    :param guest: values for ``{name}`` in the guest commands
    """

    sections: tuple[str, ...] = ()
    qemu: tuple[dict[str, dict[str, str | bool | int]], ...] = ()
    guest: dict[str, str] = Field(default_factory=dict)

    @field_validator("qemu")
    @classmethod
    def _one_known_option(cls, entries: tuple[dict[str, dict[str, Scalar]], ...]) -> object:
        for entry in entries:
            if len(entry) != 1 or not set(entry) <= _OPTIONS:
                raise ValueError(f"expected one option of {', '.join(sorted(_OPTIONS))}, got {', '.join(entry)}")
        return entries


class GuestCommands(_Strict):
    """Lines for the guest's shell; a status other than 0 fails the phase.

    ``life`` is asked of a bound device after a failover: status 0 when it works, else it has said what does not.
    ``fail`` starts a request in the background that hits the sector of ``faults`` (phase ``io-error``).
    """

    bind: str = "true"
    busy: str = "true"
    check: str = "true"
    idle: str = "true"
    unbind: str = "true"
    rebind: str = "true"
    life: str = "true"
    fail: str = "true"


class Profile(_Strict):
    """One device.

    :param rest: owns every section that no other profile owns
    :param drivers: guest kernel drivers that the guest must have on board
    :param files: scratch images, name to size, made empty in ``{workdir}``
    :param patterns: scratch images that ``bind`` writes the pattern to, name to the disk that the guest sees
    :param faults: node that the device's ``drive`` names, to the sector of 512 bytes that fails in phase ``io-error``;
        nothing else may touch it
    :param kernel_names: regular expressions for what the guest's kernel calls it in its log
    """

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    about: str
    rest: bool = False
    drivers: tuple[str, ...] = ()
    files: dict[FileName, Size] = Field(default_factory=dict)
    patterns: dict[str, str] = Field(default_factory=dict)
    faults: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    kernel_names: tuple[str, ...] = ()
    machines: dict[str, MachinePart]
    guest: GuestCommands = GuestCommands()

    @model_validator(mode="after")
    def _owns_something(self) -> Profile:
        for family, part in self.machines.items():
            if not self.rest and not part.sections:
                raise ValueError(f"machines.{family}: expected 'sections', the sections this device owns")
        return self

    def part(self, family: str) -> MachinePart | None:
        """What it is on a machine family such as ``q35``; None when it is not described for it."""
        return self.machines.get(family)

    def options(self, family: str) -> list[Option]:
        """Its QEMU options; ``{workdir}`` is left in for the process that will use it."""
        part = self.machines[family]
        return [_option(name, props) for entry in part.qemu for name, props in entry.items()]

    def device_types(self, family: str) -> list[str]:
        """QEMU device types that a build must have for it."""
        entries = [entry["device"] for entry in self.machines[family].qemu if "device" in entry]
        return [str(props["driver"]) for props in entries if "driver" in props]

    def missing(self, family: str, binary: QemuBinary) -> str | None:
        """Why this build cannot have the device, or None when it can."""
        if family not in self.machines:
            return f"profile {self.name} does not describe machine {family}"
        lacking = [name for name in self.device_types(family) if name not in binary.devices]
        return f"this QEMU has no device {', '.join(lacking)}" if lacking else None

    def command(self, what: str, family: str) -> str:
        """A guest command by name with its placeholders filled in."""
        text: str = getattr(self.guest, what)
        for key, value in self.machines[family].guest.items():
            text = text.replace("{" + key + "}", value)
        return text

    def file_sizes(self) -> dict[str, int]:
        """Scratch images, name to bytes."""
        return {name: size_bytes(text) for name, text in self.files.items()}


def size_bytes(text: str) -> int:
    """``64M`` as bytes."""
    match = re.fullmatch(r"([0-9]+)([KMG]?)", text)
    if match is None:
        raise UsageError(f"{text!r} is not a size: expected a number with K, M or G behind it")
    return int(match[1]) * _UNITS[match[2]]


def _option(name: str, props: dict[str, str | bool | int]) -> Option:
    rest = dict(props)
    implied = _IMPLIED.get(name)
    first = rest.pop(implied, None) if implied else None
    return Option(name=name, first=None if first is None else str(first), props=rest)


def load_profiles(folder: Path | None = None) -> dict[str, Profile]:
    """All profiles by name, in the order in which a matrix shows them: the rest last.

    :raises ConfigError: a file is wrong, or two files have one name
    """
    folder = folder or data_dir("devices")
    profiles: dict[str, Profile] = {}
    for path in sorted(folder.glob("*.yaml")):
        profile = load_model(path, Profile)
        if profile.name in profiles:
            raise ConfigError(path, 0, 0, f"a second profile is named {profile.name!r}")
        profiles[profile.name] = profile
    if not profiles:
        raise UsageError(f"no device profiles in {folder}: expected files NAME.yaml")
    return dict(sorted(profiles.items(), key=lambda item: item[1].rest))


def select_profiles(profiles: dict[str, Profile], names: Iterable[str]) -> list[Profile]:
    """The named profiles.

    :raises UsageError: a name is unknown; the message lists the known ones
    """
    chosen = []
    for name in names:
        if name not in profiles:
            raise UsageError(f"unknown device {name!r}: expected one of {', '.join(profiles)}")
        chosen.append(profiles[name])
    return chosen


def section_label(idstr: str, instance_id: int) -> str:
    """How a section is named everywhere: its idstr, with ``#n`` for instances other than 0."""
    return idstr if instance_id == 0 else f"{idstr}#{instance_id}"


def owner_of(label: str, family: str, profiles: Iterable[Profile]) -> str | None:
    """Name of the profile that owns a section: the first whose pattern matches, else the rest's."""
    rest = None
    for profile in profiles:
        part = profile.part(family)
        if part is None:
            continue
        if profile.rest:
            rest = profile.name
        elif any(fnmatchcase(label, pattern) for pattern in part.sections):
            return profile.name
    return rest
