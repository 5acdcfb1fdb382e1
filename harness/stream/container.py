# SPDX-License-Identifier: GPL-2.0-or-later
"""What a file is that does not begin as a migration stream, by its first bytes; and where a stream lies in it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

#: Offset, bytes there, and what such a file is.
_MAGICS = (
    (0, b"LibvirtQemudPart", "a libvirt save image that was never finished"),
    (0, b"QFI\xfb", "a QED or qcow disk image"),
    (0, b"QED\0", "a QED disk image"),
    (0, b"KDMV", "a VMDK disk image"),
    (0, b"conectix", "a VHD disk image"),
    (0, b"vhdxfile", "a VHDX disk image"),
    (64, b"\x7f\x10\xda\xbe", "a VDI disk image"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (0, b"\x1f\x8b", "compressed by gzip: gunzip it first"),
    (0, b"BZh", "compressed by bzip2: bunzip2 it first"),
    (0, b"\xfd7zXZ\0", "compressed by xz: unxz it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd: unzstd it first"),
    (0, b"\x89LZO\0", "compressed by lzop: lzop -d it first"),
    (0, b"\x04\x22\x4d\x18", "compressed by lz4: unlz4 it first"),
    (0, b"\x7fELF", "an ELF file, such as a dump of dump-guest-memory: it has memory and no device state"),
    (0, b"KDUMP   ", "a kdump file: it has memory and no device state"),
    (0, b"makedumpfile", "a makedumpfile dump: it has memory and no device state"),
    (0, b"PK\3\4", "a ZIP archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x11\x22\x33\x44", "what a multifd channel sends: pages without the stream that they belong to"),
    (510, b"\x55\xaa", "a raw disk image, or a boot sector"),
)
_QCOW2 = struct.Struct(">4sI52xIQ")
_QCOW2_MAGIC = b"QFI\xfb"
_LIBVIRT_MAGIC = b"LibvirtQemudSave"
_LIBVIRT = struct.Struct("16s5I56x")
_LIBVIRT_FORMATS = {0: "raw", 1: "gzip", 2: "bzip2", 3: "xz", 4: "lzop", 5: "zstd", 6: "sparse"}
_TEXT = b"{[<"


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """:param what: what the file is, for people
    :param stream_at: where a migration stream starts in it, None where it cannot be read from there
    """

    what: str
    stream_at: int | None = None


def container_of(view: memoryview) -> Container | None:
    """What the file is, None where its first bytes do not tell."""
    head = bytes(view[:600])
    if head.startswith(_LIBVIRT_MAGIC) and len(head) >= _LIBVIRT.size:
        return _libvirt(head)
    if head.startswith(_QCOW2_MAGIC) and len(head) >= _QCOW2.size:
        return _qcow2(head)
    named = next((what for at, magic, what in _MAGICS if head[at : at + len(magic)] == magic), None)
    if named is None and head.lstrip()[:1] in (bytes([each]) for each in _TEXT):
        named = "text, such as JSON or XML"
    if named is None and not any(head):
        named = "empty at its start: 600 bytes of zeros"
    return Container(what=named) if named else None


def _qcow2(head: bytes) -> Container:
    """``docs/interop/qcow2.rst``: u32 nb_snapshots at 60."""
    _, version, snapshots, _ = _QCOW2.unpack_from(head)
    kept = f"{snapshots} internal snapshot{'' if snapshots == 1 else 's'}"
    state = "; the state of a machine that savevm put there lies scattered in it" if snapshots else ""
    return Container(what=f"a qcow2 disk image of version {version} with {kept}{state}")


def _libvirt(head: bytes) -> Container:
    """``virQEMUSaveHeader`` of libvirt: magic, then version, length of the XML, running, format; host byte order."""
    _, version, xml_bytes, _, kind, _ = _LIBVIRT.unpack_from(head)
    name = _LIBVIRT_FORMATS.get(kind, f"unknown ({kind})")
    what = f"a libvirt save image of version {version}, format {name}"
    return Container(what=what, stream_at=_LIBVIRT.size + xml_bytes if kind == 0 else None)
