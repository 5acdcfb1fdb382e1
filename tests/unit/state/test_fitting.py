# SPDX-License-Identifier: GPL-2.0-or-later
"""A recorded guest for a QEMU that has less: what it cannot have is taken out, with what hangs on it, and no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.guests.lack import Lacks
from harness.guests.plan import PlacedDevice, hanging_on, standing_on
from harness.packs.manifest import is_rom
from harness.packs.pack import StatePack, incoming_body
from harness.qemu.binary import QemuBinary
from harness.qemu.listed import Listed, Listing
from harness.state import fitting as module
from harness.state.fitting import fitted, without_devices
from harness.state.transforms import labels_of
from harness.stream.reader import read_stream

if TYPE_CHECKING:
    from tests.unit.conftest import Handmade

BLK = PlacedDevice(id="blk", type="virtio-blk-pci", slot="04.0", owner="virtio-blk", backends={"drive": "a"})
AHCI = PlacedDevice(id="hba", type="ich9-ahci", slot="03.0", owner="ahci")
DISK = PlacedDevice(id="hd", type="ide-hd", bus="hba.0", owner="ide-hd")


@pytest.fixture
def pack(make_pack: Callable[..., Path], own_cache: Path) -> Iterator[StatePack]:
    with StatePack(make_pack()) as opened:
        yield planned(opened, BLK, AHCI, DISK)


def planned(pack: StatePack, *devices: PlacedDevice) -> StatePack:
    plan = pack.manifest.plan.model_copy(update={"devices": devices})
    pack.manifest = pack.manifest.model_copy(update={"plan": plan})
    return pack


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def answer(**types: tuple[str, ...]) -> None:
        devices = {
            name.replace("_", "-"): {key: Listed(type="bool", kind="boolean") for key in keys}
            for name, keys in types.items()
        }
        monkeypatch.setattr(module, "listing", lambda *_: Listing(devices=devices, machine={}))

    return answer


def test_what_a_qemu_can_have_is_the_pack_itself(pack: StatePack, binary: QemuBinary) -> None:
    fit = fitted(pack, binary)
    assert fit.pack is pack
    assert fit.lacking == {}


def test_a_controller_takes_with_it_what_is_plugged_into_it(
    pack: StatePack, binary: QemuBinary, handmade: Handmade
) -> None:
    fit = fitted(pack, replace(binary, devices=frozenset({"virtio-blk-pci", "ide-hd"})))
    assert {name: (lack.what, lack.names) for name, lack in fit.lacking.items()} == {
        "ahci": (Lacks.RECORDED_TYPES, ("ich9-ahci",)),
        "ide-hd": (Lacks.RECORDED_TYPES, ("ich9-ahci",)),
    }
    part = fit.pack
    assert part is not None
    assert [device.id for device in part.manifest.plan.devices] == ["blk"]
    assert [device.name for device in part.manifest.devices] == ["virtio-blk", "platform"]
    sections = labels_of(part.recordings["bound"].sections)
    assert sections == [label for label in handmade.sections if label != handmade.ahci]
    # the rest of it is what it was
    for phase in pack.phases:
        assert list(part.recordings[phase].index) == list(pack.recordings[phase].index)
        assert b"".join(map(bytes, part.ram_whole(phase))) == b"".join(map(bytes, pack.ram_whole(phase)))
    assert part.foreign is pack.foreign


def test_a_disk_costs_its_controller_nothing(pack: StatePack, binary: QemuBinary) -> None:
    fit = fitted(pack, replace(binary, devices=frozenset({"virtio-blk-pci", "ich9-ahci"})))
    assert set(fit.lacking) == {"ide-hd"}


def test_the_memory_of_a_device_goes_with_it(pack: StatePack, binary: QemuBinary, handmade: Handmade) -> None:
    (ram, pages), (rom, _) = handmade.blocks
    assert is_rom(rom)
    blocks = [
        b if b.name == ram else b.model_copy(update={"name": "0000:00:03.0/hba.rom"}) for b in pack.manifest.blocks
    ]
    pack.manifest = pack.manifest.model_copy(update={"blocks": blocks})
    part = fitted(pack, replace(binary, devices=frozenset({"virtio-blk-pci"}))).pack
    assert part is not None
    assert [block.name for block in part.manifest.blocks] == [ram]
    recording = part.recordings["bound"]
    assert len(recording.index) == pages
    body = incoming_body(recording, part.ram_whole("bound"), b"".join(s.encode() for s in recording.sections))
    stream = read_stream(recording.head + b"".join(map(bytes, body)))
    assert [block.name for block in stream.ram_blocks] == [ram]


def test_a_part_is_made_once(pack: StatePack, binary: QemuBinary) -> None:
    less = replace(binary, devices=frozenset({"virtio-blk-pci"}))
    first, second = fitted(pack, less).pack, fitted(pack, less).pack
    assert first is not None
    assert second is not None
    assert (first.path, first.content) == (second.path, second.content)
    assert first.content != pack.content


def test_a_machine_that_the_qemu_has_not_costs_all(pack: StatePack, binary: QemuBinary) -> None:
    fit = fitted(pack, replace(binary, machines=()))
    assert fit.pack is None
    assert {lack.what for lack in fit.lacking.values()} == {Lacks.MACHINE}
    assert set(fit.lacking) == {"ahci", "virtio-blk", "platform"}


def test_a_property_that_the_new_qemu_has_not_costs_its_device(
    pack: StatePack, binary: QemuBinary, lists: Callable[..., None]
) -> None:
    new = replace(binary, sha256="f" * 64)
    told = BLK.model_copy(update={"properties": {"scsi": True, "packed": True}})
    lists(virtio_blk_pci=("packed",))
    fit = fitted(planned(pack, told, AHCI), new)
    assert {name: lack.names for name, lack in fit.lacking.items()} == {"virtio-blk": ("virtio-blk-pci.scsi",)}


@pytest.mark.parametrize("off", [False, "off"])
def test_a_property_that_is_off_and_unknown_to_the_new_qemu_is_left_out(
    pack: StatePack, binary: QemuBinary, lists: Callable[..., None], off: Any
) -> None:
    new = replace(binary, sha256="f" * 64)
    told = BLK.model_copy(update={"properties": {"scsi": off, "packed": True}})
    lists(virtio_blk_pci=("packed",))
    fit = fitted(planned(pack, told, AHCI), new)
    assert fit.lacking == {}
    assert fit.pack is not None
    assert fit.pack.manifest.plan.devices[0].properties == {"packed": True}
    assert labels_of(fit.pack.recordings["bound"].sections) == labels_of(pack.recordings["bound"].sections)


def test_what_names_a_lost_device_is_lost(pack: StatePack) -> None:
    user = PlacedDevice(id="y", type="ipmi-bt", owner="ipmi-bt", references={"bmc": "x"})
    plan = planned(pack, PlacedDevice(id="x", type="bmc", owner="bmc"), user, BLK).manifest.plan
    assert hanging_on(plan, {"x"}) == {"x", "y"}


def test_what_is_left_has_nothing_that_was_plugged_into_the_rest(pack: StatePack) -> None:
    plan = pack.manifest.plan
    assert [device.id for device in plan.only({"virtio-blk", "ide-hd"}).devices] == ["blk"]
    assert [device.id for device in plan.only({"virtio-blk", "ahci"}).devices] == ["blk", "hba"]


def test_a_device_stands_on_what_it_is_plugged_into(pack: StatePack) -> None:
    plan = planned(pack, BLK, AHCI, DISK).manifest.plan
    assert standing_on(plan, {"hd"}) == {"hd", "hba"}
    assert standing_on(plan, {"hba", "blk"}) == {"hba", "blk"}


def test_a_group_of_ports_loses_only_what_hangs_on_the_lost_one(pack: StatePack) -> None:
    ports = [
        PlacedDevice(id=f"p{n}", type="ioh3420", bus=bus, owner="ioh3420") for n, bus in ((0, "pcie.0"), (1, "pxb"))
    ]
    plan = planned(pack, ports[0], PlacedDevice(id="pxb", type="pxb-pcie", owner="pxb-pcie"), ports[1]).manifest.plan
    assert [device.id for device in plan.only({"ioh3420"}).devices] == ["p0"]
    part, gone = without_devices(pack, {"pxb-pcie"})
    assert gone == {"pxb-pcie", "ioh3420"}
    assert part.manifest.plan.devices == ()
