# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload qualify`` for somebody's VMs: one of them, or a folder of hundreds."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.markup import escape

from harness.adopt.files import found_in
from harness.adopt.recording import for_our_guest, loss, recording_of, without_lost
from harness.adopt.rows import SettledGuest, judged_guest, settled_guest
from harness.arch import Architecture, architecture_of
from harness.arch.accel import choose_accel
from harness.commands.notify import shown_command
from harness.commands.output import err
from harness.commands.qualify import judged_pack, uses_of, write_answer
from harness.commands.resolve import guest_maker, recorded_phases, run_scope
from harness.devices.recipe import load_recipes
from harness.errors import HarnessError, PostloadError, Stopped, UsageError
from harness.guests.build import Guest
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qualify.answer import usual_uses
from harness.qualify.fleet import FleetDoc, Obstacle, Remedied, TriedVm, fleet_doc
from harness.qualify.model import Answer, QualifyDoc, exit_code
from harness.qualify.remedies import is_remediable, settings_of
from harness.qualify.vms import AdoptedVm, Builds, KnownVm, alike, any_loader, look, unjudged_of
from harness.report.console import SafeConsole
from harness.report.fleet import fleet_json, forget_fleet, print_fleet, trying_text, write_fleet
from harness.report.text import plural, were
from harness.results.document import Qemu
from harness.state.catalogue import Offer, offer_of
from harness.state.recordings import Recordings

#: What VMs have decided already, by the names of the parameters.
_OF_VMS = {
    "machines": "--machine", "devices": "--device", "cpus": "--cpus", "both_ways": "--both-ways",
    "profiles": "--profiles",
}  # fmt: skip
#: Migrations, and the uses that they speak of: of many VMs only what decides is asked for.
_LANES = {"plain": "migration", "postcopy": "postcopy"}
#: Below the folder of the fleet: the answers of its VMs.
_VMS = "vms"
_REMEDY = "remedy"
#: A remedy for what broke first may show what breaks next.
_REMEDIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedVm:
    """What came of loading one VM, for all of its devices.

    :param types: of the devices by the names that the document has
    :param folder: where the answer lies, below the fleet's
    :param doubted: sections whose failure says nothing of the VM
    """

    doc: QualifyDoc
    settled: SettledGuest
    types: Mapping[str, str]
    folder: str
    remedied: Remedied | None = None
    doubted: frozenset[str] = frozenset()


def qualify_vms(context: click.Context, pack: Path | None, given: dict[str, Any]) -> int:
    """Returns the exit code of the worst VM.

    :param context: of the command, which knows what was typed and what is a default
    """
    _check(context, pack, given)
    uses = uses_of(given["uses"])
    # who names a schedule wants COLO's answer, whether it decides or not
    given = {**given, "schedule_named": context.get_parameter_source("schedules") is ParameterSource.COMMANDLINE}
    started, began = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    found, skipped = found_in(given["domains"], given["command_lines"], given["pids"], given["folders"])
    if not found:
        raise UsageError("no VM was found: expected libvirt domains or command lines of QEMU")
    builds = Builds(next(iter(given["sources"]), None), given["targets"][0])
    forget_fleet(given["out"])
    known = [look(each, builds) for each in found]
    trial = _Trial(given, uses, builds)
    tried = trial.run(known)
    doc = fleet_doc(
        tried,
        command=("postload", *shown_command(sys.argv[1:])),
        started=started,
        seconds=round(time.monotonic() - began, 3),
        complete=trial.complete,
        loader=Qemu(**any_loader(builds, known).identity()),
        skipped=tuple(skipped),
    )
    return _told(doc, given)


def _told(doc: FleetDoc, given: dict[str, Any]) -> int:
    write_fleet(doc, given["out"])
    if given["as_json"]:
        click.echo(fleet_json(doc), nl=False)
    print_fleet(doc, err if given["as_json"] else SafeConsole())
    each = f", {_VMS}/NAME/qualify.json" if doc.tried else ""
    err.print(f"reports: {escape(str(given['out']))}/fleet.json, fleet.md{each}", soft_wrap=True)
    if not doc.complete:
        err.print(f"postload: interrupted: {were(doc.tried, 'VM')} tried", soft_wrap=True)
    return exit_code(doc.answer) if doc.complete else 3


