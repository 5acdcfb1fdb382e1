# SPDX-License-Identifier: GPL-2.0-or-later
"""Names for the bytes of a virtio device's section, which the vmdesc has as one opaque field ``virtio``.

In wire order, big-endian where nothing else is said (``hw/virtio/virtio.c``, ``virtio_save``)::

    PCI device       i32 version_id, 256 or 4096 bytes of little-endian config space, 4 times i32 irq_state
                     (``hw/pci/pci.c``, ``pci_device_save``)
    MSI-X            16 bytes for each vector, a bit for each vector; then u16 config_vector; nothing without
                     the MSI-X capability (``hw/pci/msix.c``, ``msix_save``; ``hw/virtio/virtio-pci.c``)
    registers        u8 status, u8 isr, u16 queue_sel, u32 guest_features_lo, u32 config_len, device config
    queues           u32 count; for each u32 vring.num, u64 vring.desc, u16 last_avail_idx, u16 vector (MSI-X)
    device           what the device's own class writes
    subsections      of vmsd ``virtio``; ``virtio/extra_state`` holds those of vmsd ``virtio_pci``

Nothing in it tells QEMU's version: subsections are known by their names, and optional fields by the state
that decides about them; what is not known is of type ``raw``. Arrays of 1024 queues end in one buffer for the
queues that are alike and unused.
Little-endian numbers have the types ``le16``, ``le32`` and ``le64``: the PCI config space, the device config
(of a device with VIRTIO_F_VERSION_1 or a little-endian guest), and the requests in flight, which QEMU writes
as a struct of its 64-bit host.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from harness.errors import StreamError
from harness.stream.fields import Field, field_value
from harness.stream.wire import SectionType

QUEUE_MAX = 1024
#: Entries of each array of a ``VirtQueueElementOld`` (``VIRTQUEUE_MAX_SIZE``).
_ELEMENT_ENTRIES = 1024
_PCI_CONFIG_BYTES, _PCIE_CONFIG_BYTES = 256, 4096
_CAP_POINTER, _CAP_FIRST = 0x34, 0x40
_CAP_VENDOR, _CAP_EXPRESS, _CAP_MSIX = 0x09, 0x10, 0x11
_VLAN_BYTES = 512
_SUBSECTION = re.compile(rb"[!-.0-~]+(?:/[!-.0-~]+)+")
#: More unknown subsections than this are one raw field, for each of them costs a search of the rest.
_MAX_UNKNOWN = 16
_RSS_KEY_BYTES = 40
_NET_F_CTRL_GUEST_OFFLOADS = 1 << 2

#: A name and a type, or the size in bytes of a buffer.
Row = tuple[str, str | int]
#: An offset, a name and a type or the size in bytes of a buffer.
Span = tuple[int, str, str | int]

_SIZES_BYTES = {
    "bool": 1, "int8": 1, "uint8": 1, "uint16": 2, "le16": 2, "int32": 4, "uint32": 4, "le32": 4, "uint64": 8,
    "le64": 8,
}  # fmt: skip

_PCI_HEADER: tuple[Span, ...] = (
    (0x00, "vendor_id", "le16"), (0x02, "device_id", "le16"), (0x04, "command", "le16"), (0x06, "status", "le16"),
    (0x08, "revision", "uint8"), (0x09, "prog_if", "uint8"), (0x0A, "class", "le16"), (0x0C, "cache_line", "uint8"),
    (0x0D, "latency", "uint8"), (0x0E, "header_type", "uint8"), (0x0F, "bist", "uint8"),
    *((0x10 + 4 * bar, f"bar[{bar}]", "le32") for bar in range(6)),
    (0x28, "cardbus_cis", "le32"), (0x2C, "subsystem_vendor_id", "le16"), (0x2E, "subsystem_id", "le16"),
    (0x30, "rom", "le32"), (0x34, "capabilities", "uint8"), (0x3C, "interrupt_line", "uint8"),
    (0x3D, "interrupt_pin", "uint8"), (0x3E, "min_gnt", "uint8"), (0x3F, "max_lat", "uint8"),
)  # fmt: skip

# struct virtio_pci_cap, from its third byte on, and PCI_CAP_ID_MSIX
_CAP_VENDOR_SPANS: tuple[Span, ...] = (
    (2, "len", "uint8"), (3, "cfg_type", "uint8"), (4, "bar", "uint8"), (8, "offset", "le32"), (12, "length", "le32"),
)  # fmt: skip
_CAP_MSIX_SPANS: tuple[Span, ...] = ((2, "control", "le16"), (4, "table", "le32"), (8, "pba", "le32"))
_MSIX_ENTRY: tuple[Row, ...] = (("address", "le64"), ("data", "le32"), ("control", "le32"))

# include/standard-headers/linux/virtio_{net,blk,scsi,balloon,console}.h
_CONFIGS: dict[str, tuple[Span, ...]] = {
    "net": (
        (0, "mac", 6), (6, "status", "le16"), (8, "max_virtqueue_pairs", "le16"), (10, "mtu", "le16"),
        (12, "speed", "le32"), (16, "duplex", "uint8"), (17, "rss_max_key_size", "uint8"),
        (18, "rss_max_indirection_table_length", "le16"), (20, "supported_hash_types", "le32"),
    ),
    "blk": (
        (0, "capacity", "le64"), (8, "size_max", "le32"), (12, "seg_max", "le32"), (16, "cylinders", "le16"),
        (18, "heads", "uint8"), (19, "sectors", "uint8"), (20, "blk_size", "le32"),
        (24, "physical_block_exp", "uint8"), (25, "alignment_offset", "uint8"), (26, "min_io_size", "le16"),
        (28, "opt_io_size", "le32"), (32, "wce", "uint8"), (34, "num_queues", "le16"),
        (36, "max_discard_sectors", "le32"), (40, "max_discard_seg", "le32"),
        (44, "discard_sector_alignment", "le32"), (48, "max_write_zeroes_sectors", "le32"),
        (52, "max_write_zeroes_seg", "le32"), (56, "write_zeroes_may_unmap", "uint8"),
        (60, "max_secure_erase_sectors", "le32"), (64, "max_secure_erase_seg", "le32"),
        (68, "secure_erase_sector_alignment", "le32"),
    ),
    "scsi": (
        (0, "num_queues", "le32"), (4, "seg_max", "le32"), (8, "max_sectors", "le32"), (12, "cmd_per_lun", "le32"),
        (16, "event_info_size", "le32"), (20, "sense_size", "le32"), (24, "cdb_size", "le32"),
        (28, "max_channel", "le16"), (30, "max_target", "le16"), (32, "max_lun", "le32"),
    ),
    "balloon": (
        (0, "num_pages", "le32"), (4, "actual", "le32"), (8, "free_page_hint_cmd_id", "le32"),
        (12, "poison_val", "le32"),
    ),
    "serial": ((0, "cols", "le16"), (2, "rows", "le16"), (4, "max_nr_ports", "le32"), (8, "emerg_wr", "le32")),
}  # fmt: skip

_COMMON_FEATURES = {
    24: "VIRTIO_F_NOTIFY_ON_EMPTY", 27: "VIRTIO_F_ANY_LAYOUT", 28: "VIRTIO_RING_F_INDIRECT_DESC",
    29: "VIRTIO_RING_F_EVENT_IDX", 30: "VIRTIO_F_BAD_FEATURE", 32: "VIRTIO_F_VERSION_1",
    33: "VIRTIO_F_IOMMU_PLATFORM", 34: "VIRTIO_F_RING_PACKED", 35: "VIRTIO_F_IN_ORDER",
    36: "VIRTIO_F_ORDER_PLATFORM", 37: "VIRTIO_F_SR_IOV", 38: "VIRTIO_F_NOTIFICATION_DATA",
    39: "VIRTIO_F_NOTIF_CONFIG_DATA", 40: "VIRTIO_F_RING_RESET", 41: "VIRTIO_F_ADMIN_VQ",
}  # fmt: skip
_FEATURES: dict[str, dict[int, str]] = {
    "net": {
        0: "CSUM", 1: "GUEST_CSUM", 2: "CTRL_GUEST_OFFLOADS", 3: "MTU", 5: "MAC", 6: "GSO", 7: "GUEST_TSO4",
        8: "GUEST_TSO6", 9: "GUEST_ECN", 10: "GUEST_UFO", 11: "HOST_TSO4", 12: "HOST_TSO6", 13: "HOST_ECN",
        14: "HOST_UFO", 15: "MRG_RXBUF", 16: "STATUS", 17: "CTRL_VQ", 18: "CTRL_RX", 19: "CTRL_VLAN",
        20: "CTRL_RX_EXTRA", 21: "GUEST_ANNOUNCE", 22: "MQ", 23: "CTRL_MAC_ADDR", 53: "NOTF_COAL", 54: "GUEST_USO4",
        55: "GUEST_USO6", 56: "HOST_USO", 57: "HASH_REPORT", 59: "GUEST_HDRLEN", 60: "RSS", 61: "RSC_EXT",
        62: "STANDBY", 63: "SPEED_DUPLEX", 65: "GUEST_UDP_TUNNEL_GSO", 66: "GUEST_UDP_TUNNEL_GSO_CSUM",
        67: "HOST_UDP_TUNNEL_GSO", 68: "HOST_UDP_TUNNEL_GSO_CSUM",
    },
    "blk": {
        0: "BARRIER", 1: "SIZE_MAX", 2: "SEG_MAX", 4: "GEOMETRY", 5: "RO", 6: "BLK_SIZE", 7: "SCSI", 9: "FLUSH",
        10: "TOPOLOGY", 11: "CONFIG_WCE", 12: "MQ", 13: "DISCARD", 14: "WRITE_ZEROES", 16: "SECURE_ERASE",
        17: "ZONED",
    },
    "scsi": {0: "INOUT", 1: "HOTPLUG", 2: "CHANGE", 3: "T10_PI"},
    "balloon": {
        0: "MUST_TELL_HOST", 1: "STATS_VQ", 2: "DEFLATE_ON_OOM", 3: "FREE_PAGE_HINT", 4: "PAGE_POISON",
        5: "REPORTING",
    },
    "serial": {0: "SIZE", 1: "MULTIPORT", 2: "EMERG_WRITE"},
    "gpu": {0: "VIRGL", 1: "EDID", 2: "RESOURCE_UUID", 3: "RESOURCE_BLOB", 4: "CONTEXT_INIT"},
    "vsock": {0: "STREAM", 1: "SEQPACKET"},
    "mem": {0: "ACPI_PXM", 1: "UNPLUGGED_INACCESSIBLE", 2: "PERSISTENT_SUSPEND"},
    "iommu": {
        0: "INPUT_RANGE", 1: "DOMAIN_RANGE", 2: "MAP_UNMAP", 3: "BYPASS", 4: "PROBE", 5: "MMIO", 6: "BYPASS_CONFIG",
    },
}  # fmt: skip
_FEATURE_PREFIX = {"serial": "VIRTIO_CONSOLE_F_"}
_FEATURE_PATH = re.compile(r"(?:guest_features(?P<form>_lo|_ex)?|curr_guest_offloads)(?:\[(?P<index>\d+)\])?$")


def decode_virtio(payload: bytes, kind: str) -> list[Field]:
    """Name every byte of a PCI virtio device's payload.

    :param kind: the section's vmsd name, such as ``virtio-net``; the own part of an unknown one stays raw
    :return: fields in wire order that cover the payload; as in :func:`harness.stream.vmdesc.decode` the header
        of a subsection belongs to its field but to none of its children
    :raises StreamError: cut or damaged, or another transport than PCI; the offset counts from the payload's start
    """
    reader = _Payload(payload)
    short = _short(kind)
    pci, has_msix = _pci(reader)
    fields = [pci, *_registers(reader, short), *_queues(reader, has_msix)]
    fields += _device(reader, short)
    return fields + _tail(reader)


def feature_names(kind: str, bits: int) -> list[str]:
    """Names of the set feature bits, such as ``VIRTIO_NET_F_CSUM``; ``bit 63`` for one without a name.

    :param kind: ``virtio-net``, ``virtio-blk``, ...; of another kind only the common features have names
    """
    short = _short(kind)
    prefix = _FEATURE_PREFIX.get(short, f"VIRTIO_{short.upper()}_F_")
    own = {bit: prefix + name for bit, name in _FEATURES.get(short, {}).items()}
    names = _COMMON_FEATURES | own
    return [names.get(bit, f"bit {bit}") for bit in range(bits.bit_length()) if bits >> bit & 1]


def field_features(kind: str, field: Field) -> list[str]:
    """The names for a field that :func:`decode_virtio` found to hold feature bits; none for any other field."""
    match = _FEATURE_PATH.search(field.path)
    if match is None or not isinstance(field.value, int):
        return []
    width = 64 if match["form"] == "_ex" else 32
    return feature_names(kind, field.value << width * int(match["index"] or 0))


def _short(kind: str) -> str:
    short = kind.removeprefix("virtio-")
    return "serial" if short == "console" else short


class _Payload:
    """A place in a payload. Every read is checked against its end, so no count in it can ask for memory."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.pos = 0
        self.guest_features_lo = 0
        self.queue_count = 0
        # Written when the device offers packed rings, and then a request has one field more.
        self.has_packed = _header("virtio/packed_virtqueues") in payload

    @property
    def left(self) -> int:
        return len(self.payload) - self.pos

    def need(self, size_bytes: int, what: str) -> None:
        if size_bytes > self.left:
            raise StreamError(self.pos, f"field {what}: {size_bytes} bytes wanted, {self.left} left")

    def leaf(self, prefix: str, name: str, kind: str | int, *, index: int | None = None) -> Field:
        """A number of type ``kind``, or a buffer of so many bytes."""
        path = f"{prefix}{name}" if index is None else f"{prefix}{name}[{index}]"
        size, kind = (kind, "buffer") if isinstance(kind, int) else (_SIZES_BYTES[kind], kind)
        return self._take(name, path, kind, size)

    def raw(self, prefix: str, name: str, size_bytes: int) -> Field:
        """Bytes that are not understood."""
        return self._take(name, prefix + name, "raw", size_bytes)

    def _take(self, name: str, path: str, kind: str, size_bytes: int) -> Field:
        self.need(size_bytes, path)
        start = self.pos
        self.pos += size_bytes
        value = field_value(kind, self.payload[start : self.pos])
        return Field(name=name, path=path, offset=start, size=size_bytes, type=kind, value=value)

    def number(self, fields: list[Field], prefix: str, name: str, kind: str) -> int:
        """Append a number to ``fields`` and return its value."""
        field = self.leaf(prefix, name, kind)
        fields.append(field)
        assert isinstance(field.value, int)
        return field.value

    def rows(self, prefix: str, rows: Sequence[Row]) -> list[Field]:
        return [self.leaf(prefix, name, kind) for name, kind in rows]

    def parent(self, name: str, path: str, start: int, children: Sequence[Field], kind: str = "struct") -> Field:
        """The field of everything from ``start`` to here."""
        return Field(
            name=name, path=path, offset=start, size=self.pos - start, type=kind, value=None, children=tuple(children)
        )

    def array(self, prefix: str, name: str, count: int, row: Sequence[Row] | str | int) -> Field:
        """``count`` elements in a row: structs of these rows, or numbers or buffers of this type."""
        size = row if isinstance(row, int) else _SIZES_BYTES[row] if isinstance(row, str) else _rows_bytes(row)
        self.need(size * count, prefix + name)
        start = self.pos
        elements = [self._element(prefix, name, index, row) for index in range(count)]
        return self.parent(name, prefix + name, start, elements, "array")

    def _element(self, prefix: str, name: str, index: int, row: Sequence[Row] | str | int) -> Field:
        if isinstance(row, str | int):
            return self.leaf(prefix, name, row, index=index)
        start, path = self.pos, f"{prefix}{name}[{index}]"
        return self.parent(name, path, start, self.rows(f"{path}.", row))

    def spans(self, prefix: str, size_bytes: int, spans: Sequence[Span]) -> list[Field]:
        """A region with fields at known offsets; what lies between them are buffers ``rest[offset]``."""
        self.need(size_bytes, prefix.rstrip("."))
        start, found = self.pos, list[Field]()
        for offset, name, kind in spans:
            size = kind if isinstance(kind, int) else _SIZES_BYTES[kind]
            gap = start + offset - self.pos
            if gap < 0 or offset + size > size_bytes:
                continue
            found += self._gap(prefix, start, gap)
            found.append(self.leaf(prefix, name, kind))
        return found + self._gap(prefix, start, start + size_bytes - self.pos)

    def _gap(self, prefix: str, start: int, size_bytes: int) -> list[Field]:
        return [self.leaf(prefix, f"rest[{self.pos - start:#x}]", size_bytes)] if size_bytes else []

    def subsection_name(self) -> str:
        """The name of the subsection that starts here, or "" where none does."""
        at = self.pos
        if self.left < 2 or self.payload[at] != SectionType.SUBSECTION:
            return ""
        raw = self.payload[at + 2 : at + 2 + self.payload[at + 1]]
        return raw.decode() if len(raw) == self.payload[at + 1] and _SUBSECTION.fullmatch(raw) else ""

    def subsections(self, layouts: Mapping[str, Layout], prefix: str) -> list[Field]:
        """The subsections here whose names and versions are known, up to the first other one."""
        found = []
        while (name := self.subsection_name()) in layouts:
            start, header = self.pos, 2 + len(name)
            self.need(header + 4, f"subsection {prefix}{name}")
            version = int.from_bytes(self.payload[start + header : start + header + 4], "big")
            if version not in layouts[name][0]:
                break
            self.pos += header + 4
            children = layouts[name][1](self, f"{prefix}{name}/", version)
            found.append(self.parent(name, prefix + name, start, children, "subsection"))
        return found


