# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams as others make them: names that stand twice, no vmdesc, no footers, a tail, pages with a fixed place."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import StreamError
from harness.stream.model import Command, Section
from harness.stream.ram import RamImage
from harness.stream.reader import read_devices, read_foreign, read_stream
from harness.stream.vmdesc import VmDesc

from . import build

WIDE: dict[str, Any] = {
    "name": "slirp",
    "instance_id": 0,
    "size": 6,
    "fields": [{"name": "data", "size": 6, "type": "buffer"}],
}
FIRST = build.full(4, b"slirp", 0, 1, b"\1\2\3\4")
SECOND = build.full(5, b"slirp", 0, 1, b"\5\6\7\x08\x09\x0a")
TWO = build.head() + FIRST + SECOND + b"\0" + build.vmdesc(build.OLD, WIDE)


def bare(section: bytes) -> bytes:
    """A section without its footer."""
    return section[:-5]


def sizes(sections: list[Section]) -> list[tuple[str, int, int | None]]:
    return [(s.idstr, len(s.payload), s.desc.size_bytes if s.desc else None) for s in sections]


def test_each_of_two_sections_with_one_name_has_its_own_description() -> None:
    stream = read_stream(TWO)
    assert sizes(stream.devices) == [("slirp", 4, 4), ("slirp", 6, 6)]
    assert b"".join(stream.encode()) == TWO


def test_two_sections_with_one_name_in_a_device_buffer() -> None:
    vmdesc = VmDesc.parse(build.vmdesc(build.OLD, WIDE))
    whole = [("slirp", 4, 4), ("slirp", 6, 6)]
    assert sizes(read_devices((FIRST + SECOND) * 2 + b"\0", vmdesc=vmdesc)) == whole * 2
    assert sizes(read_devices(SECOND * 2 + FIRST + b"\0", vmdesc=vmdesc)) == [*whole[1:] * 2, whole[0]]


def test_a_section_more_or_less_than_described_is_damage() -> None:
    with pytest.raises(StreamError, match="'slirp' stands in the stream once too often"):
        read_stream(build.head() + FIRST + FIRST + b"\0" + build.vmdesc(build.OLD))
    with pytest.raises(StreamError, match="'slirp' instance 0 of the vmdesc is not in the stream"):
        read_stream(build.head() + FIRST + b"\0" + build.vmdesc(build.OLD, build.OLD))


def test_without_vmdesc_footers_end_the_sections() -> None:
    raw = build.head() + build.body() + b"\0"
    stream = read_foreign(raw)
    assert sizes(stream.devices) == [("slirp", 4, None), ("toy", len(build.TOY_PAYLOAD), None)]
    assert (stream.vmdesc, bytes(stream.tail), stream.size) == (None, b"", len(raw))
    assert b"".join(stream.encode()) == raw


def test_the_description_of_another_machine_is_used_where_it_fits() -> None:
    vmdesc = VmDesc.parse(build.vmdesc(WIDE, build.TOY))
    stream = read_foreign(build.head() + build.body() + b"\0", vmdesc=vmdesc)
    assert [len(s.payload) for s in stream.devices] == [4, len(build.TOY_PAYLOAD)]
    assert stream.devices[1].desc is vmdesc.devices[1]


def test_without_footers_headers_end_the_sections() -> None:
    raw = b"QEVM\0\0\0\3" + bare(FIRST) + bare(SECOND) + bare(build.toy_section()) + b"\0"
    stream = read_foreign(raw)
    assert sizes(stream.devices) == [("slirp", 4, None), ("slirp", 6, None), ("toy", len(build.TOY_PAYLOAD), None)]
    assert not any(section.footer for section in stream.devices)
    assert b"".join(stream.encode()) == raw


def test_what_stands_behind_the_vmdesc_is_no_part_of_the_stream() -> None:
    stream = read_foreign(build.small() + bytes(100))
    assert (stream.own_vmdesc, stream.size, bytes(stream.tail)) == (True, len(build.small()), bytes(100))
    assert b"".join(stream.encode()) == build.small()


def test_what_stands_behind_the_end_is_no_part_of_the_stream() -> None:
    stream = read_foreign(build.head() + FIRST + b"\0" + bytes(7))
    assert (stream.vmdesc, bytes(stream.tail)) == (None, bytes(7))


@pytest.mark.parametrize("cut", [1, 5, 6, 30])
def test_a_cut_stream_is_named_with_its_place_and_what_was_expected(cut: int) -> None:
    raw = build.head() + build.toy_section() + b"\0"
    with pytest.raises(StreamError) as caught:
        read_foreign(raw[:-cut])
    assert "at offset" in str(caught.value)
    assert any(words in str(caught.value) for words in ("its footer, 7e 00 00 00 09, is not in the", "wanted"))


