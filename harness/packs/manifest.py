# SPDX-License-Identifier: GPL-2.0-or-later
"""``manifest.json`` of a state pack: its model, and how it is read.

``postload.pack/4`` holds the guest as a typed plan (:mod:`harness.guests.plan`), what is known of its devices
(:class:`harness.devices.device.Device`), its own files (``guest/...`` of ``files``) and what was recorded; no part of a
command line is in it. ``postload.pack/5`` is the same with what only the plan of an adopted VM has: a CPU model, how
CPUs are arranged, properties of what the machine has by itself. An ordinary pack is still written as /4.

A later program that still writes these may add keys at any level but in the plan: a reader that does not know them
leaves them alone and keeps them when it writes the pack again. It may not drop a key, change what one means, or let a
replay depend on a new one. For that the number goes up, and an older reader says so instead of guessing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.devices.device import Device
from harness.devices.phases import Unreached
from harness.errors import PackError
from harness.facts.model import HostFacts
from harness.files import sha256_file
from harness.guests.identity import GuestIdentity
from harness.guests.origin import VmOrigin
from harness.guests.plan import GuestPlan
from harness.stream.wire import PAGE_SIZE
from harness.text import printable

MANIFEST = "manifest.json"
PAGES = "ram.pages"
RAM_FILES = ("ram.index", "head.bin", "setup.bin", "devices.bin", "vmdesc.json", "console.log")
#: What QEMU showed of the machine beside its saved state; a phase may lack it.
LOOK = "look.json"
KERNEL = "guest/kernel"
INITRAMFS = "guest/initramfs"
SCHEMA: Literal["postload.pack/4"] = "postload.pack/4"
#: Of a pack whose plan has what /4 does not know.
SELDOM_SCHEMA: Literal["postload.pack/5"] = "postload.pack/5"
_OLD_SCHEMAS = ("postload.pack/1", "postload.pack/2", "postload.pack/3")
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(/[A-Za-z0-9][A-Za-z0-9._+-]*)*")
_ROM = re.compile(r"(^|[./])(rom|bios)$|^/rom@")


class _Model(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class BlockModel(_Model):
    """A RAM block as the stream announced it."""

    name: str
    size_bytes: Annotated[int, Field(ge=0)]


class FileModel(_Model):
    """What a file of the pack, or a ROM, must be."""

    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class PhaseModel(_Model):
    """One recording."""

    name: str
    ram_section_id: int
    page_size: int
    recorded_bytes: int
    seconds: float


class DeviceModel(_Model):
    """A device that the guest was planned with, and the sections that it owns in this pack.

    :param recipe: all that is known of it, so that a replay needs no recipe of its own
    :param unreached: phases that the guest went through without it, and why
    :param drivers: that the guest's kernel bound for it, from the device on its bus down to what is plugged into it;
        empty where the guest did not look
    """

    name: str
    sections: list[str]
    recipe: Device
    unreached: list[Unreached] = []
    drivers: list[str] = []

    @model_validator(mode="after")
    def _recipe_is_its_own(self) -> DeviceModel:
        if self.recipe.name != self.name:
            raise ValueError(f"the recipe of {self.name!r} is one of {self.recipe.name!r}")
        return self


class Manifest(_Model):
    """The document.

    :param qemu: identity of the QEMU that recorded it
    :param host: facts of the host that recorded it; empty when nobody asked for them
    :param guest: what the guest is made of
    :param origin: of an adopted VM: what of it something else stands for, and what is not judged
    :param roms: RAM blocks that hold ROMs, with their content in the first phase
    :param packed: in a pack that came as one file, compressed bytes of each part: ``guest`` and every phase
    """

    schema_: Literal["postload.pack/4", "postload.pack/5"]
    created: str
    program: str
    accel: Annotated[str, Field(pattern="^[a-z]+$")]
    qemu: dict[str, str]
    host: HostFacts = {}
    plan: GuestPlan
    guest: GuestIdentity
    origin: VmOrigin | None = None
    roms: dict[str, FileModel] = {}
    blocks: list[BlockModel]
    devices: list[DeviceModel]
    phases: Annotated[list[PhaseModel], Field(min_length=1)]
    files: dict[str, FileModel]
    packed: dict[str, int] = {}

    model_config = ConfigDict(
        extra="allow", frozen=True, alias_generator=lambda name: name.rstrip("_"), populate_by_name=True
    )

    @model_validator(mode="after")
    def _names_stay_inside(self) -> Manifest:
        for name in (*self.files, *(phase.name for phase in self.phases)):
            if not _PLAIN.fullmatch(name) or name == MANIFEST:
                raise ValueError(f"files: {name!r} is not the name of a file within a pack")
        for wanted in self.contents():
            if wanted not in self.files:
                raise ValueError(f"files: {wanted} is not listed")
        for file, digest in ((KERNEL, self.plan.kernel), (INITRAMFS, self.plan.initramfs)):
            if digest is not None and (file not in self.files or self.files[file].sha256 != digest):
                raise ValueError(f"files: {file} is not the one of the plan")
        return self

    @property
    def machine(self) -> str:
        """The versioned machine type, such as ``pc-q35-7.2``."""
        return self.plan.machine

    @property
    def family(self) -> str:
        """Its alias, such as ``q35``."""
        return self.plan.family

    def owner(self, section: str) -> DeviceModel | None:
        """The device that owns a section."""
        return next((device for device in self.devices if section in device.sections), None)

    def contents(self) -> list[str]:
        """Files that the recordings consist of, in the order of the phases."""
        return contents_of(phase.name for phase in self.phases)

    def main_ram(self) -> tuple[BlockModel, int]:
        """The guest's memory, which is the largest RAM block, and where a recording's index of pages has its first."""
        main = max(self.blocks, key=lambda block: block.size_bytes)
        before = self.blocks[: self.blocks.index(main)]
        return main, sum(block.size_bytes // PAGE_SIZE for block in before)

    def looks(self) -> list[str]:
        """Looks at the recorded machine (:mod:`harness.qemu.look`), of the phases that have one."""
        return [name for phase in self.phases if (name := f"{phase.name}/{LOOK}") in self.files]

    def guest_files(self) -> list[str]:
        """Files that are no part of a recording, in the document's order: the guest's kernel and initramfs."""
        ours = {*self.contents(), *self.looks()}
        return [name for name in self.files if name not in ours]

    def text(self) -> str:
        """The document as it is stored."""
        return self.model_dump_json(indent=1, by_alias=True) + "\n"


def contents_of(phases: Iterable[str]) -> list[str]:
    """Files that the recordings of such phases consist of, in this order."""
    return [PAGES, *(f"{phase}/{file}" for phase in phases for file in RAM_FILES)]


def file_model(path: Path) -> FileModel:
    """What a file is now."""
    return FileModel(size_bytes=path.stat().st_size, sha256=sha256_file(path))


def is_rom(block: str) -> bool:
    """Whether a RAM block holds a ROM: ``pc.bios``, ``0000:00:05.0/virtio-net-pci.rom``, ``/rom@etc/...``."""
    return _ROM.search(block) is not None


def read_manifest(path: Path) -> Manifest:
    """The manifest of a pack's folder.

    :raises PackError: there is none, or it does not fit
    """
    file = path / MANIFEST
    try:
        data = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PackError(f"{path} is not a state pack: expected a file of one, or a folder with {MANIFEST}") from error
    except OSError as error:
        raise PackError(f"{file}: {error.strerror}") from error
    return parse_manifest(data, str(file))


def parse_manifest(data: bytes, where: str) -> Manifest:
    """A manifest of the schema that this program writes.

    :param where: named in errors
    :raises PackError: no JSON object, another schema, or a key that is missing or does not fit
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PackError(f"{where}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise PackError(f"{where}: expected a JSON object")
    found = document.get("schema")
    if found in _OLD_SCHEMAS:
        raise PackError(f"{where}: an older program made it ({found}); this one reads {SCHEMA}: record it anew")
    if found not in (SCHEMA, SELDOM_SCHEMA):
        known = f"{SCHEMA} and {SELDOM_SCHEMA}"
        raise PackError(f"{where}: schema: found {found!r}; this program reads {known}: a newer one may read it")
    try:
        # not by way of Python objects: JSON's own rules are the stricter ones, e.g. for a number as a string
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        found = f", found {first['input']!r:.80}" if isinstance(first["input"], str | int | float) else ""
        text = f"{at}{': ' if at else ''}{first['msg'].removeprefix('Value error, ')}"
        raise PackError(f"{where}: {printable(text)}{found}") from error
