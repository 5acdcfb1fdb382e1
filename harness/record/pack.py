# SPDX-License-Identifier: GPL-2.0-or-later
"""State packs: recordings of one guest at several phases, in a folder that verifies itself.

::

    manifest.json         schema, machine, QEMU, command line, guest, phases, size and SHA-256 of every file
    ram.pages             page contents, 4096 bytes each, every one that differs from the phase before it
    PHASE/ram.index       u32 little-endian for each page of each block in order: 0 zeros, n page n-1 of ram.pages
    PHASE/head.bin        magic, version, configuration section
    PHASE/setup.bin       the START section of ``ram`` with its block list
    PHASE/devices.bin     FULL sections as they were on the wire
    PHASE/vmdesc.json     the description that ended the stream
    PHASE/console.log     what the guest's serial console had printed
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.cache import sweep, temp_dir
from harness.errors import HostError, PackError, StreamError
from harness.files import sha256_file
from harness.qemu.cmdline import Option
from harness.record.machine import Machine
from harness.stream.model import RamBlock, Section, Stream
from harness.stream.ram import RamImage, ram_section_buffers
from harness.stream.reader import read_devices
from harness.stream.vmdesc import VmDesc
from harness.stream.wire import PAGE_SIZE, SectionType
from harness.stream.writer import encode_vmdesc

MANIFEST = "manifest.json"
PAGES = "ram.pages"
_SCHEMA: Literal["postload.pack/1"] = "postload.pack/1"
_RAM_FILES = ("ram.index", "head.bin", "setup.bin", "devices.bin", "vmdesc.json", "console.log")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OptionModel(_Model):
    """One QEMU option; ``{workdir}`` stands for the folder of the process."""

    name: str
    first: str | None = None
    props: dict[str, bool | int | str] = {}


class BlockModel(_Model):
    """A RAM block as the stream announced it."""

    name: str
    size_bytes: int


class FileModel(_Model):
    """What a file of the pack must be."""

    size_bytes: int
    sha256: str


class PhaseModel(_Model):
    """One recording."""

    name: str
    ram_section_id: int
    page_size: int
    recorded_bytes: int
    seconds: float


class DeviceModel(_Model):
    """A profile that the guest was built with, and the sections that it owns in this pack."""

    name: str
    sections: list[str]


class Manifest(_Model):
    """``manifest.json``."""

    schema_: Literal["postload.pack/1"]
    created: str
    program: str
    machine: str
    family: str
    accel: str
    qemu: dict[str, str]
    options: list[OptionModel]
    scratch: dict[str, int]
    guest: dict[str, Any]
    blocks: list[BlockModel]
    devices: list[DeviceModel]
    phases: Annotated[list[PhaseModel], Field(min_length=1)]
    files: dict[str, FileModel]

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=lambda name: name.rstrip("_"), populate_by_name=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One phase of an open pack.

    :param sections: the device state, in stream order
    :param index: for each page of all blocks in order: 0 zeros, n page n-1 of the pack
    """

    name: str
    head: bytes
    setup: bytes
    sections: tuple[Section, ...]
    vmdesc: VmDesc
    index: array[int]
    ram_section_id: int
    console: str


