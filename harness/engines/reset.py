# SPDX-License-Identifier: GPL-2.0-or-later
"""Resets the machine of a running QEMU, as ``system_reset`` does: what some builds do before each COLO load.

The machine stands still meanwhile, so that its firmware does not run before the reset is over. It is started again:
QEMU does not let a machine that was reset while it stood still go into a checkpoint (run state ``prelaunch``).
"""

from __future__ import annotations

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken
from harness.colo.symptom import Sign, Symptom
from harness.engines.evidence import ASKED_FOR
from harness.engines.incoming import attempt
from harness.qemu.vm import Vm


def reset_machine(vm: Vm, timeout_s: float) -> None:
    """Reset it; on return it runs, from its first instruction on.

    :param vm: with a machine that is :attr:`~harness.guests.machine.Machine.resettable`
    :raises ChannelBroken: at step REQUEST: QEMU died, refused or does not answer
    """
    attempt(Step.REQUEST, vm, "stop", timeout_s)
    reset_stopped(vm, timeout_s)
    attempt(Step.REQUEST, vm, "cont", timeout_s)


def reset_stopped(vm: Vm, timeout_s: float) -> None:
    """Reset a machine that stands still, and leave it so; see :func:`reset_machine`.

    :raises ChannelBroken: at step REQUEST: QEMU died, refused or does not answer
    """
    before = len(vm.monitor.drain_events())
    attempt(Step.REQUEST, vm, "system_reset", timeout_s)
    deadline = vm.deadline(timeout_s)
    # it is answered before the reset is made
    while not any(map(_is_reset, vm.monitor.drain_events()[before:])):
        if vm.ended():
            raise ChannelBroken(Step.REQUEST, "closed", Symptom(sign=Sign.ENDED, command="system_reset"))
        if deadline.over:
            silent = Symptom(sign=Sign.NO_ANSWER, command="system_reset", seconds=timeout_s)
            raise ChannelBroken(Step.REQUEST, "late", silent)


def _is_reset(event: dict[str, object]) -> bool:
    data = event.get("data")
    return event["event"] == "RESET" and isinstance(data, dict) and data.get("reason") == ASKED_FOR
