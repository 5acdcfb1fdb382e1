# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the guest's initramfs: a newc cpio archive that depends on nothing but its inputs.

A newc member (Linux, Documentation/driver-api/early-userspace/buffer-format.rst and init/initramfs.c,
``do_header``) is:

======  ==========  ===========================================================
offset  width       field (ASCII, hexadecimal, upper case, no prefix)
======  ==========  ===========================================================
0       6           magic ``070701``
6       13 x 8      ino, mode, uid, gid, nlink, mtime, filesize, devmajor,
                    devminor, rdevmajor, rdevminor, namesize (with NUL), check
110     namesize    name, NUL, padded with NUL so that the data is 4-aligned
...     filesize    data, padded with NUL to 4
======  ==========  ===========================================================

The archive ends with a member named ``TRAILER!!!``. It is not compressed: under TCG, unpacking in the guest
costs more than reading some MiB in the host.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from harness.guests.kernel import Module

MAGIC = b"070701"
TRAILER = "TRAILER!!!"

DEVICE_NODES: Mapping[str, tuple[int, int]] = {
    "dev/console": (5, 1),
    "dev/null": (1, 3),
}
"""Character devices that must be there before devtmpfs is mounted: path -> (major, minor)."""

SCRATCH_BYTES = 256 << 10
"""The last member: SeaBIOS's high zone (``BUILD_MAX_HIGHTABLE``), of which QEMU leaves 160 KiB free behind an initramfs
(``x86_load_linux``). Where many devices have their rings in it, the firmware's drivers write over the archive's end."""

MOUNT_POINTS = ("proc", "sys", "dev", "tmp", "run", "root", "mnt", "etc", "lib/modules")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpioEntry:
    """One member of the archive.

    :param path: without a leading slash
    :param mode: type and permission bits, as in ``st_mode``
    :param data: a file's bytes or a symbolic link's target
    :param rdev: (major, minor) of a device node
    """

    path: str
    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


@dataclass(slots=True)
class Archive:
    """A tree of members; parents are added by themselves and members are written in the order of their
    paths."""

    _entries: dict[str, CpioEntry] = field(default_factory=dict)

    def folder(self, path: str) -> None:
        """Add a folder, with its parents, unless it is there."""
        for parent in reversed(PurePosixPath(path).parents):
            if str(parent) != ".":
                self._entries.setdefault(str(parent), CpioEntry(path=str(parent), mode=stat.S_IFDIR | 0o755))
        self._entries.setdefault(path, CpioEntry(path=path, mode=stat.S_IFDIR | 0o755))

    def file(self, path: str, data: bytes, permissions: int = 0o644) -> None:
        """Add a file, with its parents."""
        self._add(CpioEntry(path=path, mode=stat.S_IFREG | permissions, data=data))

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link, with its parents."""
        self._add(CpioEntry(path=path, mode=stat.S_IFLNK | 0o777, data=target.encode()))

    def device(self, path: str, major: int, minor: int) -> None:
        """Add a character device, with its parents."""
        self._add(CpioEntry(path=path, mode=stat.S_IFCHR | 0o600, rdev=(major, minor)))

    def _add(self, entry: CpioEntry) -> None:
        parent = str(PurePosixPath(entry.path).parent)
        if parent != ".":
            self.folder(parent)
        self._entries[entry.path] = entry

    def to_bytes(self) -> bytes:
        """The archive; equal trees give equal bytes."""
        # The order of whole paths would put "a-b" before "a/c": the order of their parts keeps parents first.
        entries = sorted(self._entries.values(), key=lambda entry: entry.path.split("/"))
        parts = [_member(entry, ino) for ino, entry in enumerate(entries, start=1)]
        parts.append(_member(CpioEntry(path=TRAILER, mode=0), 0))
        return b"".join(parts)


def _member(entry: CpioEntry, ino: int) -> bytes:
    name = entry.path.encode() + b"\0"
    nlink = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (ino, entry.mode, 0, 0, nlink, 0, len(entry.data), 0, 0, *entry.rdev, len(name), 0)
    header = MAGIC + b"".join(b"%08X" % value for value in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnBoard:
    """The modules of a guest.

    :param load_order: module name -> the modules to load for it, in order, itself the last
    :param data: module name -> the decompressed module
    :param builtin: drivers that are in the kernel itself
    :param options: module name -> its parameters
    """

    load_order: Mapping[str, Sequence[Module]]
    data: Mapping[str, bytes]
    builtin: Sequence[str] = ()
    options: Mapping[str, str] = field(default_factory=dict)

    def tables(self) -> dict[str, str]:
        """What modprobe reads: file name -> text.

        A line of ``modules.dep`` has what a module needs in the order that modprobe pushes it on a stack: the first to
        load is the last. ``modules.alias`` has the aliases of the modules on board and of no others.
        """
        orders = sorted(self.load_order.items())
        needs = [(name, reversed([f"{module.name}.ko" for module in order[:-1]])) for name, order in orders]
        aliases = [(alias, name) for name, order in orders for alias in order[-1].aliases]
        return {
            "modules.dep": "".join(f"{name}.ko: {' '.join(files)}\n" for name, files in needs),
            "modules.alias": "".join(f"alias {alias} {name}\n" for alias, name in aliases),
            "modules.builtin": "".join(f"{name}.ko\n" for name in sorted(self.builtin)),
        }


def build_initramfs(*, init: bytes, library: bytes, busybox: bytes, modules: OnBoard) -> bytes:
    """The whole initramfs.

    It holds ``/init``, ``/lib/postload.sh``, ``/bin/busybox`` (``/bin/sh`` links to it), the device nodes,
    ``/modules/NAME.ko`` and beside them modprobe's tables, ``/etc/modprobe.conf`` with the parameters of modules.
    """
    archive = Archive()
    for path in MOUNT_POINTS:
        archive.folder(path)
    for path, (major, minor) in DEVICE_NODES.items():
        archive.device(path, major, minor)
    archive.file("init", init, 0o755)
    archive.file("bin/busybox", busybox, 0o755)
    archive.symlink("bin/sh", "busybox")
    archive.file("lib/postload.sh", library)
    for name, data in modules.data.items():
        archive.file(f"modules/{name}.ko", data)
    for name, text in modules.tables().items():
        archive.file(f"modules/{name}", text.encode())
    options = [f"options {name} {text}\n" for name, text in sorted(modules.options.items())]
    archive.file("etc/modprobe.conf", "".join(options).encode())
    # no other path is behind it
    archive.file("zone", bytes(SCRATCH_BYTES))
    return archive.to_bytes()
