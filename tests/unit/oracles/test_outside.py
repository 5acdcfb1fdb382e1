# SPDX-License-Identifier: GPL-2.0-or-later
"""What a loaded machine shows otherwise than the recorded one, and whose it is."""

from __future__ import annotations

from collections import Counter

import pytest

from harness.experiments.drift import DriftRun, Snapshot
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.oracles.outside import MAX_TOLD, judge_outside
from harness.qemu.look import Line, Look, look_at, look_from_json, look_to_json
from harness.qemu.monitor import CommandRefused
from harness.results.cause import Derived
from harness.results.verdict import Verdict

PLAN = GuestPlan(
    machine="pc-i440fx-7.2",
    family="pc",
    memory_mib=16,
    devices=(
        PlacedDevice(id="ahci-hba", type="ich9-ahci", owner="ahci", bus="pci.0", slot="04.0"),
        PlacedDevice(id="ahci-hd", type="ide-hd", owner="ahci", bus="ahci-hba.0"),
        PlacedDevice(id="port", type="pcie-root-port", owner="nic", bus="pci.0", slot="05.0"),
    ),
)
BAR: Line = ("pci", "00:04.0 BAR 5 memory at 0xfebf1000 of 4096")
INSIDE: Line = ("memory", "memory: 00000000febf1000-00000000febf1fff (prio 1, i/o): ahci")
ELSEWHERE: Line = ("memory", "memory: 00000000fed00000-00000000fed003ff (prio 0, i/o): hpet")
NAMED: Line = ("device", 'bus: main-system-bus / dev: ide-hd, id "ahci-hd" / write-cache = "on"')


def look(*lines: Line) -> Look:
    return Counter(lines)


def run_of(recorded: Look | None, *looks: Look | None) -> DriftRun:
    snapshots = (Snapshot(load=n, sections={}, look=each) for n, each in zip((1, 25, 50), looks, strict=False))
    return DriftRun(
        machine="pc-i440fx-7.2",
        phase="bound",
        sent={},
        snapshots=tuple(snapshots),
        loads_asked=50,
        loads_acked=50,
        seconds=1,
        broken=None,
        recorded=recorded,
    )


def test_the_same_look_says_nothing() -> None:
    assert judge_outside(run_of(look(BAR, INSIDE), look(INSIDE, BAR)), PLAN, "platform") == {}


def test_where_nobody_looked_nothing_is_said() -> None:
    assert judge_outside(run_of(None, look(BAR)), PLAN, "platform") == {}
    assert judge_outside(run_of(look(BAR), None), PLAN, "platform") == {}


@pytest.mark.parametrize(("line", "owner"), [(BAR, "ahci"), (INSIDE, "ahci"), (NAMED, "ahci"), (ELSEWHERE, "platform")])
def test_what_is_gone_is_the_devices_whose_it_is(line: Line, owner: str) -> None:
    there = look(BAR, INSIDE, ELSEWHERE, NAMED)
    (name,) = found = judge_outside(run_of(there, there - look(line)), PLAN, "platform")
    assert name == owner
    assert found[name].verdict is Verdict.DRIFT
    cause = found[name].cause
    assert isinstance(cause, Derived)
    assert cause == Derived(about=line[0], gone=(line[1],), count=1, load=1, phase="bound")


def test_what_comes_later_is_told_with_its_load() -> None:
    found = judge_outside(run_of(look(BAR), look(BAR), look(BAR, ELSEWHERE)), PLAN, "platform")
    cause = found["platform"].cause
    assert isinstance(cause, Derived)
    assert (cause.new, cause.load) == ((ELSEWHERE[1],), 25)


def test_very_many_lines_are_counted() -> None:
    many = look(*(("memory", f"memory: region {n}") for n in range(3 * MAX_TOLD)))
    cause = judge_outside(run_of(many, look()), PLAN, "platform")["platform"].cause
    assert isinstance(cause, Derived)
    assert (len(cause.gone), cause.count) == (MAX_TOLD, 3 * MAX_TOLD)


def test_a_look_is_kept_as_json() -> None:
    there = look(BAR, BAR, INSIDE)
    assert look_from_json(look_to_json(there)) == there
    assert look_from_json(b'[["memory","a",1]]') is None
    assert look_from_json(b'{"version":1,"lines":[]}') is None
    with pytest.raises(ValueError, match="Expecting"):
        look_from_json(b"{")


class FakeVm:
    """Answers as a QEMU whose text this test has."""

    def qmp(self, command: str, **arguments: str) -> object:
        texts = {
            "info mtree": "address-space: memory\n  0000-ffff (prio 0, i/o): system\n\n",
            "info qtree": 'bus: main\n  dev: hpet, id ""\n    timers = 3\n  dev: x, id "a"\n    bus: b\n      dev: y\n',
            "info pic": "pic0: irr=11 imr=b8\npic1: irr=01 imr=00\nioapic0: ver=0x20",
        }
        if command == "human-monitor-command":
            return texts.get(arguments["command_line"], "")
        if command == "query-block":
            return [
                {
                    "device": "",
                    "qdev": "a",
                    "locked": False,
                    "io-status": "failed",
                    "type": "unknown",
                    "inserted": {"file": "/tmp/x"},
                }
            ]
        raise CommandRefused(command, "there is no such command")


def test_a_look_is_lines_that_stand_for_themselves() -> None:
    found = look_at(FakeVm())  # type: ignore[arg-type]
    assert ("memory", "address-space: memory: 0000-ffff (prio 0, i/o): system") in found
    assert ("device", 'bus: main / dev: hpet, id "" / timers = 3') in found
    assert ("device", 'bus: main / dev: x, id "a" / bus: b / dev: y') in found
    assert ("block", "device=, qdev=a, locked=False") in found
    # the timer's own request comes by itself, any other one does not
    assert ("interrupts", "pic0: irr=10 imr=b8") in found
    assert ("interrupts", "pic1: irr=01 imr=00") in found


@pytest.mark.parametrize("name", ["drive", "werror", "rerror"])
def test_that_the_disk_of_the_loaded_machine_is_well_is_no_drift(name: str) -> None:
    """The disk of a recorded guest may fail: its command line is another one."""
    recorded, loaded = (
        look(("device", f'bus: main-system-bus / dev: ide-hd, id "ahci-hd" / {name} = "{value}"'), BAR)
        for value in ("ahci-disk-faults", "ahci-disk")
    )
    assert judge_outside(run_of(recorded, loaded), PLAN, "platform") == {}
