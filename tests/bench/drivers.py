# SPDX-License-Identifier: GPL-2.0-or-later
"""How many device types of a QEMU have their driver bound, and how many are busy, in the guests of ``--device all``.

``python tests/bench/drivers.py [--qemu Q] [--machine pc,q35] [--device PATTERN,...] [--steps] [--json FILE]``

The guests are those that ``postload matrix --device all`` has recorded, or records here: a device counts as bound or
busy where its recording holds that phase. A type counts once, with whichever of its variants gets so far. At the end
stand the sums by class, and each type that has no driver, or does not move, with what the guest said.

``--steps`` records nothing: the same guests are booted, and taken through the commands of ``guests/lib/auto.sh`` one by
one, each with its time. Ends with 1 when a command failed, which is another thing than having nothing to do.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from harness.arch import Architecture, architecture_of
from harness.devices.device import STEPS, Device
from harness.devices.phases import NOTHING_TO_DO_STATUS, Missed, MissedPhases, Unreached
from harness.devices.recipe import load_recipes
from harness.devices.rules import Status
from harness.engines.schedule import LoadCount, Schedule
from harness.errors import GuestError, HarnessError
from harness.guests.build import Guest, build_guest
from harness.guests.console import Console
from harness.guests.machine import Boot, Machine, firmware_sink
from harness.guests.plan import guest_command
from harness.guests.planner import PlannedGuest
from harness.guests.recipe import load_recipe
from harness.names import USUAL_PHASES
from harness.qemu.binary import QemuBinary, find_binary, probe_binary
from harness.qemu.process import new_workdir
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm
from harness.results.answer import Seen
from harness.results.document import Qemu
from harness.results.key import Route
from harness.results.plan import plan_cells
from harness.state.catalogue import DeviceTrial, Offer, offer_of
from harness.state.owners import settled
from harness.state.recordings import Recordings, machine_names, missing, planned_guests, recording_plan
from harness.state.transforms import GuestMode
from harness.work.guests import GuestDue, GuestRecorder

ORDER = ("bind", "busy", "check", "life", "idle", "unbind", "rebind", "life")
#: Phase that a step belongs to.
PHASE = {"bind": "bound", "busy": "busy", "check": "busy", "idle": "unbound", "unbind": "unbound", "rebind": "rebound"}


@dataclass(slots=True, kw_only=True)
class Row:
    """One device on one machine.

    :param lacks: by phase, the step that it ended at, how, and what was said
    :param seconds: by step
    """

    device: str
    type: str
    category: str
    machine: str
    qemu: str
    lost: str = ""
    lacks: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def reached(self, phase: str) -> bool:
        return not self.lost and phase not in self.lacks


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One machine of one QEMU."""

    binary: QemuBinary
    machine: str
    offer: Offer
    scope: ProcessScope

    def guests(self, patterns: Sequence[str], jobs: int) -> list[PlannedGuest]:
        """Those that a run of all devices has, of which some devices are looked at."""
        family, name = machine_names(self.binary, self.machine)
        trial = DeviceTrial(binary=self.binary, machine=self.machine, accel="tcg", scope=self.scope)
        derived = [d for name, d in self.offer.devices.items() if name not in self.offer.recipes]
        tried = trial.run(derived, jobs, lambda _: None)
        judged = [d for d in derived if tried[d.name].status is Status.JUDGED]
        devices = [d for d in (*judged, *load_recipes().devices.values()) if not missing(d, self.binary, name, family)]
        planned = planned_guests(name, family, devices)
        found = []
        for guest in planned.guests:
            wanted = [name for name in guest.names if any(fnmatchcase(name, each) for each in patterns)]
            if wanted:
                found.append(guest.only(wanted) if patterns != ["*"] else guest)
        return found

    def row(self, device: Device) -> Row:
        """A device, as far as is known before it was tried."""
        kind = device.subject.type if device.subject else ""
        category = self.offer.types[kind].category if kind in self.offer.types else ""
        qemu = self.binary.version
        return Row(device=device.name, type=kind, category=category, machine=self.machine, qemu=qemu)

    def rows(self, devices: Iterable[Device]) -> dict[str, Row]:
        return {device.name: self.row(device) for device in devices if not device.rest}

    def recorded(self, guest: PlannedGuest) -> list[Row]:
        """What the recording of a guest holds, and of those that come in its place."""
        family, name = machine_names(self.binary, self.machine)
        identity = Qemu(**self.binary.identity(), label=self.binary.version)
        seen = Seen(machine=name, family=family, binary=self.binary, recorder=identity, loader=identity)
        plans = plan_cells(
            route=Route(recorder="", loader=""),
            machine=name,
            devices=guest.names,
            phases=USUAL_PHASES,
            schedules=[Schedule.SAME],
            guest_modes=[GuestMode.RUNNING],
            loads=LoadCount(each=1),
        )
        say = lambda text: print(f"  {text}", file=sys.stderr, flush=True)  # noqa: E731
        recordings = Recordings(fresh=False, stage=say, message=say, scope=self.scope)
        recorder = GuestRecorder(recordings=recordings, make=made, accel="tcg", phases=USUAL_PHASES, scope=self.scope)
        rows = self.rows(guest.devices)
        dues = [GuestDue(recorder=self.binary, guest=guest, seen=seen, plans=tuple(plans))]
        while dues:
            outcome = recorder.record(dues.pop(0))
            dues += outcome.more
            for lost, why in (*outcome.refused, *outcome.lost):
                for plan in lost:
                    rows[plan.device].lost = str(why)
            for model in outcome.pack.manifest.devices if outcome.pack else ():
                if model.name in rows and any(plan.device == model.name for plan in outcome.plans):
                    rows[model.name].lacks = {u.phase: (u.step, u.how, u.said) for u in model.unreached}
        return list(rows.values())

    def stepped(self, guest: PlannedGuest) -> list[Row]:
        """Boot a guest, and anew without a device that its shell was lost with."""
        left, owners = settled(self.binary, guest, "tcg", self.scope)
        rows = self.rows(guest.devices)
        for name, lack in owners.refused.items():
            rows[name].lost = str(lack)
        while left.names:
            lost = self._boot(left, rows)
            if not lost:
                break
            left = left.without({lost})
        return list(rows.values())

    def _boot(self, planned: PlannedGuest, rows: dict[str, Row]) -> str:
        """Take all devices of one guest through their steps; the one that it was lost with, if any."""
        guest = made(architecture_of(planned.plan.machine), planned.wide)
        plan = recording_plan(binary=self.binary, accel="tcg", guest=guest, planned=planned, phases=USUAL_PHASES)
        machine = Machine(
            plan=plan.planned.plan, accel="tcg", boot=Boot(kernel=guest.kernel, initramfs=guest.initramfs)
        )
        workdir = new_workdir()
        machine.make_files(workdir)
        began = time.monotonic()
        with Vm(machine.command(self.binary.path, workdir, firmware_sink()), workdir=workdir, scope=self.scope) as vm:
            vm.qmp("cont")
            console = Console(vm.console, vm.process.clock)
            try:
                console.wait_ready(240)
            except GuestError as error:
                for name in planned.names:
                    rows[name].lost = str(error)
                return ""
            devices = [device for device in planned.devices if not device.rest]
            for device in devices:
                rows[device.name].lacks = {}
            say(f"{self.machine}: {len(devices)} devices, ready in {time.monotonic() - began:.1f} s")
            lost = steps(console, devices, plan.planned, rows)
            if lost:
                say(vm.console_text()[-3000:])
                return lost
            say(f"{self.machine}: done after {time.monotonic() - began:.1f} s; {free(console)}")
        return ""


