# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings that are made once: by what they are made of, they are found again in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Final

from pydantic import BaseModel

from harness.arch import architecture_of, family_of
from harness.cache import cache_root, keep_answer, kept_answer
from harness.devices.device import Device
from harness.errors import PackError, QemuError, UsageError
from harness.facts import collect_facts
from harness.facts.model import HostFacts
from harness.facts.part import not_known
from harness.guests.build import Guest
from harness.guests.lack import Lack, Lacks
from harness.guests.machine import lacking_program
from harness.guests.plan import GuestPlan
from harness.guests.planner import Planned, PlannedGuest, plan_guests
from harness.names import USUAL_PHASES
from harness.packs.pack import StatePack
from harness.qemu.binary import AccelState, QemuBinary
from harness.qemu.scope import ProcessScope
from harness.qemu.vmstate import dump_vmstate
from harness.state.recorder import BootTime, CutShort, Plan, record

#: Part of the key of a kept recording: raised when recordings of older programs shall not be used again.
_RECORDING_FORMAT = 9
#: Key of a pack's host facts that holds what ``-dump-vmstate`` of the recording QEMU gave.
VMSTATE: Final = "vmstate"
#: The driver of a virtio device's PCI side; its own is the next one.
_VIRTIO_BUS: Final = "virtio-pci"
_HUB: Final = "hub"

Say = Callable[[str], None]


class Unrecordable(UsageError):
    """A device is not to be had on a machine."""

    def __init__(self, device: str, machine: str, lack: Lack) -> None:
        super().__init__(f"cannot record {device} on {machine}: {lack}")
        self.device = device
        self.machine = machine
        self.lack = lack


@dataclass(slots=True)
class _Opened:
    """A pack, and how many use it."""

    pack: StatePack
    users: int = 1


class Recordings:
    """The packs of a run, recorded when the cache does not hold them.

    A pack is opened once for all who use it at a time, and closed when the last of them gives it back: it holds the
    state of all phases, and maps the guest's memory.

    :param fresh: record anew even when a recording is kept
    :param stage: told what is being recorded
    :param message: told why a kept one is not used
    :param scope: of the run, for the QEMUs that record
    :param booted: told of each guest that was recorded, how long it took to boot
    """

    def __init__(
        self,
        *,
        fresh: bool,
        stage: Say,
        message: Say,
        scope: ProcessScope | None = None,
        booted: Callable[[Plan, BootTime], None] = lambda *_: None,
    ) -> None:
        self._fresh = fresh
        self._stage = stage
        self._message = message
        self._scope = scope
        self._booted = booted
        self._lock = Lock()
        self._locks: dict[str, Lock] = {}
        self._open: dict[str, _Opened] = {}
        self._made: set[str] = set()

    def pack(self, plan: Plan) -> StatePack:
        """The pack of a plan; a second one who asks for it waits until the first has recorded it.

        Each who asks gives it back by :meth:`release`.

        :raises GuestError: the guest did not reach a phase
        :raises QemuError: QEMU refused or died
        :raises HostError: no space
        :raises Disturbed: the host disturbed each try
        """
        if not self._fresh:
            # one that goes further is as good
            plan = next((longer for longer in further(plan) if _path(recording_key(longer)).exists()), plan)
        key = recording_key(plan)
        with self._lock:
            lock = self._locks.setdefault(key, Lock())
        with lock:
            with self._lock:
                opened = self._open.get(key)
                if opened is not None:
                    opened.users += 1
                    return opened.pack
            pack = self._kept(plan, key) or self._recorded(plan, key)
            _keep_drivers(pack)
            with self._lock:
                self._open[key] = _Opened(pack)
            return pack

    def release(self, pack: StatePack) -> None:
        """Give a pack back; one that did not come from here is left as it is."""
        with self._lock:
            key = next((key for key, opened in self._open.items() if opened.pack is pack), None)
            if key is None:
                return
            self._open[key].users -= 1
            if self._open[key].users:
                return
            del self._open[key]
        pack.close()

    def _kept(self, plan: Plan, key: str) -> StatePack | None:
        if self._fresh and key not in self._made:
            return None
        path = _path(key)
        try:
            pack = StatePack(path)
        except PackError as error:
            if path.exists():
                self._message(f"recording anew: {error}")
            return None
        if pack.manifest.host:
            return pack
        self._message(f"recording anew: {path} was made before recordings held the facts of their host")
        pack.close()
        return None

    def _recorded(self, plan: Plan, key: str) -> StatePack:
        shutil.rmtree(_path(key), ignore_errors=True)
        who = f"{plan.machine} on {plan.binary.version}"
        host = facts_of(plan)
        stage = self._stage
        try:
            record(
                plan,
                _path(key),
                lambda phase: stage(f"recording {who}: {phase}"),
                host=host,
                scope=self._scope,
                booted=partial(self._booted, plan),
            )
        except CutShort as error:
            if error.kept:
                self._keep_as(recording_key(replace(plan, phases=error.kept)), _path(key))
            raise
        self._made.add(key)
        return StatePack(_path(key))

    def _keep_as(self, key: str, made: Path) -> None:
        """Let a recording be found by the phases that it has."""
        shutil.rmtree(_path(key), ignore_errors=True)
        with contextlib.suppress(OSError):  # somebody else's is there now, and is as good
            made.rename(_path(key))
        shutil.rmtree(made, ignore_errors=True)
        self._made.add(key)


