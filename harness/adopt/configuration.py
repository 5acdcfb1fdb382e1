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

    The first value without a key stands under the key that QEMU has for it: ``driver`` of device and blockdev, ``type``
    of machine, netdev and audiodev, ``backend`` of chardev, ``qom-type`` of object, ``cpus`` of smp, ``size`` of m,
    ``model`` of cpu. Dotted keys are nested (``file.driver=raw`` is ``{"file": {"driver": "raw"}}``), short options are
    what they stand for (``-hda`` is a drive, ``-nic`` a netdev and a device).

    :param name: without its dash
    :param line: of the file that it came from, counted from 1
    """

    name: str
    values: Mapping[str, Value]
    line: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A VM as somebody described it.

    :param name: of the VM, empty where nobody gave one
    :param options: in their order
    :param source: file or process that it came from, named in errors
    :param binary: the emulator that it names, such as ``/usr/bin/qemu-system-x86_64``; only its file name says
        something: which architecture it is
    """

    name: str = ""
    options: tuple[SaidOption, ...]
    source: str
    binary: str = ""
