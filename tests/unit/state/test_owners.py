# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose a section is: what a machine saves with a device and not without it."""

from __future__ import annotations

import pytest

from harness.arch import RootBus
from harness.devices.device import Attachment, Device
from harness.errors import QemuError
from harness.guests.lack import Lack, Lacks
from harness.guests.plan import GuestPlan
from harness.guests.planner import PlannedGuest, plan_guests
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import Disturbance, Hindered, current_account
from harness.state import owners
from harness.state.owners import Owners, find_owners, settled

#: Sections by the device that brings them; two of one name are instances.
BRINGS = {"one": ["slirp", "0000:00:03.0/nic"], "two": ["slirp", "0000:00:04.0/nic"], "silent": []}


def guest() -> PlannedGuest:
    devices = [
        Device(name=name, about="", attachments=(Attachment(name="dev", type=f"{name}-pci"),))
        for name in ("one", "broken", "silent", "two")
    ]
    bus = RootBus(name="pci.0", slots=range(3, 32), has_ports=False)
    base = GuestPlan(machine="pc-1", family="pc", memory_mib=16)
    return plan_guests(bus, base, [*devices, Device(name="platform", about="", rest=True)]).guests[0]


def saved(_binary: QemuBinary, plan: GuestPlan, *_: object) -> list[str]:
    """What a stopped machine saves, as QEMU numbers instances: in the order in which they are made."""
    found = ["timer", "cpu"]
    for device in plan.devices:
        if device.owner == "broken":
            raise QemuError("Property 'broken-pci.x' not found")
        for name in BRINGS[device.owner]:
            found.append(name if name not in found else f"{name}#1")
    return found


@pytest.fixture
def _asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "saved_labels", saved)


@pytest.mark.usefixtures("_asked")
def test_what_a_device_adds_is_its_own_and_a_broken_one_costs_itself(binary: QemuBinary) -> None:
    found = find_owners(binary, guest(), "tcg")
    assert found.sections == {"one": ["slirp", "0000:00:03.0/nic"], "two": ["slirp#1", "0000:00:04.0/nic"]}
    assert found.refused == {
        "broken": Lack(what=Lacks.START, machine="pc-1", qemu="7.2.22", said="Property 'broken-pci.x' not found"),
        "silent": Lack(what=Lacks.SECTION, machine="pc-1", qemu="7.2.22"),
    }


@pytest.mark.usefixtures("_asked")
def test_the_guest_goes_on_without_what_it_cannot_have(binary: QemuBinary) -> None:
    left, found = settled(binary, guest(), "tcg")
    assert [device.name for device in left.devices] == ["one", "two", "platform"]
    # each in the place that it was given
    assert [(device.owner, device.slot) for device in left.plan.devices] == [("one", "03.0"), ("two", "06.0")]
    assert set(found.refused) == {"broken", "silent"}


def test_a_machine_that_does_not_start_with_none_of_them_is_an_error(
    binary: QemuBinary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(*_: object) -> list[str]:
        raise QemuError("no")

    monkeypatch.setattr(owners, "saved_labels", dead)
    with pytest.raises(QemuError):
        find_owners(binary, guest(), "tcg")


def test_a_qemu_that_somebody_ends_refuses_no_device(binary: QemuBinary, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ended_once(binary: QemuBinary, plan: GuestPlan, accel: str, scope: object, _: object) -> list[str]:
        asked.append(plan.devices[-1].owner if plan.devices else "")
        if asked.count("two") == 1 and asked[-1] == "two":
            current_account().ended(Hindered(how=Disturbance.ENDED, signal="SIGTERM"))
            raise QemuError("QEMU closed the session")
        return saved(binary, plan, accel, scope)

    monkeypatch.setattr(owners, "saved_labels", ended_once)
    _, found = settled(binary, guest(), "tcg")
    assert set(found.refused) == {"broken", "silent"}


@pytest.mark.parametrize("rest", ["platform", None])
def test_what_is_in_none_is_the_platforms_and_what_comes_later_is_below_its_path(rest: str | None) -> None:
    found = Owners(sections={"one": ["slirp", "0000:00:03.0/nic"], "two": ["slirp#1", "0000:00:04.0/nic"]})
    labels = [
        "timer",
        "slirp",
        "slirp#1",
        "0000:00:03.0/nic",
        "0000:00:03.0/late",
        "0000:00:04.0/nic",
        "0000:00:05.0/x",
    ]
    names = ["one", "two", *([rest] if rest else [])]
    split = found.split(labels, names, rest)
    assert split["one"] == ["slirp", "0000:00:03.0/nic", "0000:00:03.0/late"]
    assert split["two"] == ["slirp#1", "0000:00:04.0/nic"]
    assert split.get("platform") == (["timer", "0000:00:05.0/x"] if rest else None)


def test_warnings_are_not_what_an_error_says() -> None:
    said = (
        "it ended: qemu-system-x86_64: -mon x: warning: '-mon' is deprecated\nqemu-system-x86_64: -device y: no bus\n"
    )
    assert owners.short(QemuError(said)) == "it ended: qemu-system-x86_64: -device y: no bus"