def _path(key: str) -> Path:
    return cache_root() / "packs" / key


def _keep_drivers(pack: StatePack) -> None:
    """What recorded guests bound is known when their recordings are gone."""
    for device in pack.manifest.devices:
        if device.drivers:
            key = _drivers_key(pack.manifest.qemu["sha256"], pack.manifest.machine, device.recipe)
            if kept_answer(key) != device.drivers:
                keep_answer(key, device.drivers)


def recorded_driver(binary: QemuBinary, machine: str, device: Device) -> str | None:
    """The driver that a guest has for a device: that which its recipe names, else that which a recorded guest bound.

    :param machine: versioned machine type
    :returns: None where no guest has bound one yet
    """
    drivers: list[str] = list(device.drivers) or kept_answer(_drivers_key(binary.sha256, machine, device)) or []
    if drivers and device.subject is not device.attachments[0]:
        # it is plugged into the first one; a disk or keys of one on USB come behind it
        if _HUB not in drivers:
            return drivers[-1]
        return next((driver for driver in drivers[drivers.index(_HUB) :] if driver != _HUB), _HUB)
    return next((driver for driver in drivers if driver.replace("_", "-") != _VIRTIO_BUS), None)


def _drivers_key(qemu: str, machine: str, device: Device) -> str:
    text = json.dumps([qemu, machine, asdict(device)], sort_keys=True, default=_plain)
    return f"drivers/{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def planned_guests(
    machine: str, family: str, devices: Sequence[Device], phases: Sequence[str] = USUAL_PHASES
) -> Planned:
    """The guests that some devices need on a machine, before it is known what they boot.

    :param phases: that are wanted
    """
    base = GuestPlan(machine=machine, family=family, memory_mib=1)
    return plan_guests(architecture_of(machine).buses.get(family), base, devices, failing="io-error" in phases)


def recording_plan(
    *, binary: QemuBinary, accel: str, guest: Guest, planned: PlannedGuest, phases: Sequence[str]
) -> Plan:
    """What to record for a planned guest: those of the phases that its devices reach, in the guest's order."""
    sized = planned.plan.model_copy(update={"cpus": guest.cpus, "memory_mib": guest.memory_mib})
    return Plan(
        binary=binary,
        accel=accel,
        guest=guest,
        planned=booting(replace(planned, plan=sized), guest),
        phases=tuple(reached(planned, phases)),
    )


def booting(planned: PlannedGuest, guest: Guest) -> PlannedGuest:
    """A planned guest that boots this program's own."""
    words = [
        *guest.machines.get(planned.plan.family, ()),
        *(word for device in planned.devices for word in device.cmdline),
    ]
    update = {
        "kernel": guest.identity["kernel"]["sha256"],
        "initramfs": guest.identity["initramfs"]["sha256"],
        "cmdline": " ".join([guest.cmdline, *dict.fromkeys(words)]),
    }
    return replace(planned, plan=planned.plan.model_copy(update=update))


def reached(planned: PlannedGuest, phases: Sequence[str]) -> list[str]:
    """Those phases that any device of a guest has something to do in; a guest without any goes through all."""
    return [phase for phase in phases if not planned.devices or any(d.reaches(phase) for d in planned.devices)]


