# SPDX-License-Identifier: GPL-2.0-or-later
"""What the facts say of a QEMU build: who it is, its machine types, and what virtio features a machine of it offers."""

from __future__ import annotations

import hashlib
import json
import mmap
import platform
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from harness.cache import keep_answer, kept_answer
from harness.errors import PostloadError
from harness.facts.model import WhyNotKnown
from harness.facts.part import Part, not_known
from harness.facts.virtio import backends, offered
from harness.guests.machine import Machine, firmware_sink
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.installed import launched
from harness.qemu.process import new_workdir
from harness.qemu.vm import Vm

#: Raise it when the same question gets another answer: kept answers of another number are not used.
_ANSWERS = 2
#: Backends whose features are QEMU's own. Those of any other come from the kernel or from another process.
_OWN_NETDEVS = frozenset({"user", "hubport", "socket", "stream", "dgram"})
_FOREIGN_DRIVERS = ("vhost", "vfio")
#: Texts of a QEMU that looks at what KVM answers to every ioctl that puts state, not to that for MSRs alone.
_REFUSAL_TEXTS = (b"Failed to put registers after", b"Failed to set XCRs")


def build_facts(binary: QemuBinary, machine: Machine | None) -> Part:
    """One QEMU: identity, machine types with alias and deprecation, and the features of ``machine``'s devices.

    Keys ``machine``, ``accel``, ``cpu_model`` and ``virtio`` are None without a machine. ``says_refused_state`` is
    False for a build that goes on without a word when KVM refuses a part of the CPU's state other than an MSR.
    """
    part = Part()
    part.values |= binary.identity()
    part.values["machines"] = [asdict(each) for each in binary.machines]
    part.put("says_refused_state", lambda: _says_refused_state(Path(binary.path)))
    if machine is None:
        for name in ("machine", "accel", "cpu_model", "virtio"):
            part.miss(name, {"why": WhyNotKnown.NOT_ASKED, "said": ""})
        return part
    part.values |= {"machine": machine.name, "accel": machine.accel, "cpu_model": _cpu_model(machine.options)}
    if binary.machine(machine.name) is None:
        part.miss("virtio", {"why": WhyNotKnown.NO_MACHINE, "said": machine.name})
        return part
    try:
        answers = _virtio(binary, machine)
    except PostloadError as error:
        part.miss("virtio", not_known(error))
        return part
    part.values["virtio"] = answers["devices"]
    part.unknown |= {f"virtio.{name}": why for name, why in answers["missed"].items()}
    return part


def _virtio(binary: QemuBinary, machine: Machine) -> dict[str, Any]:
    """What the machine's virtio devices offer; kept where it can only change with the QEMU.

    Without a kernel the machine starts sooner, and the guest's files need not be there.
    """
    bare = replace(machine, boot=None)
    if not _is_own(bare.options):
        return _ask(binary, bare)
    key = f"facts/{_key(binary, bare)}.json"
    answers: dict[str, Any] | None = kept_answer(key)
    if answers is None:
        answers = _ask(binary, bare)
        keep_answer(key, answers)
    return answers


def _ask(binary: QemuBinary, machine: Machine) -> dict[str, Any]:
    workdir = new_workdir()
    machine.make_files(workdir)
    with Vm(machine.command(binary.path, workdir, firmware_sink()), workdir=workdir) as vm:
        found, missed = offered(vm)
    stands_on = backends(machine.options)
    return {"devices": [device.to_json(stands_on.get(device.id)) for device in found], "missed": missed}


def _key(binary: QemuBinary, machine: Machine) -> str:
    asked = [
        _ANSWERS,
        binary.sha256,
        binary.path,
        platform.release(),
        machine.name,
        machine.accel,
        [option.argv() for option in machine.options],
        list(machine.files),
    ]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def _is_own(options: Iterable[Option]) -> bool:
    for option in options:
        if option.name == "netdev" and option.first not in _OWN_NETDEVS:
            return False
        if option.name in ("device", "blockdev") and any(word in str(option.first) for word in _FOREIGN_DRIVERS):
            return False
    return True


def _cpu_model(options: Iterable[Option]) -> str | None:
    """The model of ``-cpu``; None is the machine type's own default."""
    return next((option.first for option in reversed(list(options)) if option.name == "cpu"), None)


def _says_refused_state(path: Path) -> bool:
    """Whether the program has the words for it: 5.2 and 7.2 have not, 10.0 and 11.1 have.

    :raises OSError: the program cannot be read
    :raises LookupError: the path starts a program that nobody knows
    """
    with launched(path).program.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        if text[:4] != b"\x7fELF":
            raise LookupError(f"{path} is not the program itself")
        return any(text.find(words) >= 0 for words in _REFUSAL_TEXTS)
