# SPDX-License-Identifier: GPL-2.0-or-later
"""What a file is that does not begin as a migration stream, by its first bytes; and where a stream lies in it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum


class FileKind(StrEnum):
    """What a file is."""

    UNFINISHED_SAVE = "libvirt-unfinished"
    QCOW = "qcow"
    QED = "qed"
    VMDK = "vmdk"
    VHD = "vhd"
    VHDX = "vhdx"
    VDI = "vdi"
    LUKS = "luks"
    GZIP = "gzip"
    BZIP2 = "bzip2"
    XZ = "xz"
    ZSTD = "zstd"
    LZOP = "lzop"
    LZ4 = "lz4"
    ELF = "elf"
    KDUMP = "kdump"
    MAKEDUMPFILE = "makedumpfile"
    ZIP = "zip"
    TAR = "tar"
    MULTIFD = "multifd"
    RAW_DISK = "raw-disk"
    QCOW2 = "qcow2"
    LIBVIRT_SAVE = "libvirt-save"
    TEXT = "text"
    ZEROS = "zeros"


#: Offset, bytes there, and what such a file is.
_MAGICS = (
    (0, b"LibvirtQemudPart", FileKind.UNFINISHED_SAVE),
    (0, b"QFI\xfb", FileKind.QCOW),
    (0, b"QED\0", FileKind.QED),
    (0, b"KDMV", FileKind.VMDK),
    (0, b"conectix", FileKind.VHD),
    (0, b"vhdxfile", FileKind.VHDX),
    (64, b"\x7f\x10\xda\xbe", FileKind.VDI),
    (0, b"LUKS\xba\xbe", FileKind.LUKS),
    (0, b"\x1f\x8b", FileKind.GZIP),
    (0, b"BZh", FileKind.BZIP2),
    (0, b"\xfd7zXZ\0", FileKind.XZ),
    (0, b"\x28\xb5\x2f\xfd", FileKind.ZSTD),
    (0, b"\x89LZO\0", FileKind.LZOP),
    (0, b"\x04\x22\x4d\x18", FileKind.LZ4),
    (0, b"\x7fELF", FileKind.ELF),
    (0, b"KDUMP   ", FileKind.KDUMP),
    (0, b"makedumpfile", FileKind.MAKEDUMPFILE),
    (0, b"PK\3\4", FileKind.ZIP),
    (257, b"ustar", FileKind.TAR),
    (0, b"\x11\x22\x33\x44", FileKind.MULTIFD),
    (510, b"\x55\xaa", FileKind.RAW_DISK),
)
_QCOW2 = struct.Struct(">4sI52xIQ")
_QCOW2_MAGIC = b"QFI\xfb"
_LIBVIRT_MAGIC = b"LibvirtQemudSave"
_LIBVIRT = struct.Struct("<16s5I56x")
_LIBVIRT_SWAPPED = struct.Struct(">16s5I56x")
_LIBVIRT_VERSION = 2
_LIBVIRT_FORMATS = {0: "raw", 1: "gzip", 2: "bzip2", 3: "xz", 4: "lzop", 5: "zstd", 6: "sparse"}
#: A migration stream as it is; in a sparse one pages have fixed places.
_LIBVIRT_PLAIN = frozenset({"raw", "sparse"})
_TEXT = b"{[<"


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A file that is something else, or holds something else, than a migration stream.

    :param version: of a qcow2 image, or of libvirt's format
    :param snapshots: in a qcow2 image
    :param format: that libvirt wrote the stream in
    :param xml_at: where libvirt's description of the domain starts
    :param content_at: where what it holds starts, such as a compressed stream
    :param stream_at: where a migration stream starts in it, None where it cannot be read from there
    """

    kind: FileKind
    version: int = 0
    snapshots: int = 0
    format: str = ""
    xml_at: int = 0
    content_at: int = 0
    stream_at: int | None = None


def container_of(view: memoryview) -> Container | None:
    """What the file is, None where its first bytes do not tell."""
    head = bytes(view[:600])
    if head.startswith(_LIBVIRT_MAGIC) and len(head) >= _LIBVIRT.size:
        return _libvirt(head)
    if head.startswith(_QCOW2_MAGIC) and len(head) >= _QCOW2.size:
        return _qcow2(head)
    named = next((kind for at, magic, kind in _MAGICS if head[at : at + len(magic)] == magic), None)
    if named is None and head.lstrip()[:1] in (bytes([each]) for each in _TEXT):
        named = FileKind.TEXT
    if named is None and not any(head):
        named = FileKind.ZEROS
    return Container(kind=named) if named else None


def _qcow2(head: bytes) -> Container:
    """``docs/interop/qcow2.rst``: u32 nb_snapshots at 60."""
    _, version, snapshots, _ = _QCOW2.unpack_from(head)
    return Container(kind=FileKind.QCOW2, version=version, snapshots=snapshots)


def _libvirt(head: bytes) -> Container:
    """``virQEMUSaveHeader`` of libvirt's ``qemu_saveimage.h``, in the byte order of the host that wrote it::

    0    16  magic
    16   4   version
    20   4   n, length of XML, cookie and padding
    24   4   whether the guest was running
    28   4   format
    32   4   offset of the cookie behind the header, 0 for none
    36   56  unused
    92   n   XML and a NUL, cookie and a NUL, NULs
    """
    _, version, behind_bytes, _, kind, _ = _LIBVIRT.unpack_from(head)
    if version > _LIBVIRT_VERSION:
        _, version, behind_bytes, _, kind, _ = _LIBVIRT_SWAPPED.unpack_from(head)
    name = _LIBVIRT_FORMATS.get(kind, f"unknown ({kind})")
    content_at = _LIBVIRT.size + behind_bytes
    return Container(
        kind=FileKind.LIBVIRT_SAVE,
        version=version,
        format=name,
        xml_at=_LIBVIRT.size,
        content_at=content_at,
        stream_at=content_at if name in _LIBVIRT_PLAIN else None,
    )
