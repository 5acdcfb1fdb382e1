# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of a VM that was adopted, in words: what something else stands for, and what is not judged."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.guests.origin import LeftOut, Replaced, VmOrigin, VmPart, Without
from harness.report.console import print_wrapped
from harness.report.text import number, plural

SCHEMA = "postload.adopt/1"

_PARTS: Mapping[VmPart, str] = {
    VmPart.MACHINE: "machine type",
    VmPart.CPU: "CPU model",
    VmPart.CPUS: "CPUs",
    VmPart.MEMORY: "memory",
    VmPart.NUMA: "NUMA",
    VmPart.DISK: "disk",
    VmPart.NETWORK: "network",
    VmPart.LINE: "character device",
    VmPart.SOUND: "sound",
    VmPart.MEMDEV: "memory device",
    VmPart.FILES: "shared folder",
    VmPart.CIPHERS: "ciphers",
    VmPart.CANBUS: "CAN bus",
    VmPart.TPM: "TPM",
    VmPart.RANDOM: "random numbers of",
    VmPart.ROM: "option ROM of",
    VmPart.FIRMWARE: "firmware",
    VmPart.SYSTEM: "what it boots",
    VmPart.CONSOLE: "first serial port",
}
_WHYS: Mapping[Without, Callable[[LeftOut], str]] = {
    Without.HOST: lambda left: f"not judged: it stands on the host's own{_of(left, ' ')}",
    Without.TYPE: lambda _: "not judged: this QEMU has no such device",
    Without.CPU: lambda _: "not judged: a CPU that is plugged as a device",
    Without.BUS: lambda left: f"not judged: its bus{_of(left, ' ')} is not there",
    Without.PROGRAM: lambda left: f"not judged: this host has no{_of(left, ' ')}",
    Without.START: lambda _: "not judged: this QEMU does not start with it",
    Without.SAVE: lambda _: "not judged: this QEMU fails to save a machine that has it",
    Without.MIGRATION: lambda _: "not judged: it keeps this QEMU from migrating",
    Without.LOST: lambda _: "not judged: the guest that is recorded is lost with it",
    Without.SECTION: lambda _: "there, and nothing to judge: it saves no section of its own",
    Without.UNKNOWN: lambda left: f"there without{_of(left, ' ')}: this QEMU has no such property",
    Without.REFUSED: lambda left: f"there without{_of(left, ' ')}: not taken from a configuration",
    Without.UNREAD: lambda left: f"not known here{_of(left, ', line ')}",
    Without.OPTION: lambda left: f"option not taken{_of(left, ': ')}",
    Without.STATE: lambda left: f"in the saved state, and not in the machine that was planned:{_of(left, ' ')}",
    Without.ABSENT: lambda _: "not judged: the saved state has no section of it",
    Without.RAM: lambda left: f"it looks into RAM when it is loaded, and the file has none:{_of(left, ' ')}",
    Without.REDACTED: lambda left: f"taken out, for the pack is given away{_of(left, ': ')}",
}


def replaced_text(replaced: Replaced) -> str:
    """One part of a VM and what stands for it, in one line."""
    name = f" {replaced.id}" if replaced.id else ""
    size = f" of {number(replaced.size_bytes)} bytes" if replaced.size_bytes is not None else ""
    guess = ", for nobody said how large it was" if replaced.guessed else ""
    own_network = replaced.part is VmPart.NETWORK and replaced.stands == "user"
    stands = "QEMU's own, which reaches nobody" if own_network else replaced.stands
    return f"{_PARTS[replaced.part]}{name}: {replaced.was} -> {stands}{size}{guess}"


def left_out_text(left: LeftOut) -> str:
    """One part of a VM that is not judged, in one line."""
    name = f" ({left.id})" if left.id else ""
    said = f": {left.said}" if left.said else ""
    return f"{left.type}{name}: {_WHYS[left.why](left)}{said}"


def origin_lines(origin: VmOrigin) -> list[str]:
    """All of it, a line each, what is replaced first."""
    whose = f" of VM {origin.name}" if origin.name else ""
    state = "its own saved state" if origin.state else "the state of a guest of postload's in its place"
    lines = [f"adopted{whose}: {state}"]
    lines += [f"replaced: {replaced_text(each)}" for each in origin.replaced]
    return lines + [f"left out: {left_out_text(each)}" for each in origin.left_out]


def adopted_document(origin: VmOrigin, machine: str, version: str, devices: Mapping[str, list[str]]) -> dict[str, Any]:
    """A VM that nothing was recorded of yet.

    :param devices: what is judged: name to the ids in the VM
    """
    return {
        "schema": SCHEMA,
        "machine": machine,
        "qemu": version,
        "devices": dict(devices),
        "origin": origin.model_dump(mode="json"),
    }


def print_adopted(document: Mapping[str, Any], console: Console) -> None:
    """The document for a person, and how a pack is made of it."""
    devices = document["devices"]
    print_wrapped(console, f"machine: {document['machine']} on QEMU {document['qemu']}", hang=2)
    print_wrapped(console, f"{plural(len(devices), 'device')} to judge:", hang=2)
    for name, ids in devices.items():
        print_wrapped(console, f"{name}: {', '.join(ids) or 'part of the machine'}", indent=2, hang=2)
    print_origin(VmOrigin.model_validate(document["origin"]), console)
    print_wrapped(console, "next: with --out NAME.pack too, a guest of postload's is booted in it and recorded", hang=2)


def print_next(pack: Path, console: Console) -> None:
    """What a pack that was made is for."""
    name = shlex.quote(str(pack))
    print_wrapped(console, f"next: postload replay {name}, or postload qualify {name} --to QEMU", hang=2)


def print_origin(origin: VmOrigin, console: Console) -> None:
    """What was replaced and left out, in the console's width."""
    for line in origin_lines(origin):
        print_wrapped(console, line, hang=2)


def _of(left: LeftOut, before: str) -> str:
    return f"{before}{', '.join(left.names)}" if left.names else ""
