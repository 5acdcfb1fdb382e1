# SPDX-License-Identifier: GPL-2.0-or-later
"""What a device tells of its saved state: which fields move by nature, and what registers are called.

The same models hold the general rules, which are true of any machine (``oracles/drift-rules.yaml``,
``triage/registers.yaml``). What a recipe says is asked of the device's own sections alone.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import cache
from typing import Annotated

from pydantic import Field, model_validator

from harness.devices.backends import Model


class Comparison(StrEnum):
    """What is held against what."""

    N = "n"
    RECORDING = "recording"


class Rule(Model):
    """Fields that move by nature.

    :param section: glob for the section's label; ``*`` and ``?`` are the only wildcards
    :param fields: globs for field paths; ``cmos_data[4]`` is byte 4 of a buffer
    :param bits: only these bits of a number move by nature
    :param machine: glob for the versioned machine type
    :param compare: the comparisons in which it holds
    :param reason: one sentence, with the QEMU function that moves them
    """

    section: str = "*"
    fields: Annotated[tuple[str, ...], Field(min_length=1)]
    bits: int | None = None
    machine: str = "*"
    compare: Annotated[tuple[Comparison, ...], Field(min_length=1)]
    reason: Annotated[str, Field(min_length=20)]

    @model_validator(mode="after")
    def _bits_of_something(self) -> Rule:
        if self.bits is not None and self.bits <= 0:
            raise ValueError("bits: expected a mask with at least one bit")
        return self

    def speaks_of(self, label: str) -> bool:
        """Whether a section is one of its own."""
        return _glob(self.section).fullmatch(label) is not None

    def applies(self, machine: str, label: str, comparison: Comparison, field: str) -> bool:
        """Whether it speaks of this field in this comparison."""
        return (
            comparison in self.compare
            and _glob(self.machine).fullmatch(machine) is not None
            and self.speaks_of(label)
            and any(_glob(pattern).fullmatch(field) for pattern in self.fields)
        )


@cache
def _glob(pattern: str) -> re.Pattern[str]:
    """fnmatch would read the index in ``irr[7]`` as a set of characters.

    As in fnmatch, what stands between two stars is looked for once and never given back: a pattern comes with a pack
    from elsewhere, and ``*a*a*a*a*b`` must not take hours.
    """
    first, *rest = (
        "".join("." if letter == "?" else re.escape(letter) for letter in part) for part in re.split(r"\*+", pattern)
    )
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1])
    last = f".*{rest[-1]}" if rest else ""
    return re.compile(f"{first}{middle}{last}", re.DOTALL)


class Register(Model):
    """One register.

    :param offset: bytes from the start of the field, or of the capability; 0 in a field that is a number
    :param width: bytes
    :param bits: the least bit of a group to its name, e.g. ``"0": enabled``
    """

    name: str
    offset: int = 0
    width: int = 1
    bits: dict[str, str] = Field(default_factory=dict)


class Registers(Model):
    """Registers of some sections.

    :param sections: glob for labels; ``*`` and ``?`` are the only wildcards
    :param fields: globs for paths of fields
    :param source: where the names are from
    :param capability: number of the PCI capability that ``offset`` counts from
    """

    sections: str = "*"
    fields: Annotated[tuple[str, ...], Field(min_length=1)]
    source: str
    registers: tuple[Register, ...]
    capability: int | None = None

    def speaks_of(self, label: str, path: str) -> bool:
        """Whether it names registers of this field of this section."""
        return _glob(self.sections).fullmatch(label) is not None and any(
            _glob(pattern).fullmatch(path) for pattern in self.fields
        )
