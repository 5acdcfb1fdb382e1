# SPDX-License-Identifier: GPL-2.0-or-later
"""Logs of failed loads as real builds print them, and two states compared."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.packs.pack import StatePack
from harness.qualify.explained import FieldEvidence, SetAlike
from harness.qualify.fields import (
    LoadError,
    OwnState,
    _value,
    compare_ram,
    compare_sections,
    explain_errors,
    parse_errors,
)
from harness.report.reasons import difference_text, explained_text, remedy_text
from harness.state.transforms import label_of
from harness.stream.model import RamBlock, Section
from harness.stream.reader import read_stream
from harness.stream.vmdesc import VmDesc

BLK = "0000:00:04.0/virtio-blk"
P = "qemu-system-x86_64: "


def parsed(*lines: str) -> list[tuple[str | None, ...]]:
    return [(e.section, e.field, e.recorded, e.loading) for e in parse_errors("\n".join(P + line for line in lines))]


DEVICE = f"error while loading state for instance 0x0 of device '{BLK}'"


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        # 10.0 into 11.1
        (
            (
                "VQ 0 vring.num 1024 exceeds allocated max 256",
                f"load of migration failed: Invalid argument: {DEVICE}: Failed to load element of type x for virtio",
            ),
            [(BLK, "vq[0].vring.num", "1024", "256")],
        ),
        (
            (
                "get_pci_config_device: Bad config data: i=0x9a read: 3 device: 4 cmask: ff wmask: 0 w1cmask:0",
                "Failed to load PCIDevice:config",
                "Failed to load virtio-blk:virtio",
                DEVICE,
                "load of migration failed: Invalid argument",
            ),
            [(BLK, "PCI config byte 0x9a", "3", "4")],
        ),
        (("Failed to load i8259:imr", "Failed to load outer:inner", DEVICE), [(BLK, "i8259:imr", None, None)]),
        (("3 != 4", "Failed to load mc146818rtc:period", DEVICE), [(BLK, "mc146818rtc:period", "4", "3")]),
        (("10 != 1a", "Failed to load virtio-gpu:max_outputs", DEVICE), [(BLK, "virtio-gpu:max_outputs", "26", "16")]),
        (
            ("Size mismatch: pc.ram: 0x8000000 != 0x14000000: Invalid argument", DEVICE.replace(BLK, "ram")),
            [("ram", "pc.ram", "0x8000000", "0x14000000")],
        ),
        (
            ('Unknown ramblock "0000:00:05.0/virtio-net-pci.rom", cannot accept migration',),
            [("ram", "0000:00:05.0/virtio-net-pci.rom", None, None)],
        ),
        (
            ("savevm: unsupported version 3 for 'apic' v2",),
            [("apic", "version_id", "3", "2")],
        ),
        (
            ("ahci: incoming version_id 2 is too new for local version_id 1", DEVICE),
            [(BLK, "ahci:version_id", "2", "1")],
        ),
        (
            ("Unknown savevm section or instance 'i8259' 1. Make sure that your current VM setup matches",),
            [("i8259#1", None, None, None)],
        ),
        (
            ("load of migration failed: Invalid argument: Unknown section or instance 'kvm-tpr-opt' 0. Make sure",),
            [("kvm-tpr-opt", None, None, None)],
        ),
        (
            (
                "Missing section footer for 0000:00:01.3/piix4_pm",
                "Section footer error, section_id: 32",
                "load of migration failed: Invalid argument",
            ),
            [("0000:00:01.3/piix4_pm", None, None, None)],
        ),
        (
            ("Machine type received is 'pc-i440fx-7.2' and local is 'pc-i440fx-10.0'",),
            [("configuration", "machine", "pc-i440fx-7.2", "pc-i440fx-10.0")],
        ),
        (("Expected vmdescription section, but got 0",), [("stream", None, None, None)]),
        (("Input validation failed: ahci/dev", DEVICE), [(BLK, "ahci:dev", None, None)]),
        ((DEVICE,), [(BLK, None, None, None)]),
        (("warning: Machine type 'pc-i440fx-5.2' is deprecated",), []),
        ((), []),
    ],
)
def test_logs(lines: tuple[str, ...], found: list[tuple[str | None, ...]]) -> None:
    assert parsed(*lines) == found


def test_words_of_the_device_itself_are_kept() -> None:
    (error,) = parse_errors(f"{P}virtio-net: saved image requires vnet_hdr=on\n{P}{DEVICE}\n")
    assert (error.section, error.said) == (BLK, "virtio-net: saved image requires vnet_hdr=on")


def test_a_fix_is_told_where_one_is_known() -> None:
    (size,) = parse_errors("VQ 0 vring.num 1024 exceeds allocated max 256")
    assert size.setting is SetAlike.QUEUE_SIZE
    evidence = FieldEvidence(section=BLK, said="", recorded=1024, loading=256, setting=size.setting)
    assert "queues of 1024 entries" in remedy_text(evidence)
    assert parse_errors("something else broke")[0].setting is None
    assert remedy_text(replace(evidence, setting=None)) == ""


def vmdesc(*devices: dict[str, Any]) -> VmDesc:
    return VmDesc.from_json(json.dumps({"page_size": 4096, "devices": list(devices)}).encode())


def described(fields: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"name": "dev", "instance_id": 0, "vmsd_name": "dev", "version": 1, "fields": fields, **more}


def number(name: str, size: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "type": f"uint{size * 8}", "size": size, **more}


def section(idstr: str, payload: bytes, version: int = 1, desc: dict[str, Any] | None = None) -> Section:
    return Section(
        type=4, section_id=7, idstr=idstr, instance_id=0, version_id=version, offset=0, header_size=0, payload=payload,
        footer=True, desc=vmdesc(desc).devices[0] if desc else None,
    )  # fmt: skip


def differences(mine: dict[str, Any], other: dict[str, Any], version: int = 1) -> list[str]:
    """Each in words, without the section's name; first the recording, then the loading side."""
    dev = {"dev": section("dev", b"", desc=mine)}
    theirs = {"dev": section("dev", b"", version, other)}
    found = compare_sections(dev, theirs)
    texts = [difference_text(d).removeprefix("dev ") for d in found]
    return [text.replace(" in the recording", "").replace(" on the loading side", "") for text in texts]


