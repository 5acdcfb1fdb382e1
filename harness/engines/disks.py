# SPDX-License-Identifier: GPL-2.0-or-later
"""A secondary's disks: the pattern that its guest had written, and images that a checkpoint rewinds.

A guest that runs between checkpoints writes to its disk, and a checkpoint then takes its memory back. QEMU's block
replication takes the disk back with it: an active image over a hidden one over the parent, the first two emptied
by each checkpoint (``block/replication.c:secondary_do_checkpoint``).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path

from harness.errors import HostError
from harness.guests.machine import Machine
from harness.qemu.cmdline import Option

#: Where the guest's ``pattern_write`` puts it, and what ``disk_life`` reads (``guests/init.sh``).
PATTERN_OFFSET_BYTES = 32 << 20
_PATTERN_LINES = 4096

_CLUSTER_BITS = 16
_CLUSTER_BYTES = 1 << _CLUSTER_BITS
_QCOW2_MAGIC = 0x514649FB
#: Entries of one table cluster, 8 bytes each.
_TABLE_ENTRIES = _CLUSTER_BYTES // 8
_QCOW2_HEADER = struct.Struct(">IIQIIQIIQQIIQQQQII")


class DiskKind(StrEnum):
    """How the disks of a secondary are arranged.

    ``replication`` rewinds them with each checkpoint. ``plain`` keeps what the guest wrote between checkpoints,
    on fresh images: fair to a guest without file systems that only judges blocks it has not written before.
    """

    REPLICATION = "replication"
    PLAIN = "plain"


def pattern(disk: str) -> bytes:
    """The 256 KiB that the guest writes to a disk when it is bound: 4096 lines of 64 bytes, each with its number."""
    head = f"postload pattern {disk}"
    return b"".join(f"{head:<55}{number:08d}\n".encode() for number in range(_PATTERN_LINES))


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskMachine(Machine):
    """A recorded machine as a secondary with disks to be judged.

    :param patterns: scratch images that hold the pattern, name to the disk as the guest sees it
    :param overlays: further images that replication needs, name to bytes
    """

    patterns: Mapping[str, str] = field(default_factory=dict)
    overlays: tuple[tuple[str, int], ...] = ()

    def make_files(self, workdir: Path) -> None:
        """Make the scratch images with their patterns, and the empty overlays.

        :raises HostError: no space
        """
        Machine.make_files(self, workdir)  # super() does not know a dataclass that was made anew for its slots
        try:
            for name, disk in self.patterns.items():
                with (workdir / name).open("r+b") as file:
                    file.seek(PATTERN_OFFSET_BYTES)
                    file.write(pattern(disk))
            for name, size in self.overlays:
                (workdir / name).write_bytes(empty_qcow2(size))
        except OSError as error:
            raise HostError(f"cannot write images in {workdir}: {error.strerror}") from error


def with_disks(machine: Machine, kind: DiskKind, patterns: Mapping[str, str]) -> DiskMachine:
    """The machine with its raw disks arranged anew; the nodes that its devices use keep their names."""
    base = {f.name: getattr(machine, f.name) for f in fields(Machine)}
    sizes = dict(machine.files)
    mine = {name: disk for name, disk in patterns.items() if name in sizes}
    if kind is DiskKind.PLAIN:
        return DiskMachine(**base, patterns=mine)
    files = _image_nodes(machine)
    options: list[Option] = []
    overlays: list[tuple[str, int]] = []
    for option in machine.options:
        image = files.get(str(option.props.get("file")))
        if option.name == "blockdev" and option.first == "file" and option.props.get("node-name") in files:
            continue
        if option.name == "blockdev" and option.first == "raw" and image in sizes:
            node = str(option.props["node-name"])
            options += _replicated(node, image)
            overlays += [(name, sizes[image]) for name in _overlay_names(node)]
        else:
            options.append(option)
    return DiskMachine(**base | {"options": tuple(options)}, patterns=mine, overlays=tuple(overlays))


def _image_nodes(machine: Machine) -> dict[str, str]:
    """Node names of protocol nodes over scratch images, with the image."""
    nodes = {}
    for option in machine.options:
        folder, _, image = str(option.props.get("filename", "")).rpartition("/")
        if option.name == "blockdev" and option.first == "file" and folder == "{workdir}":
            nodes[str(option.props["node-name"])] = image
    return nodes


def _overlay_names(node: str) -> tuple[str, str]:
    return f"{node}-active.qcow2", f"{node}-hidden.qcow2"


def _replicated(node: str, image: str) -> tuple[Option, Option, Option]:
    """Parent, replication and quorum, as QEMU's ``docs/COLO-FT.txt`` has them.

    The parent is a ``-drive`` for the block backend that it comes with: replication wants one on the secondary
    disk, which otherwise the NBD export of the real primary's writes provides.
    """
    active, hidden = _overlay_names(node)
    parent = {"if": "none", "id": f"{node}-parent", "driver": "raw", "file.filename": f"{{workdir}}/{image}"}
    replication = {
        "if": "none",
        "id": f"{node}-secondary",
        "driver": "replication",
        "mode": "secondary",
        "top-id": node,
        "file.driver": "qcow2",
        "file.file.filename": f"{{workdir}}/{active}",
        "file.backing.driver": "qcow2",
        "file.backing.file.filename": f"{{workdir}}/{hidden}",
        "file.backing.backing": f"{node}-parent",
    }
    quorum = {
        "if": "none",
        "id": node,
        "driver": "quorum",
        "read-pattern": "fifo",
        "vote-threshold": "1",
        "children.0": f"{node}-secondary",
    }
    top, middle, bottom = (Option(name="drive", props=props) for props in (quorum, replication, parent))
    return bottom, middle, top


def empty_qcow2(size_bytes: int) -> bytes:
    """An empty qcow2 image of version 3 with clusters of 64 KiB (QEMU's ``docs/interop/qcow2.txt``).

    ======= ====================================================================
    cluster content
    ======= ====================================================================
    0       header: magic, version, no backing file, cluster bits, size, no encryption, entries and offset of the
            L1 table, offset and clusters of the refcount table, no snapshots, no features, refcount order 4
            (16 bits), header length
    1       refcount table: the offset of its one block
    2       refcount block: the first four clusters are in use
    3       L1 table, zeros: nothing is allocated
    ======= ====================================================================
    """
    covered = _TABLE_ENTRIES * _CLUSTER_BYTES
    entries = max(1, -(-size_bytes // covered))
    if entries > _TABLE_ENTRIES:
        raise HostError(f"{size_bytes} bytes are too large for an image: they need more than one cluster of L1 table")
    header = _QCOW2_HEADER.pack(
        *(_QCOW2_MAGIC, 3, 0, 0, _CLUSTER_BITS, size_bytes, 0),
        *(entries, 3 * _CLUSTER_BYTES, _CLUSTER_BYTES, 1, 0, 0),
        *(0, 0, 0, 4, _QCOW2_HEADER.size),
    )
    clusters = (header, struct.pack(">Q", 2 * _CLUSTER_BYTES), struct.pack(">4H", 1, 1, 1, 1), b"")
    return b"".join(cluster.ljust(_CLUSTER_BYTES, b"\0") for cluster in clusters)
