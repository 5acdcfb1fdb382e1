# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of a VM on another QEMU before anything is started."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from harness.adopt.configuration import Configuration, SaidOption
from harness.qemu.binary import MachineType, QemuBinary
from harness.qualify.foretold import Foresight, Foretold, Sides, Standing, answer_of, foretell
from harness.qualify.model import Answer
from harness.report.fleet import foretold_remedy, foretold_text
from harness.results.cause import Side


class Says:
    """A QEMU that says what it was made with."""

    def __init__(self, machines: dict[str, bool], cpus: dict[str, bool], types: dict[str, set[str]]) -> None:
        self._machines, self._cpus, self._types = machines, cpus, types

    def machine_types(self) -> Mapping[str, bool]:
        return self._machines

    def cpu_models(self) -> Mapping[str, bool]:
        return self._cpus

    def device_type(self, name: str) -> str | None:
        name = {"virtio-blk": "virtio-blk-pci"}.get(name, name)
        return name if name in self._types else None

    def properties(self, types: Iterable[str]) -> Mapping[str, frozenset[str]]:
        return {name: frozenset(self._types[name]) for name in types}


def binary(version: str, *machines: str) -> QemuBinary:
    types = tuple(MachineType(name=name, alias=None, deprecated=False) for name in machines)
    return QemuBinary(
        path=f"/{version}",
        version=version,
        build="",
        target="x86_64",
        sha256=version,
        machines=types,
        devices=frozenset(),
        capabilities=frozenset(),
    )


OLD = Says(
    {"pc-q35-2.4": False, "pc-q35-7.2": False},
    {"qemu64": False, "Old-CPU": False, "Late-CPU": False},
    {"virtio-blk-pci": {"drive", "scsi"}, "qxl-vga": {"vram"}},
)
NEW = Says(
    {"pc-q35-7.2": True, "pc-q35-10.0": False},
    {"qemu64": False, "Old-CPU-v2": False, "Late-CPU": True},
    {"virtio-blk-pci": {"drive"}},
)
SIDES = Sides(
    recorder=binary("7.2.22", "pc-q35-2.4", "pc-q35-7.2"),
    loader=binary("10.0.13", "pc-q35-7.2", "pc-q35-10.0"),
    recorder_words=OLD,
    loader_words=NEW,
)


def said(cpu: str = "", *devices: dict[str, Any]) -> Configuration:
    options = [SaidOption(name="cpu", values={"model": cpu})] if cpu else []
    options += [SaidOption(name="device", values=values) for values in devices]
    return Configuration(options=tuple(options), source="web01.args")


def told(cpu: str = "", *devices: dict[str, Any], machine: str = "pc-q35-7.2") -> list[Foretold]:
    found = foretell(said(cpu, *devices), machine, SIDES)
    return [each for each in found if each.what is not Foresight.MACHINE_TYPE or machine != "pc-q35-7.2"]


def test_a_machine_type_that_the_new_qemu_has_no_more_is_a_no_go_with_what_it_has() -> None:
    (found,) = told(machine="pc-q35-2.4")
    assert (found.standing, found.side, answer_of([found])) == (Standing.MISSING, Side.LOADER, Answer.NO_GO)
    assert foretold_text(found) == "QEMU 10.0.13 has no machine type pc-q35-2.4"
    assert "pc-q35-7.2 to pc-q35-10.0" in foretold_remedy(found)


def test_a_machine_type_that_only_the_new_qemu_has_cannot_be_made_here() -> None:
    (found,) = told(machine="pc-q35-10.0")
    assert (found.side, answer_of([found])) == (Side.RECORDER, Answer.UNKNOWN)
    assert "--from" in foretold_remedy(found)


def test_a_deprecated_machine_type_is_a_remark_and_no_answer() -> None:
    (found,) = foretell(said(), "pc-q35-7.2", SIDES)
    assert (found.standing, found.answer, answer_of([found])) == (Standing.DEPRECATED, Answer.GO, Answer.NONE)


def test_a_cpu_model_that_is_gone_names_what_is_nearly_it() -> None:
    (found,) = told("Old-CPU")
    assert (found.what, found.answer, found.near) == (Foresight.CPU_MODEL, Answer.NO_GO, ("Old-CPU-v2",))
    assert "Old-CPU-v2" in foretold_remedy(found)
    (late,) = told("Late-CPU")
    assert late.standing is Standing.DEPRECATED
    assert told("host") == told("qemu64") == []


def test_a_device_type_that_is_gone_names_the_devices_that_have_it() -> None:
    (found,) = told("", {"driver": "qxl-vga", "id": "vga", "vram": "64"})
    assert (found.what, found.name, found.devices) == (Foresight.DEVICE_TYPE, "qxl-vga", ("vga",))
    assert answer_of([found]) is Answer.NO_GO


def test_a_device_that_neither_qemu_has_is_unknown() -> None:
    (found,) = told("", {"driver": "pci-assign", "host": "05:00.0"})
    assert (found.side, found.version, answer_of([found])) == (Side.RECORDER, "7.2.22", Answer.UNKNOWN)


def test_a_property_that_is_gone_is_told_by_the_type_behind_an_alias() -> None:
    (found,) = told("", {"driver": "virtio-blk", "id": "disk0", "scsi": "on", "drive": "d", "bus": "pci.0"})
    assert (found.what, found.name, found.answer) == (Foresight.PROPERTY, "virtio-blk-pci.scsi", Answer.NO_GO)


def test_a_property_that_is_gone_and_switched_off_is_left_out_on_the_new_host() -> None:
    (found,) = told("", {"driver": "virtio-blk-pci", "id": "disk0", "scsi": "off"})
    assert (found.standing, found.answer) == (Standing.UNUSED, Answer.GO)
    assert "leave it out" in foretold_remedy(found)


def test_a_property_that_no_qemu_has_is_not_told() -> None:
    assert told("", {"driver": "virtio-blk-pci", "id": "disk0", "nonsense": "1"}) == []
