# SPDX-License-Identifier: GPL-2.0-or-later
"""Has the guests of a run recorded, so that a device which a guest cannot have costs itself and nobody else.

A device that QEMU does not start beside the others gets another guest. A guest that is lost on its way is halved, no
further than to the phase that it was lost in, until it is known who did it: that device is recorded alone, as far as it
goes, and the others without it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from harness.arch import architecture_of
from harness.engines.admission import guest_admission
from harness.errors import GuestError, HarnessError, HostError, Stopped
from harness.guests.build import GuestMaker
from harness.guests.lack import Lack, Lacks
from harness.guests.planner import PlannedGuest
from harness.names import USUAL_PHASES
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import Disturbed
from harness.qemu.scope import ProcessScope
from harness.results.answer import Seen
from harness.results.document import LostGuest
from harness.results.plan import CellPlan
from harness.state.owners import Owners, settled, short
from harness.state.recorder import CutShort, Plan, ordered_phases, skipped
from harness.state.recordings import Recordings, lacking_drivers, planned_guests, recording_plan

#: What may be another device's doing: two with one I/O port, or with one section.
_OF_OTHERS = (Lacks.START, Lacks.SECTION)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestDue:
    """A guest that is to be recorded.

    :param plans: cells of its devices that are to be judged
    :param phases: those to be recorded, by default all up to the last one that is wanted
    :param no_colo: why the loading QEMU does not start COLO with it, so that it can only be migrated
    :param again: its cells were not decided beside devices that it is without now, and no other cell of it is judged
    """

    recorder: QemuBinary
    guest: PlannedGuest
    seen: Seen
    plans: tuple[CellPlan, ...]
    phases: tuple[str, ...] | None = None
    no_colo: Lack | None = None
    again: bool = False

    def only(self, names: Collection[str]) -> GuestDue:
        """The same guest with some of its devices, and their cells."""
        return replace(self, guest=self.guest.only(names), plans=tuple(_of(self.plans, names)))

    def without(self, names: Collection[str]) -> GuestDue:
        """The same guest without some devices, and without their cells."""
        left = tuple(plan for plan in self.plans if plan.device not in names)
        return replace(self, guest=self.guest.without(names), plans=left)


@dataclass(slots=True, kw_only=True)
class GuestOutcome:
    """What came of a guest; each of its cells is in one place.

    :param pack: its recording, None where there is none, or no cell of it
    :param plans: cells that it is there for
    :param refused: cells of devices that are not to be had
    :param lost: cells that nothing can be said of
    :param guest: the guest, where it was lost
    :param more: guests that are to be recorded instead, or as well
    """

    pack: StatePack | None = None
    plans: Sequence[CellPlan] = ()
    refused: list[tuple[list[CellPlan], Lack]] = field(default_factory=list)
    lost: list[tuple[list[CellPlan], HarnessError]] = field(default_factory=list)
    guest: LostGuest | None = None
    more: list[GuestDue] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRecorder:
    """Records guests.

    :param make: builds what a guest boots
    :param phases: those that are wanted
    :param stage: told what is being done
    """

    recordings: Recordings
    make: GuestMaker
    accel: str
    phases: tuple[str, ...]
    scope: ProcessScope
    stage: Callable[[str], None] = lambda _: None

    def record(self, due: GuestDue) -> GuestOutcome:
        """Have a guest recorded; whoever is done with its pack gives that back to ``recordings``.

        :raises HostError: no space
        :raises Stopped: the run was told to stop
        """
        outcome = GuestOutcome()
        try:
            due = self._able(due, outcome)
            if due.plans:
                outcome.pack = self._pack(due.recorder, due.guest, due.phases)
                outcome.plans = due.plans
        except (HostError, Stopped):
            raise
        except HarnessError as error:
            self.scope.check()
            self._split(due, error, outcome)
        outcome.more = [each for each in outcome.more if each.plans]
        return outcome

    def _able(self, due: GuestDue, outcome: GuestOutcome) -> GuestDue:
        """The guest without the devices that QEMU does not have beside the others, or that it has no drivers for."""
        _, owners = settled(due.recorder, due.guest, self.accel, self.scope)
        apart = _refused_beside_others(due.guest, owners)
        if apart:
            outcome.more += _planned_anew(due.only(apart))
        outcome.refused += [
            (_of(due.plans, {name}), lack) for name, lack in owners.refused.items() if name not in apart
        ]
        due = due.without(owners.refused)
        undriven = self._undriven(due.guest) if due.plans else {}
        for name, error in undriven.items():
            mine = _of(due.plans, {name})
            outcome.lost += [(mine, error)] if mine else []
        return self._admitted(due.without(undriven), outcome)

    def _admitted(self, due: GuestDue, outcome: GuestOutcome) -> GuestDue:
        """The guest without the devices that QEMU does not start COLO with, and without those that every secondary
        beside them would die of: each of them gets one of its own."""
        if due.no_colo is not None or due.seen.ability is None or not due.plans:
            return due
        # with the memory that it is recorded with: what a secondary dies of hangs on where its blocks lie
        whole = self._plan(due.recorder, due.guest, self.phases).planned
        found = guest_admission(due.seen.binary, due.seen.ability, whole, self.accel, self.scope)
        outcome.more += [replace(due.only({name}), no_colo=lack) for name, lack in found.refused.items()]
        due = due.without(found.refused)
        if due.guest.names[1:]:
            breaking = [name for name in due.guest.names if name in found.breaking]
            outcome.more += [due.only({name}) for name in breaking]
            due = due.without(breaking)
        return due

    def _undriven(self, planned: PlannedGuest) -> dict[str, GuestError]:
        """Devices that the guest has no driver for, and what to do about that."""
        guest = self.make(architecture_of(planned.plan.machine), planned.wide)
        reasons = {device.name: lacking_drivers(device, guest) for device in planned.devices}
        return {name: GuestError(f"{name}: {reason}") for name, reason in reasons.items() if reason is not None}

    def _split(self, due: GuestDue, error: HarnessError, outcome: GuestOutcome) -> None:
        """Tell who a guest was lost by from the others."""
        names = due.guest.names
        if names[1:]:
            self.stage(f"looking for the one of {len(names)} devices that a guest of {due.seen.machine} was lost by")
        culprit = self._culprit(due, error)
        lost = LostGuest(
            machine=due.seen.machine,
            recorder=due.seen.route.recorder,
            devices=names,
            phase=error.phase if isinstance(error, CutShort) else "",
            by=culprit or "",
            said=short(error),
        )
        if culprit is None:
            outcome.guest = lost if names[1:] else None
            outcome.lost.append((list(due.plans), error))
            return
        reason = self._lost(due.recorder, due.guest.only({culprit})) if names[1:] else error
        outcome.guest = replace(lost, alone=reason is not None) if names[1:] else None
        # one that is well without the others does not get on with them
        apart = {culprit} if reason is not None or _named(error) else set(names[: len(names) // 2])
        part = due.only(apart)
        if reason is not None:
            kept = reason.kept if isinstance(reason, CutShort) else ()
            early = [plan for plan in part.plans if set(plan.phases) <= set(kept)]
            late = [plan for plan in part.plans if plan not in early]
            outcome.lost += [(late, reason)] if late else []
            part = replace(part, plans=tuple(early), phases=kept)
        outcome.more += [part, due.without(apart)]

    def _culprit(self, due: GuestDue, error: HarnessError) -> str | None:
        """The device that a guest was lost by; None where the machine is lost without any."""
        names = due.guest.names
        if isinstance(error, Disturbed) or not names:
            return None
        if _named(error) in names:
            return _named(error)
        until = error.phase if isinstance(error, CutShort) else ""
        if self._lost(due.recorder, due.guest.only(()), until):
            return None
        while names[1:]:
            half = names[: len(names) // 2]
            names = half if self._lost(due.recorder, due.guest.only(half), until) else names[len(half) :]
        return names[0]

    def _lost(self, recorder: QemuBinary, guest: PlannedGuest, until: str = "") -> HarnessError | None:
        """How a guest is lost on its way to a phase, by default the last; None for one that gets there."""
        phases = _up_to_the_last(self.phases)
        try:
            self.recordings.release(self._pack(recorder, guest, phases[: 1 + phases.index(until)] if until else None))
        except Stopped:
            raise
        except HarnessError as error:
            self.scope.check()
            return error
        return None

    def _pack(self, recorder: QemuBinary, planned: PlannedGuest, phases: Sequence[str] | None) -> StatePack:
        wanted = _up_to_the_last(self.phases) if phases is None else phases
        return self.recordings.pack(self._plan(recorder, planned, wanted))

    def _plan(self, recorder: QemuBinary, planned: PlannedGuest, phases: Sequence[str]) -> Plan:
        return recording_plan(
            binary=recorder,
            accel=self.accel,
            guest=self.make(architecture_of(planned.plan.machine), planned.wide),
            planned=planned,
            phases=phases,
        )


def _of(plans: Iterable[CellPlan], names: Collection[str]) -> list[CellPlan]:
    return [plan for plan in plans if plan.device in names]


def _refused_beside_others(guest: PlannedGuest, owners: Owners) -> set[str]:
    """Devices that a QEMU may have when others are not there before them."""
    names = [name for name in guest.names if name in owners.sections or name in owners.refused]
    first = next((number for number, name in enumerate(names) if name in owners.sections), len(names))
    beside = [name for name in names[first:] if name in owners.refused]
    return {name for name in beside if owners.refused[name].what in _OF_OTHERS}


def _planned_anew(due: GuestDue) -> list[GuestDue]:
    """Devices in guests of their own; they had a place before, so that each has one."""
    planned = planned_guests(due.guest.plan.machine, due.guest.plan.family, due.guest.devices)
    return [replace(due, guest=guest).only(guest.names) for guest in planned.guests]


def _named(error: HarnessError) -> str:
    """The device whose command was under way when a guest was lost; empty where none was."""
    return error.device if isinstance(error, CutShort) else ""


def _up_to_the_last(wanted: Sequence[str]) -> list[str]:
    """The phases to be recorded: a guest goes through them in their order, and stops behind the last that is wanted.

    A disk can fail, and a driver suspend its device, as soon as it is bound.
    """
    last = ordered_phases(wanted)[-1]
    usual = ordered_phases([*USUAL_PHASES, last])
    return [phase for phase in usual[: 1 + usual.index(last)] if phase in wanted or not skipped(phase, wanted)]
