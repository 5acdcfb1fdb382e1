# SPDX-License-Identifier: GPL-2.0-or-later
"""The source of late pages against a destination made of one end of a socket pair, and what it is given to send."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.engines.buffers import Buffers
from harness.engines.incoming import State
from harness.engines.pagesource import PageSource
from harness.engines.postcopy import PostcopyLack, probe_postcopy, split_pages
from harness.errors import HarnessError
from harness.packs.pack import StatePack
from harness.qemu.scope import ProcessScope

if TYPE_CHECKING:
    from harness.qemu.binary import QemuBinary
    from tests.unit.conftest import Handmade

ONE, TWO, THREE = (bytes([n]) * 4096 for n in (1, 2, 3))
FOOTER = struct.pack(">QBI", 0x10, 0x7E, 2)  # EOS, footer of section 2
END_OF_STREAM = struct.pack(">BI", 3, 2) + FOOTER + b"\0"


class Far:
    """The destination."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(10.0)

    def ask(self, address: int, block: bytes = b"", length: int = 4096) -> None:
        """REQ_PAGES_ID, or REQ_PAGES when no block is named."""
        if block:
            head = struct.pack(">HHQIB", 3, 13 + len(block), address, length, len(block))
            self.sock.sendall(head + block)
        else:
            self.sock.sendall(struct.pack(">HHQI", 4, 12, address, length))

    def say(self, kind: int, value: int) -> None:
        self.sock.sendall(struct.pack(">HHI", kind, 4, value))

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            assert piece, f"the end after {data!r}"
            data += piece
        return data


def section(*pages: tuple[int, bytes]) -> bytes:
    """PART of section 2 with pages of ``pc.ram``."""
    data = struct.pack(">BI", 2, 2)
    for number, (address, content) in enumerate(pages):
        name = b"" if number else b"\x06pc.ram"
        data += struct.pack(">Q", address | 0x08 | (0x20 if number else 0)) + name + content
    return data + FOOTER


@pytest.fixture
def pair() -> Iterator[tuple[PageSource, Far]]:
    here, there = socket.socketpair()
    late = [("pc.ram", n << 12, memoryview(page)) for n, page in enumerate((ONE, TWO, THREE))]
    source = PageSource(here, late, 2, timeout_s=10.0)
    source.start()
    yield source, Far(there)
    source.close()
    here.close()
    there.close()


def test_a_page_that_is_asked_for_comes_alone_and_once(pair: tuple[PageSource, Far]) -> None:
    source, far = pair
    far.ask(0x1000, b"pc.ram")
    assert far.receive(len(section((0x1000, TWO)))) == section((0x1000, TWO))
    far.ask(0x1000)  # again: a second copy would end a real destination
    far.say(2, 3)
    assert source.wait(lambda: source.has_pong(3), 10.0)
    far.ask(0x2000)
    assert far.receive(len(section((0x2000, THREE)))) == section((0x2000, THREE))
    source.push_rest()
    rest = section((0, ONE)) + END_OF_STREAM
    assert far.receive(len(rest)) == rest
    far.say(1, 0)
    assert source.wait(lambda: source.shut == 0, 10.0)
    seen = source.count(early=5)
    assert (seen.early, seen.late, seen.requested, seen.by_fault, seen.unknown) == (5, 3, 3, 2, 1)
    assert seen.while_loading == 1  # the other one came behind PONG 3


def test_a_request_of_several_pages_is_answered_with_all_of_them(pair: tuple[PageSource, Far]) -> None:
    _, far = pair
    far.ask(0, b"pc.ram", 8192)
    wanted = section((0, ONE), (0x1000, TWO))
    assert far.receive(len(wanted)) == wanted


def test_the_rest_is_pushed_when_nobody_asks(pair: tuple[PageSource, Far]) -> None:
    source, far = pair
    source.push_rest()
    wanted = section((0, ONE), (0x1000, TWO), (0x2000, THREE)) + END_OF_STREAM
    assert far.receive(len(wanted)) == wanted
    assert source.count(early=0).by_fault == 0


def test_a_destination_that_goes_away_ends_the_wait(pair: tuple[PageSource, Far]) -> None:
    source, far = pair
    far.sock.shutdown(socket.SHUT_RDWR)
    assert not source.wait(lambda: source.shut is not None, 10.0)
    assert source.gone == ""


def test_nonsense_on_the_return_path_ends_the_wait(pair: tuple[PageSource, Far]) -> None:
    source, far = pair
    far.sock.sendall(struct.pack(">HHI", 77, 4, 0))
    assert not source.wait(lambda: source.shut is not None, 10.0)
    assert "message 77" in (source.gone or "")


@pytest.fixture
def state(make_pack: Callable[..., Path]) -> Iterator[State]:
    with StatePack(make_pack()) as pack:
        yield State(buffers=Buffers(pack), phase="bound")


def test_every_page_is_early_or_late_and_zeros_are_early(state: State, handmade: Handmade) -> None:
    early, late = split_pages(state, 1)
    assert [(block, at) for block, at, _ in late] == [("pc.ram", 0), ("pc.ram", 4096), ("vga.rom", 0)]
    assert all(page is None for _, _, page in early)
    content = {(block, at // 4096): bytes(page or bytes(4096)) for block, at, page in (*early, *late)}
    assert content == handmade.ram("bound")


def test_every_second_page_with_content_is_late(state: State) -> None:
    early, late = split_pages(state, 2)
    assert [(block, at) for block, at, _ in late] == [("pc.ram", 4096)]
    assert len(early) == 4


def test_without_a_late_page_nothing_is_sent(state: State) -> None:
    with pytest.raises(HarnessError, match="nothing would be late"):
        split_pages(state, 4)


def test_a_build_without_the_capability_is_named(state: State, binary: QemuBinary) -> None:
    ability = probe_postcopy(binary, state.buffers.machine, ProcessScope())
    assert (ability.usable, ability.lack) == (False, PostcopyLack.CAPABILITY)
