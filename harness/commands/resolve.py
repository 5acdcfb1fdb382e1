# SPDX-License-Identifier: GPL-2.0-or-later
"""What options name, made into what the program works with: QEMUs, devices, guests, phases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from harness import names
from harness.arch import ARCHITECTURES, Architecture, architecture_of
from harness.arch.accel import choose_accel
from harness.commands.output import err, print_json
from harness.devices.device import Device, device_types
from harness.devices.recipe import load_recipes
from harness.engines.schedule import Schedule
from harness.errors import UsageError
from harness.guests.build import Guest, GuestMaker, build_guest
from harness.guests.recipe import load_recipe
from harness.packs.pack import StatePack
from harness.qemu.binary import AccelState, QemuBinary, find_binary, host_binary, probe_binary
from harness.qemu.cmdline import Option
from harness.qemu.installed import entry
from harness.qemu.scope import ProcessScope
from harness.report import inspection
from harness.report.console import SafeConsole
from harness.results.key import USUAL_CPUS
from harness.state.recorder import ordered_phases
from harness.state.transforms import GuestMode

#: No --qemu given: the host's own.
HOSTS: list[str | None] = [None]


def run_scope() -> ProcessScope:
    """A scope for what a command starts, within the one of the whole command line, which ends it at the latest."""
    return ProcessScope(click.get_current_context().find_root().ensure_object(ProcessScope))


def binaries_of(
    paths: Sequence[str | None],
    folder: Path | None = None,
    more_types: Sequence[str] = (),
    machines: Sequence[str] = (),
) -> tuple[list[QemuBinary], dict[str, Device]]:
    """The QEMUs of these names or paths, the host's own when there are none, and the devices of a folder of recipes.

    A recipe that is wrong is told of, and left out.

    :param machines: what the host's own are wanted for: one for each architecture among them
    :param more_types: device types that they are to be asked for beside those of the recipes
    :raises UsageError: one is no QEMU
    """
    recipes = load_recipes(folder)
    for error in recipes.broken.values():
        err.print(f"warning: this device is left out: {error}", style="yellow")
    types = device_types(recipes.devices.values()) | set(more_types)
    return host_binaries(paths, types, machines), dict(recipes.devices)


def host_binaries(paths: Sequence[str | None], types: set[str], machines: Sequence[str] = ()) -> list[QemuBinary]:
    """The QEMUs of these names or paths, the host's own for some machines when there are none.

    :param types: device types that they are asked for
    :raises UsageError: one is no QEMU
    """
    found = [
        (path, given) for given in (paths or HOSTS) for path in ([find_binary(given)] if given else _own(machines))
    ]
    return [replace(probe_binary(path, types), label=_label(given)) for path, given in found]


def _label(given: str | None) -> str:
    """How cells name a QEMU: by the name that the user gave to an own build, else (empty) by its version."""
    installed = entry(given) if given else None
    return installed.name if installed and installed.kind == "path" else ""


def _own(machines: Sequence[str]) -> list[Path]:
    """The host's own QEMUs for some machines, one for each architecture."""
    wanted = {architecture_of(machine).program: None for machine in machines} or {ARCHITECTURES[0].program: None}
    return list(dict.fromkeys(host_binary(program) for program in wanted))


def guest_maker(recipe: str, machines: Sequence[str], cpus: int = USUAL_CPUS) -> GuestMaker:
    """Builds the guest of a machine's architecture; recipes are read at once, so that a wrong one is known before
    anything is done."""
    recipes = {found.name: load_recipe(recipe, found) for found in map(architecture_of, machines)}

    def make(architecture: Architecture, wide: bool) -> Guest:
        found = recipes[architecture.name]
        return replace(build_guest(found.widened() if wide else found), cpus=cpus)

    return make


def common_accel(binaries: Sequence[QemuBinary], wanted: str) -> AccelState:
    """The accelerator of a run: each architecture of guests has its own proof, and the slowest decides.

    :raises HostError: the wanted one does not run
    """
    one_each = {binary.target: binary for binary in reversed(binaries)}.values()
    states = [choose_accel(binary, wanted) for binary in reversed(one_each)]
    return next((state for state in states if state.name == "tcg"), states[0])


