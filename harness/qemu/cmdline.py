# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU command lines from typed parts.

Option syntax is QEMU's ``QemuOpts`` one (``util/qemu-option.c``): ``first,key=value,...`` where a comma inside
a value is doubled. The JSON form of ``-device`` and ``-blockdev`` is newer than the oldest QEMU supported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from harness.qemu.walls import Confinement

Scalar = str | int | bool

#: Options whose value QEMU takes as it stands (``system/vl.c:qemu_init``): here a comma is a comma.
_VERBATIM = frozenset({"append", "kernel", "initrd", "incoming"})


def on_command_line(value: Scalar) -> str:
    """A value as an option of QEMU's has it: booleans are on/off."""
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


def encode_value(value: Scalar) -> str:
    """One option value as QEMU reads it behind others: commas are doubled."""
    return on_command_line(value).replace(",", ",,")


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option with its value: ``-device virtio-blk-pci,drive=d0``.

    :param name: option without its dash, e.g. ``device``
    :param first: the implied first value (driver, type), or None
    :param props: further ``key=value`` pairs, in order
    """

    name: str
    first: str | None = None
    props: Mapping[str, Scalar] = field(default_factory=dict)

    def argv(self) -> list[str]:
        """The option as arguments: the name, then one value when there is any."""
        if self.name in _VERBATIM and self.first is not None:
            return [f"-{self.name}", self.first]
        parts = [] if self.first is None else [encode_value(self.first)]
        parts += [f"{key}={encode_value(value)}" for key, value in self.props.items()]
        return [f"-{self.name}", ",".join(parts)] if parts else [f"-{self.name}"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """A QEMU binary and its options, in order.

    :param confinement: the walls that it is started behind, None for a guest of this user's own
    """

    binary: str
    options: tuple[Option, ...] = ()
    confinement: Confinement | None = None

    def plus(self, *options: Option) -> CommandLine:
        """A new command line with options added behind."""
        return replace(self, options=self.options + options)

    def argv(self) -> list[str]:
        """Everything as arguments for exec."""
        return [self.binary, *(arg for option in self.options for arg in option.argv())]
