# SPDX-License-Identifier: GPL-2.0-or-later
"""Drive one guest through its phases and record each of them into a state pack."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import harness
from harness.arch import Architecture, architecture_of
from harness.devices.device import NOTHING, STEPS, Device
from harness.devices.phases import HUNG_STATUS, NOTHING_TO_DO_STATUS, Missed, MissedPhases, Unreached
from harness.errors import DeadlineError, GuestError, PackError, QemuError, StreamError, UsageError
from harness.guests.build import Guest
from harness.guests.console import Console
from harness.guests.faults import wait_halted
from harness.guests.machine import Boot, Machine
from harness.guests.origin import VmOrigin
from harness.guests.plan import guest_command, guest_slot
from harness.guests.planner import PlannedGuest
from harness.names import RECORDED_PHASES, SUSPENDED, USUAL_PHASES
from harness.packs.export import new_pack
from harness.packs.manifest import INITRAMFS, KERNEL, DeviceModel
from harness.packs.packfile import SUFFIX
from harness.packs.packwriter import PackWriter
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.disturbance import Disturbed, only_slow, undisturbed
from harness.qemu.hosttime import ran_s, yardstick_s
from harness.qemu.look import look_at, look_to_json
from harness.qemu.monitor import CommandRefused
from harness.qemu.process import Exit, new_workdir
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm, migrate_to_socket
from harness.state.owners import Owners, find_owners
from harness.state.plugging import replug
from harness.state.sleeping import stopped_in_sleep, suspend
from harness.state.transforms import labels_of
from harness.stream.reader import open_stream

#: SeaBIOS of a machine with 30 devices takes half a second under TCG. One that hangs is waited for in each half of the
#: devices of its guest.
FIRMWARE_TIMEOUT_S = 10.0
#: The kernel shuts its devices down before.
REBOOT_TIMEOUT_S = 30.0
BOOT_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 90.0
MIGRATE_TIMEOUT_S = 60.0
HALT_TIMEOUT_S = 30.0
#: How long the workload runs before the busy phase is recorded.
BUSY_S = 0.5
#: How long the guest has for what was plugged in.
PLUGGED_S = 1.5
#: A console or a monitor closes before its process is gone.
_END_WAIT_S = 1.0
_END_CHARS = 400

_FIRMWARE_LOG = "firmware.log"
#: What the guest's command ``bind`` prints of the drivers that it found (``guests/lib/auto.sh``).
_DRIVERS = re.compile(r"^drivers:\|(.+)$", re.MULTILINE)
#: A device that does not let itself be saved says so in its ``pre_save`` (``migration/vmstate.c``).
_REFUSED = re.compile(r"pre-save (for \S+ )?failed")
#: Nobody answers at the console then.
_WITHOUT_SHELL = ("firmware", "rebooted")

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BootTime:
    """How long a guest took to boot, in processor time, so that what else a host does is no part of it.

    :param processor_s: of QEMU, from the first instruction to the guest's first prompt
    :param yardstick_s: of this host for a fixed piece of work, just behind that
    """

    processor_s: float
    yardstick_s: float


Booted = Callable[[BootTime], None]


def ordered_phases(names: Sequence[str], known: Sequence[str] = RECORDED_PHASES) -> list[str]:
    """Phases in the guest's order.

    :param known: those that there can be
    :raises UsageError: a name is unknown
    """
    for name in names:
        if name not in known:
            raise UsageError(f"unknown phase {name!r}: expected one of {', '.join(known)}")
    last = [phase for phase in known if phase in names and phase not in USUAL_PHASES]
    if len(last) > 1:
        raise UsageError(f"phases {' and '.join(last)} cannot be reached by one guest: ask for one of them")
    return [phase for phase in known if phase in names]


def skipped(phase: str, wanted: Collection[str]) -> bool:
    """Whether a guest that is recorded in some phases need not go through another one: a disk can fail, and a driver
    suspend its device, as soon as it is bound, and a workload that was begun has to be ended."""
    work = ("busy", "unbound", "rebound")
    return phase in work and bool({SUSPENDED, "io-error"} & set(wanted)) and not set(work) & set(wanted)


class CutShort(GuestError):
    """A recording ended before its last phase: the guest, or its QEMU, was lost.

    :param phase: that it was on its way to
    :param device: whose command was under way; empty where none was
    :param kept: the phases that had been recorded by then, which are kept where the recording should have been
    :param died: how QEMU ended, None where it did not
    :param log: what it printed then
    :param saving: the phase was being saved
    :param refused: why QEMU, which is there still, does not save the machine as it is then; its own words
    """

    def __init__(
        self,
        text: str,
        *,
        phase: str,
        device: str = "",
        kept: tuple[str, ...] = (),
        died: Exit | None = None,
        log: str = "",
        saving: bool = False,
        refused: str = "",
    ) -> None:
        more = f"; what was recorded until then is kept: {', '.join(kept)}" if kept else ""
        super().__init__(f"phase {phase}: {f'{device}: ' if device else ''}{text}{more}")
        self.phase = phase
        self.device = device
        self.kept = kept
        self.died = died
        self.log = log
        self.saving = saving
        self.refused = refused


class _Hung(GuestError):
    """A command of a device never ended, or what it began did not."""

    def __init__(self, text: str, device: str) -> None:
        super().__init__(text)
        self.device = device


#: What loses a guest; a stream that cannot be read is one that a device brought.
_LOST = (GuestError, QemuError, DeadlineError, StreamError, PackError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to record.

    :param guest: what it boots
    :param planned: the guest and the devices that are judged in it
    :param phases: those that a machine does not go through are left out
    :param foreign: where the guest's plan came from, when that is not this program
    :param origin: of an adopted VM, for the pack
    :param owners: of its sections, where a QEMU has been asked
    """

    binary: QemuBinary
    accel: str
    guest: Guest
    planned: PlannedGuest
    phases: tuple[str, ...]
    foreign: Path | None = None
    origin: VmOrigin | None = None
    owners: Owners | None = None

    @property
    def machine(self) -> str:
        """The versioned machine type."""
        return self.planned.plan.machine

    @property
    def architecture(self) -> Architecture:
        """That of the machine."""
        return architecture_of(self.machine)

    def build(self) -> Machine:
        """The guest machine of this plan."""
        boot = Boot(kernel=self.guest.kernel, initramfs=self.guest.initramfs)
        return Machine(plan=self.planned.plan, accel=self.accel, boot=boot, foreign=self.foreign)


