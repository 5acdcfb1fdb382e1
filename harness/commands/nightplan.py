# SPDX-License-Identifier: GPL-2.0-or-later
"""What a night is asked for, made into what a run works with; a QEMU that is not there costs its own cells alone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.arch import architecture_of
from harness.commands.resolve import check_machines, common_accel, guest_maker, host_binaries
from harness.commands.selection import select
from harness.devices.device import device_types
from harness.devices.recipe import load_recipes
from harness.errors import HostError, PostloadError, Stopped, UsageError
from harness.guests.build import GuestMaker
from harness.nights.config import NightConfig, OwnBuild
from harness.nights.document import AbsentQemu
from harness.qemu.binary import AccelState, QemuBinary
from harness.results.document import Qemu
from harness.results.key import CellKey
from harness.state.recorder import ordered_phases
from harness.work.asked import Options, labelled
from harness.work.shards import foresee


@dataclass(frozen=True, slots=True, kw_only=True)
class NightPlan:
    """All of a night before anything is started.

    :param foreseen: the cells, in the order of a report
    :param qemus: of the night, by the labels that cells have for them
    :param absent: QEMUs that are not there
    """

    config: NightConfig
    options: Options
    accel: AccelState
    guest: GuestMaker
    foreseen: tuple[CellKey, ...]
    qemus: tuple[Qemu, ...]
    absent: tuple[AbsentQemu, ...]

    @property
    def name(self) -> str:
        """Names what is asked for: another build, or another question, is another night."""
        asked = [self.config.asked, self.accel.name, *(f"{qemu.label} {qemu.sha256}" for qemu in self.qemus)]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def plan_night(config: NightConfig) -> NightPlan:
    """Find the QEMUs, devices and cells.

    :raises UsageError: a name of the configuration means nothing
    :raises HostError: none of the QEMUs is there
    """
    recipes = load_recipes(config.profiles)
    binaries, absent = _binaries(config, device_types(recipes.devices.values()))
    machines = [name for name in config.machines if not absent or any(binary.machine(name) for binary in binaries)]
    check_machines(binaries, machines)
    accel, jobs = common_accel(binaries, config.accel), config.jobs or os.cpu_count() or 1
    selection = select(binaries, machines, recipes.devices, config.devices, accel.name, jobs)
    options = Options(
        binaries=selection.binaries,
        accel=accel.name,
        machines=tuple(machines),
        profiles=selection.planned_with(recipes.devices),
        devices=selection.recipes,
        derived=selection.derived,
        phases=tuple(ordered_phases(config.phases)),
        schedules=config.schedules,
        guest_modes=config.guest_modes,
        loads=config.loads,
        jobs=jobs,
        run_s=config.run_ms / 1000,
        quick=config.quick,
        migrations=config.migrations,
        reset=config.reset,
        cpus=config.cpus,
        canary=True,
    )
    return NightPlan(
        config=config,
        options=options,
        accel=accel,
        guest=guest_maker(config.guest, machines, config.cpus),
        foreseen=tuple(dict.fromkeys(key for guest in foresee(options) for key in guest.cells)),
        qemus=labelled(selection.binaries),
        absent=absent,
    )


def _binaries(config: NightConfig, types: set[str]) -> tuple[list[QemuBinary], tuple[AbsentQemu, ...]]:
    found: list[QemuBinary] = []
    absent: list[AbsentQemu] = []
    for qemu in config.qemus:
        name = qemu.name if isinstance(qemu, OwnBuild) else qemu
        try:
            for binary in _of(qemu, config.machines, types):
                same = next((each for each in found if each.sha256 == binary.sha256), None)
                if same is None:
                    found.append(binary)
                else:
                    absent.append(AbsentQemu(name=name, said=_said_of_same(same)))
        except Stopped:
            raise
        except PostloadError as error:
            absent.append(AbsentQemu(name=name, said=str(error)))
    if not found:
        raise HostError("; ".join(f"{each.name}: {each.said}" for each in absent))
    return found, tuple(absent)


def _said_of_same(other: QemuBinary) -> str:
    """Cells are named by one name of a build: those of the further one would be missed and nobody be told."""
    return f"it is the same build as {other.label or other.version}, and is judged by that name alone"


def _of(qemu: str | OwnBuild, machines: Sequence[str], types: set[str]) -> list[QemuBinary]:
    if isinstance(qemu, str):
        return host_binaries([qemu], types)
    return [replace(binary, label=qemu.name) for binary in host_binaries(_paths(qemu, machines), types)]


def _paths(qemu: OwnBuild, machines: Sequence[str]) -> list[str | None]:
    """The programs of an own build: of a tree, those that machines of the night want and that were built.

    :raises UsageError: nothing was built there
    """
    if qemu.tree is None:
        return [str(qemu.path)]
    programs = dict.fromkeys(architecture_of(machine).program.name for machine in machines)
    built: list[Path] = [qemu.tree / program for program in programs if (qemu.tree / program).is_file()]
    if not built:
        raise UsageError(f"{qemu.tree}: nothing was built there: expected {' or '.join(programs)}")
    return [str(path) for path in built]
