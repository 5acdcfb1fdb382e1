# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings that are made once: by what they are made of, they are found again in the cache."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from harness.arch import family_of
from harness.cache import cache_root
from harness.devices.profile import Profile
from harness.errors import PackError, QemuError, UsageError
from harness.facts import collect_facts
from harness.guests.build import Guest
from harness.packs.pack import StatePack
from harness.qemu.binary import AccelState, QemuBinary
from harness.qemu.scope import ProcessScope
from harness.qemu.vmstate import dump_vmstate
from harness.state.recorder import Plan, record

#: Part of the key of a kept recording: raised when recordings of older programs shall not be used again.
_RECORDING_FORMAT = 1
#: Key of a pack's host facts that holds what ``-dump-vmstate`` of the recording QEMU gave.
VMSTATE = "vmstate"

Say = Callable[[str], None]


class Recordings:
    """The packs of a run, each opened once; recorded when the cache does not hold it.

    :param fresh: record anew even when a recording is kept
    :param stage: told what is being recorded
    :param message: told why a kept one is not used
    :param scope: of the run, for the QEMUs that record
    """

    def __init__(self, *, fresh: bool, stage: Say, message: Say, scope: ProcessScope | None = None) -> None:
        self._fresh = fresh
        self._stage = stage
        self._message = message
        self._scope = scope
        self._lock = Lock()
        self._locks: dict[str, Lock] = {}
        self._open: dict[str, StatePack] = {}

    def pack(self, plan: Plan) -> StatePack:
        """The pack of a plan; a second one who asks for it waits until the first has recorded it.

        :raises GuestError: the guest did not reach a phase
        :raises QemuError: QEMU refused or died
        :raises HostError: no space
        """
        key = recording_key(plan)
        with self._lock:
            lock = self._locks.setdefault(key, Lock())
        with lock:
            if key not in self._open:
                self._open[key] = self._kept(plan, key) or self._recorded(plan, key)
            return self._open[key]

    def _kept(self, plan: Plan, key: str) -> StatePack | None:
        if self._fresh:
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
        record(plan, _path(key), lambda phase: stage(f"recording {who}: {phase}"), host=host, scope=self._scope)
        return StatePack(_path(key))


def _path(key: str) -> Path:
    return cache_root() / "packs" / key


def make_recording(
    *,
    binary: QemuBinary,
    machine: str,
    accel: str,
    guest: Guest,
    profiles: Sequence[Profile],
    phases: Sequence[str],
    path: Path,
    stage: Say,
    kvm: AccelState | None = None,
) -> Path:
    """Record one guest outside a matrix.

    :param kvm: what came of running code under KVM, for the facts of this host
    :raises UsageError: a device is not to be had on this machine with this QEMU
    """
    family, name = machine_names(binary, machine)
    for profile in profiles:
        reason = missing(profile, binary, machine, family)
        if reason is not None:
            raise UsageError(f"cannot record {profile.name} on {name}: {reason}")
    plan = Plan(
        binary=binary,
        machine=name,
        family=family,
        accel=accel,
        guest=guest,
        profiles=tuple(profiles),
        phases=tuple(phases),
    )
    host = facts_of(plan, kvm)
    return record(plan, path, lambda phase: stage(f"recording {name}: {phase}"), host=host)


def facts_of(plan: Plan, kvm: AccelState | None = None) -> dict[str, Any]:
    """What a pack says of the host and the QEMU that recorded it, its own dump of vmstates among it."""
    facts = collect_facts([plan.binary], machine=plan.build(), accel=kvm)
    try:
        return {**facts, VMSTATE: dump_vmstate(plan.binary, plan.machine)}
    except QemuError as error:
        facts["unknown"][VMSTATE] = str(error)
        return facts


def recording_key(plan: Plan) -> str:
    """Names a kept recording by everything that went into it."""
    parts = {
        "format": _RECORDING_FORMAT,
        "qemu": plan.binary.sha256,
        "machine": plan.machine,
        "accel": plan.accel,
        "guest": dict(plan.guest.identity),
        "cmdline": [plan.guest.cmdline, plan.guest.memory_mib, plan.guest.cpus],
        "profiles": [profile.model_dump(mode="json") for profile in plan.profiles],
        "phases": plan.phases,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"{plan.machine}-{plan.binary.version}-{digest[:16]}"


def machine_names(binary: QemuBinary, wanted: str) -> tuple[str, str]:
    """Family and versioned name; what is not there keeps the name it was asked by."""
    found = binary.machine(wanted)
    if found is None:
        return wanted, wanted
    family = family_of(found.name)
    return (family if family != found.name else found.alias or found.name), found.name


def missing(profile: Profile, binary: QemuBinary, machine: str, family: str) -> str | None:
    """Why a build cannot have a device on a machine, or None when it can."""
    if binary.machine(machine) is None:
        return f"QEMU {binary.version} has no machine {machine}"
    return profile.missing(family, binary)
