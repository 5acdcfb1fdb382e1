# SPDX-License-Identifier: GPL-2.0-or-later
"""What a file is that is no migration stream, in words; and the stream in it, where there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from harness.adopt.saved import NotSaved, SavedState, open_saved
from harness.errors import UsageError
from harness.report.text import plural
from harness.stream.container import Container, FileKind
from harness.stream.vmdesc import VmDesc

_TEXTS = {
    FileKind.UNFINISHED_SAVE: "a libvirt save image that was never finished",
    FileKind.QCOW: "a QED or qcow disk image",
    FileKind.QED: "a QED disk image",
    FileKind.VMDK: "a VMDK disk image",
    FileKind.VHD: "a VHD disk image",
    FileKind.VHDX: "a VHDX disk image",
    FileKind.VDI: "a VDI disk image",
    FileKind.LUKS: "a LUKS volume",
    FileKind.GZIP: "compressed by gzip",
    FileKind.BZIP2: "compressed by bzip2",
    FileKind.XZ: "compressed by xz",
    FileKind.ZSTD: "compressed by zstd",
    FileKind.LZOP: "compressed by lzop",
    FileKind.LZ4: "compressed by lz4: unlz4 it first",
    FileKind.ELF: "an ELF file, such as a dump of dump-guest-memory: it has memory and no device state",
    FileKind.KDUMP: "a kdump file: it has memory and no device state",
    FileKind.MAKEDUMPFILE: "a makedumpfile dump: it has memory and no device state",
    FileKind.ZIP: "a ZIP archive",
    FileKind.TAR: "a tar archive",
    FileKind.MULTIFD: "what a multifd channel sends: pages without the stream that they belong to",
    FileKind.RAW_DISK: "a raw disk image, or a boot sector",
    FileKind.TEXT: "text, such as JSON or XML",
    FileKind.ZEROS: "empty at its start: 600 bytes of zeros",
}


def container_text(container: Container) -> str:
    """What a file is, in one line."""
    if container.kind is FileKind.LIBVIRT_SAVE:
        return f"a libvirt save image of version {container.version}, format {container.format}"
    if container.kind is FileKind.QCOW2:
        kept = plural(container.snapshots, "internal snapshot")
        return f"a qcow2 disk image of version {container.version} with {kept}"
    return _TEXTS[container.kind]


@contextlib.contextmanager
def open_state(
    path: Path, scratch: Path, *, snapshot: str | None = None, vmdesc: VmDesc | None = None
) -> Iterator[SavedState]:
    """A saved state, as :func:`harness.adopt.saved.open_saved` reads it.

    :raises UsageError: as there; what is no saved state is named in words
    :raises HostError: no space
    """
    try:
        with open_saved(path, scratch, snapshot=snapshot, vmdesc=vmdesc) as state:
            yield state
    except NotSaved as error:
        raise UsageError(f"{path}: not a migration stream, but {container_text(error.container)}") from error