def say(text: str) -> None:
    """Tell what is being done."""
    print(f"  {text}", file=sys.stderr, flush=True)


def made(architecture: Architecture, wide: bool) -> Guest:
    """The guest that is booted."""
    recipe = load_recipe(architecture=architecture)
    return build_guest(recipe.widened() if wide else recipe)


def free(console: Console) -> str:
    """Memory that is left, and what the kernel complained of."""
    return " ".join(
        console.run(
            "grep MemAvailable /proc/meminfo; dmesg | grep -ciE 'key was rejected|kernel panic|oops:|BUG:' ; true"
        ).split()
    )


def steps(console: Console, devices: Sequence[Device], plan: PlannedGuest, rows: dict[str, Row]) -> str:
    """Each step for each device that got so far; the device whose command did not come back, if any."""
    missed = MissedPhases()
    moving: set[str] = set()
    for number, step in enumerate(ORDER):
        for device in devices:
            phase = PHASE.get(step, "busy" if number < len(ORDER) - 1 else "rebound")
            if phase in STEPS and not device.reaches(phase):
                missed.ends(device.name, Unreached(phase=phase, how=Missed.NOTHING_TO_DO, step=step, said="no command"))
            if not missed.goes_on(device.name, phase) or (step == "idle" and device.name not in moving):
                continue
            began = time.monotonic()
            try:
                answer = console.ask(guest_command(device, step, plan.plan), 90)
            except GuestError as error:
                rows[device.name].lost = f"{step}: {error}"
                return device.name
            rows[device.name].seconds[f"{number}{step}"] = round(time.monotonic() - began, 1)
            if step == "busy" and not answer.status:
                moving.add(device.name)
            if answer.status:
                how = Missed.NOTHING_TO_DO if answer.status == NOTHING_TO_DO_STATUS else Missed.FAILED
                missed.ends(device.name, Unreached(phase=phase, how=how, step=step, said=answer.said))
    for device in devices:
        rows[device.name].lacks = {p: (u.step, u.how, u.said) for p, u in missed.of(device.name).items()}
    return ""


