# SPDX-License-Identifier: GPL-2.0-or-later
"""Drive one guest through its phases and record each of them into a state pack."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import harness
from harness.arch import Architecture, architecture_of
from harness.cache import sweep, temp_dir
from harness.devices.profile import Profile, owner_of, section_label
from harness.errors import DeadlineError, GuestError, HostError, UsageError
from harness.guests.build import Guest
from harness.guests.console import Console
from harness.guests.faults import wait_halted, with_faults
from harness.guests.machine import Machine, guest_options, merge_options
from harness.packs.manifest import DeviceModel, OptionModel, in_pack
from harness.packs.pack import StatePack
from harness.packs.packfile import SUFFIX, export_pack
from harness.packs.packwriter import PackWriter
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.process import new_workdir
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm, migrate_to_socket
from harness.stream.model import Stream
from harness.stream.reader import open_stream

#: Recorded when nothing else is asked for.
PHASES = ("firmware", "kernel", "bound", "busy", "unbound", "rebound")
#: In the order in which a guest goes through them. ``io-error`` only when it is asked for: the guest is then
#: recorded over disks that fail, and it has to be the last, as its requests never end.
ALL_PHASES = (*PHASES, "io-error")

FIRMWARE_TIMEOUT_S = 30.0
BOOT_TIMEOUT_S = 120.0
COMMAND_TIMEOUT_S = 60.0
MIGRATE_TIMEOUT_S = 60.0
HALT_TIMEOUT_S = 30.0
#: How long the workload runs before the busy phase is recorded.
BUSY_S = 0.5

_FIRMWARE_LOG = "firmware.log"
_KERNEL = "guest/kernel"
_INITRAMFS = "guest/initramfs"

Progress = Callable[[str], None]


def ordered_phases(names: Sequence[str]) -> list[str]:
    """Phases in the guest's order.

    :raises UsageError: a name is unknown
    """
    for name in names:
        if name not in ALL_PHASES:
            raise UsageError(f"unknown phase {name!r}: expected one of {', '.join(ALL_PHASES)}")
    return [phase for phase in ALL_PHASES if phase in names]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to record.

    :param family: machine alias, e.g. ``q35``; ``machine`` is the versioned type
    :param profiles: the devices of the guest
    :param phases: those that a machine does not go through are left out
    """

    binary: QemuBinary
    machine: str
    family: str
    accel: str
    guest: Guest
    profiles: tuple[Profile, ...]
    phases: tuple[str, ...]

    @property
    def architecture(self) -> Architecture:
        """That of the machine."""
        return architecture_of(self.machine)

    def build(self, *, travelling: bool = False) -> Machine:
        """The guest machine of this plan.

        :param travelling: its guest's files named as those of the pack
        """
        base = guest_options(
            self.architecture,
            self.accel,
            kernel=Path(in_pack(_KERNEL)) if travelling else self.guest.kernel,
            initramfs=Path(in_pack(_INITRAMFS)) if travelling else self.guest.initramfs,
            cmdline=self.guest.cmdline,
            memory_mib=self.guest.memory_mib,
            cpus=self.guest.cpus,
        )
        files = {name: size for p in self.profiles for name, size in p.file_sizes().items()}
        return Machine(
            name=self.machine,
            family=self.family,
            accel=self.accel,
            options=merge_options([base, *(profile.options(self.family) for profile in self.profiles)]),
            files=tuple(files.items()),
        )


def record(
    plan: Plan,
    path: Path,
    progress: Progress = lambda _: None,
    *,
    host: Mapping[str, Any] | None = None,
    scope: ProcessScope | None = None,
) -> Path:
    """Boot the guest once and record every phase of the plan.

    :param path: where the pack shall be: one file that travels when it is called ``NAME.pack``, else a folder
    :param progress: told what is being done
    :param host: facts of this host, kept in the pack
    :param scope: of the run that records
    :raises GuestError: the guest did not reach a phase; the message has the console's last words
    :raises QemuError: QEMU refused or died
    :raises HostError: no space
    :raises UsageError: a file of that name is there already
    """
    if path.suffix != SUFFIX:
        return _record_folder(plan, path, progress, host or {}, scope)
    if path.exists():
        raise UsageError(f"{path}: it exists already; a state pack is never overwritten")
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            temp = stack.enter_context(temp_dir(path.parent))
        except OSError as error:
            raise HostError(f"cannot write in {path.parent}: {error.strerror}") from error
        folder = _record_folder(plan, temp / "pack", progress, host or {}, scope)
        progress("packing")
        with StatePack(folder) as pack:
            return export_pack(pack, path)


def _record_folder(
    plan: Plan, path: Path, progress: Progress, host: Mapping[str, Any], scope: ProcessScope | None
) -> Path:
    machine = plan.build()
    writer = PackWriter(path)
    try:
        labels = _Session(plan, machine, writer, progress, scope).run()
        # the kernel first: in this order a travelling pack is the smaller
        writer.add_file(_KERNEL, plan.guest.kernel)
        writer.add_file(_INITRAMFS, plan.guest.initramfs)
        writer.publish(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            program=f"postload {harness.__version__}",
            machine=plan.machine,
            family=plan.family,
            accel=plan.accel,
            qemu=plan.binary.identity(),
            host=dict(host),
            options=[
                OptionModel(name=o.name, first=o.first, props=dict(o.props))
                for o in plan.build(travelling=True).options
            ],
            scratch=dict(machine.files),
            guest=plan.guest.identity,
            devices=owned_sections(labels, plan.family, plan.profiles),
        )
    finally:
        writer.discard()
    return path


