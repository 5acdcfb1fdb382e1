# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload adopt``: somebody's VM into a state pack."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.adopt.adopted import check_state, write_adopted
from harness.adopt.commandline import of_process
from harness.adopt.configuration import Configuration
from harness.adopt.domain import read_domain
from harness.adopt.files import command_line_file, domain_file
from harness.adopt.plan import Adopted, adopt_plan, check_adopted, check_cpu, known_to, said_machine
from harness.adopt.recorder import recorder_of
from harness.adopt.recording import for_our_guest, loss, recording_of, without_lost
from harness.adopt.rows import SettledGuest, judged_guest, settled_guest
from harness.adopt.saved import SavedState
from harness.arch import architecture_of, family_of
from harness.arch.accel import choose_accel
from harness.commands.output import err, print_json
from harness.commands.redact import redacted, tell
from harness.commands.resolve import binaries_of, emit, guest_maker, recorded_phases, run_scope
from harness.devices.phases import Missed
from harness.errors import HarnessError, UsageError
from harness.files import temp_dir
from harness.guests.planner import PlannedGuest
from harness.packs.export import new_pack
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.report import inspection
from harness.report.adopted import adopted_document, print_adopted, print_next
from harness.report.console import SafeConsole
from harness.report.containers import open_state
from harness.report.terminal import LiveProgress
from harness.report.text import plural
from harness.state.catalogue import offer_of
from harness.state.recorder import record
from harness.state.recordings import facts_of

#: What names a VM, by parameter.
_SOURCES = {"domain": "--domain", "command_line": "--command-line", "pid": "--pid"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedVm:
    """A VM and the QEMU that it is adopted with.

    :param source: file or process, named in errors
    """

    adopted: Adopted
    judged: PlannedGuest
    binary: QemuBinary
    source: Path


def adopt(given: dict[str, Any]) -> int:
    """Read a configuration, say what becomes of it, and make a pack of it where one is asked for."""
    out: Path | None = given["out"]
    _check(given)
    if out is None:
        _show(_asked(_configuration(given), given), given["as_json"])
        return 0
    if given["redact"]:
        return _redacted(out, given)
    _make(out, given)
    with StatePack(out) as pack:
        emit(inspection.describe_pack(pack), given["as_json"])
        if not given["as_json"]:
            print_next(out, SafeConsole())
        failed = any(lack.how is Missed.FAILED for device in pack.manifest.devices for lack in device.unreached)
    return HarnessError.exit_code if failed else 0


def _check(given: dict[str, Any]) -> None:
    out: Path | None = given["out"]
    named = _named(given)
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} name {len(named)} VMs: give one of them")
    if out is not None and out.exists():
        raise UsageError(f"--out {out}: it exists already; a state pack is never overwritten")
    if given["state"] is not None and out is None:
        raise UsageError(
            "--state goes with --out NAME.pack: a pack is made of it (postload inspect FILE shows it alone)"
        )
    if given["state"] is not None and given["phases"]:
        raise UsageError("--phase is for a guest of postload's: with --state there is the one that the VM was saved in")
    if given["snapshot"] is not None and given["state"] is None:
        raise UsageError("--snapshot goes with --state: it names one of several snapshots in a qcow2 image")
    if given["redact"] and out is None:
        raise UsageError("--redact goes with --out NAME.pack: it says how that is written")
    if given["redact"] and len(given["phases"] or ()) > 1:
        raise UsageError("--redact: expected one --phase, for a pack that is given away has one")


def _make(out: Path, given: dict[str, Any]) -> None:
    if given["state"] is not None:
        _take_state(given["state"], out, given)
    else:
        vm = _asked(_configuration(given), given)
        with LiveProgress(total_cells=0, console=err) as progress:
            _record(vm, out, given, progress)


def _redacted(out: Path, given: dict[str, Any]) -> int:
    """Make it beside, in one phase, and write what can be given away of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with temp_dir(out.parent) as temp:
        _make(temp / "whole", {**given, "phases": given["phases"] or ("bound",)})
        with StatePack(temp / "whole") as pack:
            tell(redacted(pack, out, ()), out, given["as_json"])
    return 0


def _named(given: dict[str, Any]) -> list[str]:
    """The options that name a VM."""
    return [option for name, option in _SOURCES.items() if given[name] is not None]


def _configuration(given: dict[str, Any], saved: SavedState | None = None) -> Configuration:
    """What the user named; where that is nothing, the domain that stands in libvirt's save image."""
    said = _named(given)
    if not said and saved is not None:
        if not saved.domain:
            raise UsageError(
                f"{saved.source}: no libvirt domain is in it: expected one of --domain FILE, --command-line FILE and "
                "--pid PID beside --state"
            )
        return read_domain(saved.domain, str(saved.source))
    if not said:
        raise UsageError("no VM is named: expected --domain FILE, --command-line FILE or --pid PID")
    if given["pid"] is not None:
        return of_process(given["pid"])
    if given["domain"] is not None:
        return domain_file(given["domain"])
    return command_line_file(given["command_line"])


