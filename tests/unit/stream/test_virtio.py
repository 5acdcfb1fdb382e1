# SPDX-License-Identifier: GPL-2.0-or-later
"""The inside of virtio sections, built by hand as ``virtio_save`` writes them."""

from __future__ import annotations

import contextlib
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import StreamError, UsageError
from harness.stream.fields import Field, find, patch, walk
from harness.stream.virtio import decode_virtio, feature_names, field_features
from harness.stream.vmdesc import VmDesc, decode

QUEUES = 1024
MAC = bytes.fromhex("525400123456")
NET_LO = 1 << 5 | 1 << 16  # MAC, STATUS
OFFLOADS = 1 << 2


def pci(*, vectors: int = 0, express: bool = False) -> bytes:
    config = bytearray(4096 if express else 256)
    struct.pack_into("<HHH", config, 0, 0x1AF4, 0x1000, 0x0507)
    config[0x34] = 0x40
    config[0x40:0x50] = bytes([9, 0x50 if vectors else 0, 16, 1, 4, 0, 0, 0]) + struct.pack("<II", 0, 4096)
    if vectors:
        config[0x50:0x54] = bytes([0x11, 0]) + struct.pack("<H", 0x8000 | vectors - 1)
    if express:
        config[0x51 if vectors else 0x41] = 0x60
        config[0x60:0x62] = b"\x10\x00"
    table = b"".join(struct.pack("<QII", 0xFEE00000 + n, 0x40 + n, 0) for n in range(vectors))
    pending = bytes((vectors + 7) // 8)
    return (
        struct.pack(">i", 2) + config + struct.pack(">4i", 0, 1, 0, 0) + table + pending + b"\x00\x07" * bool(vectors)
    )


def core(features_lo: int, config: bytes, *queues: tuple[int, ...]) -> bytes:
    """Registers and queues; a queue is num, desc, last_avail_idx and, with MSI-X, vector."""
    data = struct.pack(">BBHII", 15, 1, 2, features_lo, len(config)) + config + struct.pack(">I", len(queues))
    return data + b"".join(struct.pack(">IQHH"[: len(queue) + 1], *queue) for queue in queues)


def sub(name: str, content: bytes, version: int = 1) -> bytes:
    return bytes([5, len(name)]) + name.encode() + struct.pack(">I", version) + content


def tail(features: int, queues: int) -> bytes:
    """The subsections of a device of QEMU 7.2 with a driver."""
    rings = b"".join(struct.pack(">QQ", 0x1000 * n + 1, 0x1000 * n + 2) for n in range(queues))
    modern = struct.pack(">IIII", 1, 1, features & 0xFFFFFFFF, features >> 32)
    modern += b"".join(struct.pack(">HBB6I", 256, 0, 1, n, 0, n, 0, n, 0) for n in range(queues))
    modern += bytes(28 * (QUEUES - queues))
    return (
        sub("virtio/64bit_features", struct.pack(">Q", features))
        + sub("virtio/virtqueues", rings.ljust(16 * QUEUES, b"\0"))
        + sub("virtio/extra_state", sub("virtio_pci/modern_state", modern))
        + sub("virtio/started", b"\x01")
    )


def net(*, features: int = NET_LO, macs: int = 2, pairs: tuple[int, ...] = (), rss: bytes = b"") -> bytes:
    """What ``vmstate_virtio_net_device`` writes; ``pairs`` is max_queue_pairs, curr_queue_pairs, tx_waiting..."""
    data = MAC + struct.pack(">IIHBBI", 1, 12, 1, 0, 1, macs) + bytes(range(6)) * macs
    data += b"\x80" + bytes(511) + struct.pack(">I", 0) + bytes([0, 0, 0, 0, 0, 1, 0])
    if pairs:
        data += struct.pack(">HH", *pairs[:2]) + struct.pack(f">{len(pairs) - 2}I", *pairs[2:])
    return data + (struct.pack(">Q", 0x83) if features & OFFLOADS else b"") + rss


NET = (
    pci(vectors=3)
    + core(NET_LO, MAC + struct.pack("<H", 1), (256, 0x1000, 9, 0), (256, 0x2000, 8, 1))
    + net()
    + tail(NET_LO | 1 << 32, 2)
)


def check_cover(fields: list[Field], payload: bytes) -> None:
    """Every byte is in exactly one top field, and in exactly one child of each field that has children."""

    def inside(children: list[Field], start: int, stop: int) -> None:
        for field in children:
            assert field.offset == start, field.path
            start += field.size
            assert (field.value is None) == bool(field.children) or field.size == 0 or field.type == "subsection"
            if field.children:
                header = 6 + len(field.name) if field.type == "subsection" else 0
                inside(list(field.children), field.offset + header, field.offset + field.size)
        assert start == stop

    inside(fields, 0, len(payload))
    paths = [field.path for field in walk(fields)]
    assert len(paths) == len(set(paths))


def values(fields: list[Field], *paths: str) -> list[int | str | None]:
    return [find(fields, path).value for path in paths]


def test_net() -> None:
    fields = decode_virtio(NET, "virtio-net")
    check_cover(fields, NET)
    assert [field.path for field in fields] == [
        "pci", "status", "isr", "queue_sel", "guest_features_lo", "config_len", "config", "queue_count", "vq", "net",
        "virtio/64bit_features", "virtio/virtqueues", "virtio/extra_state", "virtio/started",
    ]  # fmt: skip
    assert values(fields, "pci.version_id", "pci.config.vendor_id", "pci.config.command") == [2, 0x1AF4, 0x507]
    assert values(fields, "pci.irq_state[1]", "pci.msix_table[2].data", "pci.config_vector") == [1, 0x42, 7]
    assert values(fields, "pci.config.cap[0x40].length", "pci.config.msix.control") == [4096, 0x8002]
    assert values(fields, "status", "isr", "queue_sel", "guest_features_lo") == [15, 1, 2, NET_LO]
    assert values(fields, "config.mac", "config.status", "net.mac") == [MAC.hex(), 1, MAC.hex()]
    assert values(fields, "vq[1].vring.num", "vq[1].vring.desc", "vq[1].last_avail_idx") == [256, 0x2000, 8]
    assert values(fields, "vq[1].vector", "net.tx_waiting", "net.mergeable_rx_bufs") == [1, 1, 12]
    assert values(fields, "net.mac_table.macs[1]", "net.nobcast") == ["000102030405", 1]
    queue = "virtio/virtqueues/vq[1].vring."
    assert values(fields, queue + "avail", queue + "used") == [0x1001, 0x1002]
    modern = "virtio/extra_state/virtio_pci/modern_state/"
    assert values(fields, modern + "vqs[1].num", modern + "vqs[1].enabled", modern + "vqs[1].used[0]") == [256, 1, 1]
    assert values(fields, "virtio/started/started") == [1]
    assert not [field for field in walk(fields) if field.type == "raw"]


def test_queues_that_are_alike_and_unused_are_one_buffer() -> None:
    fields = decode_virtio(NET, "virtio-net")
    rest = find(fields, "virtio/virtqueues/vq[2..1023]")
    assert (rest.type, rest.size) == ("buffer", 16 * 1022)
    at = rest.offset + 16 * 5
    odd = NET[:at] + b"\x01" + NET[at + 1 :]
    fields = decode_virtio(odd, "virtio-net")
    check_cover(fields, odd)
    assert find(fields, "virtio/virtqueues/vq[7].vring.avail").value == 1 << 56
    assert find(fields, "virtio/virtqueues/vq[8..1023]").size == 16 * 1016


@pytest.mark.parametrize("features", [NET_LO, NET_LO | OFFLOADS])
@pytest.mark.parametrize("pairs", [(), (4, 1), (4, 3, 5, 6), (5 << 8, 1)])
@pytest.mark.parametrize("behind", [b"", sub("virtio/broken", b"\x01")])
def test_net_queue_pairs(features: int, pairs: tuple[int, ...], behind: bytes) -> None:
    payload = pci() + core(features, b"", (256, 0, 0)) + net(features=features, pairs=pairs) + behind
    fields = decode_virtio(payload, "virtio-net")
    check_cover(fields, payload)
    paths = {field.path for field in walk(fields)}
    assert ("net.max_queue_pairs" in paths) == bool(pairs)
    assert ("net.curr_guest_offloads" in paths) == bool(features & OFFLOADS)
    if pairs[2:]:
        assert values(fields, "net.curr_queue_pairs", "net.vqs_1[1].tx_waiting") == [3, 6]


@pytest.mark.parametrize("version", [1, 2])
def test_net_rss(version: int) -> None:
    content = b"\x01\x01\x00" + struct.pack(">I", 0x3F) + struct.pack(">I", 0x1FF) * (version - 1)
    content += struct.pack(">HH", 2, 1) + bytes(40) + struct.pack(">HH", 0, 1)
    device = net(rss=sub("virtio-net-device/rss", content, version))
    payload = pci() + core(NET_LO, b"", (256, 0, 0)) + device + tail(1 << 60, 1)
    fields = decode_virtio(payload, "virtio-net")
    check_cover(fields, payload)
    assert find(fields, "net.virtio-net-device/rss/rss_data.indirections_table[1]").value == 1


def element(index: int, out_lens: list[int], in_lens: list[int]) -> bytes:
    """``VirtQueueElementOld`` of a 64-bit little-endian host."""
    data = struct.pack("<III4x", index, len(out_lens), len(in_lens))
    for lens in (in_lens, out_lens):
        data += struct.pack(f"<{len(lens)}Q", *(0x100 * (n + 1) for n in range(len(lens)))).ljust(8192, b"\0")
    for lens in (in_lens, out_lens):
        data += b"".join(struct.pack("<QQ", 0, size) for size in lens).ljust(16384, b"\0")
    return data


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("queues", [1, 3])
def test_blk_with_requests_in_flight(queues: int, packed: bool) -> None:
    config = struct.pack("<QIIHBBI", 2048, 0, 254, 4, 16, 63, 512)
    one = b"\x01" + struct.pack(">I", queues - 1) * (queues > 1) + struct.pack(">I", 2) * packed
    device = one + element(7, [16, 512], [1]) + one + element(8, [16], []) + b"\0"
    queue_states = struct.pack(">HBHBI", 3, 1, 4, 1, 1) + struct.pack(">HBHBI", 0, 1, 0, 1, 0) * (QUEUES - 1)
    payload = pci() + core(1 << 6, config, *[(128, 0x1000, 1)] * queues) + device + tail(1 << 6 | 1 << 32, queues)
    payload += sub("virtio/packed_virtqueues", queue_states) * packed
    fields = decode_virtio(payload, "virtio-blk")
    check_cover(fields, payload)
    assert values(fields, "config.capacity", "config.blk_size", "config.sectors") == [2048, 512, 63]
    request = "blk.requests[0].elem."
    assert values(fields, request + "index", request + "out_num", request + "in_num") == [7, 2, 1]
    assert values(fields, request + "out_addr[1]", request + "out_sg[1].iov_len") == [0x200, 512]
    assert values(fields, "blk.requests[1].elem.index", "blk.end") == [8, 0]
    assert ("blk.requests[0].vq" in {f.path for f in walk(fields)}) == (queues > 1)
    if packed:
        assert values(fields, request + "ndescs", "virtio/packed_virtqueues/vq[0].used_idx") == [2, 4]


def test_serial() -> None:
    ports = struct.pack(">IBBI", 0, 1, 0, 0) + struct.pack(">IBBIIQ", 3, 1, 1, 1, 5, 6) + element(2, [100], [])
    device = struct.pack(">HHII", 0, 0, 31, 0x0B) + struct.pack(">I", 2) + ports
    payload = pci() + core(2, struct.pack("<HHI", 80, 25, 31), (128, 0, 0)) + device + tail(2 | 1 << 32, 1)
    for kind in ("virtio-console", "virtio-serial"):
        fields = decode_virtio(payload, kind)
        check_cover(fields, payload)
        assert values(fields, "config.max_nr_ports", "serial.ports_map[0]", "serial.nr_active_ports") == [31, 11, 2]
        assert values(fields, "serial.ports[1].iov_offset", "serial.ports[1].elem.out_sg[0].iov_len") == [6, 100]


@pytest.mark.parametrize("name", ["virtio", "vitio"])
def test_balloon(name: str) -> None:
    poison = sub(f"{name}-balloon-device/page-poison", struct.pack(">I", 0xAA))
    payload = pci() + core(0, bytes(8), (128, 0, 0)) + struct.pack(">II", 5, 6) + poison + tail(1 << 32, 1)
    fields = decode_virtio(payload, "virtio-balloon")
    check_cover(fields, payload)
    assert values(fields, "balloon.actual", f"balloon.{name}-balloon-device/page-poison/poison_val") == [6, 0xAA]


def test_devices_without_a_part_of_their_own_and_express() -> None:
    payload = pci(express=True, vectors=2) + core(0, b"", (8, 0, 0, 0xFFFF)) + tail(1 << 32, 1)
    for kind in ("virtio-rng", "virtio-scsi", "virtio-unheard-of"):
        fields = decode_virtio(payload, kind)
        check_cover(fields, payload)
        assert find(fields, "pci.config").size == 4096
        assert values(fields, "vq[0].vector", "virtio/64bit_features/guest_features") == [0xFFFF, 1 << 32]


def test_what_is_not_known_stays_raw() -> None:
    head = pci() + core(0, b"", (8, 0, 0))
    payload = head + b"own" + sub("virtio/started", b"\1") + sub("virtio/new", b"abc") + sub("virtio/disabled", b"\1")
    payload += sub("virtio/broken", b"\1\2", version=9)
    fields = decode_virtio(payload, "virtio-unheard-of")
    check_cover(fields, payload)
    assert [(f.path, f.type) for f in fields[-5:]] == [
        ("device", "raw"),
        ("virtio/started", "subsection"),
        (f"raw[{len(head) + 3 + 21:#x}]", "raw"),
        ("virtio/disabled", "subsection"),
        (f"raw[{len(payload) - 21:#x}]", "raw"),
    ]


def test_many_unknown_subsections_are_named_in_bounded_time() -> None:
    payload = pci() + core(0, b"") + (sub("virtio/new", b"") + sub("virtio/started", b"\1")) * 5000
    fields = decode_virtio(payload, "virtio-rng")
    assert sum(field.size for field in fields) == len(payload)
    assert len(fields) < 100


@pytest.mark.parametrize(
    ("at", "raw"),
    [
        (4 + 256 + 3, b"\x02"),  # an interrupt pin
        (4 + 256 + 16 + 8, b"\xff\xff\xff\xff"),  # config_len
        (4 + 256 + 16 + 12, b"\xff\xff\xff\xff"),  # queue_count
        (4 + 256 + 16 + 12, b"\x00\x00\x04\x01"),  # queue_count
    ],
)
def test_counts_that_cannot_be(at: int, raw: bytes) -> None:
    payload = pci() + core(0, b"", (8, 0, 0)) + tail(0, 1)
    payload = payload[:at] + raw + payload[at + len(raw) :]
    with pytest.raises(StreamError):
        decode_virtio(payload, "virtio-rng")


def test_a_request_with_more_entries_than_its_array() -> None:
    wrong = struct.pack("<III", 0, 1025, 0)
    payload = pci() + core(0, b"", (8, 0, 0)) + b"\1" + wrong + element(0, [], [])[12:] + b"\0" + tail(0, 1)
    with pytest.raises(StreamError):
        decode_virtio(payload, "virtio-blk")


def test_capabilities_that_lead_in_a_circle() -> None:
    payload = bytearray(pci() + core(0, b"") + tail(0, 0))
    payload[4 + 0x41] = 0x40
    check_cover(decode_virtio(bytes(payload), "virtio-rng"), bytes(payload))


def test_bytes_behind_the_subsections() -> None:
    with pytest.raises(StreamError) as caught:
        decode_virtio(NET + b"\0", "virtio-net")
    assert caught.value.offset == len(NET)


def test_cut_anywhere() -> None:
    whole = {field.offset for field in decode_virtio(NET, "virtio-net") if field.type == "subsection"}
    stops = set(range(1100)) | set(range(1100, len(NET), 977)) | whole
    for stop in stops:
        if stop in whole:
            check_cover(decode_virtio(NET[:stop], "virtio-net"), NET[:stop])
        else:
            with pytest.raises(StreamError) as caught:
                decode_virtio(NET[:stop], "virtio-net")
            assert 0 <= caught.value.offset <= stop


@given(
    kind=st.sampled_from(["virtio-net", "virtio-blk", "virtio-console", "virtio-balloon", "virtio-other"]),
    at=st.integers(0, 1000),
    raw=st.binary(min_size=1, max_size=40),
)
def test_damage_is_an_error_or_names_every_byte(kind: str, at: int, raw: bytes) -> None:
    payload = NET[:at] + raw + NET[at + len(raw) :]
    with contextlib.suppress(StreamError):
        assert sum(field.size for field in decode_virtio(payload, kind)) == len(payload)


def test_feature_names() -> None:
    assert feature_names("virtio-net", 1 | 1 << 32) == ["VIRTIO_NET_F_CSUM", "VIRTIO_F_VERSION_1"]
    assert feature_names("virtio-blk", 1 << 9 | 1 << 29) == ["VIRTIO_BLK_F_FLUSH", "VIRTIO_RING_F_EVENT_IDX"]
    assert feature_names("virtio-console", 2) == ["VIRTIO_CONSOLE_F_MULTIPORT"]
    assert feature_names("virtio-gpu", 0b11010) == [
        "VIRTIO_GPU_F_EDID", "VIRTIO_GPU_F_RESOURCE_BLOB", "VIRTIO_GPU_F_CONTEXT_INIT",
    ]  # fmt: skip
    assert feature_names("virtio-other", 1 << 63) == ["bit 63"]
    assert feature_names("virtio-net", 0) == []


def test_field_features() -> None:
    features = NET_LO | 1 << 32 | 1 << 40
    payload = pci() + core(NET_LO, b"", (256, 0, 0)) + net() + tail(features, 1)
    fields = decode_virtio(payload, "virtio-net")
    found = {field.path: names for field in walk(fields) if (names := field_features("virtio-net", field))}
    low, high = ["VIRTIO_NET_F_MAC", "VIRTIO_NET_F_STATUS"], ["VIRTIO_F_VERSION_1", "VIRTIO_F_RING_RESET"]
    assert found == {
        "guest_features_lo": low,
        "virtio/64bit_features/guest_features": low + high,
        "virtio/extra_state/virtio_pci/modern_state/guest_features[0]": low,
        "virtio/extra_state/virtio_pci/modern_state/guest_features[1]": high,
    }


def vmdesc(size: int, kind: str = "virtio-net") -> VmDesc:
    field = {"name": "virtio", "type": "virtio", "size": size}
    device = {"name": "0000:00:05.0/virtio-net", "instance_id": 0, "vmsd_name": kind, "version": 11, "fields": [field]}
    return VmDesc.from_json(json.dumps({"page_size": 4096, "devices": [device]}).encode())


def test_vmdesc_decode_names_the_inside() -> None:
    (device,) = vmdesc(len(NET)).devices
    assert decode(memoryview(NET), device) == decode_virtio(NET, "virtio-net")


def test_vmdesc_decode_of_a_payload_of_another_size() -> None:
    """A later state of the same device, with another number of MAC addresses or subsections."""
    for size in (len(NET) - 6, len(NET) + 6):
        (device,) = vmdesc(size).devices
        assert decode(NET, device) == decode_virtio(NET, "virtio-net")


def test_vmdesc_decode_falls_back_to_the_opaque_field() -> None:
    damaged = NET + b"\0"
    (device,) = vmdesc(len(damaged)).devices
    (field,) = decode(damaged, device)
    assert (field.path, field.size, field.value) == ("virtio", len(damaged), damaged.hex())
    # the description is of fewer bytes
    (device,) = vmdesc(len(NET)).devices
    assert [f.path for f in decode(damaged, device)] == ["virtio", "raw"]


def test_patch_keeps_the_byte_order() -> None:
    fields = decode_virtio(NET, "virtio-net")
    little, big = find(fields, "config.status"), find(fields, "vq[0].last_avail_idx")
    assert patch(NET, little, 0x102)[little.offset : little.offset + 2] == b"\x02\x01"
    assert patch(NET, big, 0x102)[big.offset : big.offset + 2] == b"\x01\x02"
    with pytest.raises(UsageError):
        patch(NET, little, 1 << 16)
    with pytest.raises(UsageError):
        patch(NET, little, -1)
