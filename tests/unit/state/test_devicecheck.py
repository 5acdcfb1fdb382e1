# SPDX-License-Identifier: GPL-2.0-or-later
"""A recipe is not called wrong for what the host did while it was tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from harness.devices.device import Device
from harness.guests.build import Guest
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import TRIES, Disturbance, Disturbed, Hindered, current_account
from harness.qemu.scope import ProcessScope
from harness.state.devicecheck import CheckedStep, DeviceCheck, works

TERM = Hindered(how=Disturbance.ENDED, signal="SIGTERM")


def step(ok: bool) -> CheckedStep:
    return CheckedStep(machine="pc", name="bind", key=("guest", "bind"), ok=ok, said="")


@pytest.fixture
def check(binary: QemuBinary, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[CheckedStep], int]]:
    """Checks a device whose commands fail in the first tries; returns the steps, and how many tries it took."""

    def run(failing: int, *, disturbed: int) -> tuple[list[CheckedStep], int]:
        tries: list[int] = []

        def steps(*_: object) -> Iterator[CheckedStep]:
            tries.append(1)
            if len(tries) <= disturbed:
                current_account().ended(TERM)
            yield step(len(tries) > failing)

        def no_guest() -> Guest:
            raise AssertionError("no guest is needed")

        monkeypatch.setattr(DeviceCheck, "_steps", steps)
        asked = DeviceCheck(binary=binary, machine="pc", accel="tcg", guest=no_guest, scope=ProcessScope())
        return asked.run(Device(name="ahci", about="")), len(tries)

    return run


def test_a_command_that_failed_while_the_host_disturbed_it_is_tried_again(check: Callable[..., object]) -> None:
    assert check(1, disturbed=1) == ([step(True)], 2)


def test_a_device_that_does_not_work_is_told_at_once(check: Callable[..., object]) -> None:
    assert check(TRIES, disturbed=0) == ([step(False)], 1)
    assert not works([step(False)])


def test_what_works_stands_whatever_the_host_did(check: Callable[..., object]) -> None:
    assert check(0, disturbed=1) == ([step(True)], 1)


def test_a_device_that_the_host_does_not_let_be_tried_is_not_called_wrong(check: Callable[..., object]) -> None:
    with pytest.raises(Disturbed) as caught:
        check(TRIES, disturbed=TRIES)
    assert caught.value.hindered == (TERM,)