def test_structures() -> None:
    mine = described([number("a", 4), number("b", 2)])
    assert differences(mine, mine) == []
    assert differences(mine, described([number("a", 4)])) == ["b (missing): 2 bytes, not there"]
    assert differences(described([number("a", 4)]), mine) == ["b (new): not there, 2 bytes"]
    wider = described([number("a", 4), number("b", 4)])
    assert differences(mine, wider) == ["b (size): 2 bytes, 4 bytes"]
    assert differences(mine, mine, version=2) == ["(version): version 1, version 2"]


def test_nested_structures_and_subsections() -> None:
    def outer(size: int, *subsections: dict[str, Any]) -> dict[str, Any]:
        inner = {"vmsd_name": "in", "version": 1, "fields": [number("x", size)]}
        held = {"name": "s", "type": "struct", "size": size, "struct": inner}
        return described([held], subsections=list(subsections))

    sub = {"vmsd_name": "dev/sub", "version": 1, "fields": [number("y", 1)]}
    assert differences(outer(2), outer(4)) == ["s.x (size): 2 bytes, 4 bytes"]
    assert differences(outer(2, sub), outer(2)) == ["dev/sub (missing): there, not there"]
    newer = {**sub, "version": 2}
    assert differences(outer(2, sub), outer(2, newer)) == ["dev/sub (version): version 1, version 2"]