def print_rows(rows: Sequence[Row]) -> None:
    """Each device, with where it ended and why."""
    for row in sorted(rows, key=lambda row: (row.machine, row.category, row.device)):
        marks = "".join("x" if row.reached(phase) else "." for phase in ("bound", "busy", "unbound", "rebound"))
        slow = " ".join(f"{step}={s:g}" for step, s in row.seconds.items() if s >= 2)
        print(f"{row.machine:4} {row.category:13} {row.device:34} {marks} {slow}")
        if row.lost:
            print(f"       LOST {row.lost[-300:]}")
        shown = set()
        for phase, (step, how, said) in row.lacks.items():
            if (step, said) not in shown:
                shown.add((step, said))
                print(f"       {phase}: {step} {how}: {' / '.join(said.split(chr(10)))[:300]}")


def print_sums(rows: Sequence[Row]) -> None:
    """By class: types, those with a driver, those that move."""
    types = {(row.category, row.type) for row in rows}
    bound = {(row.category, row.type) for row in rows if row.reached("bound")}
    busy = {(row.category, row.type) for row in rows if row.reached("busy")}
    sums = [Counter(category for category, _ in found) for found in (types, bound, busy)]
    print(f"\n{'class':16}{'types':>7}{'bound':>7}{'busy':>7}")
    for category in sorted(sums[0]):
        print(f"{category:16}" + "".join(f"{each[category]:7}" for each in sums))
    print(f"{'all':16}" + "".join(f"{len(found):7}" for found in (types, bound, busy)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--qemu", default="7.2")
    parser.add_argument("--machine", default="pc,q35")
    parser.add_argument("--device", default="*")
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--guests", default="")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    recipes = {name: device for name, device in load_recipes().devices.items() if not device.rest}
    binary = probe_binary(find_binary(given.qemu), set())
    offer = offer_of(binary, recipes)
    binary = replace(binary, devices=frozenset(offer.types))
    rows: list[Row] = []
    with ProcessScope() as scope:
        for machine in given.machine.split(","):
            bench = Bench(binary=binary, machine=machine, offer=offer, scope=scope)
            guests = bench.guests(given.device.split(","), given.jobs)
            say(f"{binary.version} {machine}: {len(guests)} guests of {[len(guest.names) for guest in guests]} devices")
            for number, guest in enumerate(guests):
                if given.guests and str(number) not in given.guests.split(","):
                    continue
                try:
                    rows += bench.stepped(guest) if given.steps else bench.recorded(guest)
                except HarnessError as error:
                    say(f"{type(error).__name__}: {error}")
                if given.json:
                    given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print_rows(rows)
    print_sums(rows)
    return int(any(row.lost or any(how == Missed.FAILED for _, how, _ in row.lacks.values()) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