def record(
    plan: Plan,
    path: Path,
    progress: Progress = lambda _: None,
    *,
    host: Mapping[str, Any] | None = None,
    scope: ProcessScope | None = None,
    booted: Booted = lambda _: None,
) -> Path:
    """Boot the guest once and record every phase of the plan.

    :param path: where the pack shall be: one file that travels when it is called ``NAME.pack``, else a folder
    :param progress: told what is being done
    :param host: facts of this host, kept in the pack
    :param scope: of the run that records
    :param booted: told of the boot when it is recorded, where the guest got so far and the host counts
    :raises CutShort: the guest did not reach a phase, or QEMU died; the phases before are in the pack all the same
    :raises Disturbed: the host disturbed each try
    :raises QemuError: QEMU does not start, or does not run with one of the devices
    :raises HostError: no space
    :raises UsageError: a file of that name is there already
    """
    if path.suffix != SUFFIX:
        return _record_folder(plan, path, progress, host or {}, scope, booted)
    failed: CutShort | None = None
    with new_pack(path) as folder:
        try:
            _record_folder(plan, folder, progress, host or {}, scope, booted)
        except CutShort as error:
            if not error.kept:
                raise
            failed = error
        progress("packing")
    if failed is not None:
        raise failed
    return path


def _record_folder(
    plan: Plan, path: Path, progress: Progress, host: Mapping[str, Any], scope: ProcessScope | None, booted: Booted
) -> Path:
    """A device that missed a phase while the host disturbed the guest may have missed it for that: it is recorded anew.

    The last try stands where the guest was merely slow.
    """
    ours = not path.exists()

    def once() -> bool:
        if ours:
            shutil.rmtree(path, ignore_errors=True)
        return _record_once(plan, path, progress, host, scope, booted)

    try:
        undisturbed(once, lambda missed, _: missed)
    except Disturbed as error:
        if ours and path.exists() and only_slow(error.hindered):
            return path
        if ours:
            shutil.rmtree(path, ignore_errors=True)
        raise
    return path