def owned_sections(labels: Sequence[str], family: str, profiles: Sequence[Profile]) -> list[DeviceModel]:
    """Which profile owns which section.

    :raises GuestError: a profile owns no section at all: its patterns do not fit this QEMU
    """
    owned: dict[str, list[str]] = {profile.name: [] for profile in profiles}
    for label in labels:
        owner = owner_of(label, family, profiles)
        if owner is not None:
            owned[owner].append(label)
    for profile in profiles:
        if not owned[profile.name]:
            patterns = ", ".join(profile.machines[family].sections)
            there = ", ".join(labels)
            raise GuestError(f"device {profile.name} owns no section: none matches {patterns}; there are {there}")
    return [DeviceModel(name=name, sections=sections) for name, sections in owned.items()]


class _Session:
    """One guest being recorded."""

    def __init__(
        self, plan: Plan, machine: Machine, writer: PackWriter, progress: Progress, scope: ProcessScope | None
    ) -> None:
        self._plan = plan
        self._machine = machine
        self._writer = writer
        self._progress = progress
        self._scope = scope
        self._labels: list[str] = []
        self._faults = {node: sector for p in plan.profiles for node, sector in p.faults.items()}

    def run(self) -> list[str]:
        workdir = new_workdir()
        self._machine.make_files(workdir)
        # a file and not a socket: the port writes byte by byte and blocks QEMU when nobody reads
        chardev = Option(name="chardev", first="file", props={"id": "firmware", "path": str(workdir / _FIRMWARE_LOG)})
        # the pack keeps the healthy machine: a rule that fails a sector is no state of a device
        machine = with_faults(self._machine, self._faults) if "io-error" in self._plan.phases else self._machine
        with Vm(machine.command(self._plan.binary.path, workdir, chardev), workdir=workdir, scope=self._scope) as vm:
            self._drive(vm)
        return self._labels

    def _drive(self, vm: Vm) -> None:
        # no bandwidth limit, and the source is stopped anyway: one pass
        vm.qmp("migrate-set-parameters", max_bandwidth=1 << 40)
        console = Console(vm.console)
        has_phase = self._plan.architecture.has_phase
        last = max(ALL_PHASES.index(name) for name in filter(has_phase, self._plan.phases))
        for phase in filter(has_phase, ALL_PHASES[: 1 + last]):
            self._progress(phase)
            start = time.monotonic()
            self._reach(phase, vm, console)
            if phase in self._plan.phases:
                self._capture(phase, vm, time.monotonic() - start)

    def _reach(self, phase: str, vm: Vm, console: Console) -> None:
        vm.qmp("cont")
        if phase == "io-error":
            self._halt(vm, console)
            return  # QEMU has stopped the machine
        firmware = self._plan.architecture.firmware
        if phase == "firmware" and firmware:
            _wait_for_mark(vm, firmware.mark)
        elif phase == "kernel":
            console.wait_ready(BOOT_TIMEOUT_S)
            console.run("beat_start")
        elif phase == "busy":
            self._each(console, "busy")
            time.sleep(BUSY_S)
            self._each(console, "check")
        elif phase == "unbound":
            self._each(console, "idle")
            self._each(console, "unbind")
        else:
            self._each(console, {"bound": "bind", "rebound": "rebind"}[phase])
        if phase != "firmware":
            # what the kernel's log has behind this line was said after the recording
            console.run(f"log_mark {phase}")
        vm.qmp("stop")

    def _halt(self, vm: Vm, console: Console) -> None:
        """Let every disk fail until all of them hold a request back."""
        if not self._faults:
            raise GuestError("phase io-error: none of the devices has a disk that can be made to fail")
        console.run("log_mark io-error")
        # one line: the first request that fails stops the machine, and with it the shell's answer
        commands = [p.command("fail", self._plan.family) for p in self._plan.profiles if p.faults]
        console.send("; ".join(commands))
        wait_halted(vm, self._faults, HALT_TIMEOUT_S)

    def _each(self, console: Console, what: str) -> None:
        for profile in self._plan.profiles:
            command = profile.command(what, self._plan.family)
            if command != "true":
                console.run(command, COMMAND_TIMEOUT_S)

    def _capture(self, phase: str, vm: Vm, seconds: float) -> None:
        sink = vm.workdir / f"{phase}.stream"
        migrate_to_socket(vm, vm.workdir / "migrate.sock", sink, timeout_s=MIGRATE_TIMEOUT_S)
        with open_stream(sink) as stream:
            self._labels += [label for label in _labels(stream) if label not in self._labels]
            self._writer.add(phase, stream, console=vm.console_text(), seconds=seconds)
        sink.unlink()


def _labels(stream: Stream) -> list[str]:
    return [section_label(section.idstr, section.instance_id) for section in stream.devices]


def _wait_for_mark(vm: Vm, mark: bytes) -> None:
    """Follow the firmware's log up to the mark."""
    end = time.monotonic() + FIRMWARE_TIMEOUT_S
    log = vm.workdir / _FIRMWARE_LOG
    while mark not in log.read_bytes():
        if vm.ended():
            raise GuestError(f"QEMU ended in its firmware: {vm.process.stderr().strip()[-400:]}")
        if time.monotonic() > end:
            last = log.read_bytes()[-200:].decode(errors="replace").strip() or "nothing"
            raise DeadlineError(f"the firmware did not get to its mark within {FIRMWARE_TIMEOUT_S:g} s: {last}")
        time.sleep(0.002)
