# SPDX-License-Identifier: GPL-2.0-or-later
"""A reset is over when its event has come: QEMU answers the command before."""

from __future__ import annotations

from typing import Any, cast

import pytest

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken
from harness.deadline import Deadline
from harness.engines.reset import reset_machine


class ResetVm:
    """Resets when it was asked some times for its events."""

    def __init__(self, after: int, *, dies: bool = False) -> None:
        self.commands: list[str] = []
        self.events: list[dict[str, Any]] = [{"event": "RESET", "data": {"reason": "guest-reset"}}]
        self.monitor = self
        self._left = after
        self._dies = dies

    def qmp(self, command: str, timeout_s: float) -> None:
        assert timeout_s > 0
        self.commands.append(command)

    def drain_events(self) -> list[dict[str, Any]]:
        if "system_reset" in self.commands:
            self._left -= 1
            if self._left == 0:
                self.events.append({"event": "RESET", "data": {"reason": "host-qmp-system-reset"}})
        return self.events

    def deadline(self, timeout_s: float) -> Deadline:
        return Deadline(timeout_s)

    def ended(self) -> str | None:
        return "SIGABRT" if self._dies and self._left < 0 else None


def test_the_machine_stands_still_while_it_is_reset() -> None:
    vm = ResetVm(after=3)
    reset_machine(cast(Any, vm), 5.0)
    reset_machine(cast(Any, vm := ResetVm(after=1)), 5.0)
    assert vm.commands == ["stop", "system_reset", "cont"]


@pytest.mark.parametrize(("dies", "timeout_s", "kind"), [(True, 5.0, "closed"), (False, 0.01, "late")])
def test_a_reset_that_does_not_come_is_a_break(dies: bool, timeout_s: float, kind: str) -> None:
    vm = ResetVm(after=0, dies=dies)
    with pytest.raises(ChannelBroken) as broken:
        reset_machine(cast(Any, vm), timeout_s)
    assert (broken.value.step, broken.value.kind) == (Step.REQUEST, kind)
    assert vm.commands == ["stop", "system_reset"]
