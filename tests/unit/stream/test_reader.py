# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading and writing back of whole streams, whole and damaged."""

from __future__ import annotations

import mmap
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import StreamError, UsageError
from harness.stream.model import Command, RamSection, Section
from harness.stream.reader import open_stream, read_devices, read_stream
from harness.stream.vmdesc import VmDesc
from harness.stream.writer import encode_command, encode_vmdesc

from . import build

SMALL = build.small()
TINY = build.without_ram()
HEAD = build.head()
TOY_END = b"\x00" + build.vmdesc(build.TOY)
BOTH_END = b"\x00" + build.vmdesc(build.TOY, build.OLD)
VMDESC = VmDesc.parse(build.vmdesc(build.OLD, build.TOY))


def round_trip(raw: bytes, vmdesc: VmDesc | None = None) -> bytes:
    return b"".join(read_stream(raw, vmdesc=vmdesc).encode())


def test_names_every_part() -> None:
    stream = read_stream(SMALL)
    assert stream.machine == "pc-i440fx-7.2"
    assert stream.head == build.head()
    assert stream.size == len(SMALL)
    kinds = [type(part) for part in stream.parts]
    assert kinds == [RamSection, Command, RamSection, RamSection, Command, Section, Section]
    assert [(p.command, p.data) for p in stream.parts if isinstance(p, Command)] == [(8, b""), (2, b"ping")]
    toy = stream.section("toy", 3)
    assert toy is not None
    assert (toy.type, toy.section_id, toy.version_id, toy.payload) == (4, 9, 2, build.TOY_PAYLOAD)
    assert SMALL[toy.offset : toy.offset + toy.size] == build.toy_section() == toy.encode()
    assert SMALL[toy.offset + toy.header_size :].startswith(build.TOY_PAYLOAD)
    assert [(b.name, b.size_bytes) for b in stream.ram_blocks] == list(build.BLOCKS)


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_round_trip(wrap: type) -> None:
    assert round_trip(wrap(SMALL)) == SMALL


def test_file_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(SMALL)
    with open_stream(path) as stream:
        assert isinstance(stream.buffer.obj, mmap.mmap)
        assert b"".join(stream.encode()) == SMALL
        buffer = stream.buffer
    with pytest.raises(ValueError, match="released"):
        buffer[0]


def test_page_that_outlives_the_file_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "stream"
    path.write_bytes(SMALL)
    with open_stream(path) as stream:
        kept = stream.buffer[:4]
    assert bytes(kept) == b"QEVM"


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(StreamError), open_stream(tmp_path / "empty"):
        pass
    with pytest.raises(UsageError), open_stream(tmp_path / "missing"):
        pass
    with pytest.raises(UsageError), open_stream(tmp_path):
        pass


def test_configuration_subsections() -> None:
    subsections = (
        b"\x05\x1econfiguration/target-page-bits\x00\x00\x00\x01" + struct.pack(">I", 12)
        + b"\x05\x1aconfiguration/capabilities\x00\x00\x00\x01\x00\x00\x00\x01\x0fx-ignore-shared"
        + b"\x05\x12configuration/uuid\x00\x00\x00\x01" + bytes(16)
    )  # fmt: skip
    raw = build.head(subsections=subsections) + build.toy_section() + b"\x00" + build.vmdesc(build.TOY)
    stream = read_stream(raw)
    assert stream.capabilities == ("x-ignore-shared",)
    assert stream.configuration == build.head(subsections=subsections)[8:]
    assert b"".join(stream.encode()) == raw


def test_shared_blocks_have_an_address() -> None:
    caps = b"\x05\x1aconfiguration/capabilities\x00\x00\x00\x01\x00\x00\x00\x01\x0fx-ignore-shared"
    records = struct.pack(">Q", 0x1004) + b"\x03ram" + struct.pack(">QQQ", 0x1000, 0xC0000, 0x10)
    start = struct.pack(">BIB", 1, 2, 3) + b"ram" + struct.pack(">II", 0, 4) + records + build.footer(2)
    raw = build.head(subsections=caps) + start + build.toy_section() + b"\x00" + build.vmdesc(build.TOY)
    assert read_stream(raw).ram_blocks[0].address == 0xC0000
    assert round_trip(raw) == raw


