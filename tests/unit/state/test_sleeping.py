# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that suspends its machine, or does not, by a shell at the other end of a line and a monitor on paper."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from harness.guests.console import Console
from harness.state.recorder import ordered_phases, skipped
from harness.state.sleeping import AwakeStill, suspend

REFUSED = """refused /sys/devices/pci0000:00/0000:00:04.0/virtio1
[    9.1] virtio_blk virtio1: PM: failed to suspend: error -16
"""


class FakeVm:
    """A machine that sleeps, or not."""

    def __init__(self, status: str) -> None:
        self._status = status

    def qmp(self, command: str) -> dict[str, str]:
        assert command == "query-status"
        return {"status": self._status}


@pytest.fixture
def line() -> Iterator[tuple[socket.socket, Console]]:
    """The guest's end of a console, and the console."""
    guest, own = socket.socketpair()
    with closing(guest), closing(own):
        yield guest, Console(own)


def answer(text: str, status: int) -> bytes:
    return f"{text}POSTLOAD rc={status}\npostload# ".replace("\n", "\r\n").encode()


def test_a_machine_that_sleeps_is_not_waited_for(line: tuple[socket.socket, Console]) -> None:
    guest, console = line
    vm: Any = FakeVm("suspended")
    assert suspend(vm, console) is None
    assert guest.recv(100) == b"suspend; echo POSTLOAD rc=$?\n"


@pytest.mark.parametrize(
    ("text", "status", "awake"),
    [
        (
            REFUSED,
            3,
            AwakeStill(
                path="/sys/devices/pci0000:00/0000:00:04.0/virtio1",
                said="[    9.1] virtio_blk virtio1: PM: failed to suspend: error -16",
            ),
        ),
        ("no S3: s2idle\n", 3, AwakeStill(path="", said="no S3: s2idle")),
        ("", 0, AwakeStill(path="", said="")),
    ],
)
def test_what_keeps_a_machine_awake_is_told(
    line: tuple[socket.socket, Console], text: str, status: int, awake: AwakeStill
) -> None:
    guest, console = line
    guest.sendall(answer(text, status))
    vm: Any = FakeVm("running")
    assert suspend(vm, console) == awake


def test_a_guest_needs_no_work_before_its_sleep() -> None:
    assert ordered_phases(["suspended", "bound"]) == ["bound", "suspended"]
    assert [phase for phase in ("bound", "busy", "unbound", "rebound") if skipped(phase, ["suspended"])] == [
        "busy",
        "unbound",
        "rebound",
    ]
    assert not skipped("unbound", ["busy", "suspended"])
