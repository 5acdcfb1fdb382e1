# SPDX-License-Identifier: GPL-2.0-or-later
"""What real QEMUs say about a run beyond its cells: causes, the static check, what changed, a confirmation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.engines.buffers import Buffers
from harness.engines.incoming import State
from harness.engines.migration import RealMigration
from harness.errors import PostloadError, QemuError
from harness.facts import FactChange, Matters, collect_facts, compare_facts, explaining, incomparable
from harness.guests.machine import Machine
from harness.oracles.load import is_spoilt, judge
from harness.packs.pack import StatePack
from harness.qemu.binary import AccelState, QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.disturbance import Disturbed, undisturbed
from harness.qemu.scope import ProcessScope
from harness.qemu.vmstate import dump_vmstate
from harness.qualify.answer import Leg, use_of
from harness.qualify.explain import explain_load
from harness.qualify.explained import FieldEvidence, HostsDiffer, LostFeature, NotLookedFor
from harness.qualify.model import Confirmation, Confirms, Reason
from harness.qualify.pairs import other_types
from harness.qualify.static import StaticNote, check_sections, compare_static_dynamic, sections_at_hand
from harness.results.cause import Undecided, Why
from harness.results.document import Cell
from harness.results.outcome import Outcome
from harness.results.verdict import Verdict
from harness.state.recordings import VMSTATE


@dataclass(slots=True, kw_only=True)
class GuestWitness:
    """Asks the QEMUs of a run.

    :param binaries: every QEMU of the run by its hash
    :param overrides: options of the loading side that the recording had not
    :param accel: what came of running code under an accelerator on this host
    :param say: told what is being done
    :param scope: owns what it starts; told to stop, it raises :class:`Stopped`
    """

    binaries: Mapping[str, QemuBinary]
    overrides: tuple[Option, ...] = ()
    accel: AccelState | None = None
    say: Callable[[str], None] = lambda _: None
    scope: ProcessScope = field(default_factory=ProcessScope)
    _packs: dict[str, StatePack] = field(default_factory=dict)
    _changes: dict[tuple[str, str], list[FactChange]] = field(default_factory=dict)
    _confirmed: dict[tuple[str, str, str, str], Confirmation] = field(default_factory=dict)

    def explain(self, cell: Cell, reason: Reason) -> Reason:
        """A reason with its cause, its field and what to set, as far as the evidence goes."""
        pack, loader = self._pack(cell), self.binaries.get(cell.load_qemu.sha256)
        self._go_on()
        if loader is not None and cell.verdict is Verdict.UNSUPPORTED and loader.machine(cell.machine) is None:
            types = other_types(loader, cell.machine)
            return replace(reason, explained=(types,) if types else ())
        if pack is None or loader is None or cell.verdict is Verdict.UNSUPPORTED:
            return reason
        phase = self._phase(cell, reason, pack)
        reason = replace(reason, phase=phase)
        if cell.verdict is Verdict.REJECT:
            reason = self._caused(reason, pack, loader)
        changes = tuple(explaining(self.changes_of(pack, loader), log=reason.log, section=reason.section))
        reason = replace(reason, changes=changes)
        if changes and not reason.explained:
            reason = replace(reason, explained=(HostsDiffer(changes=changes),))
        return replace(reason, confirmed=self._confirm(cell, reason, pack, loader))

    def changes(self, leg: Leg) -> list[FactChange]:
        """What differs between the two sides of a leg."""
        pack = next((self._pack(cell) for cell in leg.cells if cell.pack), None)
        loader = self.binaries.get(leg.loader.sha256)
        return [] if pack is None or loader is None else self.changes_of(pack, loader)

    def changes_of(self, pack: StatePack, loader: QemuBinary) -> list[FactChange]:
        """What differs between the host and QEMU that recorded and those here."""
        key = (str(pack.path), loader.sha256)
        self._go_on()
        if key not in self._changes:
            there = loader.machine(pack.manifest.machine) is not None
            machine = self._machine(pack) if there else None
            try:
                here = collect_facts([loader], machine=machine, accel=self.accel)
                self._changes[key] = compare_facts(pack.manifest.host, here)
            except PostloadError as error:
                self.say(str(error))
                self._changes[key] = [incomparable(Matters.ERROR, str(error))]
        return self._changes[key]

    def static(self, leg: Leg) -> dict[str, tuple[StaticNote, ...]]:
        """For each device where ``-dump-vmstate`` of both builds and the loads disagree.

        :raises PostloadError: a build gives no dump
        """
        pack = next((self._pack(cell) for cell in leg.cells if cell.pack), None)
        loader = self.binaries.get(leg.loader.sha256)
        if pack is None or loader is None:
            return {}
        saved = self._dump(pack, leg)
        loaded = dump_vmstate(loader, leg.machine)
        at_hand = {section.label: section for r in pack.recordings.values() for section in sections_at_hand(r)}
        found = check_sections(saved, loaded, at_hand.values())
        passed = passed_sections(leg)
        notes = {}
        for device in pack.manifest.devices:
            mine = {label: found[label] for label in device.sections if label in found}
            disagree = compare_static_dynamic(mine, {label: passed.get(label) for label in mine})
            if disagree:
                notes[device.name] = disagree
        return notes

    def _caused(self, reason: Reason, pack: StatePack, loader: QemuBinary) -> Reason:
        assert reason.phase is not None  # filled in before
        self.say(f"looking for the cause in {reason.section or 'the stream'}")
        try:
            found = explain_load(reason.log, pack, reason.phase, self._machine(pack), loader)
        except PostloadError as error:
            return replace(reason, explained=(NotLookedFor(said=str(error)),))
        if not found:
            return reason
        # QEMU repeats a failure at each level: the line that has the field says the most
        found = [one for one in found if field_of(one)] or found
        section = reason.section or found[0].section
        fields = ", ".join(dict.fromkeys(field_of(one) for one in found if field_of(one)))
        named = [
            replace(one, section=section) if isinstance(one, FieldEvidence) and not one.section else one
            for one in found
        ]
        return replace(reason, section=section, field=fields or None, explained=tuple(dict.fromkeys(named)))

    def _confirm(self, cell: Cell, reason: Reason, pack: StatePack, loader: QemuBinary) -> Confirmation | None:
        """The same guest from one real QEMU to the other, where ordinary migration fails and both are here."""
        recorder = self.binaries.get(cell.record_qemu.sha256)
        if use_of(cell) != "migration" or reason.phase is None:
            return None
        frame = Confirmation(recorder=cell.record_qemu.version, loader=loader.version, phase=reason.phase)
        if recorder is None:
            return frame
        key = (recorder.sha256, loader.sha256, str(pack.path), reason.phase)
        if key not in self._confirmed:
            self.say(f"confirming {cell.machine} {recorder.version} -> {loader.version} with two real QEMUs")
            self._confirmed[key] = replace(frame, outcome=self._migrated(recorder, loader, pack, reason.phase))
        made = self._confirmed[key]
        return made if made.outcome is None else replace(made, shows=shown(reason, made.outcome))

    def _migrated(self, recorder: QemuBinary, loader: QemuBinary, pack: StatePack, phase: str) -> Outcome:
        state = State(buffers=Buffers(pack, self._machine(pack)), phase=phase)
        try:
            migration = RealMigration(source=recorder, destination=loader, state=state, scope=self.scope)
            run = undisturbed(migration.run, is_spoilt)
        except Disturbed as error:
            return Outcome(verdict=Verdict.HOST, causes=error.hindered)
        except PostloadError as error:
            undecided = Undecided(why=Why.ERROR, said=str(error))
            return Outcome(verdict=Verdict.HARNESS_ERROR, causes=(undecided,))
        return judge(run).outcome

    def _go_on(self) -> None:
        self.scope.check()

    def _machine(self, pack: StatePack) -> Machine:
        return replace(pack.machine, extra=self.overrides)

    def _pack(self, cell: Cell) -> StatePack | None:
        if not cell.pack:
            return None
        if cell.pack not in self._packs:
            try:
                self._packs[cell.pack] = StatePack(Path(cell.pack))
            except PostloadError as error:
                self.say(str(error))
                return None
        return self._packs[cell.pack]

    def _phase(self, cell: Cell, reason: Reason, pack: StatePack) -> str:
        """The phase that broke."""
        return reason.phase if reason.phase in pack.recordings else cell.phases[0]

    def _dump(self, pack: StatePack, leg: Leg) -> Mapping[str, Any]:
        kept = pack.manifest.host.get(VMSTATE)
        if kept:
            return dict(kept)
        recorder = self.binaries.get(leg.recorder.sha256)
        if recorder is None:
            raise QemuError(f"the pack holds no dump of QEMU {leg.recorder.version}, which is not here")
        return dump_vmstate(recorder, leg.machine)

    def close(self) -> None:
        """Close the packs that were opened."""
        for pack in self._packs.values():
            pack.close()
        self._packs.clear()


def shown(reason: Reason, outcome: Outcome) -> Confirms:
    """What an outcome shows of a reason: it is that failure only where it is of the same section."""
    if outcome.verdict is Verdict.OK:
        return Confirms.PASSED
    if not outcome.verdict.is_finding:
        return Confirms.NOTHING
    named = not reason.section or not outcome.sections or reason.section in outcome.sections
    return Confirms.SAME if named and outcome.verdict == reason.verdict else Confirms.OTHER


def field_of(found: LostFeature | FieldEvidence) -> str:
    """The field or the feature that a load fell over; "" where nothing names one."""
    return found.name if isinstance(found, LostFeature) else found.field or ""


def passed_sections(leg: Leg) -> dict[str, bool]:
    """By section: whether ordinary migration took it; what was left out of the loads is in none."""
    plain = [c for c in leg.cells if c.lane == "plain" and (c.verdict is Verdict.OK or c.verdict.is_finding)]
    broken = {label for cell in plain for label in cell.blamed}
    # a load that passed for another row brought it along
    brought = [c for c in plain if c.loads_acked]
    told = {
        label: True
        for cell in plain
        for label in cell.sections
        if any(label not in other.excluded for other in brought)
    }
    return told | dict.fromkeys(broken, False)