@pytest.mark.parametrize(
    "subsection",
    [
        b"\x05\x05other\x00\x00\x00\x01",
        b"\x05\x1aconfiguration/capabilities\x00\x00\x00\x01\xff\xff\xff\xff" + bytes(4096),
        b"\x05\x1econfiguration/target-page-bits\x00\x00\x00\x01\x00\x00\x00\x0d",
    ],
)
def test_configuration_that_cannot_be_read(subsection: bytes) -> None:
    raw = build.head(subsections=subsection) + build.toy_section() + b"\x00" + build.vmdesc(build.TOY)
    with pytest.raises(StreamError):
        read_stream(raw)


def test_without_configuration_and_footers() -> None:
    section = build.toy_section()[:-5] + build.old_section()[:-5]
    raw = build.head()[:8] + section + b"\x00" + build.vmdesc(build.TOY, build.OLD)
    stream = read_stream(raw)
    assert (stream.machine, stream.configuration) == ("", b"")
    assert [s.footer for s in stream.devices] == [False, False]
    assert round_trip(raw) == raw


def test_iterable_section_other_than_ram_stays_raw() -> None:
    block = struct.pack(">BIB", 1, 5, 5) + b"block" + struct.pack(">II", 0, 1) + b"ab\x7e\x00\x00\x00\x05\x99cd"
    raw = build.head() + block + build.footer(5) + struct.pack(">BI", 3, 5) + b"end" + build.footer(5)
    raw += build.toy_section() + b"\x00" + build.vmdesc(build.TOY)
    stream = read_stream(raw)
    assert [s.payload for s in stream.devices[:2]] == [b"ab\x7e\x00\x00\x00\x05\x99cd", b"end"]
    assert [s.key for s in stream.devices] == [("block", 0), ("block", 0), ("toy", 3)]
    assert b"".join(stream.encode()) == raw


def test_stream_without_vmdesc() -> None:
    raw = build.head()[:8] + build.old_section() + build.toy_section() + b"\x00"
    with pytest.raises(StreamError, match="needs a vmdesc"):
        read_stream(raw)
    stream = read_stream(raw, vmdesc=VMDESC)
    assert not stream.own_vmdesc
    assert stream.vmdesc is VMDESC
    assert round_trip(raw, VMDESC) == raw
    for size in range(len(raw)):
        with pytest.raises(StreamError) as caught:
            read_stream(raw[:size], vmdesc=VMDESC)
        assert caught.value.offset <= size
    with pytest.raises(StreamError):
        read_stream(raw + b"\x00", vmdesc=VMDESC)


def test_no_device_at_all_is_no_clean_end() -> None:
    with pytest.raises(StreamError, match="without a vmdesc"):
        read_stream(build.head() + build.ram_start() + b"\x00")


def test_device_buffer_may_repeat_a_section() -> None:
    raw = build.toy_section() * 3 + build.old_section() + b"\x00"
    sections = read_devices(raw, vmdesc=VMDESC)
    assert [s.idstr for s in sections] == ["toy", "toy", "toy", "slirp"]
    assert b"".join(section.encode() for section in sections) + b"\x00" == raw
    assert read_devices(b"12" + raw, vmdesc=VMDESC, start=2)[0].offset == 2
    for size in range(len(raw)):
        with pytest.raises(StreamError) as caught:
            read_devices(raw[:size], vmdesc=VMDESC)
        assert caught.value.offset <= size
    with pytest.raises(StreamError, match="behind the end"):
        read_devices(raw + b"\x00", vmdesc=VMDESC)
    with pytest.raises(StreamError):
        read_devices(build.ram_start() + raw, vmdesc=VMDESC)


def test_every_cut_is_an_error_with_its_offset() -> None:
    for size in range(len(TINY)):
        with pytest.raises(StreamError) as caught:
            read_stream(TINY[:size])
        assert 0 <= caught.value.offset <= size


@pytest.mark.parametrize("padding", [b"\x00", b"\x00" * 4096, b" ", b"}", b"\x7e", b"\x06\x00\x00\x00\x00", TINY])
def test_padding_is_an_error(padding: bytes) -> None:
    with pytest.raises(StreamError):
        read_stream(TINY + padding)


