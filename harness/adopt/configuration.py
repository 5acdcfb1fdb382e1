# SPDX-License-Identifier: GPL-2.0-or-later
"""What somebody said of a VM, taken apart: the common form of command lines and libvirt domains.

Nothing of it is checked, and nothing of it reaches a QEMU: :mod:`harness.adopt.plan` makes a guest plan of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

#: As JSON has it. What was text stays text: ``on``, ``0x10`` and ``4G`` are read by whoever knows what the key means.
Value: TypeAlias = "bool | int | float | str | Sequence[Value] | Mapping[str, Value] | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class SaidOption:
    """One option of QEMU's, in one spelling whatever form it came in.

    The first value without a key stands under the key that QEMU has for it: ``driver`` of device, blockdev and
    audiodev, ``type`` of machine, netdev, display and tpmdev, ``backend`` of chardev, ``qom-type`` of object, ``cpus``
    of smp, ``size`` of m, ``order`` of boot, ``accel`` of accel, ``guest`` of name, ``model`` of cpu (whose features
    are ``on`` and ``off``). An option with one text has it under ``value`` (bios, vga, uuid, kernel), one that takes
    nothing has no values. ``-serial``, ``-parallel``, ``-monitor`` and ``-qmp`` have a ``backend`` with the keys of a
    chardev, or ``chardev``: its id.

    Dotted keys are nested (``file.driver=raw`` is ``{"file": {"driver": "raw"}}``) but in device and cpu, which have
    properties with dots in their names. Short options are what they stand for: ``-hda`` is a drive, ``-nic`` a netdev
    and a device, ``-enable-kvm`` the accel of a machine. What QEMU puts together or takes once (machine, m, smp, cpu)
    is one option.

    :param name: without its dash
    :param line: of the file that it came from, counted from 1
    """

    name: str
    values: Mapping[str, Value]
    line: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Unread:
    """A part of a description that nobody reads, and that may change what the guest sees.

    :param path: as in ``devices/lease`` or ``devices/disk/driver@feature``
    :param line: of the file that it came from, counted from 1
    """

    path: str
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A VM as somebody described it.

    :param name: of the VM, empty where nobody gave one
    :param options: in their order
    :param source: file or process that it came from, named in errors
    :param binary: the emulator that it names, such as ``/usr/bin/qemu-system-x86_64``; only its file name says
        something: which architecture it is
    :param unread: what was passed over
    """

    name: str = ""
    options: tuple[SaidOption, ...]
    source: str
    binary: str = ""
    unread: tuple[Unread, ...] = ()

    def named(self, *names: str) -> list[SaidOption]:
        """The options of some names, in their order."""
        return [option for option in self.options if option.name in names]
