# SPDX-License-Identifier: GPL-2.0-or-later
"""Saved states by their content: streams, compressed ones, libvirt's save images, snapshots in qcow2 images."""

from __future__ import annotations

import bz2
import contextlib
import functools
import gzip
import lzma
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from lzallright import LZOCompressor

from harness.adopt import unpack
from harness.adopt.describe import describe
from harness.adopt.saved import NotSaved, check_ram, open_saved
from harness.errors import UsageError
from harness.names import ADOPTED, PHASES
from harness.state.recorder import ordered_phases
from harness.stream.container import FileKind
from harness.stream.reader import plain_configuration, read_foreign, read_stream
from harness.stream.vmdesc import VmDesc, decode
from tests.unit.stream import build

STREAM = build.small()
XML = "<domain type='kvm'><name>web01</name></domain>"
CLUSTER = 1 << 9


def lzop(data: bytes, flags: int = 0x3) -> bytes:
    """As ``lzop`` writes it from a pipe: no name, a checksum of each plain and each packed block."""
    out = b"\x89LZO\0\r\n\x1a\n" + struct.pack(">HHHBBI", 0x1040, 0x20A0, 0x0940, 1, 5, flags)
    out += struct.pack(">IIIB", 0o100644, 0, 0, 0) + b"\0\0\0\0"
    for start in range(0, len(data), 1 << 18):
        block = data[start : start + (1 << 18)]
        packed = LZOCompressor().compress(block)
        smaller = len(packed) < len(block)
        stored = packed if smaller else block
        out += struct.pack(">II", len(block), len(stored))
        out += struct.pack(">I", zlib.adler32(block)) if flags & 1 else b""
        out += struct.pack(">I", zlib.adler32(stored)) if flags & 2 and smaller else b""
        out += stored
    return out + b"\0\0\0\0"


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzop": lzop,
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
}


def save_image(payload: bytes, kind: int, *, order: str = "<", version: int = 2, room: int = 64) -> bytes:
    data = XML.encode() + b"\0" + b"<cookie/>\0"
    data += bytes(room)
    head = struct.pack(f"{order}16s5I56x", b"LibvirtQemudSave", version, len(data), 1, kind, len(XML) + 1)
    return head + data + payload


