# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules by which devices are derived from what a QEMU says of its types: data, in ``devices/rules/*.yaml``.

A rule says which types it is for, and what that means: what they stand on, or why they cannot be judged. All that fit a
type hold, in the order of the files' names and of their lines; what a later one says of a key wins. A rule with a
``variant`` is not for the type itself but makes another device of it, ``TYPE+VARIANT``.
"""

from __future__ import annotations

import re
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from harness.devices.backends import Model
from harness.devices.device import GuestCommands, KernelParameter
from harness.devices.recipe import BackendModel, Key, Size, Type, Word
from harness.devices.saved import Rule
from harness.devices.types import DeviceType
from harness.files import data_dir
from harness.yamlfile import load_model


class Status(StrEnum):
    """What becomes of a device type on one machine of one QEMU."""

    JUDGED = "judged"
    UNMIGRATABLE = "unmigratable"
    STATELESS = "stateless"
    FAILS_TO_START = "fails-to-start"
    FAILS_TO_SAVE = "fails-to-save"
    NEEDS = "needs"
    HOST_ONLY = "host-only"
    OTHER_MACHINE = "other-machine"
    ALIAS = "alias"
    CPU = "cpu"


class When(Model):
    """Which types a rule is for: those that all of it is true of.

    :param types: globs; one of them fits the name
    :param unless: globs; none of them fits the name
    :param bus: globs; one of them fits the bus
    :param has: properties that the type has
    :param lacks: properties none of which the type has
    """

    types: tuple[str, ...] = ("*",)
    unless: tuple[str, ...] = ()
    bus: tuple[str, ...] = ("*",)
    category: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()

    def fits(self, kind: DeviceType) -> bool:
        """Whether it is true of a type."""
        return (
            _one_fits(self.types, kind.name)
            and not _one_fits(self.unless, kind.name)
            and _one_fits(self.bus, kind.bus)
            and (not self.category or kind.category in self.category)
            and kind.properties.issuperset(self.has)
            and kind.properties.isdisjoint(self.lacks)
        )


def _one_fits(patterns: tuple[str, ...], text: str) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


class PartModel(Model):
    """An attachment beside the device itself.

    :param needs: property to the backend that it wants there
    """

    name: Word
    type: Type
    on: str = "pci"
    properties: dict[Key, bool | int | str] = Field(default_factory=dict)
    needs: dict[Key, BackendModel] = Field(default_factory=dict)
    references: dict[Key, Word] = Field(default_factory=dict)


class TypeRule(Model):
    """One rule.

    :param variant: makes a device of its own of the type
    :param status: of a type that cannot be judged, with the reason
    :param same_as: regular expressions to what they are replaced by: the first result that there is, is the device
        that the type is judged as
    :param on: where the device itself is, as in a recipe
    :param before: what it stands on; later rules replace the whole list
    :param after: what is attached to it
    :param properties: of the device itself, and so are ``needs`` and ``references``
    :param cmdline: parameters of the guest's kernel; it shares a guest with devices that want the same
    :param within: the attachment that its state is saved with, for one that saves none of its own
    :param takes: names of which a guest has one
    :param drift: fields of its sections that move by nature
    :param reports_errors: its disks report each error to the guest, and QEMU cannot stop for one
    :param guest: commands, each of which a later rule replaces alone. ``{name}`` in them, and in properties, stands for
        the device's name, and ``{hint}`` for ``hint``: where the guest has what is on no PCI bus.
        ``{sectors}`` are those that fail
    """

    when: When = When()
    variant: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]+$")] | None = None
    status: Literal["needs", "host-only", "cpu"] | None = None
    reason: str = ""
    same_as: dict[str, str] = Field(default_factory=dict, alias="same-as")
    on: str | None = None
    before: tuple[PartModel, ...] | None = None
    after: tuple[PartModel, ...] | None = None
    properties: dict[Key, bool | int | str] = Field(default_factory=dict)
    needs: dict[Key, BackendModel] = Field(default_factory=dict)
    references: dict[Key, Word] = Field(default_factory=dict)
    machine: dict[Word, bool | int] = Field(default_factory=dict)
    memory_room: Size | None = Field(default=None, alias="memory-room")
    cmdline: tuple[KernelParameter, ...] = ()
    within: Word | None = None
    takes: tuple[str, ...] = ()
    decoder: str | None = None
    drift: tuple[Rule, ...] = ()
    reports_errors: bool = Field(default=False, alias="reports-errors")
    guest: GuestCommands | None = None
    hint: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:*@-]+$")] | None = None

    @model_validator(mode="after")
    def _says_why(self) -> TypeRule:
        if (self.status is not None) != bool(self.reason):
            raise ValueError("expected 'reason' with 'status', and with nothing else")
        for pattern in self.same_as:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"same-as: {pattern!r} is no regular expression: {error}") from error
        return self


class _RulesFile(Model):
    rules: tuple[TypeRule, ...]


@cache
def load_rules(folder: Path | None = None) -> tuple[TypeRule, ...]:
    """All rules of a folder, of the installed one by default.

    :raises ConfigError: a file is wrong, with line and column
    """
    paths = sorted((folder or data_dir("devices") / "rules").glob("*.yaml"))
    return tuple(rule for path in paths for rule in load_model(path, _RulesFile).rules)
