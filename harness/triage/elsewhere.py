# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run's folder, a case or a bundle from elsewhere may have this program do.

Such a folder names a QEMU and, in ``case.json``, options. The QEMU is run only where this user has named it before. The
options are read back into a guest plan, which is checked like that of a state pack, and what QEMU gets is made of that
plan: an option that this program would not have made of it is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.arch import architecture_of
from harness.cache import cache_root, publish_dir
from harness.devices.backends import Backend, Chardev, Disk, LoneTap, Memdev, Netdev, Tpm
from harness.errors import PackError, UsageError
from harness.guests.machine import Boot, Machine
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.qemu.cmdline import Option, Scalar
from harness.qemu.installed import used_before
from harness.qemu.lonetap import is_lone_tap
from harness.results.document import Cell
from harness.triage.case import CASE_FILE, CASE_PLACE, Case

#: Folder of the cache with an empty folder for each case that was made here.
_MADE = "made"
#: In place of the hash of a kernel that lies in the case.
_SOME_HASH = "0" * 64
_SECTOR_KEYS = ("logical_block_size", "physical_block_size")


def loader_path(cell: Cell) -> str:
    """The QEMU that a cell was loaded with, as the run's document names it.

    :raises UsageError: nobody has used it here: a document may name any program
    """
    path = Path(cell.load_qemu.path)
    if path.exists() and not used_before(path):
        raise UsageError(
            f"{cell.id}: the run names {path} as its QEMU, expected a QEMU that was used here before: "
            f"postload doctor --qemu {path} makes it one"
        )
    return str(path)


def remember_case(folder: Path) -> None:
    """Note in the cache that this case was made here."""
    publish_dir(f"{_MADE}/{_digest(folder)}", lambda _: None)


def made_here(folder: Path) -> bool:
    """Whether a case was made by this program for this user, and nobody has changed it."""
    mark = cache_root() / _MADE / _digest(folder)
    with contextlib.suppress(OSError):
        # used now: marks of cases that nobody asks for any more are pruned
        os.utime(mark)
    return mark.is_dir()


def check_case(folder: Path, qemus: Sequence[str]) -> None:
    """Hold a case that was not made here against the QEMUs that shall be given it.

    :raises PackError: an option that this program does not make of a guest plan, or a plan that asks for more than a
        guest needs
    """
    if made_here(folder):
        return
    case = Case.load(folder)
    try:
        machine = machine_of(case)
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise PackError(f"{folder / CASE_FILE}: options: no guest that this program makes: {error}") from error
    for option in case.options:
        if option not in machine.options:
            said = " ".join(option.argv())
            raise PackError(f"{folder / CASE_FILE}: options: {said!r}: expected one that this program makes itself")
    if not case.scratch.items() <= dict(machine.files).items():
        raise PackError(f"{folder / CASE_FILE}: scratch: {case.scratch}: expected the images of its disks")
    for qemu in qemus:
        Machine(plan=machine.plan, accel=machine.accel, foreign=folder / CASE_FILE).check(qemu)


def machine_of(case: Case) -> Machine:
    """The machine that the options of a case are of.

    :raises ValueError: there is none
    """
    single = {option.name: option.first for option in case.options if not option.props}
    disks = {name.removesuffix(".img"): size for name, size in case.scratch.items()}
    backends: dict[str, Backend] = {name: Disk(size_bytes=size) for name, size in disks.items()}
    for option in case.options:
        backends |= _backend(option)
    firmware = architecture_of(case.machine).firmware
    devices = [o for o in case.options if o.name == "device" and not (firmware and o == firmware.device)]
    placed = [_device(option, backends) for option in devices]
    boots = "kernel" in single
    machine = {key: value for o in case.options if o.name == "machine" for key, value in o.props.items()}
    ram = machine.pop("memory-backend", None)
    memory = next((o for o in case.options if o.name == "m"), Option(name="m", first="1"))
    room = str(memory.props.get("maxmem", "")).removesuffix("M")
    plan = GuestPlan.model_validate(
        {
            "machine": case.machine,
            "family": case.family,
            "machine_properties": machine,
            **_seldom(case.options),
            "ram": ram,
            "memory_mib": int(memory.first or 1),
            "memory_room_mib": int(room) - int(memory.first or 1) if room else 0,
            "memory_slots": memory.props.get("slots", 0),
            "kernel": _SOME_HASH if boots or len(devices) < _count(case.options, "device") else None,
            "initramfs": _SOME_HASH if boots else None,
            "cmdline": single.get("append") or "",
            "devices": placed,
            "backends": backends,
        }
    )
    boot = Boot(kernel=Path(f"{CASE_PLACE}/kernel"), initramfs=Path(f"{CASE_PLACE}/initrd")) if boots else None
    return Machine(plan=plan, accel=case.accel, boot=boot)


def _seldom(options: Sequence[Option]) -> dict[str, Any]:
    """What ordinary guests have not: CPUs and nodes, and properties of what the machine has by itself."""
    found: dict[str, Any] = {"presets": [o.props for o in options if o.name == "global"], "numa": []}
    for option in options:
        if option.name == "cpu":
            found["cpu"] = {"model": option.first, "features": option.props}
        elif option.name == "smp":
            found |= {"cpus": int(option.first or 1), "topology": dict(option.props) or None}
        elif option.name == "numa":
            cpus = option.props.get("cpus")
            ends = None if cpus is None else [int(number) for number in str(cpus).split("-")]
            found["numa"].append({"number": option.props["nodeid"], "cpus": ends, "memdev": option.props.get("memdev")})
    return found


def _backend(option: Option) -> dict[str, Backend]:
    props: dict[str, Any] = dict(option.props)
    if is_lone_tap(option):
        return {props["id"]: LoneTap(queues=props["queues"])}
    if option.name == "object" and option.first == "memory-backend-ram":
        return {props["id"]: Memdev(size_bytes=props["size"], share=props["share"])}
    if option.name == "netdev":
        return {props["id"]: Netdev()}
    if option.name == "chardev":
        return {props["id"]: Chardev()}
    if option.name == "tpmdev":
        return {props["id"]: Tpm()}
    if option.name == "blockdev" and option.first == "null-co":
        return {props["node-name"]: Disk(size_bytes=props["size"], medium="null")}
    return {}


def _device(option: Option, backends: dict[str, Backend]) -> PlacedDevice:
    props: dict[str, Scalar] = dict(option.props)
    named = {key: str(props.pop(key)) for key, value in option.props.items() if value in backends and key != "bus"}
    for name in named.values():
        disk = backends[name]
        sectors = {props.get(key) for key in _SECTOR_KEYS}
        if isinstance(disk, Disk) and sectors == {4096}:
            backends[name] = disk.model_copy(update={"sector_bytes": 4096})
            for key in _SECTOR_KEYS:
                del props[key]
    fields = {"id": props.pop("id"), "bus": props.pop("bus", None), "slot": props.pop("addr", None)}
    return PlacedDevice.model_validate({"type": option.first, **fields, "properties": props, "backends": named})


def _count(options: Sequence[Option], name: str) -> int:
    return sum(1 for option in options if option.name == name)


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / CASE_FILE).read_bytes()).hexdigest()
