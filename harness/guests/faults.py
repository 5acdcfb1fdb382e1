# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that fail for real: one sector of a disk answers with EIO, and the device stops the machine for it."""

from __future__ import annotations

import time
from collections.abc import Collection

from harness.guests.machine import FAULTS_SUFFIX
from harness.qemu.vm import Vm

_POLL_S = 0.01
#: A request that was held back fails again at once when the machine goes on.
_AGAIN_S = 5.0


def halts(vm: Vm) -> list[str]:
    """Disks whose requests were held back so far, by node, oldest first; a disk stands once for each request."""
    events = [e["data"] for e in vm.monitor.drain_events() if e["event"] == "BLOCK_IO_ERROR"]
    return [str(data["node-name"]).removesuffix(FAULTS_SUFFIX) for data in events if data["action"] == "stop"]


def wait_halted(vm: Vm, disks: Collection[str], timeout_s: float) -> set[str]:
    """Wait until all these disks hold a request back and the machine stands still.

    The first disk's error stops the machine, perhaps before the guest got to ask the second. It is then started
    again: the request that was held back fails once more, and meanwhile the guest gets on a little.

    :param disks: nodes as in the faults
    :return: those that hold none back by the end of ``timeout_s``; all of them where the machine does not stand still
    """
    deadline, end = vm.deadline(timeout_s), vm.deadline(timeout_s + _AGAIN_S)
    while True:
        halted = vm.qmp("query-status")["status"] == "io-error"
        lacking = set(disks) - set(halts(vm))
        if halted and (deadline.over or not lacking):
            return lacking
        if end.over or (deadline.over and lacking == set(disks)):
            return set(disks)
        if halted:
            vm.qmp("cont")
        time.sleep(_POLL_S)
