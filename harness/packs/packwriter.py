# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes a state pack's folder, phase by phase."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import shutil
import sys
from array import array
from collections.abc import Collection
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from harness.errors import HostError, PackError
from harness.files import sweep, temp_dir
from harness.packs.manifest import (
    LOOK,
    MANIFEST,
    PAGES,
    SCHEMA,
    SELDOM_SCHEMA,
    BlockModel,
    FileModel,
    Manifest,
    PhaseModel,
    contents_of,
    file_model,
    is_rom,
)
from harness.stream.model import RamBlock, Stream
from harness.stream.ram import RamImage, encode_mem_size, encode_ram_section
from harness.stream.wire import PAGE_SIZE, SectionType

_DIGEST_BYTES = 16
_ZEROS = bytes(PAGE_SIZE)


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
            self._pages = (self._folder / PAGES).open("w+b")
        except OSError as error:
            raise HostError(f"cannot write in {path.parent}: {error.strerror}") from error
        self._known: dict[bytes, int] = {}
        self._before: array[int] = array("I")
        self._files: list[str] = []
        self._looks: list[str] = []
        self._roms: dict[str, FileModel] = {}
        self.blocks: tuple[RamBlock, ...] = ()
        self.phases: list[PhaseModel] = []

    def add(
        self,
        name: str,
        stream: Stream,
        *,
        console: str,
        seconds: float,
        look: bytes | None = None,
        without: Collection[str] = (),
    ) -> None:
        """Add a phase from its migration stream.

        :param look: what QEMU showed of the machine, see :func:`harness.qemu.look.look_to_json`
        :param without: RAM blocks that are left out

        :raises PackError: its RAM blocks are not those of the phase before
        :raises HostError: no space
        """
        image = RamImage.from_stream(stream).without(without)
        if self.blocks and image.blocks != self.blocks:
            raise PackError(f"phase {name}: the RAM blocks changed within one guest")
        if stream.page_size != PAGE_SIZE or stream.vmdesc is None:
            raise PackError(f"phase {name}: a stream with pages of {stream.page_size} bytes or without vmdesc")
        self.blocks = image.blocks
        index = self._add_pages(image)
        start = next(part for part in stream.ram if part.type == SectionType.START)
        content = {
            "ram.index": index_bytes(index),
            "head.bin": stream.head,
            # made anew: mapped pages stand in the middle of the one that was read
            "setup.bin": encode_ram_section(
                SectionType.START, start.section_id, encode_mem_size(image.blocks), footer=start.footer
            ),
            "devices.bin": b"".join(section.encode() for section in stream.devices),
            "vmdesc.json": stream.vmdesc.text,
            "console.log": console.encode(),
        }
        if look is not None:
            content[LOOK] = look
            self._looks.append(f"{name}/{LOOK}")
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

    def add_file(self, name: str, source: Path) -> None:
        """Add a file that the guest needs, such as ``guest/kernel``.

        Where the file system allows it is the same file under a second name: the pack then costs no more space.

        :raises HostError: it cannot be read, or no space
        """
        target = self._folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, target)
        except OSError as error:
            raise HostError(f"cannot put {source} into the pack: {error.strerror}") from error
        self._files.append(name)

    def publish(self, **described: Any) -> Path:
        """Write the manifest and move the pack to its place; another process may have been quicker.

        :param described: the fields of :class:`Manifest` that the writer does not know
        :raises HostError: no space, or something else than a pack is there
        """
        try:
            self._pages.close()
            # the order of the file form: what phases share with the guest's kernel comes behind it
            names = [*self._files, *contents_of(phase.name for phase in self.phases)]
            names += self._looks
            manifest = Manifest(
                schema_=SELDOM_SCHEMA if described["plan"].seldom else SCHEMA,
                roms=self._roms,
                blocks=[BlockModel(name=b.name, size_bytes=b.size_bytes) for b in self.blocks],
                phases=self.phases,
                files={name: file_model(self._folder / name) for name in names},
                **described,
            )
            (self._folder / MANIFEST).write_text(manifest.text())
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
        """Append the pages that no phase has had anywhere, and return this phase's index."""
        index, written = array("I"), self._written()
        hashes = {b.name: (b.size_bytes, hashlib.sha256()) for b in self.blocks if not self.phases and is_rom(b.name)}
        try:
            for (block, _, content), before in zip(image.content(), chain(self._before, repeat(0)), strict=False):
                page = _ZEROS if content is None else bytes(content)
                # most pages are as they were, which is seen in less time than it takes to hash them
                same = before and page == written[(before - 1) * PAGE_SIZE : before * PAGE_SIZE]
                index.append(before if same else self._number(page))
                if block in hashes:
                    hashes[block][1].update(page)
        except OSError as error:
            raise HostError(f"cannot write {self._folder / PAGES}: {error.strerror}") from error
        for name, (size, digest) in hashes.items():
            self._roms[name] = FileModel(size_bytes=size, sha256=digest.hexdigest())
        self._before = index
        return index

    def _written(self) -> bytes | mmap.mmap:
        """The pages that were written so far."""
        self._pages.flush()
        return mmap.mmap(self._pages.fileno(), 0, access=mmap.ACCESS_READ) if self._known else b""

    def _number(self, page: bytes) -> int:
        """Where ``ram.pages`` has this content, counted from 1."""
        if page == _ZEROS:
            return 0
        digest = hashlib.blake2b(page, digest_size=_DIGEST_BYTES).digest()
        number = self._known.get(digest)
        if number is None:
            number = self._known[digest] = len(self._known) + 1
            self._pages.write(page)
        return number


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file, or its copy where it cannot have one.

    :raises OSError: it cannot be read, or no space
    """
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def index_bytes(index: array[int]) -> bytes:
    """What ``ram.index`` has: u32 little-endian each."""
    if sys.byteorder == "big":
        index = array("I", index)
        index.byteswap()
    return index.tobytes()
