# SPDX-License-Identifier: GPL-2.0-or-later
"""The bytes of a postcopy source, compared with bytes put together by hand, and a return path in pieces."""

from __future__ import annotations

import struct

import pytest

from harness.engines.postcopywire import (
    PACKAGE_LIMIT_BYTES,
    PageRequest,
    ReturnPath,
    encode_advise,
    encode_discards,
    encode_package,
    encode_ping,
    runs_of,
)
from harness.errors import StreamError, UsageError


def test_advise_names_both_page_sizes() -> None:
    assert encode_advise() == b"\x08\x00\x03\x00\x10" + b"\0\0\0\0\0\0\x10\0" * 2


def test_a_ping_carries_its_value() -> None:
    assert encode_ping(0x42) == b"\x08\x00\x02\x00\x04\x00\x00\x00\x42"


def test_a_discard_names_block_and_ranges() -> None:
    (command,) = encode_discards("pc.ram", [(0x1000, 0x2000), (0x9000, 0x1000)])
    data = b"\x00\x06pc.ram\x00" + struct.pack(">QQQQ", 0x1000, 0x2000, 0x9000, 0x1000)
    assert command == b"\x08\x00\x06" + struct.pack(">H", 9 + 32) + data


def test_no_discard_holds_more_than_twelve_ranges() -> None:
    commands = list(encode_discards("vga.rom", [(n << 13, 0x1000) for n in range(25)]))
    assert [(len(c) - 5 - 10) // 16 for c in commands] == [12, 12, 1]
    assert commands[2].endswith(struct.pack(">QQ", 24 << 13, 0x1000))


def test_the_package_listens_before_its_devices_and_runs_behind_them() -> None:
    inside = (
        b"\x08\x00\x04\x00\x00"  # LISTEN
        b"DEVICES"
        b"\x08\x00\x02\x00\x04\x00\x00\x00\x03"  # PING 3
        b"\x08\x00\x02\x00\x04\x00\x00\x00\x42"  # PING 0x42
        b"\x08\x00\x05\x00\x00"  # RUN
    )
    # the length of the command is that of the length word alone
    assert encode_package(b"DEVICES") == b"\x08\x00\x07\x00\x04" + struct.pack(">I", len(inside)) + inside


def test_a_package_that_qemu_would_not_take_is_refused() -> None:
    with pytest.raises(UsageError, match="too large"):
        encode_package(bytes(PACKAGE_LIMIT_BYTES))


def test_pages_side_by_side_are_one_run() -> None:
    assert list(runs_of([0x1000, 0x2000, 0x5000, 0x6000, 0x7000])) == [(0x1000, 0x2000), (0x5000, 0x3000)]
    assert list(runs_of([0])) == [(0, 0x1000)]
    assert list(runs_of([])) == []


RETURNED = (
    struct.pack(">HHI", 2, 4, 3)  # PONG 3
    + struct.pack(">HHQIB", 3, 12 + 1 + 6, 0x7000, 0x1000, 6)  # REQ_PAGES_ID
    + b"pc.ram"
    + struct.pack(">HHQI", 4, 12, 0x9000, 0x2000)  # REQ_PAGES
    + struct.pack(">HHI", 1, 4, 0)  # SHUT 0
)
MESSAGES = [
    (2, 3),
    (3, PageRequest(block="pc.ram", start=0x7000, length_bytes=0x1000)),
    (4, PageRequest(block="pc.ram", start=0x9000, length_bytes=0x2000)),
    (1, 0),
]


@pytest.mark.parametrize("size", [1, 3, 7, 4096])
def test_a_return_path_may_come_in_any_pieces(size: int) -> None:
    path = ReturnPath()
    seen = [m for at in range(0, len(RETURNED), size) for m in path.feed(RETURNED[at : at + size])]
    assert seen == MESSAGES


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (struct.pack(">HHI", 9, 4, 0), "message 9 is not known"),
        (struct.pack(">HHH", 2, 2, 0), "PONG with 2 bytes"),
        (struct.pack(">HHQIB", 3, 13, 0, 4096, 6), "REQ_PAGES_ID with 13 bytes"),
        (struct.pack(">HHQI", 4, 12, 0, 4096), "names no RAM block"),
    ],
)
def test_what_no_destination_says_is_an_error(data: bytes, complaint: str) -> None:
    with pytest.raises(StreamError, match=complaint):
        list(ReturnPath().feed(data))