def qcow2(states: dict[str, bytes], *, disk_bytes: int = 3 * CLUSTER, extended: bool = False) -> bytearray:
    """An image with clusters of 512 bytes and the state of a machine in each snapshot, from the second L1 entry on."""
    entries = CLUSTER // (16 if extended else 8)
    image = bytearray(CLUSTER)
    table = b""

    def put(data: bytes) -> int:
        at = len(image)
        image.extend(data.ljust(-(-len(data) // CLUSTER) * CLUSTER, b"\0"))
        return at

    for number, (name, state) in enumerate(states.items(), 1):
        clusters = [put(state[start : start + CLUSTER]) for start in range(0, len(state), CLUSTER)]
        l1 = [0]
        for start in range(0, len(clusters), entries):
            l2 = b"".join(
                struct.pack(">Q", at | 1 << 63) + (struct.pack(">Q", 0xFFFFFFFF) if extended else b"")
                for at in clusters[start : start + entries]
            )
            l1.append(put(l2) | 1 << 63)
        l1_at = put(struct.pack(f">{len(l1)}Q", *l1))
        own = str(number).encode()
        entry = struct.pack(">QIHHIIQII", l1_at, len(l1), len(own), len(name), 0, 0, 0, len(state), 24)
        entry += struct.pack(">QQQ", len(state), disk_bytes, 0) + own + name.encode()
        table += entry.ljust(-(-len(entry) // 8) * 8, b"\0")
    table_at = put(table)
    struct.pack_into(">4sIQII", image, 0, b"QFI\xfb", 3, 0, 0, 9)
    struct.pack_into(">QIIQQIIQ", image, 24, disk_bytes, 0, 1, 0, 0, 0, len(states), table_at)
    struct.pack_into(">QQQII", image, 72, 0x10 if extended else 0, 0, 0, 4, 104)
    return image


def taken(tmp_path: Path, data: bytes, snapshot: str | None = None) -> tuple[bytes, str, str]:
    """The stream in a file, libvirt's XML of it, and the snapshot that it is."""
    path = tmp_path / "state"
    path.write_bytes(data)
    with open_saved(path, tmp_path, snapshot=snapshot) as state:
        found = b"".join(bytes(each) for each in state.stream.encode()), state.domain, state.snapshot
        assert state.machine == "pc-i440fx-7.2"
        assert [block.name for block in state.ram_blocks] == ["pc.ram", "vga.rom"]
        assert [section.idstr for section in state.sections] == ["slirp", "toy"]
        del state
    assert [each.name for each in tmp_path.iterdir()] == ["state"]
    return found


def refused(tmp_path: Path, data: bytes, snapshot: str | None = None) -> str:
    path = tmp_path / "state"
    path.write_bytes(data)
    with pytest.raises(UsageError) as seen, open_saved(path, tmp_path, snapshot=snapshot):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["state"]
    return str(seen.value)


def test_a_stream(tmp_path: Path) -> None:
    assert taken(tmp_path, STREAM) == (STREAM, "", "")


@pytest.mark.parametrize("name", PACKERS)
def test_a_compressed_stream(tmp_path: Path, name: str) -> None:
    assert taken(tmp_path, PACKERS[name](STREAM)) == (STREAM, "", "")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "name"), [(0, ""), (1, "gzip"), (2, "bzip2"), (3, "xz"), (4, "lzop"), (5, "zstd")])
def test_a_save_image_of_libvirt(tmp_path: Path, kind: int, name: str, order: str) -> None:
    payload = PACKERS[name](STREAM) if name else STREAM
    assert taken(tmp_path, save_image(payload, kind, order=order)) == (STREAM, XML, "")


@pytest.mark.parametrize("extended", [False, True])
def test_a_snapshot_of_a_qcow2_image(tmp_path: Path, extended: bool) -> None:
    image = bytes(qcow2({"before": STREAM}, extended=extended))
    assert taken(tmp_path, image) == (STREAM, "", "before")


def test_one_of_several_snapshots_is_named(tmp_path: Path) -> None:
    image = bytes(qcow2({"before": STREAM + bytes(700), "disk": b"", "after": STREAM}))
    several = "several snapshots with the state of a machine: expected --snapshot, one of before, after"
    assert several in refused(tmp_path, image)
    assert taken(tmp_path, image, "after") == (STREAM, "", "after")
    assert taken(tmp_path, image, "1") == (STREAM, "", "before")
    assert "no snapshot 'disk' with the state" in refused(tmp_path, image, "disk")


def test_a_snapshot_that_is_called_by_the_id_of_another_one(tmp_path: Path) -> None:
    assert taken(tmp_path, bytes(qcow2({"2": STREAM, "after": STREAM})), "1") == (STREAM, "", "2")


def test_images_without_the_state_of_a_machine(tmp_path: Path) -> None:
    assert "no snapshots; savevm puts it there" in refused(tmp_path, bytes(qcow2({})))
    assert "its 1 snapshots hold the disk alone" in refused(tmp_path, bytes(qcow2({"one": b""})))


def test_a_damaged_image_says_where(tmp_path: Path) -> None:
    whole = qcow2({"before": STREAM})
    (table_at,) = struct.unpack_from(">Q", whole, 64)
    (l1_at,) = struct.unpack_from(">Q", whole, table_at)

    def changed(layout: str, at: int, value: int) -> str:
        image = bytearray(whole)
        struct.pack_into(layout, image, at, value)
        return refused(tmp_path, bytes(image))

    hole = f"at offset {l1_at + 8} (0x{l1_at + 8:x}): qcow2: the state of the machine has a hole"
    assert hole in changed(">Q", l1_at + 8, 0)
    assert "L2 entry behind the end of the image" in changed(">Q", l1_at + 8, 1 << 40)
    assert f"a state of {1 << 50} bytes in a smaller image" in changed(">Q", table_at + 40, 1 << 50)
    assert f"at offset 60 (0x3c): qcow2: {1 << 31} snapshots" in changed(">I", 60, 1 << 31)
    assert "it is encrypted" in changed(">I", 32, 2)
    assert "its data is in another file" in changed(">Q", 72, 4)


@pytest.mark.parametrize("size", [1, 30, 71, 104, 600, 2000])
def test_a_cut_image_is_an_error(tmp_path: Path, size: int) -> None:
    assert refused(tmp_path, bytes(qcow2({"before": STREAM}))[:size])


@pytest.mark.parametrize("name", PACKERS)
def test_a_cut_or_damaged_compressed_stream_is_an_error(tmp_path: Path, name: str) -> None:
    packed = PACKERS[name](STREAM)
    for size in (len(packed) // 3, len(packed) - 9):
        assert "at offset" in refused(tmp_path, packed[:size])
    damaged = bytearray(packed)
    damaged[len(packed) // 2] ^= 0xFF
    assert "at offset" in refused(tmp_path, bytes(damaged))


@pytest.mark.parametrize("name", PACKERS)
def test_something_else_that_is_compressed(tmp_path: Path, name: str) -> None:
    said = refused(tmp_path, PACKERS[name](b"Hello, world" * 100))
    assert "and no migration stream in it: it begins with 48 65 6c 6c" in said


@pytest.mark.parametrize("name", PACKERS)
def test_what_unpacks_to_far_more_than_its_ram_is_given_up(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "_ALLOWANCE_BYTES", 1 << 20)
    bomb = PACKERS[name](STREAM + bytes(16 << 20))
    limit = (1 << 20) + 8 * (0x9000 | 4)
    assert f"more than the {limit} bytes that its RAM can have" in refused(tmp_path, bomb)


def test_a_save_image_that_is_cut_or_not_known(tmp_path: Path) -> None:
    image = save_image(STREAM, 0)
    assert "at offset 0" in refused(tmp_path, image[:80])
    assert "a save image that is cut" in refused(tmp_path, image[:120])
    assert "at offset 28 (0x1c): a save image of format unknown (77)" in refused(tmp_path, save_image(STREAM, 77))
    assert "a save image of version" in refused(tmp_path, save_image(STREAM, 0, version=9))
    (tmp_path / "part").write_bytes(b"LibvirtQemudPart" + image[16:])
    with pytest.raises(NotSaved) as seen, open_saved(tmp_path / "part", tmp_path):
        pass
    assert seen.value.container.kind is FileKind.UNFINISHED_SAVE


def test_mapped_pages_have_their_places_in_the_file(tmp_path: Path) -> None:
    """As in libvirt's sparse format: the places count from the start of the file, not of the stream."""
    name = b"configuration/capabilities"
    capability = b"\x05" + bytes([len(name)]) + name + struct.pack(">IIB", 1, 1, 10) + b"mapped-ram"
    head = build.head(subsections=capability)
    start = struct.pack(">BIB", 1, 2, 3) + b"ram" + struct.pack(">II", 0, 4)
    block = struct.pack(">QB", 0x2000 | 4, 6) + b"pc.ram" + struct.pack(">Q", 0x2000)
    in_front = save_image(b"", 6)
    bitmap_at = len(in_front) + len(head + start + block) + 28
    pages_at = -(-(bitmap_at + 8) // 4096) * 4096
    mapped = struct.pack(">IQQQ", 1, 4096, bitmap_at, pages_at) + struct.pack("<Q", 0b10)
    padding = bytes(pages_at - bitmap_at - 8)
    rest = struct.pack(">Q", 0x10) + build.footer(2) + build.ram_more(3, b"")
    stream = head + start + block + mapped + padding + bytes(4096) + build.PAGE + rest
    stream += build.old_section() + build.toy_section() + b"\0" + build.vmdesc(build.OLD, build.TOY)
    path = tmp_path / "state"
    path.write_bytes(in_front + stream)
    with open_saved(path, tmp_path) as state:
        assert state.stream.capabilities == ("mapped-ram",)
        (record,) = state.stream.ram[0].records()
        found = bytes(state.stream.buffer[record.data_offset :][:4096])
        assert (record.address, found) == (0x1000, build.PAGE)
        assert plain_configuration(state.stream) == build.head()[8:]
        del state


def test_a_stream_whose_pages_went_elsewhere(tmp_path: Path) -> None:
    parts = build.ram_start() + build.ram_more(3, build.zero(0, block=b"pc.ram"))
    stream = build.head() + parts + build.old_section() + b"\0" + build.vmdesc(build.OLD)
    path = tmp_path / "state"
    path.write_bytes(stream)
    with open_saved(path, tmp_path) as state:
        with pytest.raises(UsageError, match="without the guest's RAM, the main channel of multifd"):
            check_ram(state)
        del state


def test_sections_without_a_description_are_described_by_those_of_another_machine() -> None:
    """A section that has grown since keeps its fields; what follows them is one more."""
    like = VmDesc.parse(build.vmdesc(build.OLD, build.TOY))
    longer = build.TOY_PAYLOAD + b"\5\5toy/z\0\0\0\1\7"
    sections = build.full(4, b"slirp", 0, 9, b"\1\2\3\4\5") + build.toy_section(payload=longer)
    vmdesc = describe(read_foreign(build.head() + sections + b"\0", vmdesc=like).devices, like)
    slirp, toy = read_stream(build.head() + sections + b"\0" + vmdesc.raw).devices
    assert slirp.desc is not None
    assert toy.desc is not None
    assert [field.name for field in decode(slirp.payload, slirp.desc)] == ["data"]
    fields = decode(toy.payload, toy.desc)
    assert [field.name for field in fields][:3] == ["count", "step", "on"]
    assert fields[0].value == 5


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from(["qcow2", "extended", "save-image", "packed", *PACKERS]),
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.one_of(st.none(), st.integers(0, 1 << 16)),
)
def test_whatever_is_changed_in_a_file_it_is_read_or_refused(
    form: str, changes: list[tuple[int, int]], cut: int | None
) -> None:
    data = bytearray(_forms()[form])
    for at, value in changes:
        data[at % len(data)] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state")
        path.write_bytes(data if cut is None else data[: cut % len(data)])
        with contextlib.suppress(UsageError), open_saved(path, Path(folder)) as state:
            del state
        assert [each.name for each in Path(folder).iterdir()] == ["state"]


@functools.cache
def _forms() -> dict[str, bytes]:
    forms = {name: packed(STREAM) for name, packed in PACKERS.items()}
    forms |= {"qcow2": bytes(qcow2({"a": STREAM})), "extended": bytes(qcow2({"a": STREAM}, extended=True))}
    return forms | {"save-image": save_image(STREAM, 0), "packed": save_image(gzip.compress(STREAM), 1)}


def test_the_phase_of_an_adopted_state_is_not_one_that_is_recorded() -> None:
    with pytest.raises(UsageError, match="unknown phase 'adopted': expected one of firmware, kernel"):
        ordered_phases([ADOPTED])
    assert ordered_phases([ADOPTED], PHASES) == [ADOPTED]