def check_machines(binaries: Sequence[QemuBinary], machines: Sequence[str]) -> None:
    """A machine type that no QEMU of the run has is a mistake of the user's.

    :raises UsageError: names it, and what there is
    """
    for name in machines:
        if not any(binary.machine(name) for binary in binaries):
            known = sorted({m.alias or m.name for b in binaries for m in b.machines if m.alias})
            raise UsageError(f"unknown machine {name!r}: {binaries[0].path} has {', '.join(known)} and versioned names")


def rows_and_phases(pack: StatePack, given: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What is to be judged of a pack: the devices and phases that were asked for, or all that it holds.

    :raises UsageError: it does not hold one of them
    """
    recorded = [device.name for device in pack.manifest.devices]
    phases = ordered_phases(given["phases"] or pack.phases, names.PHASES)
    for what, wanted, there in (("device", given["devices"], recorded), ("phase", phases, pack.phases)):
        for name in wanted:
            if name not in there:
                raise UsageError(f"{what} {name!r} is not in {pack.source}: it holds {', '.join(there)}")
    return tuple(given["devices"] or recorded), tuple(phases)


def replay_options(given: dict[str, Any]) -> dict[str, Any]:
    """How to load, as :class:`harness.work.run.Options` names it."""
    return {
        "schedules": members(Schedule, given["schedules"] or names.SCHEDULES, "schedule"),
        "guest_modes": members(GuestMode, given["modes"], "guest mode"),
        "loads": given["loads"],
        "migrations": names_of(names.MIGRATIONS, given["migrations"], "migration"),
        "reset": given["reset"],
        "jobs": given["jobs"],
        "processes": given["processes"],
        "budget_s": given["budget_s"],
        "run_s": given["run_ms"] / 1000,
        "quick": given["quick"],
        "pair": given["confirm"] == "pair",
    }


def overrides(given: Sequence[str]) -> tuple[Option, ...]:
    """``-global`` options from ``DRIVER.PROPERTY=VALUE``.

    :raises UsageError: one is not of that form
    """
    for text in given:
        if not re.fullmatch(r"[A-Za-z0-9._-]+\.[A-Za-z0-9_-]+=[^,]*", text):
            raise UsageError(f"--global {text!r}: expected DRIVER.PROPERTY=VALUE, as virtio-net-pci.mrg_rxbuf=off")
    return tuple(Option(name="global", props={key: value}) for key, _, value in (text.partition("=") for text in given))


def members(kind: Any, wanted: Sequence[str], what: str) -> tuple[Any, ...]:
    """Members of an enum by their values, in its order.

    :raises UsageError: a value is unknown
    """
    return tuple(map(kind, names_of([str(member) for member in kind], wanted, what)))


def names_of(known: Sequence[str], wanted: Sequence[str], what: str) -> tuple[str, ...]:
    """Wanted names, in the order of those that are known.

    :raises UsageError: one is unknown
    """
    for name in wanted:
        if name not in known:
            raise UsageError(f"unknown {what} {name!r}: expected one of {', '.join(known)}")
    return tuple(name for name in known if name in wanted)


def emit(document: dict[str, Any], as_json: bool) -> None:
    """Print what an inspection gave."""
    if as_json:
        print_json(document)
    else:
        inspection.print_document(document, SafeConsole())


def recorded_phases(asked: Sequence[str], machine: str) -> tuple[str, ...]:
    """Phases to record, in the order in which a guest gets to them.

    :param asked: by the user; empty takes the usual ones
    :raises UsageError: where the machine has none of them
    """
    phases = tuple(ordered_phases(asked or names.USUAL_PHASES))
    if not any(map(architecture_of(machine).has_phase, phases)):
        raise UsageError(f"{machine} has no phase {', '.join(phases)}: it starts its kernel without firmware")
    return phases
