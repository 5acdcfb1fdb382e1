# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine with a sector that fails."""

from __future__ import annotations

from harness.guests.faults import with_faults
from harness.guests.machine import Machine
from harness.qemu.cmdline import Option

DISK = Option(name="blockdev", first="raw", props={"node-name": "d", "file": "f"})
DEVICE = Option(name="device", first="ide-hd", props={"id": "hd", "drive": "d"})
OTHER = Option(name="device", first="ide-hd", props={"id": "hd1", "drive": "e"})
MACHINE = Machine(name="pc", family="pc", accel="tcg", options=(DISK, DEVICE, OTHER), files=())


def test_a_node_that_fails_stands_before_its_device() -> None:
    disk, fault, device, other = with_faults(MACHINE, {"d": 7}).options
    assert (disk, other) == (DISK, OTHER)
    assert fault.argv() == [
        "-blockdev",
        "blkdebug,node-name=d-faults,image=d,inject-error.0.event=none,inject-error.0.errno=5,"
        "inject-error.0.sector=7,inject-error.0.once=off,inject-error.0.immediately=off",
    ]
    assert dict(device.props) == {"id": "hd", "drive": "d-faults", "werror": "stop", "rerror": "stop"}


def test_no_faults_leave_the_machine_as_it_is() -> None:
    assert with_faults(MACHINE, {}) == MACHINE
