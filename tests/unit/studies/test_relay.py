# SPDX-License-Identifier: GPL-2.0-or-later
"""The relay between a real pair: what it passes on, spoils, counts and holds back."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.studies.pairs import Relay

MARK = b"\x03abc\x00\x00\x00\x00"


@dataclass
class Ends:
    relay: Relay
    primary: socket.socket
    secondary: socket.socket


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    upstream, secondary = socket.socketpair()
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s"))
    server.listen(1)
    relay = Relay(upstream, server, MARK)
    primary = socket.socket(socket.AF_UNIX)
    primary.connect(str(tmp_path / "s"))
    for sock in (primary, secondary):
        sock.settimeout(5)
    yield Ends(relay, primary, secondary)
    relay.close()
    primary.close()
    secondary.close()


def _until(done: object) -> None:
    end = time.monotonic() + 5
    while not callable(done) or not done():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_bytes_pass_both_ways_and_loads_are_counted(ends: Ends) -> None:
    ends.primary.sendall(MARK + b"\x00\x00\x00\x02")
    assert ends.secondary.recv(100) == MARK + b"\x00\x00\x00\x02"
    ends.secondary.sendall(struct.pack(">III", 2, 5, 6)[:10])
    assert ends.primary.recv(100) == struct.pack(">III", 2, 5, 6)[:10]
    assert ends.relay.loaded == 0
    ends.secondary.sendall(struct.pack(">I", 6)[2:])
    _until(lambda: ends.relay.loaded == 1)


def test_a_spoiled_section_has_another_version_and_nothing_else_changes(ends: Ends) -> None:
    ends.relay.spoil()
    ends.primary.sendall(b"before" + MARK + b"\x00\x00\x00\x02behind")
    assert ends.secondary.recv(100) == b"before" + MARK + b"\x00\x00\x7f\xffbehind"
    assert ends.relay.spoiled


def test_silence_keeps_the_connections(ends: Ends) -> None:
    ends.relay.silence()
    ends.primary.sendall(b"unheard")
    ends.secondary.settimeout(0.2)
    with pytest.raises(TimeoutError):
        ends.secondary.recv(1)


def test_a_secondary_that_goes_away_is_seen_by_its_primary(ends: Ends) -> None:
    ends.primary.sendall(b"x")
    assert ends.secondary.recv(1) == b"x"
    ends.secondary.close()
    assert ends.primary.recv(1) == b""
