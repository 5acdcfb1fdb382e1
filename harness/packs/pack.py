# SPDX-License-Identifier: GPL-2.0-or-later
"""State packs: recordings of one guest at several phases that verify themselves.

One file when it travels (:mod:`harness.packs.packfile`), a folder where it is worked with::

    manifest.json         schema, plan of the guest, QEMU, host, phases, size and SHA-256 of every file
    guest/kernel          what the guest boots from
    guest/initramfs
    ram.pages             page contents, 4096 bytes each, every content once, in the order of the phases
    PHASE/ram.index       u32 little-endian for each page of each block in order: 0 zeros, n page n-1 of ram.pages
    PHASE/head.bin        magic, version, configuration section
    PHASE/setup.bin       the START section of ``ram`` with its block list
    PHASE/devices.bin     FULL sections as they were on the wire
    PHASE/vmdesc.json     the description that ended the stream
    PHASE/console.log     what the guest's serial console had printed
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import stat
import sys
import weakref
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from harness.arch import Architecture, architecture_of
from harness.cache import cache_root, hold, publish_dir
from harness.devices.device import section_label
from harness.devices.phases import Unreached
from harness.errors import PackError, StreamError
from harness.files import sha256_file
from harness.guests.foreign import check_plan
from harness.guests.machine import Boot, Machine, version_of
from harness.names import PLATFORM
from harness.packs.manifest import (
    INITRAMFS,
    KERNEL,
    LOOK,
    MANIFEST,
    PAGES,
    RAM_FILES,
    DeviceModel,
    FileModel,
    Manifest,
    PhaseModel,
    read_manifest,
)
from harness.packs.packfile import is_foreign, unpacked
from harness.packs.packwriter import PackWriter
from harness.qemu.look import Look, look_from_json
from harness.stream.model import Section, section_footer
from harness.stream.ram import PageRecords, encode_pages, ram_section_of
from harness.stream.reader import read_devices
from harness.stream.vmdesc import VmDesc
from harness.stream.wire import PAGE_SIZE, SectionType

__all__ = [
    "MANIFEST",
    "PAGES",
    "DeviceModel",
    "Manifest",
    "PackWriter",
    "PhaseSize",
    "Recording",
    "StatePack",
    "incoming_body",
    "last_ram",
]


#: Machine types from here on are loaded by no QEMU that fills the guest's memory before its incoming stream has come.
_FILLS_NOTHING = (4, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One phase of an open pack.

    :param architecture: of the recorded guest
    :param sections: the device state, in stream order
    :param index: for each page of all blocks in order: 0 zeros, n page n-1 of the pack
    """

    name: str
    architecture: Architecture
    head: bytes
    setup: bytes
    sections: tuple[Section, ...]
    vmdesc: VmDesc
    index: array[int]
    ram_section_id: int
    console: str

    @property
    def footers(self) -> bool:
        """Whether its sections end with a footer: those of machine types before 2.4 do not."""
        return self.setup.endswith(section_footer(self.ram_section_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSize:
    """What a phase takes.

    :param recorded_bytes: its migration stream
    :param page_bytes: contents of pages that no phase before it has
    :param folder_bytes: these and its other files
    :param packed_bytes: what it adds to the pack's one file; None for a pack that was never one
    """

    name: str
    recorded_bytes: int
    page_bytes: int
    folder_bytes: int
    packed_bytes: int | None


class StatePack:
    """An open, verified pack. Close it, or use it as a context manager.

    :param path: the folder, or the file: that is unpacked into the cache once
    :raises PackError: not a pack, another schema, or a file is missing, cut or changed
    :raises HostError: no space to unpack it

    ``source`` is the path as it was given, ``path`` the folder. A pack that was not recorded into this user's own cache
    is ``foreign``: its plan is checked here, and by its machine against each QEMU that loads it.
    """

    def __init__(self, path: Path) -> None:
        self.source = path
        # before anything is read: what is held is not pruned
        self._held: dict[Path, int] = {}
        # one that nobody closed is let go with its object
        weakref.finalize(self, _let_go, self._held)
        self.path = self._hold(path if path.is_dir() else unpacked(path))
        self.manifest = self._verified()
        self.foreign = is_foreign(self.path)
        if self.foreign:
            self._check_plan()
        self._pages = _map(self.path / PAGES)
        self.recordings = {phase.name: self._load(phase) for phase in self.manifest.phases}

    @property
    def architecture(self) -> Architecture:
        """That of the recorded guest."""
        return architecture_of(self.manifest.machine)

    @property
    def machine(self) -> Machine:
        """The guest machine that a secondary must be, with its files where they are now."""
        plan = self.manifest.plan
        folder = self.path.absolute()
        boot = None
        if plan.kernel is not None:
            folder = self._hold(_own_guest(folder, self.manifest)) if self.foreign else folder
            boot = Boot(kernel=folder / KERNEL, initramfs=folder / INITRAMFS)
        return Machine(plan=plan, accel=self.manifest.accel, boot=boot, foreign=self.source if self.foreign else None)

    @property
    def content(self) -> str:
        """A hash of all that was recorded, in hex; the same wherever the pack lies, and in both of its forms."""
        files = {name: self.manifest.files[name].sha256 for name in self.manifest.contents()}
        parts = [self.manifest.machine, self.manifest.accel, self.manifest.qemu, files]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def device_types(self) -> list[str]:
        """QEMU device types that the guest was given, each once."""
        return self.manifest.plan.types()

    @property
    def sizes(self) -> list[PhaseSize]:
        """What each phase takes, in their order."""
        sizes, before = [], 0
        for phase in self.manifest.phases:
            # pages are numbered in the order in which phases brought them
            end = max(before, max(self.recordings[phase.name].index, default=0))
            pages, before = (end - before) * PAGE_SIZE, end
            sizes.append(
                PhaseSize(
                    name=phase.name,
                    recorded_bytes=phase.recorded_bytes,
                    page_bytes=pages,
                    folder_bytes=pages
                    + sum(self.manifest.files[f"{phase.name}/{name}"].size_bytes for name in RAM_FILES),
                    packed_bytes=self.manifest.packed.get(phase.name),
                )
            )
        return sizes

    @property
    def phases(self) -> list[str]:
        """Names of the recordings, in the order in which they were made."""
        return list(self.recordings)

    def sections_of(self, device: str) -> list[str]:
        """Labels of the sections that a device owns.

        :raises PackError: the pack was recorded without it
        """
        return self._device(device).sections

    @cached_property
    def owners(self) -> dict[str, str]:
        """Label of each section that a device owns to that device."""
        return {label: device.name for device in self.manifest.devices for label in device.sections}

    def owner_of(self, label: str) -> str:
        """The device that owns a section."""
        return self.owners.get(label, PLATFORM)

    def unreached(self, device: str) -> dict[str, Unreached]:
        """By phase, what a device did not reach, and why.

        :raises PackError: the pack was recorded without it
        """
        return {lack.phase: lack for lack in self._device(device).unreached}

    def look(self, phase: str) -> Look | None:
        """What QEMU showed of the machine beside its saved state; None for a phase that has no look.

        :raises PackError: it is none
        """
        name = f"{phase}/{LOOK}"
        if name not in self.manifest.files:
            return None
        try:
            return look_from_json((self.path / name).read_bytes())
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise PackError(f"{self.source}: {name}: no look at a machine: {error}") from error

    def page(self, number: int) -> memoryview | None:
        """Content for one entry of an index."""
        return None if number == 0 else self._pages[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]

    def ram_whole(self, phase: str) -> list[bytes | memoryview]:
        """START with the block list and one END with every page: what an incoming stream begins with. Of the guest's
        memory, which is zeros when QEMU starts, pages of zeros are left out.

        :return: buffers to be sent one behind the other; the pages are views into the pack, not copies
        """
        recording = self.recordings[phase]
        records = self._records.of(recording.index, empty=self._empty_blocks)
        return [recording.setup, *_last_of(recording, records)]

    def ram_difference(self, phase: str, base: str) -> list[bytes | memoryview]:
        """An END section with the pages of ``phase`` that differ from ``base``; empty when none do."""
        recording = self.recordings[phase]
        records = self._records.of(recording.index, self.recordings[base].index)
        return _last_of(recording, records) if records else []

    @cached_property
    def _records(self) -> PageRecords:
        contents = [self._pages[at : at + PAGE_SIZE] for at in range(0, len(self._pages), PAGE_SIZE)]
        return PageRecords([(block.name, block.size_bytes) for block in self.manifest.blocks], contents)

    @property
    def _empty_blocks(self) -> frozenset[str]:
        """The guest's memory, where whatever QEMU loads its machine type has nothing in it at the start of an incoming
        stream: before 4.1 the kernel and other files were put there (``rom_reset`` in ``hw/core/loader.c``)."""
        plan = self.manifest.plan
        version = version_of(plan.machine)
        if plan.kernel is None or version is None or version < _FILLS_NOTHING:
            return frozenset()
        return frozenset(block.name for block in self.manifest.blocks if block.size_bytes == plan.memory_mib << 20)

    def _hold(self, folder: Path) -> Path:
        """A folder that stays in the cache until the pack is closed."""
        if folder not in self._held:
            held = hold(folder)
            self._held |= {} if held is None else {folder: held}
        return folder

    def _verified(self) -> Manifest:
        try:
            return _verified(self.path)
        except PackError:
            if self.path == self.source:
                raise
        # the cache was damaged, and not the pack: unpack it again
        shutil.rmtree(self.path, ignore_errors=True)
        _let_go(self._held)
        return _verified(self._hold(unpacked(self.source)))

    def close(self) -> None:
        """Unmap the pages."""
        self.__dict__.pop("_records", None)
        self._pages.release()
        _let_go(self._held)

    def __enter__(self) -> StatePack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _device(self, name: str) -> DeviceModel:
        for entry in self.manifest.devices:
            if entry.name == name:
                return entry
        raise PackError(f"{self.source}: recorded without device {name!r}")

    def _check_plan(self) -> None:
        try:
            check_plan(self.manifest.plan, self.manifest.accel)
        except PackError as error:
            raise PackError(f"{self.source}: {MANIFEST}: {error}") from error

    def _load(self, phase: PhaseModel) -> Recording:
        folder = self.path / phase.name
        index = array("I")
        raw = (folder / "ram.index").read_bytes()
        index.frombytes(raw[: len(raw) - len(raw) % index.itemsize])
        if sys.byteorder == "big":
            index.byteswap()
        pages = len(self._pages) // PAGE_SIZE
        wanted = sum(block.size_bytes // PAGE_SIZE for block in self.manifest.blocks)
        if len(index) != wanted or max(index, default=0) > pages:
            raise PackError(f"{folder / 'ram.index'}: {len(index)} pages of {pages}, expected {wanted}")
        try:
            vmdesc = VmDesc.from_json((folder / "vmdesc.json").read_bytes())
            sections = read_devices((folder / "devices.bin").read_bytes() + b"\0", vmdesc=vmdesc)
        except StreamError as error:
            raise PackError(f"{folder}: {error}") from error
        return Recording(
            name=phase.name,
            architecture=self.architecture,
            head=(folder / "head.bin").read_bytes(),
            setup=(folder / "setup.bin").read_bytes(),
            sections=tuple(map(self._decoded, sections)),
            vmdesc=vmdesc,
            index=index,
            ram_section_id=phase.ram_section_id,
            console=(folder / "console.log").read_text(errors="replace"),
        )

    def _decoded(self, section: Section) -> Section:
        """The section with the codec that its device asks for."""
        owner = self.manifest.owner(section_label(section.idstr, section.instance_id))
        if section.desc is None or owner is None:
            return section
        return replace(section, desc=replace(section.desc, decoder=owner.recipe.decoder))


def _last_of(recording: Recording, records: list[bytes | memoryview]) -> list[bytes | memoryview]:
    return ram_section_of(SectionType.END, recording.ram_section_id, records, footer=recording.footers)


def last_ram(recording: Recording, pages: Iterable[tuple[str, int, memoryview | None]]) -> list[bytes | memoryview]:
    """An END section of ``ram``, with a footer where the recording's stream has them."""
    return _last_of(recording, encode_pages(pages))


def _let_go(folders: dict[Path, int]) -> None:
    for held in folders.values():
        os.close(held)
    folders.clear()


def incoming_body(recording: Recording, ram: Sequence[bytes | memoryview], devices: bytes) -> list[bytes | memoryview]:
    """What follows the head in a stream: RAM, device sections with EOF, vmdesc."""
    return [*ram, devices + b"\0", recording.vmdesc.raw]


def _own_guest(folder: Path, manifest: Manifest) -> Path:
    """Where QEMU reads kernel and initramfs of a pack from elsewhere: a folder of the cache, under names of ours.

    In the pack's own folder somebody else could still change them, or make links of them.
    """
    if folder.parent == cache_root() / "packs":
        return folder
    names = [name for name in (KERNEL, INITRAMFS) if name in manifest.files]
    key = "-".join(manifest.files[name].sha256[:32] for name in names)
    return publish_dir(f"imported/{key}", lambda own: _copy_checked(folder, own, {n: manifest.files[n] for n in names}))


def _copy_checked(folder: Path, own: Path, files: dict[str, FileModel]) -> None:
    for name, wanted in files.items():
        target = own / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, target)
        if _sha256(target) != wanted.sha256:
            raise PackError(f"{folder / name}: its SHA-256 is not the one in {MANIFEST}; the pack was changed")


def _verified(path: Path) -> Manifest:
    manifest = read_manifest(path)
    for name, wanted in manifest.files.items():
        file = path / name
        try:
            found = file.lstat()
        except OSError as error:
            raise PackError(f"{file}: {error.strerror}; the pack is not complete") from error
        if not stat.S_ISREG(found.st_mode):
            raise PackError(f"{file}: expected a plain file, no link and no device")
        size = found.st_size
        if size != wanted.size_bytes:
            raise PackError(f"{file}: {size} bytes, expected {wanted.size_bytes}; the pack was cut or changed")
        if _sha256(file) != wanted.sha256:
            raise PackError(f"{file}: its SHA-256 is not the one in {MANIFEST}; the pack was changed")
    return manifest


def _sha256(file: Path) -> str:
    try:
        return sha256_file(file)
    except OSError as error:
        raise PackError(f"{file}: cannot be read: {error.strerror}") from error


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
