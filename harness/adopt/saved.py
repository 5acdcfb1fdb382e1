# SPDX-License-Identifier: GPL-2.0-or-later
"""Saved states of machines, whatever wrote them: each is recognised by its content, and is a migration stream inside.

What a file can be: a stream of QEMU's ``migrate`` (to a file, ``exec:``, with ``mapped-ram``, with multifd on top of
that), the same compressed, a save image of libvirt's, a qcow2 image with an internal snapshot (``savevm``), or the file
of ``xen-save-devices-state``, which has devices alone. Nothing here asks a QEMU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.adopt.qcow2 import InternalSnapshot, Qcow2
from harness.adopt.unpack import unpack
from harness.errors import HostError, StreamError, UsageError
from harness.files import temp_dir
from harness.stream import wire
from harness.stream.container import Container, FileKind, container_of
from harness.stream.model import RamBlock, Section, Stream
from harness.stream.reader import mapped, read_foreign
from harness.stream.vmdesc import VmDesc

_PACKED = frozenset({FileKind.GZIP, FileKind.BZIP2, FileKind.XZ, FileKind.ZSTD, FileKind.LZOP})
_LIBVIRT_VERSIONS = (1, 2)
_MAX_XML_BYTES = 16 << 20
_IGNORE_SHARED = "x-ignore-shared"


class NotSaved(UsageError):
    """A file holds no state of a machine that is taken.

    :param container: what it is, None where its content does not tell
    """

    def __init__(self, source: Path, container: Container) -> None:
        self.source = source
        self.container = container
        super().__init__(f"{source}: not a migration stream, but {container.kind}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedState:
    """A machine as it was saved. RAM stays in the file: good until the block of :func:`open_saved` ends.

    :param container: what the stream came in, None for a file that is one
    :param snapshot: of a qcow2 image
    :param domain: libvirt's XML of it, empty where the file has none
    """

    source: Path
    container: Container | None
    snapshot: str
    domain: str
    stream: Stream
    file_offset: int

    @property
    def machine(self) -> str:
        """The versioned machine type that the stream names; empty where it does not."""
        return self.stream.machine

    @property
    def ram_blocks(self) -> tuple[RamBlock, ...]:
        """Names and sizes; none where the file has devices alone."""
        return self.stream.ram_blocks

    @property
    def sections(self) -> list[Section]:
        """The device sections that a load takes: not the parts of what was sent while the guest ran."""
        return [section for section in self.stream.devices if section.type == wire.SectionType.FULL]

    @property
    def vmdesc(self) -> VmDesc | None:
        """What describes the sections, None where nothing in the file does."""
        return self.stream.vmdesc

    def described(self, vmdesc: VmDesc) -> Stream:
        """The stream, its sections described as those of another one of the same machine.

        :raises StreamError: it is damaged
        """
        return read_foreign(self.stream.buffer, vmdesc=vmdesc, file_offset=self.file_offset)


@contextlib.contextmanager
def open_saved(
    path: Path, scratch: Path, *, snapshot: str | None = None, vmdesc: VmDesc | None = None
) -> Iterator[SavedState]:
    """Read a saved state.

    :param scratch: folder for what has to be unpacked; nothing stays there
    :param snapshot: name or id of an internal snapshot, where a qcow2 image has several
    :param vmdesc: for a stream without its own; may be that of another machine, and is used where it fits
    :raises NotSaved: the file is something else
    :raises UsageError: it cannot be read, or is damaged; says what to do
    :raises HostError: no space
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file or folder")
    with contextlib.ExitStack() as stack:
        try:
            state = _opened(path, scratch, snapshot, vmdesc, stack)
        except StreamError as error:
            raise UsageError(f"{path}: not a migration stream, or a damaged one: {error}") from error
        yield state
        # a reference that the caller has dropped, and this frame has not, keeps the mapping alive
        del state


def _opened(
    path: Path, scratch: Path, snapshot: str | None, vmdesc: VmDesc | None, stack: contextlib.ExitStack
) -> SavedState:
    view = stack.enter_context(mapped(path))
    container = container_of(view)
    domain, name, start = "", "", 0
    if container is None:
        pass
    elif container.kind is FileKind.LIBVIRT_SAVE:
        domain, start = _domain(view, container), container.content_at
        if container.stream_at is None:
            view, start = _unpacked(FileKind(container.format), path, start, scratch, stack), 0
    elif container.kind is FileKind.QCOW2:
        image = Qcow2.of(view)
        chosen = image.snapshot(snapshot, str(path))
        name = chosen.label
        view = _state_of(image, chosen, scratch, stack)
    elif container.kind in _PACKED:
        view = _unpacked(container.kind, path, 0, scratch, stack)
    else:
        raise NotSaved(path, container)
    return SavedState(
        source=path,
        container=container,
        snapshot=name,
        domain=domain,
        stream=read_foreign(view[start:], vmdesc=vmdesc, file_offset=start),
        file_offset=start,
    )


def _domain(view: memoryview, container: Container) -> str:
    """The XML of a save image of libvirt's."""
    if container.version not in _LIBVIRT_VERSIONS:
        raise StreamError(16, f"a save image of version {container.version}, only 1 and 2 are known")
    if container.stream_at is None and container.format not in _PACKED:
        raise StreamError(28, f"a save image of format {container.format}, which is not known")
    if container.content_at > len(view):
        raise StreamError(20, f"a save image that is cut: its stream starts at {container.content_at}")
    end = min(container.content_at, container.xml_at + _MAX_XML_BYTES)
    return bytes(view[container.xml_at : end]).partition(b"\0")[0].decode(errors="replace")


def _unpacked(kind: FileKind, path: Path, start: int, scratch: Path, stack: contextlib.ExitStack) -> memoryview:
    target = _folder(scratch, stack) / "stream"
    with path.open("rb") as file:
        file.seek(start)
        unpack(kind, file, target)
    return stack.enter_context(mapped(target))


def _state_of(image: Qcow2, chosen: InternalSnapshot, scratch: Path, stack: contextlib.ExitStack) -> memoryview:
    target = _folder(scratch, stack) / "stream"
    try:
        with target.open("wb") as out:
            for piece in image.state(chosen):
                out.write(piece)
    except OSError as error:
        raise HostError(f"cannot write {target}: {error.strerror}") from error
    return stack.enter_context(mapped(target))


def _folder(scratch: Path, stack: contextlib.ExitStack) -> Path:
    try:
        return stack.enter_context(temp_dir(scratch))
    except OSError as error:
        raise HostError(f"cannot write in {scratch}: {error.strerror}") from error


def check_ram(state: SavedState) -> None:
    """A guest has a page that is not zeros, its firmware's.

    :raises UsageError: RAM is announced, and not there
    """
    stream = state.stream
    flags = wire.RamFlag.PAGE | wire.RamFlag.XBZRLE | wire.RamFlag.COMPRESS
    if not stream.ram_blocks or any(word & flags for part in stream.ram for word in part.words):
        return
    why = "the main channel of multifd: its pages went over the other channels"
    if _IGNORE_SHARED in stream.capabilities:
        why = "saved with x-ignore-shared: its RAM stayed in the file that it is shared through"
    raise UsageError(
        f"{state.source}: a stream without the guest's RAM, {why}. Save it anew without that, or with mapped-ram"
    )
