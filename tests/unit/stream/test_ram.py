# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM records: read into arrays, made into an image, written."""

from __future__ import annotations

import struct
from array import array

import pytest

from harness.errors import StreamError, UsageError
from harness.stream.model import RamBlock, Stream
from harness.stream.ram import (
    PageRecords,
    RamImage,
    encode_mem_size,
    encode_pages,
    encode_ram_section,
    with_larger_block,
)
from harness.stream.reader import read_stream

from . import build


def stream_of(*sections: bytes, blocks: tuple[tuple[str, int], ...] = build.BLOCKS) -> Stream:
    return read_stream(
        build.head()
        + build.ram_start(blocks)
        + b"".join(sections)
        + build.toy_section()
        + b"\x00"
        + build.vmdesc(build.TOY)
    )


def test_records_lie_in_arrays() -> None:
    stream = read_stream(build.small())
    part = stream.ram[1]
    assert [(r.block, r.address, r.flags) for r in part.records()] == [
        (0, 0, 0x08),
        (0, 0x1000, 0x22),
        (0, 0x2000, 0x22),
        (0, 0x3000, 0x28),
        (1, 0, 0x02),
    ]
    assert [part.block_index.typecode, part.words.typecode, part.data_offset.typecode] == ["H", "Q", "Q"]
    first = next(part.records())
    assert bytes(stream.buffer[first.data_offset : first.data_offset + 4096]) == build.PAGE


def test_image_takes_the_last_record_of_a_page() -> None:
    stream = read_stream(build.small())
    image = RamImage.from_stream(stream)
    assert [len(pages) for pages in image.pages] == [8, 1]
    assert bytes(image.page(0, 0) or b"") == bytes(4096)
    assert bytes(image.page(0, 3) or b"") == build.PAGE
    assert image.page(0, 1) is None
    assert image.page(1, 0) is None
    assert list(image.pages[0][4:]) == [-1] * 4


def test_zero_overwrites_page_and_continue_outlives_its_section() -> None:
    stream = stream_of(build.ram_more(2, build.page(0x1000, block=b"pc.ram")), build.ram_more(3, build.zero(0x1000)))
    assert RamImage.from_stream(stream).page(0, 1) is None


def test_long_run_of_zero_pages() -> None:
    count = 2000
    records = build.zero(0, b"a") + b"".join(build.zero(n * 4096) for n in range(1, count))
    records += build.page(0x5000) + build.zero(0x6000)
    part = stream_of(build.ram_more(2, records), blocks=(("a", count * 4096),)).ram[1]
    found = list(part.records())
    assert [r.address for r in found] == [n * 4096 for n in range(count)] + [0x5000, 0x6000]
    assert found[count - 1].data_offset - found[count - 2].data_offset == 9


def test_changed_pages() -> None:
    base = RamImage.from_stream(stream_of(build.ram_more(3, build.page(0, block=b"pc.ram") + build.page(0x1000))))
    other = bytes(4095) + b"\x01"
    records = build.page(0, block=b"pc.ram") + build.page(0x2000, bytes(4096)) + build.page(0x3000, other)
    now = RamImage.from_stream(stream_of(build.ram_more(3, records)))
    changed = [(name, address, page and bytes(page)) for name, address, page in now.changed(base)]
    assert changed == [("pc.ram", 0x1000, None), ("pc.ram", 0x3000, other)]
    assert len(list(now.content())) == 9
    smaller = RamImage.from_stream(stream_of(blocks=(("pc.ram", 0x1000),)))
    with pytest.raises(UsageError):
        list(now.changed(smaller))


def test_compressed_records_are_read_and_not_applied() -> None:
    xbzrle = struct.pack(">Q", 0x40) + b"\x06pc.ram" + b"\x01\x00\x03abc"
    packed = struct.pack(">Q", 0x1100 | 0x20) + b"\x00\x00\x00\x02zz"
    stream = stream_of(build.ram_more(2, xbzrle + packed))
    assert [(r.address, r.flags) for r in stream.ram[1].records()] == [(0, 0x40), (0x1000, 0x120)]
    assert [bytes(stream.buffer[r.data_offset :][:2]) for r in stream.ram[1].records()] == [b"ab", b"zz"]
    with pytest.raises(StreamError, match="0x40"):
        RamImage.from_stream(stream)


def test_fill_byte_other_than_zero_is_not_applied() -> None:
    with pytest.raises(StreamError):
        RamImage.from_stream(stream_of(build.ram_more(2, build.zero(0, b"pc.ram", fill=7))))


