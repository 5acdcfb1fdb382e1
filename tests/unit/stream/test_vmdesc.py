# SPDX-License-Identifier: GPL-2.0-or-later
"""What the vmdesc makes of a payload."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from typing import Any

import pytest

from harness.errors import StreamError, UsageError
from harness.stream import vmdesc
from harness.stream.fields import Field, find, patch, walk
from harness.stream.vmdesc import DeviceDesc, VmDesc, decode

from . import build

VMDESC = VmDesc.parse(build.vmdesc(build.OLD, build.TOY))


def device(description: dict[str, Any]) -> DeviceDesc:
    return VmDesc.parse(build.vmdesc(description)).devices[0]


def toy() -> DeviceDesc:
    found = next(iter(VMDESC.named("toy", 3)), None)
    assert found is not None
    return found


def test_devices() -> None:
    assert VMDESC.page_size == 4096
    assert VMDESC.raw == build.vmdesc(build.OLD, build.TOY)
    assert toy().size_bytes == len(build.TOY_PAYLOAD)
    assert (toy().vmsd_name, toy().version, toy().open_coded) == ("toy", 2, False)
    old = next(iter(VMDESC.named("slirp", 0)), None)
    assert old is not None
    assert (old.vmsd_name, old.version, old.open_coded, old.size_bytes) == ("", None, True, 4)
    assert VMDESC.named("toy", 0) == ()
    assert VmDesc.from_json(VMDESC.raw[5:]).by_key == VMDESC.by_key


def test_virtio_is_open_coded_and_a_number_is_not() -> None:
    base = {"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1}
    assert device({**base, "fields": [{"name": "virtio", "type": "virtio", "size": 40000}]}).open_coded
    assert not device({**base, "fields": [{"name": "n", "type": "uint32", "size": 4}]}).open_coded


def test_every_byte_has_a_name() -> None:
    fields = decode(build.TOY_PAYLOAD, toy())
    assert [(f.path, f.offset, f.size, f.type, f.value) for f in walk(fields)] == [
        ("count", 0, 4, "uint32", 5),
        ("step", 4, 4, "int32 le", -2),
        ("on", 8, 1, "bool", 1),
        ("pirq", 9, 2, "array", None),
        ("pirq[0]", 9, 1, "uint8", 10),
        ("pirq[1]", 10, 1, "uint8", 11),
        ("port", 11, 17, "array", None),
        ("port[0]", 11, 2, "struct", None),
        ("port[0].irq", 11, 2, "uint16", 100),
        ("port[1]", 13, 15, "struct", None),
        ("port[1].irq", 13, 2, "uint16", 101),
        ("port[1].port/x", 15, 13, "subsection", None),
        ("port[1].port/x/x", 27, 1, "uint8", 42),
        ("blob", 28, 3, "buffer", "deadbe"),
        ("toy/late", 31, 22, "subsection", None),
        ("toy/late/t", 45, 8, "timer", -1),
    ]


def test_bytes_that_are_not_described_are_kept() -> None:
    last = decode(build.TOY_PAYLOAD + b"\x99\x98", toy())[-1]
    assert (last.type, last.offset, last.size, last.value) == ("raw", len(build.TOY_PAYLOAD), 2, "9998")


def test_every_cut_payload_is_an_error() -> None:
    for size in range(len(build.TOY_PAYLOAD)):
        with pytest.raises(StreamError) as caught:
            decode(build.TOY_PAYLOAD[:size], toy())
        assert caught.value.offset <= size


def test_subsection_of_another_name() -> None:
    with pytest.raises(StreamError, match="port/x") as caught:
        decode(build.TOY_PAYLOAD.replace(b"port/x", b"port/y"), toy())
    assert caught.value.offset == 15


def test_fields_inline_in_their_field() -> None:
    """``tmp`` and ``vstruct`` have their fields inline; those of ``qtailq`` are not all of its bytes."""
    inner = {"vmsd_name": "i", "version": 1, "fields": [{"name": "n", "type": "uint16", "size": 2}]}
    desc = device(
        {
            "name": "d",
            "instance_id": 0,
            "vmsd_name": "d",
            "version": 1,
            "fields": [
                {"name": "t", "type": "tmp", "size": 2, **inner},
                {"name": "q", "type": "qtailq", "size": 4, **inner},
                {"name": "null", "type": "struct", "size": 1, "struct": {}},
            ],
        }
    )
    fields = decode(b"\x00\x07\x01\x00\x08\x000", desc)
    assert find(fields, "t.n").value == 7
    assert (find(fields, "q").value, find(fields, "q").children) == ("01000800", ())
    assert find(fields, "null").value == "30"


def test_array_in_segments_goes_on_counting() -> None:
    desc = device(
        {
            "name": "d",
            "instance_id": 0,
            "vmsd_name": "d",
            "version": 1,
            "fields": [
                {"name": "a", "array_len": 2, "type": "uint8", "size": 1},
                {"name": "a", "index": 2, "type": "nullptr", "size": 1},
                {"name": "a", "index": 3, "type": "uint8", "size": 1},
            ],
        }
    )
    fields = decode(b"\x01\x020\x04", desc)
    assert [f.path for f in fields[0].children] == ["a[0]", "a[1]", "a[2]", "a[3]"]
    assert find(fields, "a[3]").value == 4


def test_find_and_patch() -> None:
    fields = decode(build.TOY_PAYLOAD, toy())
    with pytest.raises(KeyError):
        find(fields, "nothing")
    changed = patch(build.TOY_PAYLOAD, find(fields, "count"), 0x01020304)
    assert changed == b"\x01\x02\x03\x04" + build.TOY_PAYLOAD[4:]
    changed = patch(build.TOY_PAYLOAD, find(fields, "step"), -3)
    assert changed[4:8] == struct.pack(">i", -3)
    assert patch(build.TOY_PAYLOAD, find(fields, "toy/late/t"), 1)[-8:] == b"\0" * 7 + b"\x01"


@pytest.mark.parametrize(("path", "value"), [("blob", 1), ("port", 1), ("pirq[0]", 256), ("count", -1)])
def test_patch_refuses_what_does_not_fit(path: str, value: int) -> None:
    field = find(decode(build.TOY_PAYLOAD, toy()), path)
    with pytest.raises(UsageError):
        patch(build.TOY_PAYLOAD, field, value)


def test_patch_outside_of_the_payload() -> None:
    with pytest.raises(UsageError):
        patch(b"ab", Field(name="n", path="n", offset=0, size=4, type="uint32", value=0), 1)


def test_array_of_nothing_is_not_expanded() -> None:
    fields = [{"name": "a", "array_len": 1 << 60, "type": "buffer", "size": 0}]
    desc = device({"name": "d", "instance_id": 0, "fields": fields})
    assert desc.size_bytes == 0
    assert len(list(walk(decode(b"", desc)))) == 2


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"fields": []}
    for _ in range(depth):
        inner = {"fields": [{"name": "s", "type": "struct", "size": 0, "struct": inner}]}
    return {"name": "d", "instance_id": 0, **inner}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"devices": 5}',
        b'{"devices": [5]}',
        b'{"devices": [], "page_size": 4095}',
        b'{"devices": [], "page_size": 1e3}',
        b'{"devices": [{"name": "a"}]}',
        b'{"devices": [{"name": "a", "instance_id": -1}]}',
        b'{"devices": [{"name": "a", "instance_id": 0, "size": 3}]}',
        b'{"devices": [{"name": "a", "instance_id": 0, "fields": [{"name": "f", "type": "t", "size": %s}]}]}' % b"true",
        b'{"devices": [{"name": "a", "instance_id": 0, "fields": [{"name": "f", "type": "t", "size": -1}]}]}',
        b'{"devices": [{"name": "a", "instance_id": 0, "subsections": [{"version": 1}]}]}',
        b'{"devices": [], "page_size": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        json.dumps({"devices": [nested(80)]}).encode(),
    ],
)
def test_not_a_vmdesc(text: bytes) -> None:
    with pytest.raises(StreamError):
        VmDesc.from_json(text)


def test_vmdesc_of_wrong_length() -> None:
    for raw in (b"", b"\x06\x00", VMDESC.raw[:-1], VMDESC.raw + b" ", b"\x07" + VMDESC.raw[1:]):
        with pytest.raises(StreamError):
            VmDesc.parse(raw)


def test_a_decoder_that_is_asked_for_names_the_inside_of_an_opaque_section(monkeypatch: pytest.MonkeyPatch) -> None:
    def halves(payload: bytes, kind: str) -> list[Field]:
        if len(payload) != 4:
            raise StreamError(0, "not mine")
        return [
            Field(name=f"{kind}half", path=f"half[{n}]", offset=2 * n, size=2, type="uint16", value=payload[2 * n + 1])
            for n in range(2)
        ]

    monkeypatch.setitem(vmdesc.CODECS, "halves", halves)
    old_style = {"name": "toy", "instance_id": 1, "size": 4, "fields": [{"name": "data", "size": 4, "type": "buffer"}]}
    described = VmDesc.from_json(json.dumps({"page_size": 4096, "devices": [old_style]}).encode())
    plain = described.devices[0]
    asked = replace(plain, decoder="halves")
    unknown = replace(plain, decoder="of a later program")
    payload = bytes([0, 7, 0, 9])
    assert [(f.path, f.value) for f in decode(payload, plain)] == [("data", "00070009")]
    assert [(f.path, f.value) for f in decode(payload, asked)] == [("half[0]", 7), ("half[1]", 9)]
    assert decode(payload, unknown) == decode(payload, plain)
    # what the decoder does not understand stays as QEMU describes it
    assert [f.path for f in decode(bytes(6), asked)] == ["data", "raw"]
