# SPDX-License-Identifier: GPL-2.0-or-later
"""Names of registers inside of sections: those of the device's recipe, and those that every PCI device has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.devices.backends import Model
from harness.devices.saved import Register, Registers
from harness.packs.manifest import Manifest
from harness.stream.fields import field_value
from harness.triage.fields import Atom, bit_of
from harness.yamlfile import load_model

_FILE = Path(__file__).with_name("registers.yaml")
_CAP_POINTER, _CAP_FIRST, _HEADER_BYTES = 0x34, 0x40, 256
_MAX_CAPABILITIES = 48


class _RegisterFile(Model):
    groups: tuple[Registers, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A register that a piece of a payload lies in.

    :param bit: the piece's least bit within the register, None when it is not a single bit
    :param bit_name: what that bit is called
    """

    name: str
    bit: int | None
    bit_name: str | None

    @property
    def title(self) -> str:
        """``RCBA enabled``, or ``RCBA``."""
        return f"{self.name} {self.bit_name}" if self.bit_name else self.name


@cache
def load_registers(path: Path = _FILE) -> tuple[Registers, ...]:
    """Read the general names.

    :raises ConfigError: the file is wrong
    """
    return load_model(path, _RegisterFile).groups


def registers_of(manifest: Manifest, section: str) -> tuple[Registers, ...]:
    """The names for a section of a pack: first those of the device that owns it."""
    owner = manifest.owner(section)
    return (*(owner.recipe.registers if owner else ()), *load_registers())


def register_of(atom: Atom, payload: bytes, known: Sequence[Registers]) -> Named | None:
    """The register that a piece lies in, None when nobody named it.

    :param payload: of the failing section
    :param known: the first that fits counts
    """
    for group in known:
        if not group.speaks_of(atom.section, atom.path):
            continue
        for base in _bases(group, payload[atom.field_offset : atom.field_offset + _HEADER_BYTES]):
            for register in group.registers:
                start = atom.field_offset + base + register.offset
                if start <= atom.offset and atom.offset + atom.size <= start + register.width:
                    return _named(atom, register, start)
    return None


def _bases(group: Registers, config: bytes) -> Iterator[int]:
    """Where offsets count from: 0, or each capability of that number in a PCI config space."""
    if group.capability is None:
        yield 0
        return
    at = config[_CAP_POINTER] & ~3 if len(config) > _CAP_POINTER else 0
    for _ in range(_MAX_CAPABILITIES):
        if at < _CAP_FIRST or at + 1 >= len(config):
            return
        if config[at] == group.capability:
            yield at
        at = config[at + 1] & ~3


def _named(atom: Atom, register: Register, start: int) -> Named:
    bit = bit_of(atom)
    if bit is None:
        return Named(name=register.name, bit=None, bit_name=None)
    number = number_of_bit(atom, start, register.width)
    return Named(name=register.name, bit=number, bit_name=register.bits.get(str(number)))


def number_of_bit(atom: Atom, start: int, width: int) -> int:
    """The bit's number in a register: config space is little-endian, a number of the vmdesc is not."""
    at, bit = atom.offset - start, bit_of(atom) or 0
    little = not _big_endian(atom, width)
    return 8 * (at if little else width - 1 - at) + bit


def _big_endian(atom: Atom, width: int) -> bool:
    return not atom.kind.startswith("le") and isinstance(field_value(atom.kind, bytes(width)), int)