def _rows_bytes(rows: Sequence[Row]) -> int:
    return sum(kind if isinstance(kind, int) else _SIZES_BYTES[kind] for _, kind in rows)


#: The versions of a subsection that are understood, and what reads its fields.
Layout = tuple[frozenset[int], Callable[[_Payload, str, int], list[Field]]]


def _fixed(*rows: Row) -> Layout:
    return frozenset({1}), lambda reader, prefix, version: reader.rows(prefix, rows)


def _pci(reader: _Payload) -> tuple[Field, bool]:
    """The transport, ``virtio_pci_save_config``; and whether it has MSI-X, which decides about later fields."""
    fields = [reader.leaf("pci.", "version_id", "int32")]
    reader.need(_PCI_CONFIG_BYTES, "pci.config")
    config = reader.payload[reader.pos : reader.pos + _PCI_CONFIG_BYTES]
    caps = _capabilities(config)
    express = _CAP_EXPRESS in caps.values()
    start = reader.pos
    spans = [*_PCI_HEADER, *(span for at, cap in sorted(caps.items()) for span in _capability_spans(at, cap))]
    # Only a device behind a PCI Express port keeps that capability and the larger config space.
    children = reader.spans("pci.config.", _PCIE_CONFIG_BYTES if express else _PCI_CONFIG_BYTES, spans)
    fields.append(reader.parent("config", "pci.config", start, children))
    at, vectors = reader.pos, _msix_vectors(config, caps)
    fields.append(reader.array("pci.", "irq_state", 4, "int32"))
    if any(pin.value not in (0, 1) for pin in fields[-1].children):
        raise StreamError(at, "pci.irq_state: a pin that is neither 0 nor 1")
    if vectors:
        fields.append(reader.array("pci.", "msix_table", vectors, _MSIX_ENTRY))
        fields.append(reader.leaf("pci.", "msix_pending", (vectors + 7) // 8))
        fields.append(reader.leaf("pci.", "config_vector", "uint16"))
    return reader.parent("pci", "pci", 0, fields), bool(vectors)


def _capabilities(config: bytes) -> dict[int, int]:
    """Offset to id of the capabilities; a pointer that leads back or out ends the list."""
    found: dict[int, int] = {}
    at = config[_CAP_POINTER] & ~3
    while at >= _CAP_FIRST and at not in found:
        found[at] = config[at]
        at = config[at + 1] & ~3
    return found


def _capability_spans(at: int, cap: int) -> Iterator[Span]:
    own = {_CAP_VENDOR: _CAP_VENDOR_SPANS, _CAP_MSIX: _CAP_MSIX_SPANS}.get(cap, ())
    for offset, name, kind in ((0, "id", "uint8"), (1, "next", "uint8"), *own):
        yield at + offset, f"{'msix' if cap == _CAP_MSIX else f'cap[{at:#x}]'}.{name}", kind


def _msix_vectors(config: bytes, caps: Mapping[int, int]) -> int:
    """How many vectors the table of ``msix_save`` has; 0 without MSI-X."""
    at = next((at for at, cap in caps.items() if cap == _CAP_MSIX), 0)
    return (int.from_bytes(config[at + 2 : at + 4], "little") & 0x7FF) + 1 if at else 0


def _registers(reader: _Payload, short: str) -> list[Field]:
    fields = reader.rows("", (("status", "uint8"), ("isr", "uint8"), ("queue_sel", "uint16")))
    reader.guest_features_lo = reader.number(fields, "", "guest_features_lo", "uint32")
    size_bytes = reader.number(fields, "", "config_len", "uint32")
    start = reader.pos
    children = reader.spans("config.", size_bytes, _CONFIGS.get(short, ()))
    if size_bytes:
        fields.append(reader.parent("config", "config", start, children))
    return fields


def _queues(reader: _Payload, has_msix: bool) -> list[Field]:
    fields: list[Field] = []
    count = reader.number(fields, "", "queue_count", "uint32")
    if count > QUEUE_MAX:
        raise StreamError(reader.pos - 4, f"{count} queues, more than {QUEUE_MAX}")
    reader.queue_count = count
    rows: list[Row] = [("vring.num", "uint32"), ("vring.desc", "uint64"), ("last_avail_idx", "uint16")]
    if has_msix:
        rows.append(("vector", "uint16"))
    if count:
        fields.append(reader.array("", "vq", count, rows))
    return fields


def _device(reader: _Payload, short: str) -> list[Field]:
    """What ``vdc->save`` and ``vdc->vmsd`` write."""
    start = reader.pos
    if short not in _DEVICES:
        size_bytes = _next_subsection(reader, start) - start
        return [reader.raw("", "device", size_bytes)] if size_bytes else []
    fields = _DEVICES[short](reader, f"{short}.")
    return [reader.parent(short, short, start, fields)] if fields else []


def _tail(reader: _Payload) -> list[Field]:
    """The subsections of ``vmstate_virtio``; one that is not known is raw up to the next known one."""
    fields = reader.subsections(_VIRTIO, "")
    unknown = 0
    while reader.left:
        if not reader.subsection_name():
            raise StreamError(reader.pos, f"neither a subsection nor the end: {reader.left} bytes left")
        unknown += 1
        stop = _next_subsection(reader, reader.pos + 1) if unknown <= _MAX_UNKNOWN else len(reader.payload)
        fields.append(reader.raw("", f"raw[{reader.pos:#x}]", stop - reader.pos))
        fields += reader.subsections(_VIRTIO, "")
    return fields


def _next_subsection(reader: _Payload, start: int) -> int:
    """Where the next known subsection of ``vmstate_virtio`` starts, or the end."""
    found = (reader.payload.find(_header(name), start) for name in _VIRTIO)
    return min((at for at in found if at >= 0), default=len(reader.payload))


def _header(name: str) -> bytes:
    return bytes([SectionType.SUBSECTION, len(name)]) + name.encode()


def _net(reader: _Payload, prefix: str) -> list[Field]:
    """``hw/net/virtio-net.c``, ``vmstate_virtio_net_device``."""
    fields = reader.rows(
        prefix,
        (("mac", 6), ("tx_waiting", "uint32"), ("mergeable_rx_bufs", "uint32"), ("status", "uint16"),
         ("promisc", "uint8"), ("allmulti", "uint8")),
    )  # fmt: skip
    macs = reader.number(fields, prefix, "mac_table.in_use", "uint32")
    if macs:
        fields.append(reader.array(prefix, "mac_table.macs", macs, 6))
    fields += reader.rows(
        prefix,
        (("vlans", _VLAN_BYTES), ("has_vnet_hdr", "uint32"), ("mac_table.multi_overflow", "uint8"),
         ("mac_table.uni_overflow", "uint8"), ("alluni", "uint8"), ("nomulti", "uint8"), ("nouni", "uint8"),
         ("nobcast", "uint8"), ("has_ufo", "uint8")),
    )  # fmt: skip
    has_offloads = bool(reader.guest_features_lo & _NET_F_CTRL_GUEST_OFFLOADS)
    fields += _net_pairs(reader, prefix, 8 if has_offloads else 0)
    if has_offloads:
        fields.append(reader.leaf(prefix, "curr_guest_offloads", "uint64"))
    return fields + reader.subsections(_NET, prefix)


def _net_pairs(reader: _Payload, prefix: str, behind_bytes: int) -> list[Field]:
    """The number of queue pairs, there with more than one. Nothing on the wire says so but what follows:
    a subsection or the end must be where these fields, or without them ``behind_bytes``, end."""
    start = reader.pos
    reader.pos += behind_bytes
    single = not reader.left or bool(reader.subsection_name())
    reader.pos = start
    if single:
        return []
    fields = [reader.leaf(prefix, "max_queue_pairs", "uint16")]
    current = reader.number(fields, prefix, "curr_queue_pairs", "uint16")
    if current > 1:
        fields.append(reader.array(prefix, "vqs_1", current - 1, (("tx_waiting", "uint32"),)))
    return fields


def _net_rss(reader: _Payload, prefix: str, version: int) -> list[Field]:
    fields = reader.rows(prefix, [(f"rss_data.{name}", "bool") for name in ("enabled", "redirect", "populate_hash")])
    fields.append(reader.leaf(prefix, "rss_data.hash_types", "uint32"))
    if version > 1:
        fields.append(reader.leaf(prefix, "rss_data.supported_hash_types", "uint32"))
    entries = reader.number(fields, prefix, "rss_data.indirections_len", "uint16")
    fields += reader.rows(prefix, (("rss_data.default_queue", "uint16"), ("rss_data.key", _RSS_KEY_BYTES)))
    if entries:
        fields.append(reader.array(prefix, "rss_data.indirections_table", entries, "uint16"))
    return fields


def _blk(reader: _Payload, prefix: str) -> list[Field]:
    """``hw/block/virtio-blk.c``, ``virtio_blk_save_device``: requests in flight, each behind a byte that is not 0."""
    fields: list[Field] = []
    reader.need(1, f"{prefix}end")
    while reader.payload[reader.pos]:
        start, path = reader.pos, f"{prefix}requests[{len(fields)}]"
        children = [reader.leaf(f"{path}.", "more", "int8")]
        if reader.queue_count > 1:
            children.append(reader.leaf(f"{path}.", "vq", "uint32"))
        children += _element(reader, f"{path}.elem.")
        fields.append(reader.parent("requests", path, start, children))
        reader.need(1, f"{prefix}end")
    return [*fields, reader.leaf(prefix, "end", "int8")]


def _element(reader: _Payload, prefix: str) -> list[Field]:
    """``qemu_put_virtqueue_element``: ``VirtQueueElementOld``, a struct of a 64-bit little-endian host."""
    fields: list[Field] = []
    if reader.has_packed:
        fields.append(reader.leaf(prefix, "ndescs", "uint32"))
    fields.append(reader.leaf(prefix, "index", "le32"))
    counts = {"out": reader.number(fields, prefix, "out_num", "le32")}
    counts["in"] = reader.number(fields, prefix, "in_num", "le32")
    if max(counts.values()) > _ELEMENT_ENTRIES:
        raise StreamError(reader.pos - 8, f"{prefix}out_num, in_num: more than {_ELEMENT_ENTRIES}")
    fields.append(reader.leaf(prefix, "pad", 4))
    for side in ("in", "out"):
        fields += _entries(reader, prefix, f"{side}_addr", counts[side], "le64")
    for side in ("in", "out"):
        fields += _entries(reader, prefix, f"{side}_sg", counts[side], (("iov_base", "le64"), ("iov_len", "le64")))
    return fields


def _entries(reader: _Payload, prefix: str, name: str, used: int, row: Sequence[Row] | str) -> list[Field]:
    """The entries in use, and the others as one buffer."""
    size = _SIZES_BYTES[row] if isinstance(row, str) else _rows_bytes(row)
    reader.need(size * _ELEMENT_ENTRIES, prefix + name)
    found = [reader.array(prefix, name, used, row)] if used else []
    rest = size * (_ELEMENT_ENTRIES - used)
    return [*found, reader.leaf(prefix, f"{name}[{used}..{_ELEMENT_ENTRIES - 1}]", rest)] if rest else found


def _serial(reader: _Payload, prefix: str) -> list[Field]:
    """``hw/char/virtio-serial-bus.c``, ``virtio_serial_save_device``."""
    fields = reader.rows(prefix, (("config.cols", "uint16"), ("config.rows", "uint16")))
    ports = reader.number(fields, prefix, "config.max_nr_ports", "uint32")
    if ports:
        fields.append(reader.array(prefix, "ports_map", (ports + 31) // 32, "uint32"))
    active = reader.number(fields, prefix, "nr_active_ports", "uint32")
    for index in range(active):
        start, path = reader.pos, f"{prefix}ports[{index}]"
        port = reader.rows(f"{path}.", (("id", "uint32"), ("guest_connected", "uint8"), ("host_connected", "uint8")))
        if reader.number(port, f"{path}.", "elem_popped", "uint32"):
            port += reader.rows(f"{path}.", (("iov_idx", "uint32"), ("iov_offset", "uint64")))
            port += _element(reader, f"{path}.elem.")
        fields.append(reader.parent("ports", path, start, port))
    return fields


def _balloon(reader: _Payload, prefix: str) -> list[Field]:
    """``hw/virtio/virtio-balloon.c``, ``vmstate_virtio_balloon_device``."""
    fields = reader.rows(prefix, (("num_pages", "uint32"), ("actual", "uint32")))
    return fields + reader.subsections(_BALLOON, prefix)


def _nothing(reader: _Payload, prefix: str) -> list[Field]:
    return []


def _per_queue(*rows: Row) -> Layout:
    """An array ``vq`` of all possible queues."""
    return frozenset({1}), lambda reader, prefix, version: _all_queues(reader, prefix, "vq", rows)


def _all_queues(reader: _Payload, prefix: str, name: str, rows: Sequence[Row]) -> list[Field]:
    """The queues up to the last that exists or differs from those behind it, and the others as one buffer."""
    size = _rows_bytes(rows)
    reader.need(size * QUEUE_MAX, prefix + name)
    raw = reader.payload[reader.pos : reader.pos + size * QUEUE_MAX]
    shown = QUEUE_MAX
    while shown > reader.queue_count and raw.startswith(raw[-size:], (shown - 1) * size):
        shown -= 1
    found = [reader.array(prefix, name, shown, rows)] if shown else []
    rest = size * (QUEUE_MAX - shown)
    return [*found, reader.leaf(prefix, f"{name}[{shown}..{QUEUE_MAX - 1}]", rest)] if rest else found


def _modern_state(reader: _Payload, prefix: str, version: int) -> list[Field]:
    """``hw/virtio/virtio-pci.c``, ``vmstate_virtio_pci_modern_state_sub``."""
    fields = reader.rows(prefix, (("dfselect", "uint32"), ("gfselect", "uint32")))
    fields.append(reader.array(prefix, "guest_features", 2, "uint32"))
    fields += _all_queues(
        reader,
        prefix,
        "vqs",
        (("num", "uint16"), ("unused", 1), ("enabled", "bool"),
         *((f"{ring}[{half}]", "uint32") for ring in ("desc", "avail", "used") for half in range(2))),
    )  # fmt: skip
    return fields + reader.subsections(_MODERN_STATE, prefix)


def _extra_state(reader: _Payload, prefix: str, version: int) -> list[Field]:
    return reader.subsections(_VIRTIO_PCI, prefix)


_MODERN_STATE: dict[str, Layout] = {
    # the upper half of an array of 4
    "virtio_pci/modern_state/features128": _fixed(("guest_features[2]", "uint32"), ("guest_features[3]", "uint32")),
}
_VIRTIO_PCI: dict[str, Layout] = {"virtio_pci/modern_state": (frozenset({1}), _modern_state)}
_NET: dict[str, Layout] = {"virtio-net-device/rss": (frozenset({1, 2}), _net_rss)}
_BALLOON: dict[str, Layout] = {
    "virtio-balloon-device/free-page-report": _fixed(
        ("free_page_hint_cmd_id", "uint32"), ("free_page_hint_status", "uint32")
    ),
    "virtio-balloon-device/page-poison": _fixed(("poison_val", "uint32")),
    # so it was called up to QEMU 6.0
    "vitio-balloon-device/page-poison": _fixed(("poison_val", "uint32")),
}
_VIRTIO: dict[str, Layout] = {
    "virtio/device_endian": _fixed(("device_endian", "uint8")),
    "virtio/128bit_features": _fixed(("guest_features_ex[1]", "uint64")),
    "virtio/64bit_features": _fixed(("guest_features", "uint64")),
    "virtio/virtqueues": _per_queue(("vring.avail", "uint64"), ("vring.used", "uint64")),
    "virtio/ringsize": _per_queue(("vring.num_default", "uint32")),
    "virtio/broken": _fixed(("broken", "bool")),
    "virtio/extra_state": (frozenset({1}), _extra_state),
    "virtio/started": _fixed(("started", "bool")),
    "virtio/packed_virtqueues": _per_queue(
        ("last_avail_idx", "uint16"), ("last_avail_wrap_counter", "bool"), ("used_idx", "uint16"),
        ("used_wrap_counter", "bool"), ("inuse", "uint32"),
    ),
    "virtio/disabled": _fixed(("disabled", "bool")),
}  # fmt: skip
_DEVICES: dict[str, Callable[[_Payload, str], list[Field]]] = {
    "net": _net, "blk": _blk, "serial": _serial, "balloon": _balloon, "scsi": _nothing, "rng": _nothing,
}  # fmt: skip
#: Known by one version or another alone: they count where they are met.
_NOT_EVERYWHERE = frozenset(
    {"virtio/128bit_features", "virtio_pci/modern_state/features128", "vitio-balloon-device/page-poison"}
)


def subsections_of(vmsd_name: str) -> tuple[str, ...]:
    """Subsections that a virtio device of this vmsd can have; none for what is no virtio device."""
    kind = vmsd_name.removeprefix("virtio-")
    if kind == vmsd_name:
        return ()
    own = {"net": _NET, "balloon": _BALLOON}.get(kind, {})
    return tuple(name for name in (*_VIRTIO, *_VIRTIO_PCI, *own) if name not in _NOT_EVERYWHERE)
