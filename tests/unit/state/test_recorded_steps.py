# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest's answer to one step of a device comes to while it is recorded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from harness.devices.phases import HUNG_STATUS, NOTHING_TO_DO_STATUS, Missed, MissedPhases
from harness.errors import GuestError
from harness.guests.console import CommandResult
from harness.state import recorder


def done(monkeypatch: pytest.MonkeyPatch, status: int) -> tuple[bool, MissedPhases]:
    monkeypatch.setattr(recorder, "guest_command", lambda *_: "auto_bind x")
    lacks = MissedPhases()
    boot: Any = SimpleNamespace(_plan=SimpleNamespace(planned=SimpleNamespace(plan=None)), lacks=lacks, drivers={})
    console: Any = SimpleNamespace(ask=lambda command, _: CommandResult(command=command, status=status, text="words"))
    device: Any = SimpleNamespace(name="x")
    return recorder._Boot._done(boot, device, "bound", "bind", console), lacks


@pytest.mark.parametrize(
    ("status", "how"), [(0, None), (1, Missed.FAILED), (NOTHING_TO_DO_STATUS, Missed.NOTHING_TO_DO)]
)
def test_a_step_that_fails_costs_its_device_the_phase(
    monkeypatch: pytest.MonkeyPatch, status: int, how: Missed | None
) -> None:
    well, lacks = done(monkeypatch, status)
    assert (well, lacks.goes_on("x", "bound")) == (how is None, how is None)


def test_a_step_that_keeps_all_others_waiting_costs_the_guest_and_names_its_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(GuestError, match="bind: words") as raised:
        done(monkeypatch, HUNG_STATUS)
    assert getattr(raised.value, "device", "") == "x"


def test_every_workload_ends_before_the_first_driver_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "guest_command", lambda device, step, _: f"{step} {device.name}")
    devices = [SimpleNamespace(name=name) for name in ("a", "b", "idle")]
    boot: Any = SimpleNamespace(
        _plan=SimpleNamespace(planned=SimpleNamespace(plan=None)),
        _devices=devices,
        _moving={"a", "b"},
        lacks=MissedPhases(),
        drivers={},
    )
    boot._done = lambda *given: recorder._Boot._done(boot, *given)
    typed: list[str] = []

    def ask(command: str, _: float) -> CommandResult:
        typed.append(command)
        return CommandResult(command=command, status=int(command == "idle b"), text="words")

    console: Any = SimpleNamespace(ask=ask)
    recorder._Boot._lead(boot, "unbound", console)
    assert typed == ["idle a", "idle b", "unbind a", "unbind idle"]
