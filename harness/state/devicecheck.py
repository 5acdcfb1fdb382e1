# SPDX-License-Identifier: GPL-2.0-or-later
"""Tries a device on a real QEMU before anything is recorded: does it start, own sections, and do its commands work?

The device is alone in its guest with the platform. Nothing is raised for a device that does not work: each step says
what came of it, and which key of the recipe it stands for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from harness.devices.device import NOTHING, Device
from harness.devices.phases import NOTHING_TO_DO_STATUS
from harness.errors import DeadlineError, GuestError, QemuError
from harness.guests.build import Guest
from harness.guests.console import Console
from harness.guests.lack import Lack
from harness.guests.machine import firmware_sink
from harness.guests.plan import guest_command
from harness.guests.planner import PlannedGuest
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import undisturbed
from harness.qemu.process import new_workdir
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm
from harness.state.owners import find_owners
from harness.state.recorder import BOOT_TIMEOUT_S, BUSY_S, COMMAND_TIMEOUT_S, Plan
from harness.state.recordings import lacking_drivers, machine_names, missing, planned_guests, recording_plan

PLATFORM = Device(name="platform", about="", rest=True)
#: Guest commands in the order in which a recording runs them; each life is asked where a failover may ask for it.
_ORDER = ("bind", "life", "busy", "check", "idle", "unbind", "rebind", "life")

Key = tuple[str, ...]


class StepNote(StrEnum):
    """What came of a step."""

    REST = "owns-the-rest"
    NO_COMMAND = "no-command"
    STILL = "still-before-busy"
    PASSES_IDLE = "passes-before-busy"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedStep:
    """One thing that was tried.

    :param key: of the recipe that it stands for, such as ``("guest", "bind")``
    :param ok: None for one that the recipe does not have
    :param note: what came of it, where that needs a word
    :param lack: why the device cannot be had
    :param names: its sections
    :param said: the words of an error
    """

    machine: str
    name: str
    key: Key
    ok: bool | None
    note: StepNote | None = None
    lack: Lack | None = None
    names: tuple[str, ...] = ()
    said: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCheck:
    """What to try.

    :param guest: makes the guest; asked only when the device starts
    :param say: told what is being done
    """

    binary: QemuBinary
    machine: str
    accel: str
    guest: Callable[[], Guest]
    scope: ProcessScope
    say: Callable[[str], None] = lambda _: None

    def run(self, device: Device) -> list[CheckedStep]:
        """Try a device; the steps end with the first after which no other makes sense.

        :raises Disturbed: the host disturbed each try, so that nobody knows whether it works
        """
        return undisturbed(lambda: list(self._steps(device)), lambda steps, _: not works(steps))

    def _steps(self, device: Device) -> Iterator[CheckedStep]:
        family, name = machine_names(self.binary, self.machine)
        planned = planned_guests(name, family, [device, PLATFORM])
        lack = missing(device, self.binary, self.machine, family) or planned.refused.get(device.name)
        if lack is not None:
            yield self._step(name, "starts", ("attach",), False, lack=lack)
            return
        guest = planned.guests[0]
        self.say(f"{name}: starting with and without {device.name}")
        started = time.monotonic()
        owners = find_owners(self.binary, guest, self.accel, self.scope)
        seconds = time.monotonic() - started
        if device.name in owners.refused:
            lack = owners.refused[device.name]
            yield self._step(name, "owns sections", ("attach",), False, lack=lack, seconds=seconds)
            return
        own = tuple(owners.sections.get(device.name, ()))
        note = None if own else StepNote.REST
        yield self._step(name, "owns sections", ("attach",), True, names=own, note=note, seconds=seconds)
        yield from self._in_guest(name, device, guest)

    def _in_guest(self, name: str, device: Device, planned: PlannedGuest) -> Iterator[CheckedStep]:
        self.say(f"{name}: booting a guest with {device.name}")
        guest = self.guest()
        lacking = lacking_drivers(device, guest)
        if lacking:
            yield self._step(name, "drivers", ("drivers",), False, said=lacking)
            return
        plan = recording_plan(
            binary=self.binary, accel=self.accel, guest=guest, planned=planned, phases=("kernel", "bound")
        )
        workdir = new_workdir()
        machine = plan.build()
        machine.make_files(workdir)
        try:
            command = machine.command(self.binary.path, workdir, firmware_sink())
            with Vm(command, workdir=workdir, scope=self.scope) as vm:
                vm.qmp("cont")
                console = Console(vm.console, vm.process.clock)
                console.wait_ready(BOOT_TIMEOUT_S)
                console.run("beat_start")
                yield from self._commands(name, device, plan, console)
        except (GuestError, QemuError, DeadlineError) as error:
            yield self._step(name, "boots", ("attach",), False, said=str(error))

    def _commands(self, name: str, device: Device, plan: Plan, console: Console) -> Iterator[CheckedStep]:
        still = False
        for what in _ORDER:
            if what == "busy" and device.guest.check != NOTHING:
                yield from self._idle_check(name, device, plan, console)
            command = guest_command(device, what, plan.planned.plan)
            if command == NOTHING:
                yield self._step(name, what, ("guest", what), None, note=StepNote.NO_COMMAND)
                continue
            if what in ("check", "idle") and still:
                continue
            self.say(f"{name}: {what}")
            started = time.monotonic()
            ok, said = _run(console, command)
            yield self._step(name, what, ("guest", what), ok, said=said, seconds=time.monotonic() - started)
            if ok is False or (ok is None and what not in ("busy", "life")):
                return
            if what == "busy":
                still = ok is None
                time.sleep(0 if still else BUSY_S)

    def _idle_check(self, name: str, device: Device, plan: Plan, console: Console) -> Iterator[CheckedStep]:
        """``check`` says that the device moves: asked of one that does not, it has to say no."""
        started = time.monotonic()
        try:
            console.run(guest_command(device, "check", plan.planned.plan), COMMAND_TIMEOUT_S)
        except GuestError:
            note, ok = StepNote.STILL, True
        else:
            note, ok = StepNote.PASSES_IDLE, False
        seconds = time.monotonic() - started
        yield self._step(name, "check while idle", ("guest", "check"), ok, note=note, seconds=seconds)

    def _step(
        self, machine: str, name: str, key: Key, ok: bool | None, *, seconds: float = 0.0, **found: Any
    ) -> CheckedStep:
        return CheckedStep(machine=machine, name=name, key=key, ok=ok, seconds=round(seconds, 3), **found)


def _run(console: Console, command: str) -> tuple[bool | None, str]:
    """Whether a command did what it should, None for one that has nothing to do; and why not."""
    try:
        answer = console.ask(command, COMMAND_TIMEOUT_S)
    except GuestError as error:
        return False, str(error)
    if answer.status == NOTHING_TO_DO_STATUS:
        return None, answer.said
    return not answer.status, str(answer.complaint) if answer.status else ""


def works(steps: Sequence[CheckedStep]) -> bool:
    """Whether nothing that was tried failed."""
    return all(step.ok is not False for step in steps)