def _record_once(
    plan: Plan, path: Path, progress: Progress, host: Mapping[str, Any], scope: ProcessScope | None, booted: Booted
) -> bool:
    """Record; returns whether a device missed a phase because a command of it failed."""
    owners = plan.owners
    if owners is None:
        owners = find_owners(plan.binary, plan.planned, plan.accel, scope)
        for name, lack in owners.refused.items():
            raise QemuError(f"{name}: {lack}")
    writer = PackWriter(path)
    boot = _Boot(plan, writer, progress, scope)
    failed: CutShort | None = None
    try:
        try:
            boot.run()
        except CutShort as error:
            if not boot.captured:
                raise
            failed = error
        # the kernel first: in this order a travelling pack is the smaller
        writer.add_file(KERNEL, plan.guest.kernel)
        writer.add_file(INITRAMFS, plan.guest.initramfs)
        writer.publish(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            program=f"postload {harness.__version__}",
            accel=plan.accel,
            qemu=plan.binary.identity(),
            host=dict(host),
            plan=plan.planned.plan,
            guest=plan.guest.identity,
            origin=plan.origin,
            devices=_recorded_devices(boot, owners, plan.planned),
        )
    finally:
        writer.discard()
    if boot.time is not None:
        booted(boot.time)
    if failed is not None:
        raise failed
    return boot.lacks.failed


def _recorded_devices(boot: _Boot, owners: Owners, guest: PlannedGuest) -> list[DeviceModel]:
    """Which device owns which section of a recording, and how far each of them came."""
    rest = next((device.name for device in guest.devices if device.rest), None)
    owned = owners.split(boot.labels, [device.name for device in guest.devices], rest)
    return [
        DeviceModel(
            name=each.name,
            sections=owned[each.name],
            recipe=each,
            unreached=[lack for phase, lack in boot.lacks.of(each.name).items() if phase in boot.phases],
            drivers=boot.drivers.get(each.name, []),
        )
        for each in guest.devices
    ]


