# SPDX-License-Identifier: GPL-2.0-or-later
"""Internal snapshots of qcow2 images, as far as the state of a machine lies in them (``savevm``).

``docs/interop/qcow2.rst`` of QEMU has the format. The state lies where the disk would go on behind its end, from the
first L1 entry that the disk does not use, in the snapshot's own L1 table. Nothing of the disk is read.

Header, big-endian::

    0    4   magic, "QFI\\xfb"
    4    4   version, 2 or 3
    20   4   cluster_bits
    24   8   size of the disk
    32   4   encryption, 0 for none
    60   4   number of snapshots
    64   8   offset of their table
    72   8   incompatible features, from version 3 on: 0x4 external data file, 0x10 extended L2 entries

InternalSnapshot, at the next multiple of 8::

    0    8   offset of its L1 table
    8    4   entries in it
    12   2   i, length of its id
    14   2   n, length of its name
    32   4   size of the state, 32 bits of it
    36   4   x, length of extra data
    40   x   extra data: u64 size of the state, u64 size of the disk, ...
    -    i   id
    -    n   name
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from harness.errors import StreamError, UsageError
from harness.stream.cursor import Cursor

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sI12xIQI24xIQ")
_FEATURES_AT = 72
_V3_BYTES = 104
_SNAPSHOT = struct.Struct(">QIHH16xII")
_U64 = struct.Struct(">Q")
_EXTRA = struct.Struct(">QQ")
_EXTERNAL_DATA, _EXTENDED_L2 = 0x4, 0x10
#: ``QCOW_MAX_SNAPSHOTS``, ``QCOW_MAX_L1_SIZE``, ``QCOW_MAX_SNAPSHOT_EXTRA_DATA``.
_MAX_SNAPSHOTS = 1 << 16
_MAX_L1_BYTES = 32 << 20
_MAX_EXTRA_BYTES = 1024
_OFFSET = 0x00FFFFFFFFFFFE00
_COMPRESSED = 1 << 62
_ZERO = 1
_SUBCLUSTERS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class InternalSnapshot:
    """One internal snapshot.

    :param state_bytes: of the machine's state; 0 for one of the disk alone
    """

    id: str
    name: str
    state_bytes: int
    disk_bytes: int
    l1_at: int
    l1_entries: int

    @property
    def label(self) -> str:
        """What people call it."""
        return self.name or self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Qcow2:
    """A qcow2 image.

    :param l2_entry_bytes: 16 with extended entries
    """

    view: memoryview
    cluster_bits: int
    l2_entry_bytes: int
    snapshots: tuple[InternalSnapshot, ...]

    @classmethod
    def of(cls, view: memoryview) -> Qcow2:
        """Read header and snapshot table.

        :raises StreamError: cut, damaged, encrypted, or with its data in another file
        """
        cursor = Cursor(view)
        magic, version, cluster_bits, size, encryption, count, table_at = _unpacked(cursor, _HEADER, "header")
        if magic != _MAGIC or version not in (2, 3) or not 9 <= cluster_bits <= 21:
            raise StreamError(0, f"qcow2: version {version}, clusters of 2**{cluster_bits} bytes are not known")
        features = _features(view) if version == 3 else 0
        if encryption or features & _EXTERNAL_DATA:
            what = "it is encrypted" if encryption else "its data is in another file"
            raise StreamError(32 if encryption else _FEATURES_AT, f"qcow2: {what}; snapshots of such are not read")
        if count > _MAX_SNAPSHOTS:
            raise StreamError(60, f"qcow2: {count} snapshots")
        return cls(
            view=view,
            cluster_bits=cluster_bits,
            l2_entry_bytes=16 if features & _EXTENDED_L2 else 8,
            snapshots=tuple(_snapshots(Cursor(view, min(table_at, len(view))), count, size)),
        )

    def snapshot(self, name: str | None, source: str) -> InternalSnapshot:
        """The one with this id or name; the only one that has a machine's state where None is given.

        :raises UsageError: there is none, or there are several; says which there are
        """
        able = [each for each in self.snapshots if each.state_bytes]
        if not able:
            without = f"its {len(self.snapshots)} snapshots hold the disk alone" if self.snapshots else "no snapshots"
            raise UsageError(f"{source}: a qcow2 image without the state of a machine: {without}; savevm puts it there")
        chosen = able if name is None else [each for each in able if name in (each.name, each.id)]
        if len(chosen) != 1:
            there = ", ".join(each.label for each in able)
            what = "several snapshots" if name is None else f"no snapshot {name!r}"
            raise UsageError(f"{source}: {what} with the state of a machine: expected --snapshot, one of {there}")
        return chosen[0]

    def state(self, snapshot: InternalSnapshot) -> Iterator[memoryview | bytes]:
        """The state of the machine, piece by piece.

        :raises StreamError: the snapshot has no such clusters, or they lie outside of the image
        """
        if snapshot.state_bytes > len(self.view):
            raise StreamError(snapshot.l1_at, f"qcow2: a state of {snapshot.state_bytes} bytes in a smaller image")
        left = snapshot.state_bytes
        l2_entries = (1 << self.cluster_bits) // self.l2_entry_bytes
        first = -(-snapshot.disk_bytes // (l2_entries << self.cluster_bits))
        number = 0
        while left > 0:
            l2_at = self._table(snapshot, first + number // l2_entries)
            for piece in self._cluster(l2_at + number % l2_entries * self.l2_entry_bytes):
                yield piece[:left]
                left -= min(left, len(piece))
            number += 1

    def _table(self, snapshot: InternalSnapshot, index: int) -> int:
        """Where an L2 table lies."""
        if index >= snapshot.l1_entries:
            raise StreamError(snapshot.l1_at, f"qcow2: snapshot {snapshot.label!r} has no L1 entry {index}")
        at = snapshot.l1_at + index * _U64.size
        table_at = self._word(at, "L1 entry") & _OFFSET
        if not table_at:
            raise StreamError(at, "qcow2: the state of the machine has a hole")
        return int(table_at)

    def _cluster(self, entry_at: int) -> Iterator[memoryview | bytes]:
        """The content of a cluster by its L2 entry."""
        entry = self._word(entry_at, "L2 entry")
        size = 1 << self.cluster_bits
        if entry & _COMPRESSED:
            raise StreamError(entry_at, "qcow2: a compressed cluster in the state of the machine, which is not known")
        data_at = int(entry & _OFFSET)
        if data_at + size > len(self.view):
            raise StreamError(entry_at, f"qcow2: a cluster at {data_at}, behind the end of the image")
        data = self.view[data_at : data_at + size]
        if self.l2_entry_bytes == 16:
            bitmap = self._word(entry_at + 8, "L2 entry")
            part = size // _SUBCLUSTERS
            for number in range(_SUBCLUSTERS):
                yield data[number * part :][:part] if bitmap >> number & 1 else bytes(part)
        elif entry & _ZERO:
            yield bytes(size)
        elif data_at:
            yield data
        else:
            raise StreamError(entry_at, "qcow2: the state of the machine has a hole")

    def _word(self, at: int, what: str) -> int:
        if at + _U64.size > len(self.view):
            raise StreamError(at, f"qcow2: {what} behind the end of the image")
        return int(_U64.unpack_from(self.view, at)[0])


def _features(view: memoryview) -> int:
    if len(view) < _V3_BYTES:
        raise StreamError(len(view), "qcow2: the header is cut")
    return int(_U64.unpack_from(view, _FEATURES_AT)[0])


def _snapshots(cursor: Cursor, count: int, disk_bytes: int) -> Iterator[InternalSnapshot]:
    for _ in range(count):
        cursor.pos += -cursor.pos % 8
        start = cursor.pos
        l1_at, l1_entries, id_bytes, name_bytes, state_bytes, extra_bytes = cursor.unpack(_SNAPSHOT, "snapshot")
        if extra_bytes > _MAX_EXTRA_BYTES or l1_entries * _U64.size > _MAX_L1_BYTES:
            raise StreamError(start, f"qcow2: a snapshot with {extra_bytes} more bytes and {l1_entries} L1 entries")
        extra = cursor.take(extra_bytes, "extra data of a snapshot")
        own_disk_bytes = disk_bytes
        if len(extra) >= _EXTRA.size:
            state_bytes, own_disk_bytes = _EXTRA.unpack_from(extra)
        yield InternalSnapshot(
            id=cursor.text(id_bytes, "id of a snapshot"),
            name=cursor.text(name_bytes, "name of a snapshot"),
            state_bytes=state_bytes,
            disk_bytes=own_disk_bytes,
            l1_at=l1_at,
            l1_entries=l1_entries,
        )


def _unpacked(cursor: Cursor, layout: struct.Struct, what: str) -> tuple[bytes, int, int, int, int, int, int]:
    cursor.need(layout.size, what)
    magic, *numbers = layout.unpack_from(cursor.view, cursor.pos)
    version, cluster_bits, size, encryption, count, table_at = numbers
    return magic, version, cluster_bits, size, encryption, count, table_at