def test_image_of_absurd_size_is_refused() -> None:
    stream = stream_of(blocks=(("a", 1 << 60),))
    with pytest.raises(StreamError, match="claim"):
        RamImage.from_stream(stream)


@pytest.mark.parametrize(
    "records",
    [
        build.zero(0),
        build.zero(0, b"unknown"),
        build.zero(0x8000, b"pc.ram"),
        build.zero(0, b"pc.ram") + build.zero(0x1000) + build.zero(0x8000),
        struct.pack(">Q", 0x80),
        struct.pack(">Q", 0x01),
        struct.pack(">Q", 0x0A) + b"\x06pc.ram" + bytes(4096),
        struct.pack(">Q", 0x1004) + b"\x01b" + struct.pack(">Q", 0x1000),
        struct.pack(">Q", 0x40) + b"\x06pc.ram\x02\x00\x00",
    ],
)
def test_records_that_no_precopy_has(records: bytes) -> None:
    with pytest.raises(StreamError):
        stream_of(build.ram_more(2, records))


@pytest.mark.parametrize(
    "blocks",
    [(("a", 0x1000), ("a", 0x1000)), (("a", 0x1001),), (("a", 0x2000), ("b", 0), ("c", 0x1000))],
)
def test_block_lists_that_do_not_add_up(blocks: tuple[tuple[str, int], ...]) -> None:
    with pytest.raises(StreamError):
        stream_of(blocks=blocks)


def test_writer_makes_the_bytes_of_the_wire() -> None:
    blocks = [RamBlock(name=name, size_bytes=size) for name, size in build.BLOCKS]
    assert encode_ram_section(1, 2, encode_mem_size(blocks)) == build.ram_start()
    pages: list[tuple[str, int, bytes | None]] = [
        ("pc.ram", 0, build.PAGE),
        ("pc.ram", 0x1000, None),
        ("pc.ram", 0x2000, None),
        ("pc.ram", 0x3000, build.PAGE),
        ("vga.rom", 0, None),
    ]
    records = b"".join(encode_pages(pages))
    assert records == build.RAM_RECORDS
    assert encode_ram_section(2, 2, records) == build.ram_more(2, build.RAM_RECORDS)
    assert encode_ram_section(3, 2, b"", footer=False) == struct.pack(">BIQ", 3, 2, 0x10)
    shared = encode_mem_size([RamBlock(name="a", size_bytes=4096, address=5)])
    assert shared == struct.pack(">Q", 0x1004) + b"\x01a" + struct.pack(">QQ", 4096, 5)


def test_shared_records_are_those_of_the_wire() -> None:
    pages, start = [memoryview(bytes([mark]) * 4096) for mark in (1, 2)], 0
    blocks = (("a", 3 * 4096), ("b", 4096), ("c", 2 * 4096))
    before, after = array("I", [1, 0, 2, 1, 0, 0]), array("I", [1, 2, 0, 1, 0, 1])
    every: list[tuple[str, int, memoryview | None, bool]] = []
    for name, size in blocks:
        for address in range(0, size, 4096):
            number = after[start]
            every.append((name, address, pages[number - 1] if number else None, number != before[start]))
            start += 1
    records = PageRecords(blocks, pages)
    assert records.of(after) == encode_pages((name, at, page) for name, at, page, _ in every)
    assert records.of(after, before) == encode_pages((name, at, page) for name, at, page, changed in every if changed)
    assert records.of(after, after) == []
    without = [(name, at, page) for name, at, page, _ in every if page is not None or name != "a"]
    assert records.of(after, empty=["a"]) == encode_pages(without)
    # one object for all sections that have it
    assert records.of(after)[1] is records.of(after, array("I", [2] * 6))[1]


@pytest.mark.parametrize("bad", [("a", 1, None), ("a", -4096, None), ("a", 0, b"short")])
def test_writer_refuses_what_is_no_page(bad: tuple[str, int, bytes | None]) -> None:
    with pytest.raises(UsageError):
        encode_pages([bad])


def test_a_block_list_with_one_block_longer_is_otherwise_the_same() -> None:
    longer = tuple((name, size + 0x2000 * (name == "pc.ram")) for name, size in build.BLOCKS)
    assert longer != build.BLOCKS
    block = RamBlock(name="pc.ram", size_bytes=dict(build.BLOCKS)["pc.ram"])
    assert with_larger_block(build.ram_start(build.BLOCKS), block, 0x2000) == build.ram_start(longer)
    with pytest.raises(UsageError, match=r"no RAM block 'pc.ram' of 4096 bytes is listed"):
        with_larger_block(build.ram_start(build.BLOCKS), RamBlock(name="pc.ram", size_bytes=4096), 0x2000)