class _Boot:
    """One guest being recorded.

    ``labels`` are the sections that were saved so far, ``captured`` the phases, ``lacks`` who is not in them, and
    ``drivers`` whom the guest's kernel bound. ``time`` is None until the guest is up.
    """

    def __init__(self, plan: Plan, writer: PackWriter, progress: Progress, scope: ProcessScope | None) -> None:
        self._plan = plan
        self._writer = writer
        self._progress = progress
        self._scope = scope
        self.labels: list[str] = []
        self.captured: list[str] = []
        self.lacks = MissedPhases()
        self.drivers: dict[str, list[str]] = {}
        self.time: BootTime | None = None
        self._firmware_s = 0.0
        self._devices = plan.planned.devices
        self._moving: set[str] = set()
        self._saving = False
        self._sleeps = False
        self._faults = {node: sector for device in self._devices for node, sector in device.failing().items()}

    @property
    def phases(self) -> tuple[str, ...]:
        """Those that are wanted."""
        return self._plan.phases

    def run(self) -> None:
        workdir = new_workdir()
        # a file and not a socket: the port writes byte by byte and blocks QEMU when nobody reads
        chardev = Option(name="chardev", first="file", props={"id": "firmware", "path": str(workdir / _FIRMWARE_LOG)})
        # the pack keeps the healthy machine: a rule that fails a sector is no state of a device
        machine = self._plan.build().with_faults(self._faults if "io-error" in self._plan.phases else {})
        machine.make_files(workdir)
        with Vm(machine.command(self._plan.binary.path, workdir, chardev), workdir=workdir, scope=self._scope) as vm:
            self._drive(vm)

    def _drive(self, vm: Vm) -> None:
        # no bandwidth limit, and the source is stopped anyway: one pass
        vm.qmp("migrate-set-parameters", max_bandwidth=1 << 40)
        console = Console(vm.console, vm.process.clock)
        has_phase = self._plan.architecture.has_phase
        last = max(RECORDED_PHASES.index(name) for name in filter(has_phase, self._plan.phases))
        wanted = self._plan.phases
        way = [p for p in RECORDED_PHASES[: 1 + last] if p in wanted or (p in USUAL_PHASES and not skipped(p, wanted))]
        for phase in filter(has_phase, way):
            self._progress(phase)
            try:
                self._pass(phase, vm, console)
            except _LOST as error:
                if self._scope is not None:
                    self._scope.check()
                device = error.device if isinstance(error, _Hung) else ""
                text = f"{error}{_end_text(vm)}"
                died = vm.ended()
                raise CutShort(
                    text,
                    phase=phase,
                    device=device,
                    kept=tuple(self.captured),
                    died=died,
                    log=vm.process.stderr() if died else "",
                    saving=self._saving,
                    refused=str(error) if self._saving and not died and _REFUSED.search(str(error)) else "",
                ) from error

    def _pass(self, phase: str, vm: Vm, console: Console) -> None:
        if phase != "firmware" and self._plan.machine in self._plan.architecture.without_kernel:
            self._nobody(phase, "boot", self._plan.machine)
            return
        if phase == "rebooted" and (said := _kept_from_reset(vm)):
            self._nobody(phase, "reboot", said)
            return
        start = time.monotonic()
        self._reach(phase, vm, console)
        if phase == "io-error" and not self._failing_disks():
            self._nobody(phase, "fail", "")
            return
        if phase == SUSPENDED and not self._sleeps:
            return
        if phase in self._plan.phases:
            self._capture(phase, vm, time.monotonic() - start)
            self.captured.append(phase)

    def _nobody(self, phase: str, step: str, said: str) -> None:
        """No device of the guest reaches a phase."""
        for device in self._devices:
            none = Unreached(phase=phase, how=Missed.NOTHING_TO_DO, step=step, said=said)
            self.lacks.ends(device.name, none)

    def _reach(self, phase: str, vm: Vm, console: Console) -> None:
        began_s = ran_s(vm.process.pid)
        vm.qmp("cont")
        if phase == SUSPENDED:
            self._suspend(vm, console)
            return  # nobody answers at the console
        if phase == "io-error":
            self._halt(vm, console)
            return  # QEMU has stopped the machine, or it goes on for nothing
        firmware = self._plan.architecture.firmware
        if phase == "firmware" and firmware:
            _wait_for_mark(vm, firmware.mark, FIRMWARE_TIMEOUT_S)
            self._firmware_s = ran_s(vm.process.pid) - began_s  # what comes behind is to save the machine
        elif phase == "kernel":
            console.wait_ready(BOOT_TIMEOUT_S)
            took_s = self._firmware_s + ran_s(vm.process.pid) - began_s
            self.time = BootTime(processor_s=took_s, yardstick_s=yardstick_s()) if took_s > 0 else None
            console.run("beat_start")
        elif phase == "plugged":
            self._plug(vm)
        elif phase == "rebooted":
            self._reboot(vm, console)
        else:
            self._lead(phase, console)
        if phase not in _WITHOUT_SHELL:
            # what the kernel's log has behind this line was said after the recording
            console.run(f"log_mark {phase}")
        vm.qmp("stop")

    def _halt(self, vm: Vm, console: Console) -> None:
        """Let every disk fail, until each of them holds a request back; a device whose does not is out of the phase."""
        for device in self._devices:
            if device.reports_errors and self.lacks.goes_on(device.name, "io-error"):
                reports = Unreached(phase="io-error", how=Missed.REPORTS_ERRORS, step="fail", said="")
                self.lacks.ends(device.name, reports)
        for device in self._failing_disks():
            self._done(device, "io-error", "fail", console)
        wanted = {node: device.name for device in self._failing_disks() for node in device.failing()}
        if not wanted:
            return
        console.run("log_mark io-error")
        # the first request that fails stops the machine, and with it the shell's answer
        console.send("fail_now")
        for node in wait_halted(vm, wanted, HALT_TIMEOUT_S):
            lack = Unreached(phase="io-error", how=Missed.FAILED, step="halt", said=node)
            self.lacks.ends(wanted[node], lack)

    def _plug(self, vm: Vm) -> None:
        """Take every device out that can be, and plug it in again; its driver is bound again by itself."""
        devices = [device.name for device in self._devices if self.lacks.goes_on(device.name, "plugged")]
        rest = {device.name for device in self._devices if device.rest}
        refused = replug(vm, self._plan.build(), [name for name in devices if name not in rest])
        for name, said in refused.items():
            how = Missed.NOTHING_TO_DO if said else Missed.FAILED
            self.lacks.ends(name, Unreached(phase="plugged", how=how, step="plug", said=said))
        time.sleep(PLUGGED_S)

    def _suspend(self, vm: Vm, console: Console) -> None:
        """Have the guest suspend its machine; a device whose driver refuses is out of the phase, and let go."""
        for device in self._devices:
            self.lacks.goes_on(device.name, SUSPENDED)
        while (awake := suspend(vm, console)) is not None:
            refusing = self._at(awake.path, console) if awake.path else None
            if refusing is None or not self.lacks.goes_on(refusing.name, SUSPENDED):
                self._nobody(SUSPENDED, "suspend", awake.said)
                return
            refusal = Unreached(phase=SUSPENDED, how=Missed.NOTHING_TO_DO, step="suspend", said=awake.said)
            self.lacks.ends(refusing.name, refusal)
            # for the others
            self._done(refusing, SUSPENDED, STEPS["unbound"], console)
        self._sleeps = stopped_in_sleep(vm)
        if not self._sleeps:
            self._nobody(SUSPENDED, "sleep", self._plan.binary.version)

    def _at(self, path: str, console: Console) -> Device | None:
        """The device that a path in the guest's sysfs belongs to, the innermost where several do."""
        found = {}
        for device in self._devices:
            at = console.run(f"device_path {device.name} {guest_slot(device, self._plan.planned.plan) or ''}").strip()
            if at and f"{path}/".startswith(f"{at}/"):
                found[at] = device
        return found[max(found, key=len)] if found else None

    def _reboot(self, vm: Vm, console: Console) -> None:
        """Let the guest reset its machine, up to where firmware is done, or the kernel where there is none."""
        firmware = self._plan.architecture.firmware
        before = (vm.workdir / _FIRMWARE_LOG).read_bytes().count(firmware.mark) if firmware else 0
        console.send("reboot -f")
        if firmware:
            _wait_for_mark(vm, firmware.mark, REBOOT_TIMEOUT_S, before + 1)
        else:
            console.wait_ready(BOOT_TIMEOUT_S)

    def _failing_disks(self) -> list[Device]:
        return [device for device in self._devices if device.faults and self.lacks.goes_on(device.name, "io-error")]

    def _lead(self, phase: str, console: Console) -> None:
        """Bring every device into a phase of its driver's."""
        devices = [device for device in self._devices if self.lacks.goes_on(device.name, phase)]
        if phase in ("bound", "rebound"):
            # behind a stop a device may raise a line that nobody answers, and the kernel takes it from all
            console.run("intx_off", COMMAND_TIMEOUT_S)
        if phase == "busy":
            for device in devices:
                if self._done(device, phase, "busy", console):
                    self._moving.add(device.name)
            time.sleep(BUSY_S)
            # twice: what moved the first time may have been the last of what its driver did
            for device in 2 * devices:
                if device.name in self._moving and self.lacks.goes_on(device.name, phase):
                    self._done(device, phase, "check", console)
            return
        if phase == "unbound":
            # all of them first: a workload that goes on takes the processor from everybody else's driver
            moving = self._moving
            devices = [d for d in devices if d.name not in moving or self._done(d, phase, "idle", console)]
        for device in devices:
            self._done(device, phase, STEPS[phase], console)

    def _done(self, device: Device, phase: str, step: str, console: Console) -> bool:
        """Whether a device did one step; one that did not is out of the phase, and nobody else is."""
        command = guest_command(device, step, self._plan.planned.plan)
        if command == NOTHING:
            return True
        try:
            answer = console.ask(command, COMMAND_TIMEOUT_S)
        except GuestError as error:
            raise _Hung(f"{step}: {error}", device.name) from error
        if answer.status == HUNG_STATUS:
            raise _Hung(f"{step}: {answer.said}", device.name)
        if answer.status:
            how = Missed.NOTHING_TO_DO if answer.status == NOTHING_TO_DO_STATUS else Missed.FAILED
            self.lacks.ends(device.name, Unreached(phase=phase, how=how, step=step, said=answer.said))
        elif told := _DRIVERS.search(answer.text):
            self.drivers[device.name] = drivers_in(told[1].strip())
        return not answer.status

    def _capture(self, phase: str, vm: Vm, seconds: float) -> None:
        look = look_to_json(look_at(vm))
        sink = vm.workdir / f"{phase}.stream"
        self._saving = True
        migrate_to_socket(vm, vm.workdir / "migrate.sock", sink, timeout_s=MIGRATE_TIMEOUT_S)
        self._saving = False
        with open_stream(sink) as stream:
            self.labels += [label for label in labels_of(stream.devices) if label not in self.labels]
            self._writer.add(phase, stream, console=vm.console_text(), seconds=seconds, look=look)
        sink.unlink()


