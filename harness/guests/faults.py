# SPDX-License-Identifier: GPL-2.0-or-later
"""Disks that fail for real: one sector of a disk answers with EIO, and the device stops the machine for it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace

from harness.errors import DeadlineError
from harness.guests.machine import Machine
from harness.qemu.cmdline import Option, Scalar
from harness.qemu.vm import Vm

_EIO = 5
_POLL_S = 0.01
_SUFFIX = "-faults"


def with_faults(machine: Machine, faults: Mapping[str, int], *, once: bool = False) -> Machine:
    """The machine with a ``blkdebug`` node between some disks and their devices.

    The rule's event is ``none``: it is active from the start, without a driver below that would have to name its
    requests (``block/blkdebug.c:add_rule``).

    :param faults: node that a device's ``drive`` names, to the sector of 512 bytes that fails, reads and writes
    :param once: only the first request fails
    """
    options: list[Option] = []
    for option in machine.options:
        node = str(option.props.get("drive"))
        if option.name != "device" or node not in faults:
            options.append(option)
            continue
        options.append(_failing(node, faults[node], once))
        props = {**option.props, "drive": f"{node}{_SUFFIX}", "werror": "stop", "rerror": "stop"}
        options.append(Option(name="device", first=option.first, props=props))
    return replace(machine, options=tuple(options))


def _failing(node: str, sector: int, once: bool) -> Option:
    rule: dict[str, Scalar] = {"event": "none", "errno": _EIO, "sector": sector, "once": once, "immediately": False}
    return Option(
        name="blockdev",
        first="blkdebug",
        props={"node-name": f"{node}{_SUFFIX}", "image": node}
        | {f"inject-error.0.{key}": value for key, value in rule.items()},
    )


def halts(vm: Vm) -> list[str]:
    """Disks whose requests were held back so far, by node, oldest first; a disk stands once for each request."""
    events = [e["data"] for e in vm.monitor.drain_events() if e["event"] == "BLOCK_IO_ERROR"]
    return [str(data["node-name"]).removesuffix(_SUFFIX) for data in events if data["action"] == "stop"]


def wait_halted(vm: Vm, disks: Collection[str], timeout_s: float) -> None:
    """Wait until all these disks hold a request back and the machine stands still.

    The first disk's error stops the machine, perhaps before the guest got to ask the second. It is then started
    again: the request that was held back fails once more, and meanwhile the guest gets on a little.

    :param disks: nodes as in the faults
    :raises DeadlineError: it did not come to that
    """
    end = time.monotonic() + timeout_s
    while True:
        halted = vm.qmp("query-status")["status"] == "io-error"
        seen = set(halts(vm))
        if halted and seen >= set(disks):
            return
        if time.monotonic() > end:
            lacking = ", ".join(sorted(set(disks) - seen)) or "none of them"
            raise DeadlineError(f"no failing request stopped the machine within {timeout_s:g} s: {lacking}")
        if halted:
            vm.qmp("cont")
        time.sleep(_POLL_S)