def _check(context: click.Context, pack: Path | None, given: dict[str, Any]) -> None:
    if pack is not None:
        raise UsageError("a pack is one guest: give PACK, or --domain, --command-line, --pid or --domains, not both")
    if len(given["targets"]) != 1:
        raise UsageError("expected one --to QEMU, which the VMs are to run on")
    if len(given["sources"]) > 1:
        raise UsageError("expected one --from QEMU, which the VMs run on now, or none")
    for name, option in _OF_VMS.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(f"{option} is for guests of this program's own, and a VM has its own")


@dataclass(slots=True)
class _Trial:
    """Loads one VM of each kind, and answers for all of that kind.

    :param complete: False once Ctrl-C was pressed: what is left is not tried
    """

    given: dict[str, Any]
    uses: tuple[str, ...]
    builds: Builds
    complete: bool = True
    _offers: dict[str, Offer] = field(default_factory=dict)
    _guests: dict[str, Guest] = field(default_factory=dict)

    def run(self, known: Sequence[KnownVm]) -> list[TriedVm]:
        """What was found out about each VM, in their order."""
        answers: dict[str, TriedVm] = {}
        groups = alike(known)
        for number, members in enumerate(groups.values(), start=1):
            if not self.given["static"] and self.complete:
                err.print(escape(trying_text(members[0].vm, len(members), number, len(groups))), soft_wrap=True)
            for tried in self._group(members):
                answers[tried.vm.name] = tried
        return [answers.get(each.vm.name) or TriedVm(vm=each.vm, foretold=each.foretold) for each in known]

    def _group(self, members: Sequence[KnownVm]) -> Iterator[TriedVm]:
        first = members[0]
        assert first.guest is not None
        if self.given["static"]:
            yield from (TriedVm(vm=each.vm, foretold=each.foretold) for each in members)
            return
        loaded: LoadedVm | None = None
        obstacle, said = (None, "") if self.complete else (Obstacle.STOPPED, "")
        if self.complete and not any(each.keeps_all for each in first.foretold):
            try:
                loaded = self._load(first, first.guest)
            except (KeyboardInterrupt, Stopped):
                self.complete, obstacle = False, Obstacle.STOPPED
            except PostloadError as error:
                obstacle, said = Obstacle.NOT_RECORDED, str(error)
        for each in members:
            like = "" if each is first else first.vm.name
            vm = replace(each.vm, like=like, obstacle=obstacle, said=said)
            if loaded is None:
                yield TriedVm(vm=vm, foretold=each.foretold)
                continue
            vm = replace(
                vm, folder=loaded.folder, remedied=loaded.remedied, unjudged=unjudged_of(loaded.settled.origin)
            )
            yield TriedVm(vm=vm, foretold=each.foretold, types=loaded.types, doc=loaded.doc, doubted=loaded.doubted)

    def _load(self, known: KnownVm, guest: AdoptedVm) -> LoadedVm:
        """Record a VM's guest, load it with the new QEMU, and once more with what its reasons say to set.

        :raises PostloadError: it cannot be recorded
        """
        wanted = wanted_loads(self.uses, guest.recorder, guest.loader, schedule_named=self.given["schedule_named"])
        given = {**self.given, "targets": [guest.loader.path], "devices": [], **wanted}
        folder = f"{_VMS}/{_plain(known.vm.name)}"
        recordings = Recordings(fresh=given["fresh"], stage=_say, message=_say, scope=run_scope())
        accel = choose_accel(guest.recorder, given["accel"]).name
        # any of its drivers may be needed
        architecture = architecture_of(guest.known.machine)
        ours = self._guest(architecture, wide=True)
        source, phases = Path(known.vm.source), recorded_phases(given["phases"] or (), guest.known.machine)
        settled = self._settled(guest, ours.memory_mib, accel, source)

        def record(settled: SettledGuest, phases: Sequence[str]) -> StatePack:
            return recordings.pack(recording_of(settled, ours, guest.recorder, accel, tuple(phases), source))

        def lost(settled: SettledGuest, phases: Sequence[str]) -> HarnessError | None:
            _say(f"looking for the device that its guest is lost by: {plural(len(settled.guest.names), 'device')}")
            return loss(lambda: recordings.release(record(settled, phases)))

        settled, pack = without_lost(settled, phases, record, lost)
        try:
            types = {placed.owner: placed.type for placed in pack.manifest.plan.devices if placed.owner}
            doc = self._judged(pack.path, given, folder, guest)
            remedied = self._remedied(pack.path, given, folder, guest, doc, types)
        finally:
            recordings.release(pack)
        # the state of a CPU is another one under KVM, and its registers are the host's
        doubted = architecture.cpu_sections if guest.kvm and accel == "tcg" else frozenset()
        return LoadedVm(doc=doc, settled=settled, types=types, folder=folder, remedied=remedied, doubted=doubted)

    def _guest(self, architecture: Architecture, *, wide: bool) -> Guest:
        if architecture.name not in self._guests:
            make = guest_maker(self.given["guest"], [next(iter(architecture.families.values()))])
            self._guests[architecture.name] = make(architecture, wide)
        return self._guests[architecture.name]

    def _settled(self, guest: AdoptedVm, memory_mib: int, accel: str, source: Path) -> SettledGuest:
        offer = self._offers.get(guest.recorder.sha256)
        if offer is None:
            offer = self._offers[guest.recorder.sha256] = offer_of(guest.recorder, load_recipes(None).devices)
        judged, origin = for_our_guest(judged_guest(guest.adopted, offer), guest.adopted.origin, memory_mib)
        return settled_guest(judged, origin, guest.recorder, accel, source=source, scope=run_scope())

    def _judged(self, pack: Path, given: dict[str, Any], folder: str, guest: AdoptedVm) -> QualifyDoc:
        """An answer with its reports.

        :raises Stopped: Ctrl-C was pressed before anything broke; what was judged until then is written
        """
        out = given["out"] / folder
        answer, doc = judged_pack(pack, {**given, "out": out}, self.uses, travelled=False, builds=[guest.recorder])
        write_answer(answer, doc, out)
        if not answer.complete:
            self.complete = False
            # what broke until then is a no-go, whatever else would have come
            if answer.answer is not Answer.NO_GO:
                raise Stopped
        return answer

    def _remedied(
        self,
        pack: Path,
        given: dict[str, Any],
        folder: str,
        guest: AdoptedVm,
        doc: QualifyDoc,
        types: Mapping[str, str],
    ) -> Remedied | None:
        """The same with what the reasons say to set, until that is all, or nothing breaks any more; nothing where some
        of them say nothing that can be set.

        Of a remedy that Ctrl-C ended there is no answer, and that of the VM stays.
        """
        settings: tuple[str, ...] = ()
        found: Remedied | None = None
        where, last = f"{folder}/{_REMEDY}", doc
        if not is_remediable(doc, types):
            return None
        for _ in range(_REMEDIES):
            more = tuple(each for each in settings_of(last, types) if each not in settings)
            if not self.complete or last.answer is not Answer.NO_GO or not more:
                break
            settings = (*settings, *more)
            _say(f"trying the remedy: {' '.join(f'--global {each}' for each in settings)}")
            try:
                last = self._judged(pack, {**given, "globals_": [*given["globals_"], *settings]}, where, guest)
            except (KeyboardInterrupt, Stopped):
                self.complete = False
                break
            found = Remedied(settings=settings, answer=last.answer, folder=where)
        return found


def wanted_loads(
    uses: Sequence[str], recorder: QemuBinary, loader: QemuBinary, *, schedule_named: bool
) -> dict[str, Any]:
    """Which loads a VM is asked for: of many only what decides.

    :param uses: that decide, empty for those that do by the two versions
    :param schedule_named: somebody named a schedule of COLO's
    """
    deciding = uses or usual_uses(recorder.version, loader.version)
    return {
        "checkpoints": "colo" in deciding or schedule_named,
        "migrations": [lane for lane, use in _LANES.items() if use in deciding],
    }


def _plain(name: str) -> str:
    """A name that a folder can have."""
    return re.sub(r"[^A-Za-z0-9._~-]", "_", name).lstrip(".") or "vm"


def _say(text: str) -> None:
    err.print(escape(text), soft_wrap=True)
