# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes devices out of a running guest and plugs them in again: what is saved then is the state of a device that was
hot-plugged, for a QEMU that has it on its command line.

The guest has to let go of a device before QEMU takes it out (``acpi_pcihp_eject_slot``, ``pcie_cap_slot_unplug_cb``).
What cannot be unplugged stays where it is.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from harness.errors import QemuError
from harness.guests.machine import Machine, device_option
from harness.guests.plan import PlacedDevice, apart_from_ports
from harness.qemu.monitor import CommandRefused
from harness.qemu.vm import Vm

#: For the guest to let go of all of them.
UNPLUG_TIMEOUT_S = 15.0
_POLL_S = 0.05


def replug(vm: Vm, machine: Machine, devices: Iterable[str]) -> dict[str, str]:
    """Take the devices of some owners out of a guest that runs, and put them back into their places.

    :return: by owner, what QEMU said where it did not do that; empty text where the guest did not let go in time
    :raises QemuError: QEMU is gone
    """
    refused: dict[str, str] = {}
    parts = {name: apart_from_ports(machine.plan.of(name)) for name in devices}
    for name, placed in parts.items():
        for each in _tops(placed):
            if _further(each):
                continue  # it goes with the first one
            try:
                vm.qmp("device_del", id=each.id)
            except CommandRefused as error:
                refused[name] = error.text
    going = {name: _tops(placed) for name, placed in parts.items() if name not in refused}
    refused |= dict.fromkeys(_still_there(vm, going), "")
    for name, placed in parts.items():
        if name not in refused:
            # the guest looks at a slot when its first function comes
            for each in sorted(placed, key=_further, reverse=True):
                _, option = device_option(machine, each).argv()
                # by HMP, which takes the text of a command line; it answers nothing when all is well
                said = str(vm.qmp("human-monitor-command", command_line=f"device_add {option}")).strip()
                if said:
                    refused.setdefault(name, said)
    return refused


def _tops(placed: Sequence[PlacedDevice]) -> list[PlacedDevice]:
    """Those that take the others with them."""
    own = {each.id for each in placed}
    return [each for each in placed if (each.bus or "").partition(".")[0] not in own]


def _further(each: PlacedDevice) -> bool:
    """Whether it is a function beside the first one of its slot."""
    return each.slot is not None and not each.slot.endswith(".0")


def _still_there(vm: Vm, going: Mapping[str, Sequence[PlacedDevice]]) -> list[str]:
    """Owners of what the guest did not let go of."""
    deadline = vm.deadline(UNPLUG_TIMEOUT_S)
    while True:
        there = {child["name"] for child in vm.qmp("qom-list", path="/machine/peripheral")}
        left = [name for name, placed in going.items() if any(each.id in there for each in placed)]
        if not left or deadline.over:
            return left
        if vm.ended():
            raise QemuError("QEMU ended while devices were unplugged")
        time.sleep(_POLL_S)