def _asked(configuration: Configuration, given: dict[str, Any], saved_machine: str = "") -> AskedVm:
    """The VM as the QEMU knows it.

    :param saved_machine: the versioned machine type that its state names, where the configuration has an alias or none
    """
    said = said_machine(configuration)
    wanted = given["machine"] or (saved_machine if said in ("", family_of(saved_machine)) else "")
    machine = wanted or said
    binaries, recipes = binaries_of([given["qemu"] or recorder_of(configuration, machine).path])
    binary = binaries[0]
    known = known_to(binary, configuration, wanted)
    adopted = adopt_plan(configuration, known, state=given["state"] is not None)
    check_cpu(adopted, binary, configuration.source)
    check_adopted(adopted, known, binary.path, "tcg")
    return AskedVm(
        adopted=adopted,
        judged=judged_guest(adopted, offer_of(binary, recipes)),
        binary=binary,
        source=Path(configuration.source),
    )


def _show(vm: AskedVm, as_json: bool) -> None:
    plan = vm.judged.plan
    devices = {device.name: [each.id for each in plan.of(device.name)] for device in vm.judged.devices}
    document = adopted_document(vm.adopted.origin, plan.machine, vm.binary.version, devices)
    if as_json:
        print_json(document)
    else:
        print_adopted(document, SafeConsole())


def _record(vm: AskedVm, out: Path, given: dict[str, Any], progress: LiveProgress) -> None:
    accel = choose_accel(vm.binary, given["accel"]).name
    architecture = architecture_of(vm.judged.plan.machine)
    phases = recorded_phases(given["phases"] or (), vm.judged.plan.machine)
    guest = guest_maker(given["guest"], [vm.judged.plan.machine])(architecture, True)
    judged, origin = for_our_guest(vm.judged, vm.adopted.origin, guest.memory_mib)
    progress.stage(f"{vm.source.name}: which sections are whose")
    settled = settled_guest(judged, origin, vm.binary, accel, source=vm.source, scope=run_scope())
    facts = facts_of(recording_of(settled, guest, vm.binary, accel, phases, vm.source))
    who = f"recording {vm.source.name} as {judged.plan.machine}"

    def make(settled: SettledGuest, phases: Sequence[str], path: Path) -> None:
        plan = recording_of(settled, guest, vm.binary, accel, tuple(phases), vm.source)
        devices = plural(len(settled.guest.names), "device")
        record(plan, path, lambda name: progress.stage(f"{who}, {devices}: {name}"), host=facts, scope=run_scope())

    def anew(settled: SettledGuest, phases: Sequence[str]) -> None:
        _remove(out)  # what was recorded of it until a device lost it
        make(settled, phases, out)

    def lost(settled: SettledGuest, phases: Sequence[str]) -> HarnessError | None:
        with temp_dir(out.parent) as temp:
            return loss(lambda: make(settled, phases, temp / "guest"))

    without_lost(settled, phases, anew, lost)


def _take_state(state: Path, out: Path, given: dict[str, Any]) -> None:
    scope = run_scope()
    with (
        new_pack(out) as folder,
        LiveProgress(total_cells=0, console=err) as progress,
    ):
        progress.stage(f"reading {state.name}")
        with open_state(state, folder.parent, snapshot=given["snapshot"]) as saved:
            vm = _asked(_configuration(given, saved), given, saved.machine)
            accel = choose_accel(vm.binary, given["accel"]).name
            check_state(saved, vm.judged.plan.machine)
            progress.stage(f"{vm.source.name}: which sections are whose")
            settled = settled_guest(vm.judged, vm.adopted.origin, vm.binary, accel, source=vm.source, scope=scope)
            progress.stage(f"{state.name}: writing a pack")
            write_adopted(saved, settled, vm.binary, folder, accel=accel, source=vm.source, scope=scope)
            # the mapping goes when nobody holds a page of it
            del saved


def _remove(path: Path) -> None:
    """A pack in either of its forms, where there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