def further(plan: Plan) -> list[Plan]:
    """Plans of the same guest that go on behind the last phase of this one, the longest first."""
    usual, count = tuple(reached(plan.planned, USUAL_PHASES)), len(plan.phases)
    if plan.phases != usual[:count]:
        return []
    return [replace(plan, phases=usual[:end]) for end in range(len(usual), count, -1)]


def make_recording(
    *,
    binary: QemuBinary,
    machine: str,
    accel: str,
    guest: Guest,
    devices: Sequence[Device],
    phases: Sequence[str],
    path: Path,
    stage: Say,
    kvm: AccelState | None = None,
) -> Path:
    """Record one guest outside a matrix.

    :param kvm: what came of running code under KVM, for the facts of this host
    :raises UsageError: a device is not to be had on this machine with this QEMU, or they need more than one guest
    """
    family, name = machine_names(binary, machine)
    planned = planned_guests(name, family, devices)
    lacking = {device.name: missing(device, binary, machine, family) for device in devices} | planned.refused
    for device_name, lack in lacking.items():
        if lack is not None:
            raise Unrecordable(device_name, name, lack)
    for device in devices:
        drivers = lacking_drivers(device, guest)
        if drivers is not None:
            raise UsageError(f"cannot record {device.name} on {name}: {drivers}")
    if len(planned.guests) > 1:
        apart = "; ".join(", ".join(d.name for d in each.devices if not d.rest) for each in planned.guests)
        raise UsageError(f"cannot record these devices in one guest, only apart: {apart}")
    plan = recording_plan(binary=binary, accel=accel, guest=guest, planned=planned.guests[0], phases=phases)
    host = facts_of(plan, kvm)
    return record(plan, path, lambda phase: stage(f"recording {name}: {phase}"), host=host)


def facts_of(plan: Plan, kvm: AccelState | None = None) -> HostFacts:
    """What a pack says of the host and the QEMU that recorded it, its own dump of vmstates among it."""
    facts = collect_facts([plan.binary], machine=plan.build(), accel=kvm)
    try:
        return {**facts, VMSTATE: dump_vmstate(plan.binary, plan.machine)}
    except QemuError as error:
        facts["unknown"][VMSTATE] = not_known(error)
        return facts


def recording_key(plan: Plan) -> str:
    """Names a kept recording by everything that went into it."""
    parts = {
        "format": _RECORDING_FORMAT,
        "qemu": plan.binary.sha256,
        "accel": plan.accel,
        "guest": dict(plan.guest.identity),
        "plan": plan.planned.plan.model_dump(mode="json"),
        "devices": [asdict(device) for device in plan.planned.devices],
        "phases": plan.phases,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).hexdigest()
    return f"{plan.machine}-{plan.binary.version}-{digest[:16]}"


def _plain(value: object) -> object:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else sorted(value)  # type: ignore[call-overload]


def machine_names(binary: QemuBinary, wanted: str) -> tuple[str, str]:
    """Family and versioned name; what is not there keeps the name it was asked by."""
    found = binary.machine(wanted)
    if found is None:
        return wanted, wanted
    family = family_of(found.name)
    return (family if family != found.name else found.alias or found.name), found.name


def lacking_drivers(device: Device, guest: Guest) -> str | None:
    """Which drivers the guest has not, and what to do; None when it has all."""
    there = guest.identity["drivers"]
    lacking = [driver for driver in device.drivers if driver not in there]
    if not lacking:
        return None
    return (
        f"the guest has no driver {', '.join(lacking)}: name it under 'drivers' in the guest's recipe, and give that "
        f"with --guest FILE; it has {', '.join(sorted(there))}"
    )


def missing(device: Device, binary: QemuBinary, machine: str, family: str) -> Lack | None:
    """Why a build cannot have a device on a machine, or None when it can."""
    lack = partial(Lack, machine=machine, qemu=binary.version)
    if binary.machine(machine) is None:
        return lack(what=Lacks.MACHINE)
    lacking = tuple(name for name in device.types(family) if name not in binary.devices)
    return lack(what=Lacks.TYPES, names=lacking) if lacking else lacking_program(device.backends.values())
