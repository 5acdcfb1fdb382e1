# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks of a guest that shall hold a request back, each of them."""

from __future__ import annotations

from typing import Any

import pytest

from harness.deadline import Deadline
from harness.guests import faults
from harness.guests.faults import wait_halted


class Machine:
    """Its disks fail one after the other, one more each time that it goes on."""

    def __init__(self, *fails: str, halts: bool = True) -> None:
        self._left = list(fails)
        self._halts = halts
        self.monitor = self
        self.events: list[dict[str, Any]] = []
        self._go_on()

    def _go_on(self) -> None:
        data = {"node-name": f"{self._left.pop(0)}-faults", "action": "stop"} if self._left else {}
        self.events += [{"event": "BLOCK_IO_ERROR", "data": data}] if data else []

    def drain_events(self) -> list[dict[str, Any]]:
        return self.events

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(seconds)

    def qmp(self, command: str) -> dict[str, str]:
        if command == "cont":
            self._go_on()
        return {"status": "io-error" if self._halts else "running"}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_AGAIN_S", 0.05)


@pytest.mark.parametrize(
    ("machine", "lacking"),
    [
        (Machine("a", "a", "b"), set()),
        (Machine("a", "a"), {"b"}),
        (Machine(halts=False), {"a", "b"}),
        # one that goes on has nothing that is held back
        (Machine("a", halts=False), {"a", "b"}),
    ],
)
def test_it_is_known_which_disks_hold_none_back(machine: Any, lacking: set[str]) -> None:
    assert wait_halted(machine, ["a", "b"], 0.1) == lacking
