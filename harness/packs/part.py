# SPDX-License-Identifier: GPL-2.0-or-later
"""A pack without some of its devices: for a QEMU that cannot have them, and can have the others.

Their sections and RAM blocks are taken out, and they are in the plan no more. Pages and the guest's own files are the
same files under second names.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Collection, Iterable
from pathlib import Path

from harness.cache import publish_dir
from harness.devices.device import section_label
from harness.guests.plan import ROOT, GuestPlan, PlacedDevice
from harness.packs.manifest import MANIFEST, BlockModel, Manifest, file_model
from harness.packs.pack import Recording, StatePack
from harness.packs.packfile import part_key
from harness.packs.packwriter import index_bytes, link_or_copy
from harness.stream.model import RamBlock
from harness.stream.ram import encode_mem_size, encode_ram_section
from harness.stream.wire import PAGE_SIZE, SectionType

#: Files of a phase that are made anew; all others are the pack's own.
_MADE = ("ram.index", "setup.bin", "devices.bin", "vmdesc.json")


def pack_of_plan(pack: StatePack, plan: GuestPlan, without: Collection[str]) -> StatePack:
    """The pack of a plan that has some of its devices no more, in the cache; made when it is not there.

    :param plan: of the devices that are left
    :param without: names of those whose sections are taken out
    :raises PackError: the pack was damaged since it was opened
    :raises HostError: no space
    """
    text = json.dumps([pack.content, sorted(without), plan.model_dump(mode="json")], sort_keys=True)
    key = part_key(hashlib.sha256(text.encode()).hexdigest()[:32], foreign=pack.foreign)
    return StatePack(publish_dir(key, lambda folder: _SmallerPack(pack, plan, without).write(folder)))


class _SmallerPack:
    """A pack on its way to a smaller one."""

    def __init__(self, pack: StatePack, plan: GuestPlan, without: Collection[str]) -> None:
        self._pack, self._plan = pack, plan
        self._devices = [device for device in pack.manifest.devices if device.name not in without]
        gone = [device for device in pack.manifest.devices if device.name in without]
        self._sections = {label for device in gone for label in device.sections}
        ids = {device.id for device in plan.devices}
        lost = [device for device in pack.manifest.plan.devices if device.id not in ids]
        self._blocks = [block for block in pack.manifest.blocks if not self._is_lost(block.name, lost)]

    def _is_lost(self, block: str, lost: Iterable[PlacedDevice]) -> bool:
        """Whether a RAM block is one of the devices that are gone: it is called by their place or their memory."""
        places = {label.rpartition("/")[0] for label in self._sections} | {f"{ROOT}:{d.slot}" for d in lost if d.slot}
        memory = self._pack.manifest.plan.backends.keys() - self._plan.backends.keys()
        return ("/" in block and block.rpartition("/")[0] in places) or block in memory

    def write(self, folder: Path) -> None:
        """Fill an empty folder."""
        old = self._pack.manifest
        for recording in self._pack.recordings.values():
            (folder / recording.name).mkdir()
            (folder / recording.name / "ram.index").write_bytes(self._index(recording))
            (folder / recording.name / "setup.bin").write_bytes(self._setup(recording))
            kept = [s for s in recording.sections if section_label(s.idstr, s.instance_id) not in self._sections]
            (folder / recording.name / "devices.bin").write_bytes(b"".join(section.encode() for section in kept))
            described = recording.vmdesc.only({section.key for section in kept})
            (folder / recording.name / "vmdesc.json").write_bytes(described.text)
        for name in old.files:
            if not name.endswith(_MADE):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(self._pack.path / name, folder / name)
        (folder / MANIFEST).write_text(self._manifest(folder).text())

    def _index(self, recording: Recording) -> bytes:
        kept, start = array("I"), 0
        names = {block.name for block in self._blocks}
        for block in self._pack.manifest.blocks:
            end = start + block.size_bytes // PAGE_SIZE
            kept += recording.index[start:end] if block.name in names else array("I")
            start = end
        return index_bytes(kept)

    def _setup(self, recording: Recording) -> bytes:
        blocks = [RamBlock(name=block.name, size_bytes=block.size_bytes) for block in self._blocks]
        return encode_ram_section(
            SectionType.START, recording.ram_section_id, encode_mem_size(blocks), footer=recording.footers
        )

    def _manifest(self, folder: Path) -> Manifest:
        old = self._pack.manifest
        names = {block.name for block in self._blocks}
        update = {
            "plan": self._plan,
            "blocks": [BlockModel(name=block.name, size_bytes=block.size_bytes) for block in self._blocks],
            "devices": self._devices,
            "files": {name: file_model(folder / name) for name in old.files},
            "roms": {name: rom for name, rom in old.roms.items() if name in names},
            "packed": {},
        }
        return Manifest.model_validate(old.model_copy(update=update).model_dump(by_alias=True))