@pytest.mark.parametrize(
    ("raw", "offset"),
    [
        (b"ELF" + SMALL, 0),
        (b"QEVM\x00\x00\x00\x02" + SMALL[8:], 4),
        (HEAD + b"\x07" + build.body() + b"\x00" + build.vmdesc(build.OLD, build.TOY), len(HEAD)),
        (HEAD + build.toy_section() * 2 + TOY_END, len(HEAD + build.toy_section())),
        (HEAD + build.ram_more(2, b"") + b"\x00" + build.vmdesc(), len(HEAD)),
        (HEAD + build.ram_start() * 2 + b"\x00" + build.vmdesc(), len(HEAD + build.ram_start())),
        (HEAD + b"\x08\x00\x07\x00\x04" + bytes(4) + b"\x00" + build.vmdesc(), len(HEAD)),
        (
            HEAD + build.old_section() + build.toy_section(payload=build.TOY_PAYLOAD + b"x") + BOTH_END,
            len(HEAD + build.old_section() + build.toy_section()) - 5,
        ),
        (HEAD + build.old_section().replace(b"~", b"!") + BOTH_END, len(HEAD + build.old_section()) - 5),
    ],
)
def test_error_says_where(raw: bytes, offset: int) -> None:
    with pytest.raises(StreamError) as caught:
        read_stream(raw)
    assert caught.value.offset == offset
    assert f"0x{offset:x}" in str(caught.value)


def test_vmdesc_must_fit_its_stream() -> None:
    other = {**build.TOY, "version": 3}
    missing = build.head() + build.toy_section() + b"\x00" + build.vmdesc(build.TOY, build.OLD)
    for raw in (
        build.head() + build.toy_section() + b"\x00" + build.vmdesc(other),
        build.head() + build.toy_section() + b"\x00" + build.vmdesc(build.OLD),
        missing,
    ):
        with pytest.raises(StreamError, match=r"vmdesc"):
            read_stream(raw)


@given(st.integers(0, len(TINY) - 1), st.integers(1, 255))
@settings(max_examples=600, deadline=None)
def test_flipped_byte_is_an_error_or_round_trips(at: int, flip: int) -> None:
    raw = TINY[:at] + bytes([TINY[at] ^ flip]) + TINY[at + 1 :]
    again, offset = raw, 0
    try:
        again = round_trip(raw)
    except StreamError as error:
        offset = error.offset
    assert again == raw
    assert 0 <= offset <= len(raw)


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_anything_behind_the_header_is_an_error(noise: bytes) -> None:
    with pytest.raises(StreamError):
        read_stream(b"QEVM\x00\x00\x00\x03" + noise)


names = st.text(st.characters(codec="ascii", min_codepoint=33), min_size=1, max_size=40)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    blocks = draw(st.dictionaries(names, st.integers(1, 8), min_size=1, max_size=4))
    records = b""
    for name in draw(st.lists(st.sampled_from(sorted(blocks)), max_size=8)):
        address = draw(st.integers(0, blocks[name] - 1)) * 4096
        fresh = name.encode()
        data = draw(st.sampled_from([None, bytes(4096), build.PAGE]))
        records += build.zero(address, fresh) if data is None else build.page(address, data, fresh)
    parts = build.ram_start(tuple((name, pages * 4096) for name, pages in blocks.items()))
    parts += build.ram_more(draw(st.sampled_from([2, 3])), records)
    devices = []
    for number, name in enumerate(draw(st.lists(names, max_size=5, unique=True))):
        payload = draw(st.binary(max_size=60))
        parts += build.full(10 + number, name.encode(), number, 1, payload)
        size = len(payload)
        field = {"name": "data", "size": size, "type": "buffer"}
        devices.append({"name": name, "instance_id": number, "size": size, "fields": [field]})
    return build.head(draw(names).encode()) + parts + b"\x00" + build.vmdesc(*devices)


@given(streams())
@settings(max_examples=150, deadline=None)
def test_any_stream_round_trips(raw: bytes) -> None:
    assert round_trip(raw) == raw


@pytest.mark.parametrize(
    "claim",
    [
        b"QEVM\x00\x00\x00\x03\x07\xff\xff\xff\xff",
        build.head() + b"\x08\x00\x08\xff\xff",
        HEAD + struct.pack(">BIB", 1, 2, 3) + b"ram" + struct.pack(">IIQ", 0, 4, 0xFFFF_FFFF_FFFF_F004)
        + b"\x01a" + struct.pack(">Q", 0xFFFF_FFFF_FFFF_F000) + struct.pack(">Q", 0x10) + build.footer(2),
        build.head() + build.ram_start() + struct.pack(">BIQ", 2, 2, 0x100) + b"\x06pc.ram\xff\xff\xff\xff",
    ],
)  # fmt: skip
def test_huge_claims_cost_nothing(claim: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(StreamError):
            read_stream(claim)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_writer_pieces() -> None:
    assert encode_command(8) == b"\x08\x00\x08\x00\x00"
    assert encode_command(2, b"ping") == b"\x08\x00\x02\x00\x04ping"
    assert encode_vmdesc(b"{}") == b"\x06\x00\x00\x00\x02{}"
