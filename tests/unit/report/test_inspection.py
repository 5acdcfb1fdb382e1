# SPDX-License-Identifier: GPL-2.0-or-later
"""What inspect shows of streams that others made, and what it calls a file that is none."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UsageError
from harness.report.console import SafeConsole
from harness.report.inspection import inspect_path, print_document
from tests.unit.stream import build


def inspected(tmp_path: Path, raw: bytes, section: str | None = None) -> dict[str, Any]:
    path = tmp_path / "file"
    path.write_bytes(raw)
    return inspect_path(path, section=section, phase=None)


def printed(document: dict[str, Any]) -> list[str]:
    file = io.StringIO()
    print_document(document, SafeConsole(file=file, width=200))
    return file.getvalue().splitlines()


def test_commands_stand_between_the_sections_and_parts_are_one_line(tmp_path: Path) -> None:
    lines = printed(inspected(tmp_path, build.small()))
    assert [line.split("bytes  ")[-1] for line in lines[2:]] == [
        "parts   ram v4 in 3 parts, 6 pages",
        "command ENABLE_COLO",
        "command PING 70696e67",
        "full    slirp v1",
        "full    toy#3 v2",
    ]


def test_an_iterable_section_of_many_parts_is_one_entry(tmp_path: Path) -> None:
    start = struct.pack(">BIB", 1, 8, 12) + b"dirty-bitmap" + struct.pack(">II", 0, 1) + b"\x04" + build.footer(8)
    more = struct.pack(">BI", 2, 8) + b"bits" + build.footer(8)
    raw = build.head() + start + more * 1000 + build.toy_section() + b"\0" + build.vmdesc(build.TOY)
    document = inspected(tmp_path, raw)
    assert [(s["idstr"], s.get("parts"), s["size"]) for s in document["sections"]] == [
        ("dirty-bitmap", 1001, len(start) + 1000 * len(more)),
        ("toy", None, len(build.toy_section())),
    ]
    assert printed(document)[2].endswith("dirty-bitmap v1 in 1,001 parts")


def test_dirty_bitmaps_are_named(tmp_path: Path) -> None:
    """Control characters in a name are spelled out, and a record that is cut ends the list."""
    first = b"\x1c\x04disk\x07mon\x1bday" + struct.pack(">IB", 65536, 1)
    second = b"\x14\x07tuesday" + struct.pack(">IB", 512, 0)
    for payload, names in (
        (first + second + b"\x01", ["mon\x1bday", "tuesday"]),
        (first + second[:-3], ["mon\x1bday"]),
        (b"\x1c\xff", []),
        (b"\x01", []),
    ):
        start = struct.pack(">BIB", 1, 8, 12) + b"dirty-bitmap" + struct.pack(">II", 0, 1) + payload + build.footer(8)
        raw = build.head() + start + build.toy_section() + b"\0" + build.vmdesc(build.TOY)
        document = inspected(tmp_path, raw)
        assert [bitmap["name"] for bitmap in document["sections"][0]["bitmaps"]] == names
    raw = build.head() + start.replace(b"\x01" + build.footer(8), first + b"\x01" + build.footer(8))
    line = printed(inspected(tmp_path, raw + build.toy_section() + b"\0" + build.vmdesc(build.TOY)))[2]
    assert line.endswith("dirty-bitmap v1, mon\\x1bday of disk")


def test_capabilities_are_shown(tmp_path: Path) -> None:
    said = b"\x05\x1aconfiguration/capabilities\0\0\0\1\0\0\0\1\x0fx-ignore-shared"
    raw = build.head(subsections=said) + build.toy_section() + b"\0" + build.vmdesc(build.TOY)
    assert "capabilities: x-ignore-shared" in printed(inspected(tmp_path, raw))


@pytest.mark.parametrize(
    ("raw", "remarks"),
    [
        (build.head() + build.toy_section() + b"\0", ["has no vmdesc"]),
        (b"QEVM\0\0\0\3" + build.toy_section() + b"\0", ["were found by footers", "does not say its machine type"]),
        (b"QEVM\0\0\0\3" + build.toy_section()[:-5] + b"\0", ["by the headers of the next", "not say its machine"]),
        (build.small() + bytes(1234), ["1,234 bytes behind the end of the stream are no part of it, all zeros"]),
        (build.small() + b"rest", ["4 bytes behind the end of the stream are no part of it"]),
        (build.small(), []),
    ],
)
def test_what_a_stream_lacks_or_has_besides_is_said(tmp_path: Path, raw: bytes, remarks: list[str]) -> None:
    document = inspected(tmp_path, raw)
    assert len(document["remarks"]) == len(remarks)
    assert all(wanted in said for wanted, said in zip(remarks, document["remarks"], strict=True))
    assert any(section["idstr"] == "toy" for section in document["sections"])


def libvirt(kind: int, stream: bytes) -> bytes:
    xml = b"<domain/>\0"
    return b"LibvirtQemudSave" + struct.pack("=5I", 2, len(xml), 1, kind, 0) + bytes(56) + xml + stream


def test_the_stream_of_a_libvirt_save_image_is_read(tmp_path: Path) -> None:
    document = inspected(tmp_path, libvirt(0, build.small()))
    assert document["container"] == "a libvirt save image of version 2, format raw"
    assert document["machine"] == "pc-i440fx-7.2"


@pytest.mark.parametrize(("packed", "kind"), [(gzip.compress, 1), (bz2.compress, 2), (lzma.compress, 3)])
def test_a_compressed_stream_is_read(tmp_path: Path, packed: Callable[[bytes], bytes], kind: int) -> None:
    name = packed.__module__.replace("lzma", "xz").replace("bz2", "bzip2")
    document = inspected(tmp_path, packed(build.small()))
    assert (document["container"], document["machine"]) == (f"compressed by {name}", "pc-i440fx-7.2")
    image = inspected(tmp_path, libvirt(kind, packed(build.small())))
    assert image["container"] == f"a libvirt save image of version 2, format {name}"
    assert image["sections"] == document["sections"]


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b"LibvirtQemudPart" + bytes(76), "never finished"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"\x7fELF\2\1\1", "ELF"),
        (bytes(510) + b"\x55\xaa", "raw disk image"),
        (b' {"devices": []}', "text, such as JSON"),
        (bytes(4096), "zeros"),
    ],
)
def test_a_file_that_is_no_stream_is_named(tmp_path: Path, raw: bytes, name: str) -> None:
    with pytest.raises(UsageError, match=rf"not a migration stream, but .*{name}"):
        inspected(tmp_path, raw)


def test_damage_is_named_with_its_place_and_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        inspected(tmp_path, build.head() + build.toy_section()[:-2])
    assert "at offset 43 (0x2b): section 'toy' has no end: its footer, 7e 00 00 00 09," in str(caught.value)


def test_another_stream_names_the_fields_of_one_without_a_description(tmp_path: Path) -> None:
    described = build.head() + build.toy_section() + b"\0" + build.vmdesc(build.TOY)
    bare, like = tmp_path / "bare", tmp_path / "like"
    bare.write_bytes(build.head() + build.toy_section() + b"\0")
    like.write_bytes(described)
    (wanted,) = inspected(tmp_path, described)["sections"]
    document = inspect_path(bare, section=None, phase=None, like=like)
    assert document["sections"][0]["fields"] == wanted["fields"] != []
    assert f"their fields are named as those of {like}" in document["remarks"][0]
    assert inspect_path(bare, section=None, phase=None)["sections"][0]["fields"] == []
    with pytest.raises(UsageError, match=r"--like .*bare: expected a stream with a vmdesc"):
        inspect_path(bare, section=None, phase=None, like=bare)