def drivers_in(text: str) -> list[str]:
    """Drivers by where their devices are in sysfs, from the outermost inwards: ``=xhci_hcd|/usb1/1-0:1.0=hub``."""
    found = [item.rpartition("=") for item in text.split("|")]
    return [driver for _, _, driver in sorted(found, key=lambda item: item[0].split("/"))]


def _kept_from_reset(vm: Vm) -> str:
    """Have QEMU reset the machine where its command line has it end (``-no-reboot``); why it does not, or nothing."""
    try:
        vm.qmp("set-action", reboot="reset")
    except CommandRefused as error:
        return error.text
    return ""


def _end_text(vm: Vm) -> str:
    """How QEMU ended, and its last words; empty while it runs."""
    ended = vm.ended(_END_WAIT_S)
    said = vm.process.stderr().strip()[-_END_CHARS:] or "it printed nothing"
    return f"; QEMU ended with {ended}: {said}" if ended else ""


def _wait_for_mark(vm: Vm, mark: bytes, timeout_s: float, times: int = 1) -> None:
    """Follow the firmware's log until the mark is there so many times."""
    deadline = vm.deadline(timeout_s)
    log = vm.workdir / _FIRMWARE_LOG
    while log.read_bytes().count(mark) < times:
        if vm.ended():
            raise GuestError("the firmware did not get to its mark before the machine ended")
        if deadline.over:
            last = log.read_bytes()[-200:].decode(errors="replace").strip() or "nothing"
            raise DeadlineError(f"the firmware did not get to its mark within {timeout_s:g} s: {last}")
        time.sleep(0.002)