def mapped(pages: bytes, *, version: int = 1, at: int = 0) -> bytes:
    """A mapped-ram stream with one block of 4 pages, of which 0 and 2 are there."""
    head = build.head(subsections=b"\x05\x1aconfiguration/capabilities\0\0\0\1\0\0\0\1\x0amapped-ram")
    start = struct.pack(">BIB", 1, 2, 3) + b"ram" + struct.pack(">II", 0, 4)
    start += struct.pack(">Q", 0x4000 | 4) + b"\x06pc.ram" + struct.pack(">Q", 0x4000)
    bitmap_at = len(head) + len(start) + 28
    pages_at = at or 0x1000
    start += struct.pack(">IQQQ", version, 0x1000, bitmap_at, pages_at) + b"\5" + bytes(7)
    filled = (head + start).ljust(pages_at, b"\0") + pages
    return (
        filled + struct.pack(">Q", 0x10) + build.footer(2)
        + build.ram_more(3, b"") + build.toy_section() + b"\0" + build.vmdesc(build.TOY)
    )  # fmt: skip


def test_mapped_pages_are_those_of_the_bitmap() -> None:
    raw = mapped(build.PAGE + bytes(4096) + build.PAGE[::-1] + bytes(4096))
    stream = read_stream(raw)
    assert [len(part) for part in stream.ram] == [2, 0]
    image = RamImage.from_stream(stream)
    content = [image.page(0, number) for number in range(4)]
    assert [None if page is None else bytes(page) for page in content] == [build.PAGE, None, build.PAGE[::-1], None]
    assert b"".join(stream.encode()) == raw


@pytest.mark.parametrize("raw", [mapped(bytes(0x4000), version=2), mapped(bytes(0x4000), at=100), mapped(b"")])
def test_mapped_pages_that_cannot_be_there(raw: bytes) -> None:
    with pytest.raises(StreamError, match=r"mapped pages of 'pc\.ram'"):
        read_stream(raw)


NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
SECTIONS = st.lists(st.tuples(NAMES, st.integers(0, 3), st.binary(max_size=40)), min_size=1, max_size=8)


def device(name: str, instance: int, size: int) -> dict[str, Any]:
    return {
        "name": name,
        "instance_id": instance,
        "size": size,
        "fields": [{"name": "data", "size": size, "type": "buffer"}],
    }


def made(sections: list[tuple[str, int, bytes]]) -> tuple[bytes, bytes]:
    """The part of a stream up to EOF, and its vmdesc."""
    encoded = [build.full(n, name.encode(), i, 1, data) for n, (name, i, data) in enumerate(sections, 3)]
    described = build.vmdesc(*(device(name, i, len(data)) for name, i, data in sections))
    return build.head() + b"".join(encoded) + b"\0", described


@given(SECTIONS.filter(lambda sections: all(name.isascii() for name, _, _ in sections)))
def test_any_sections_make_the_round_trip(sections: list[tuple[str, int, bytes]]) -> None:
    # twice each: a name is not bound to be unique
    stream, vmdesc = made([*sections, *sections])
    found = read_stream(stream + vmdesc)
    assert [(s.idstr, s.instance_id, s.payload) for s in found.devices] == [*sections, *sections]
    assert b"".join(found.encode()) == stream + vmdesc
    assert b"".join(read_foreign(stream + vmdesc + b"tail").encode()) == stream + vmdesc


@given(SECTIONS)
def test_sections_without_a_description_make_the_round_trip(sections: list[tuple[str, int, bytes]]) -> None:
    # a payload that holds a footer of its own would be cut there: no test for QEMU's, which do not
    stream, _ = made([(name, i, data.replace(b"\x7e", b"")) for name, i, data in sections])
    assert b"".join(read_foreign(stream).encode()) == stream


@settings(max_examples=300)
@given(st.integers(0, len(build.small()) - 1), st.integers(1, 255))
def test_a_byte_that_is_wrong_is_read_or_named_with_its_place(at: int, change: int) -> None:
    raw = bytearray(build.small())
    raw[at] ^= change
    try:
        stream = read_foreign(bytes(raw))
    except StreamError as error:
        stream, told = None, str(error)
    if stream is None:
        assert "at offset" in told
        return
    assert b"".join(stream.encode()) + bytes(stream.tail) == bytes(raw)
    assert {type(part) for part in stream.parts} & {Command, Section}


def test_without_footers_a_description_that_is_too_long_is_not_taken_for_a_byte_that_looks_like_an_end() -> None:
    """An APIC of a CPU that has never run saves more than one that has."""
    longer = {**build.OLD, "size": 8, "fields": [{"name": "data", "size": 8, "type": "buffer"}]}
    first, second = bare(FIRST), bare(build.full(0, b"toy", 3, 2, b"\0\0\0"))
    stream = b"QEVM\0\0\0\3" + first + second + b"\0"
    # four bytes behind the first one's end: within the header of the next one, and it is 0
    assert stream[8 + len(first) + 4] == 0
    read = read_foreign(stream, vmdesc=VmDesc.parse(build.vmdesc(longer)))
    assert [(s.idstr, len(s.payload)) for s in read.devices] == [("slirp", 4), ("toy", 3)]
