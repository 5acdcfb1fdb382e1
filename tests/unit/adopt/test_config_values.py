# SPDX-License-Identifier: GPL-2.0-or-later
"""A group of a configuration file has all of its values, not its id alone."""

from __future__ import annotations

from harness.adopt.configfile import read_config_file

TEXT = '[device "ehci"]\n  driver = "ich9-usb-ehci1"\n  addr = "1d.7"\n\n[machine]\n  type = "q35"\n'


def test_each_group_has_its_values() -> None:
    device, machine = read_config_file(TEXT, "some.cfg")
    assert (device.name, dict(device.values)) == (
        "device",
        {"id": "ehci", "driver": "ich9-usb-ehci1", "addr": "1d.7"},
    )
    assert (machine.name, dict(machine.values), machine.line) == ("machine", {"type": "q35"}, 5)