class StatePack:
    """An open, verified pack. Close it, or use it as a context manager.

    :param path: the folder
    :raises PackError: not a pack, another schema, or a file is missing, cut or changed
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = _read_manifest(path)
        _verify(path, self.manifest)
        self._pages = _map(path / PAGES)
        self.recordings = {phase.name: self._load(phase) for phase in self.manifest.phases}

    @property
    def machine(self) -> Machine:
        """The guest machine that a secondary must be."""
        return Machine(
            name=self.manifest.machine,
            family=self.manifest.family,
            accel=self.manifest.accel,
            options=tuple(Option(name=o.name, first=o.first, props=o.props) for o in self.manifest.options),
            files=tuple(self.manifest.scratch.items()),
        )

    @property
    def phases(self) -> list[str]:
        """Names of the recordings, in the order in which they were made."""
        return list(self.recordings)

    def sections_of(self, device: str) -> list[str]:
        """Labels of the sections that a device owns.

        :raises PackError: the pack was recorded without it
        """
        for entry in self.manifest.devices:
            if entry.name == device:
                return entry.sections
        raise PackError(f"{self.path}: recorded without device {device!r}")

    def page(self, number: int) -> memoryview | None:
        """Content for one entry of an index."""
        return None if number == 0 else self._pages[(number - 1) * PAGE_SIZE : number * PAGE_SIZE]

    def ram_whole(self, phase: str) -> list[bytes | memoryview]:
        """START with the block list and one END with every page: what an incoming stream begins with.

        :return: buffers to be sent one behind the other; the pages are views into the pack, not copies
        """
        recording = self.recordings[phase]
        pages = self._pages_of(recording, None)
        return [recording.setup, *ram_section_buffers(SectionType.END, recording.ram_section_id, pages)]

    def ram_difference(self, phase: str, base: str) -> list[bytes | memoryview]:
        """An END section with the pages of ``phase`` that differ from ``base``; empty when none do."""
        recording = self.recordings[phase]
        pages = list(self._pages_of(recording, self.recordings[base].index))
        return ram_section_buffers(SectionType.END, recording.ram_section_id, pages) if pages else []

    def close(self) -> None:
        """Unmap the pages."""
        self._pages.release()

    def __enter__(self) -> StatePack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pages_of(
        self, recording: Recording, base: array[int] | None
    ) -> Iterator[tuple[str, int, memoryview | None]]:
        start = 0
        for block in self.manifest.blocks:
            count = block.size_bytes // PAGE_SIZE
            ours = recording.index[start : start + count]
            theirs = ours if base is None else base[start : start + count]
            for number, (entry, old) in enumerate(zip(ours, theirs, strict=True)):
                if base is None or entry != old:
                    yield block.name, number * PAGE_SIZE, self.page(entry)
            start += count

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
            head=(folder / "head.bin").read_bytes(),
            setup=(folder / "setup.bin").read_bytes(),
            sections=tuple(sections),
            vmdesc=vmdesc,
            index=index,
            ram_section_id=phase.ram_section_id,
            console=(folder / "console.log").read_text(errors="replace"),
        )


class PackWriter:
    """Builds a pack in a folder beside its final place; :meth:`publish` renames it.

    :param path: where the pack shall be; must not exist yet
    :raises HostError: the folder cannot be written
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = contextlib.ExitStack()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            self._folder = self._temporary.enter_context(temp_dir(path.parent))
        except OSError as error:
            raise HostError(f"cannot write in {path.parent}: {error.strerror}") from error
        self._pages = (self._folder / PAGES).open("w+b")
        self._count = 0
        self._last: tuple[array[int], dict[int, bytes]] | None = None
        self.blocks: tuple[RamBlock, ...] = ()
        self.phases: list[PhaseModel] = []

    def add(self, name: str, stream: Stream, *, console: str, seconds: float) -> None:
        """Add a phase from its migration stream.

        :raises PackError: its RAM blocks are not those of the phase before
        :raises HostError: no space
        """
        if self.blocks and stream.ram_blocks != self.blocks:
            raise PackError(f"phase {name}: the RAM blocks changed within one guest")
        if stream.page_size != PAGE_SIZE or stream.vmdesc is None:
            raise PackError(f"phase {name}: a stream with pages of {stream.page_size} bytes or without vmdesc")
        self.blocks = stream.ram_blocks
        index = self._add_pages(RamImage.from_stream(stream))
        start = next(part for part in stream.ram if part.type == SectionType.START)
        content = {
            "ram.index": _little_endian(index),
            "head.bin": stream.head,
            "setup.bin": b"".join(start.encode(stream.buffer)),
            "devices.bin": b"".join(section.encode() for section in stream.devices),
            "vmdesc.json": stream.vmdesc.raw[5:],
            "console.log": console.encode(),
        }
        folder = self._folder / name
        try:
            folder.mkdir()
            for file, data in content.items():
                (folder / file).write_bytes(data)
        except OSError as error:
            raise HostError(f"cannot write {folder}: {error.strerror}") from error
        self.phases.append(
            PhaseModel(
                name=name,
                ram_section_id=start.section_id,
                page_size=stream.page_size,
                recorded_bytes=stream.size,
                seconds=round(seconds, 3),
            )
        )

    def publish(self, **described: Any) -> Path:
        """Write the manifest and move the pack to its place; another process may have been quicker.

        :param described: the fields of :class:`Manifest` that the writer does not know
        :raises HostError: no space, or something else than a pack is there
        """
        names = [PAGES, *(f"{phase.name}/{file}" for phase in self.phases for file in _RAM_FILES)]
        try:
            self._pages.close()
            manifest = Manifest(
                schema_=_SCHEMA,
                blocks=[BlockModel(name=b.name, size_bytes=b.size_bytes) for b in self.blocks],
                phases=self.phases,
                files={name: _file_model(self._folder / name) for name in names},
                **described,
            )
            (self._folder / MANIFEST).write_text(manifest.model_dump_json(indent=1, by_alias=True) + "\n")
            self._folder.chmod(0o755)
            self._folder.rename(self.path)
        except OSError as error:
            if not (self.path / MANIFEST).exists():
                raise HostError(f"cannot write {self.path}: {error.strerror}") from error
            self.discard()
        return self.path

    def discard(self) -> None:
        """Remove what was written; nothing happens after :meth:`publish`."""
        # what is still to be written may not fit on the disk, which is why it is discarded
        with contextlib.suppress(OSError):
            self._pages.close()
        self._temporary.close()

    def _add_pages(self, image: RamImage) -> array[int]:
        """Append the pages that differ from the phase before, and return this phase's index."""
        index = array("I")
        last, cache = self._last or (array("I"), {})
        fresh: dict[int, bytes] = {}
        position = 0
        try:
            for _, _, content in image.content():
                entry = 0
                if content is not None:
                    old = last[position] if last else 0
                    page = bytes(content)
                    if old and cache[old] == page:
                        entry = old
                    elif page.count(0) != len(page):
                        self._count += 1
                        entry = self._count
                        self._pages.write(page)
                    if entry:
                        fresh[entry] = page
                index.append(entry)
                position += 1
        except OSError as error:
            raise HostError(f"cannot write {self._folder / PAGES}: {error.strerror}") from error
        self._last = (index, fresh)
        return index


