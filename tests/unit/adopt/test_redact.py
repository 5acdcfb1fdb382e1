# SPDX-License-Identifier: GPL-2.0-or-later
"""State packs that are given away: what is not in them any more, and what is."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from harness.adopt.redact import (
    emptied_bytes,
    ram_offset,
    redact_pack,
    redacted_origin,
    redacted_plan,
    replaced_bytes,
)
from harness.cli import cli
from harness.errors import UsageError
from harness.guests.origin import LeftOut, VmOrigin, Without
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.names import ADOPTED
from harness.packs.manifest import MANIFEST, read_manifest
from harness.packs.pack import StatePack
from harness.report.adopted import origin_lines
from harness.stream.model import Section
from harness.stream.vmdesc import VmDesc

if TYPE_CHECKING:
    from tests.unit.conftest import Handmade

MakePack = Callable[..., Path]
GIB = 1 << 30
#: Four bytes of the hand-made ``bound`` phase's AHCI.
NAME = '""""'


def test_memory_goes_and_roms_stay(make_pack: MakePack, handmade: Handmade, tmp_path: Path) -> None:
    with StatePack(make_pack("whole", "kernel", "bound")) as pack:
        redaction = redact_pack(pack, "bound", tmp_path / "given")
    assert (redaction.phase, redaction.pages, redaction.roms) == ("bound", 2, ("vga.rom",))
    assert redaction.sections == handmade.sections
    with StatePack(tmp_path / "given") as given:
        assert given.phases == [ADOPTED]
        recording = given.recordings[ADOPTED]
        assert list(recording.index) == [0, 0, 0, 0, 1]
        assert bytes(given.page(1) or b"") == handmade.page(5)
        assert recording.console == ""
        assert b"".join(section.encode() for section in recording.sections) == handmade.devices(0x22)
        assert given.manifest.guest == {"name": ADOPTED}
        assert given.manifest.qemu["path"] == "qemu"
        assert [device.sections for device in given.manifest.devices if device.name == "ahci"] == [[handmade.ahci]]
        assert given.manifest.origin is not None
        assert origin_lines(given.manifest.origin)[1:] == ["left out: RAM: taken out, for the pack is given away"]


def test_a_name_is_replaced_in_sections(make_pack: MakePack, handmade: Handmade, tmp_path: Path) -> None:
    with StatePack(make_pack("whole", "bound")) as pack:
        redaction = redact_pack(pack, "bound", tmp_path / "given", [NAME, "abc"])
    assert redaction.changed == (handmade.ahci, handmade.blk)
    with StatePack(tmp_path / "given") as given:
        payloads = {section.idstr: section.payload for section in given.recordings[ADOPTED].sections}
    assert (payloads[handmade.ahci], payloads[handmade.blk]) == (b"xxxx", b"xxxxxxxx")


def test_a_name_that_is_in_the_pack_all_the_same_is_said(make_pack: MakePack, tmp_path: Path) -> None:
    with (
        StatePack(make_pack("whole", "bound")) as pack,
        pytest.raises(UsageError, match=r"'i440fx' is still in manifest\.json of the redacted pack: expected ids"),
    ):
        redact_pack(pack, "bound", tmp_path / "given", ["i440fx"])