def test_ram_blocks() -> None:
    mine = [RamBlock(name="pc.ram", size_bytes=4096), RamBlock(name="net.rom", size_bytes=4096)]
    other = [RamBlock(name="pc.ram", size_bytes=8192)]
    assert [(d.path, d.recorded, d.loading) for d in compare_ram(mine, other)] == [
        ("pc.ram", 4096, 8192),
        ("net.rom", 4096, None),
    ]


def test_values_of_both_sides(make_pack: Any, handmade: Any) -> None:
    path: Path = make_pack()
    own = read_stream(handmade.stream({}, 0x77))
    assert own.vmdesc is not None
    state = OwnState(
        sections={label_of(s): replace(s, payload=bytes(s.payload)) for s in own.devices if s.idstr != "cpu"},
        blocks=(RamBlock(name="pc.ram", size_bytes=4 * 4096),),
    )
    with StatePack(path) as pack:
        blocks = [RamBlock(name=b.name, size_bytes=b.size_bytes) for b in pack.manifest.blocks]
        errors = [
            LoadError(section="i8259", field="i8259:imr", said="no"),
            LoadError(section="cpu", field="env.eip", said="no"),
            LoadError(section="ram", field="vga.rom", said="no"),
            LoadError(section=None, said="what?"),
        ]
        imr, eip, ram, unknown = explain_errors(errors, pack.recordings["bound"], blocks, state)
    assert (imr.recorded, imr.loading) == (34, 119)
    assert explained_text(imr) == "i8259 i8259:imr: 34 (0x22) in the recording, 119 (0x77) on the loading side, 'no'"
    assert (eip.recorded, eip.loading) == (0xFFF0 + 0x22, None)
    assert [d.differs for d in eip.differences] == ["section"]
    assert [d.path for d in ram.differences] == ["vga.rom"]
    assert [d.differs for d in unknown.differences] == ["block", "section"]
    assert explained_text(unknown).startswith("a section that QEMU does not name: 'what?'; ram vga.rom (block)")


def test_a_rom_file_that_is_not_there_is_no_reason_of_a_device() -> None:
    (error,) = parse_errors(
        "rom: file vgabios-ramfb.bin   : error Failed to open file\n"
        "qemu: Failed to load virtio-gpu:virtio-gpu\n"
        "qemu: error while loading state for instance 0x0 of device '0000:00:02.0/virtio-gpu'\n"
    )
    assert (error.section, error.field) == ("0000:00:02.0/virtio-gpu", "virtio-gpu:virtio-gpu")
    assert "rom" not in error.said


def test_more_bytes_than_say_anything_are_not_shown() -> None:
    desc = described([{"name": "scanout", "type": "buffer", "size": 64}, {"name": "few", "type": "buffer", "size": 4}])
    held = section("dev", bytes(range(68)), desc=desc)
    assert (_value(held, "scanout"), _value(held, "few")) == (None, "40414243")


def test_a_register_of_an_arm_cpu_that_the_loading_side_has_not_is_named(make_pack: Any) -> None:
    def cpu(*registers: int) -> Section:
        held = {"name": "cpreg_vmstate_indexes", "type": "int64", "size": 8 * len(registers)}
        desc = described([{**held, "type": "buffer"}], name="cpu", vmsd_name="cpu")
        return section("cpu", struct.pack(f">{len(registers)}Q", *registers), desc=desc)

    with StatePack(make_pack()) as pack:
        recording = replace(pack.recordings["bound"], sections=(cpu(0x6030000000130001, 0x40200000200F3A00),))
        own = OwnState(sections={"cpu": cpu(0x6030000000130001, 0x6030000000130002)}, blocks=())
        (found,) = explain_errors([LoadError(section="cpu", said="no")], recording, [], own)
    assert (found.field, found.recorded) == ("cpreg_vmstate_indexes", "0x40200000200f3a00")
    assert "0x40200000200f3a00 in the recording" in explained_text(found)
    assert "restart the guest" in remedy_text(found)
