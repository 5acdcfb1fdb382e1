# SPDX-License-Identifier: GPL-2.0-or-later
"""What several commands share: options, and how they are read."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from harness.arch import ARCHITECTURES, Architecture, architecture_of
from harness.arch.accel import choose_accel
from harness.devices.device import Device, device_types
from harness.devices.recipe import load_recipes
from harness.engines.schedule import SCHEDULES, Schedule
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
from harness.results.plan import DEFAULT_LOADS
from harness.state.recorder import PHASES, ordered_phases
from harness.state.transforms import GuestMode

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_OUT = Path("postload-out")
#: How long a guest runs after each load, in milliseconds: long enough to take interrupts and to touch its disks.
DEFAULT_RUN_MS = 2.0

#: No --qemu given: the host's own.
HOSTS: list[str | None] = [None]

#: Progress, messages and errors; stdout is for what was asked for.
err = SafeConsole(stderr=True)


def names(_context: click.Context, _parameter: click.Parameter, value: tuple[str, ...] | str | None) -> list[str]:
    """Comma-separated and repeated values as one list, each once."""
    given = [value] if isinstance(value, str) else list(value or ())
    return list(dict.fromkeys(name.strip() for part in given for name in part.split(",") if name.strip()))


qemu_option = click.option(
    "--qemu", "qemus", multiple=True, metavar="QEMU", help="Path or installed name; may be given again."
)
machine_option = click.option(
    "--machine",
    "machines",
    multiple=True,
    default=("pc,q35",),
    callback=names,
    help="Machine types; pc,q35. Also virt (aarch64).",
)
device_option = click.option(
    "--device", "devices", multiple=True, callback=names, help="Devices by name or type, or all."
)
phase_option = click.option(
    "--phase", "phases", multiple=True, callback=names, help=f"Phases; {','.join(PHASES)}. Also io-error."
)
schedule_option = click.option(
    "--schedule", "schedules", multiple=True, callback=names, help=f"Schedules; {','.join(SCHEDULES)}."
)
mode_option = click.option(
    "--guest-mode", "modes", multiple=True, default=("running",), callback=names, help="running, parked, or both."
)
loads_option = click.option(
    "--loads", type=click.IntRange(1), default=DEFAULT_LOADS, show_default=True, help="Loads for each cell."
)
processes_option = click.option(
    "--processes", is_flag=True, help="Judge in processes of their own instead of threads: slower, and nothing shared."
)
budget_option = click.option(
    "--budget",
    "budget_s",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Give cells up that are judged together and take longer. [default: no limit]",
)
jobs_option = click.option(
    "--jobs", type=click.IntRange(1, 64), default=lambda: os.cpu_count() or 1, help="Cells at a time; one a core."
)
run_ms_option = click.option(
    "--run-ms", type=click.FloatRange(0), default=DEFAULT_RUN_MS, show_default=True, help="Guest time after a load."
)
accel_option = click.option(
    "--accel",
    type=click.Choice(["auto", "kvm", "tcg"]),
    default="auto",
    show_default=True,
    help="auto: KVM where it runs code at speed, else TCG.",
)
guest_option = click.option(
    "--guest", default="debian", show_default=True, help="Recipe: a name in guests/, or a YAML file."
)
cpus_option = click.option(
    "--cpus", type=click.IntRange(1, 64), default=USUAL_CPUS, show_default=True, help="CPUs of the guest."
)
profiles_option = click.option(
    "--profiles", type=click.Path(path_type=Path), help="Folder of device recipes; devices/."
)
quick_option = click.option("--quick", is_flag=True, help="Loads only: no control and no oracle beyond the answers.")
confirm_option = click.option(
    "--confirm", type=click.Choice(["pair"]), help="Repeat what breaks with a real primary and a real secondary."
)
global_option = click.option(
    "--global",
    "globals_",
    multiple=True,
    metavar="DRIVER.PROPERTY=VALUE",
    help="A property of the QEMU that loads, as its own -global; may be given again.",
)
run_option = click.option(
    "--run",
    type=click.Path(path_type=Path),
    default=DEFAULT_OUT,
    show_default=True,
    metavar="DIR",
    help="Folder of the run that has the cell.",
)
known_option = click.option(
    "--known", type=click.Path(path_type=Path), metavar="FILE", help="Known issues: exit 0 when nothing else failed."
)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, all else on stderr.")
out_option = click.option(
    "--out", type=click.Path(path_type=Path), default=DEFAULT_OUT, show_default=True, help="Reports."
)


def run_scope() -> ProcessScope:
    """A scope for what a command starts, within the one of the whole command line, which ends it at the latest."""
    return ProcessScope(click.get_current_context().find_root().ensure_object(ProcessScope))


def shared(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, shown in this order."""

    def apply(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return apply


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

    def make(architecture: Architecture) -> Guest:
        return replace(build_guest(recipes[architecture.name]), cpus=cpus)

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
    phases = ordered_phases(given["phases"] or pack.phases)
    for what, wanted, there in (("device", given["devices"], recorded), ("phase", phases, pack.phases)):
        for name in wanted:
            if name not in there:
                raise UsageError(f"{what} {name!r} is not in {pack.source}: it holds {', '.join(there)}")
    return tuple(given["devices"] or recorded), tuple(phases)


def replay_options(given: dict[str, Any]) -> dict[str, Any]:
    """How to load, as :class:`harness.work.run.Options` names it."""
    return {
        "schedules": members(Schedule, given["schedules"] or list(SCHEDULES), "schedule"),
        "guest_modes": members(GuestMode, given["modes"], "guest mode"),
        "loads": given["loads"],
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


def members(kind: Any, names: list[str], what: str) -> tuple[Any, ...]:
    """Members of an enum by their values, in its order.

    :raises UsageError: a value is unknown
    """
    known = [str(member) for member in kind]
    for name in names:
        if name not in known:
            raise UsageError(f"unknown {what} {name!r}: expected one of {', '.join(known)}")
    return tuple(member for member in kind if str(member) in names)


def emit(document: dict[str, Any], as_json: bool) -> None:
    """Print what an inspection gave."""
    if as_json:
        print_json(document)
    else:
        inspection.print_document(document, SafeConsole())


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