def test_the_command_writes_one_file_and_says_what_remains(
    make_pack: MakePack, tmp_path: Path, own_cache: Path
) -> None:
    whole, out = make_pack("whole", "kernel", "bound"), tmp_path / "given.pack"
    done = CliRunner().invoke(cli, ["redact", str(whole), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "phase bound, now adopted: 2 pages of memory taken out" in done.output
    assert "remains: 6 sections: cpu_common, cpu, i8259, i8259#1, 0000:00:03.0/ich9_ahci" in done.output
    assert "remains: ids blk, a" in done.output
    with StatePack(out) as given:
        assert given.phases == [ADOPTED]
    other = tmp_path / "other"
    done = CliRunner().invoke(cli, ["redact", str(whole), "--out", str(other), "--phase", "kernel", "--json"])
    document = json.loads(done.output)
    assert (document["schema"], document["phase"], document["pages"]) == ("postload.redact/1", "kernel", 3)
    assert own_cache.exists()


def test_a_refused_pack_is_not_left(make_pack: MakePack, tmp_path: Path, own_cache: Path) -> None:
    whole, out = make_pack("whole", "bound"), tmp_path / "there/given.pack"
    for words in (["--phase", "busy"], ["--name", "i440fx"]):
        done = CliRunner().invoke(cli, ["redact", str(whole), "--out", str(out), *words])
        assert isinstance(done.exception, UsageError), done.output
        assert not out.parent.exists() or not list(out.parent.iterdir())
    assert not own_cache.exists()


def test_addresses_and_serials_of_a_plan_are_others_of_the_same_form() -> None:
    properties: dict[str, bool | int | str] = {
        "mac": "52:54:00:8a:bc:de",
        "serial": "S3Z8NB0K",
        "wwn": "0x5000c50015ea71ac",
        "guid": "1b4e28ba-2fa1-11d2-883f-b9a761bde3fb",
        "queue-size": 256,
        "write-cache": "on",
    }
    placed = PlacedDevice(id="disk", type="scsi-hd", slot="04.0", properties=properties)
    plan, replaced, secrets = redacted_plan(
        GuestPlan(machine="pc-i440fx-7.2", family="pc", memory_mib=16, devices=(placed,))
    )
    (found,) = plan.devices
    assert replaced == ["scsi-hd.mac", "scsi-hd.serial", "scsi-hd.wwn", "scsi-hd.guid"]
    assert (found.properties["queue-size"], found.properties["write-cache"]) == (256, "on")
    for key in ("mac", "serial", "wwn", "guid"):
        old, new = properties[key], found.properties[key]
        assert isinstance(old, str)
        assert new == secrets[old] != old
        assert len(str(new)) == len(old)
    assert int(str(found.properties["wwn"]), 16) < 9


@pytest.mark.parametrize(
    ("old", "there"),
    [
        ("52:54:00:8a:bc:de", "5254008abcde"),
        ("52:54:00:8a:bc:de", "5452 8a00 debc"),  # words of an EEPROM
        ("52:54:00:8a:bc:de", "8a005452 8000debc"),  # receive address of an e1000
        ("52:54:00:8a:bc:de", "525254540000 8a8abcbcdede"),  # PROM of an ne2000
        ("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb", "1b4e28ba2fa111d2883fb9a761bde3fb"),
        ("1b4e28ba-2fa1-11d2-883f-b9a761bde3fb", "ba284e1ba12fd211883fb9a761bde3fb"),
        ("S3Z8NB0", b"S3Z8NB0".hex()),
        ("S3Z8NB0", b"3S8ZBN 0".hex()),  # words of an ATA identity
    ],
)
def test_each_form_in_which_a_device_saves_it_is_replaced(old: str, there: str) -> None:
    new = {"5": "52:54:00:00:00:01", "1": "00000000-0000-4000-8000-000000000001", "S": "0000001"}[old[0]]
    held = bytes.fromhex(there)
    found = replaced_bytes(b"\1\2" + held + b"\3", {old: new})
    assert held not in found
    assert (len(found), found[:2], found[-1:]) == (len(held) + 3, b"\1\2", b"\3")


def test_what_was_typed_and_computed_is_emptied() -> None:
    fields = [
        {"name": "queue.data", "type": "buffer", "size": 4},
        {"name": "env.regs", "index": 1, "type": "uint64", "size": 8},
        {"name": "env.eip", "type": "uint64", "size": 8},
    ]
    device = {"name": "ps2", "instance_id": 0, "vmsd_name": "ps2", "version": 1, "fields": fields}
    document = json.dumps({"page_size": 4096, "devices": [device]}).encode()
    described = VmDesc.parse(struct.pack(">BI", 6, len(document)) + document).devices[0]
    section = Section(
        type=4,
        section_id=1,
        idstr="ps2",
        instance_id=0,
        version_id=1,
        offset=0,
        header_size=0,
        payload=b"pass" + bytes(range(1, 17)),
        footer=True,
        desc=described,
    )
    assert emptied_bytes(section) == bytes(12) + bytes(range(9, 17))


@pytest.mark.parametrize(
    ("family", "size", "address", "offset"),
    [
        ("pc", 1 * GIB, 1 * GIB - 2, 1 * GIB - 2),
        ("pc", 1 * GIB, 1 * GIB, None),
        ("pc", 4 * GIB, 3 * GIB - 2, 3 * GIB - 2),
        ("pc", 4 * GIB, 3 * GIB, None),
        ("pc", 4 * GIB, 4 * GIB, 3 * GIB),
        ("q35", 2 * GIB, 2 * GIB - 2, 2 * GIB - 2),
        ("q35", 4 * GIB, 4 * GIB + 8, 2 * GIB + 8),
        ("q35", 4 * GIB, 7 * GIB, None),
        ("virt", 1 * GIB, GIB + 16, 16),
        ("virt", 1 * GIB, 16, None),
    ],
)
def test_a_guest_address_is_found_in_ram(family: str, size: int, address: int, offset: int | None) -> None:
    assert ram_offset(address, size, family, GIB) == offset


def test_a_vm_loses_its_name_and_what_was_said_of_its_host() -> None:
    old = VmOrigin(
        name="web01", left_out=(LeftOut(why=Without.START, type="vmgenid", said="/srv/web01: no such file"),)
    )
    found = redacted_origin(old, ["slirp"])
    assert (found.name, found.left_out[0].said) == ("", "")
    assert [each.why for each in found.left_out] == [Without.START, Without.REDACTED, Without.REDACTED]
    assert found.left_out[2].names == ("slirp",)


def test_words_that_remain_are_listed(make_pack: MakePack, handmade: Handmade, tmp_path: Path) -> None:
    properties: dict[str, bool | int | str] = {
        "serial": "S3Z8NB0K",
        "mount_tag": "web01",
        "scsi": "off",
        "romfile_size": "0x4000",
    }
    placed = PlacedDevice(id="share", type="virtio-9p-pci", slot="05.0", properties=properties)
    plan = handmade.described["plan"].model_copy(update={"devices": (placed,), "backends": {}})
    whole = make_pack("whole", "bound")
    manifest = read_manifest(whole).model_copy(update={"plan": plan})
    (whole / MANIFEST).write_text(manifest.text())
    with StatePack(whole) as pack:
        redaction = redact_pack(pack, "bound", tmp_path / "given")
    assert redaction.replaced == ("virtio-9p-pci.serial",)
    assert redaction.texts == ("virtio-9p-pci.mount_tag=web01",)