def incoming_body(
    recording: Recording, ram: Sequence[bytes | memoryview], devices: bytes
) -> list[bytes | memoryview]:
    """What follows the head in a stream: RAM, device sections with EOF, vmdesc."""
    return [*ram, devices + b"\0", encode_vmdesc(recording.vmdesc.raw[5:])]


def _little_endian(index: array[int]) -> bytes:
    if sys.byteorder == "big":
        index = array("I", index)
        index.byteswap()
    return index.tobytes()


def _file_model(path: Path) -> FileModel:
    return FileModel(size_bytes=path.stat().st_size, sha256=sha256_file(path))


def _read_manifest(path: Path) -> Manifest:
    file = path / MANIFEST
    try:
        text = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise PackError(f"{path} is not a state pack: expected a folder with {MANIFEST}") from error
    except OSError as error:
        raise PackError(f"{file}: {error.strerror}") from error
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise PackError(f"{file}: {where}: {first['msg']}") from error


def _verify(path: Path, manifest: Manifest) -> None:
    for name, wanted in manifest.files.items():
        file = path / name
        try:
            size = file.stat().st_size
        except OSError as error:
            raise PackError(f"{file}: {error.strerror}; the pack is not complete") from error
        if size != wanted.size_bytes:
            raise PackError(f"{file}: {size} bytes, expected {wanted.size_bytes}; the pack was cut or changed")
        if _sha256(file) != wanted.sha256:
            raise PackError(f"{file}: its SHA-256 is not the one in {MANIFEST}; the pack was changed")
    for name in (PAGES, *(f"{phase.name}/{file_name}" for phase in manifest.phases for file_name in _RAM_FILES)):
        if name not in manifest.files:
            raise PackError(f"{path / MANIFEST}: files: {name} is not listed")


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
