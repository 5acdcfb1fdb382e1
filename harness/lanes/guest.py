# SPDX-License-Identifier: GPL-2.0-or-later
"""The lane ``guest``: load, fail over, and ask the guest how it and each of its devices is.

One guest answers for all of its devices. Where one device breaks it, the others cannot be asked. Then it is looked for
what broke it: the section that breaks a secondary alone, else the device without whose sections the guest answers. That
device has the finding, and the guest is asked again without those sections.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness.ddmin import the_one
from harness.devices.device import Device
from harness.engines.evidence import Count
from harness.experiments.guestlife import GuestLife, guest_life
from harness.lanes.checks import Experiment, OracleCheck, OracleName, Told, excluded_in, judge_by, own_in, setting_of
from harness.lanes.judge import MAX_BLAMED, Bench, repeated
from harness.lanes.lane import Group, Lane, Reached, Wave, by_phase
from harness.names import PLATFORM
from harness.oracles.guestfault import judge_life, judge_loads
from harness.oracles.oracle import Opinion
from harness.qemu.disturbance import current_account
from harness.results.cause import Undecided, Why
from harness.results.outcome import Repeats
from harness.results.verdict import Verdict
from harness.results.voided import is_void
from harness.state.transforms import labels_of

#: Where the guest has its drivers bound and can be asked about its devices.
LIVELY_PHASES = ("bound", "busy")


def guest_check(phase: str, rows: Sequence[str]) -> OracleCheck:
    """The guest lives on after the loads and a failover: its disks, its network, its clock, its kernel's log."""
    return OracleCheck(oracle=OracleName.GUEST, phases=(phase,), rows=tuple(rows), run=_guest)


def _guest(bench: Bench, check: OracleCheck) -> Experiment:
    return _Asking(bench=bench, check=check, excluded=excluded_in(bench, check)).run()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A guest that was asked, and what that says of its devices."""

    life: GuestLife
    opinions: dict[str, Opinion]

    @property
    def lost(self) -> list[str]:
        """Devices that could not be asked."""
        return [name for name in self.life.devices if name not in self.opinions]

    def lost_beside(self, devices: Collection[str]) -> bool:
        """Whether any others than these could not be asked."""
        return not set(self.lost) <= set(devices)

    @property
    def finding(self) -> Opinion:
        """What kept the guest from answering; the platform has it as long as nobody else is known to have done it."""
        return self.opinions[PLATFORM]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What broke a guest.

    :param sections: that did; none where it did not come again, or where no section is known
    :param asked: the guest without it
    """

    asked: _Asked
    sections: tuple[str, ...] = ()
    repeats: Repeats | None = None


@dataclass(slots=True, kw_only=True)
class _Asking:
    """One phase's guest, asked until each device has an answer or nobody can be left out any more.

    :param excluded: what is not loaded
    :param told: findings of guests that broke, by row
    :param counts: loads of these guests, by row
    """

    bench: Bench
    check: OracleCheck
    excluded: frozenset[str]
    blamed: frozenset[str] = frozenset()
    told: dict[str, list[Told]] = field(default_factory=dict)
    counts: dict[str, Count] = field(default_factory=dict)

    def run(self) -> Experiment:
        asked = self._ask(self.excluded)
        for _ in range(MAX_BLAMED):
            found = self._culprit(asked) if asked.lost else None
            if found is None:
                break
            self._tell(asked, found)
            asked = found.asked
        life = asked.life
        rest = {row: [*self.told.get(row, []), self._last(asked, row)] for row in self.check.rows}
        return Experiment(
            told=rest,
            loads_asked=life.loads_asked,
            loads_acked=life.loads_acked,
            loads=self.counts,
            excluded=self.excluded,
            blamed=self.blamed,
            details={"disks": str(life.disks), "disks_why": life.disks_why},
        )

    def _ask(self, excluded: frozenset[str], *, once: bool = False) -> _Asked:
        """Load and ask.

        :param once: no section stands twice in a buffer
        """
        setting = setting_of(self.bench, self._phase, excluded)
        setting = replace(setting, resets=False) if once else setting
        life = guest_life(setting, devices=self.bench.devices)
        return _Asked(life=life, opinions=judge_life(life))

    def _culprit(self, asked: _Asked) -> _Found | None:
        """What broke a guest, and the guest without that; None where it is not known."""
        verdict = asked.finding.verdict
        if not verdict.is_finding or is_void(verdict, current_account().hindered):
            return None
        return self._by_load(asked) or self._by_luck(asked) or self._by_device() or self._by_two()

    def _by_load(self, asked: _Asked) -> _Found | None:
        """The section that breaks a secondary alone, where a load broke."""
        broken = asked.life.broken
        if broken is None or broken.load == 0:
            return None
        isolator = self.bench.isolator(again=self._twice)
        judgement = judge_loads(asked.life)
        # the incoming stream of the session that broke was taken
        absent = self.bench.refused
        blame = isolator.find(self._phase, self._phase, broken.load, self.excluded, judgement, absent)
        if blame is None:
            return None
        self.bench.blame(
            self._phase, blame.sections, judgement, together=blame.how.together, incoming=bool(blame.phase)
        )
        return _Found(asked=self._ask(self.excluded | set(blame.sections)), sections=blame.sections)

    def _by_luck(self, asked: _Asked) -> _Found | None:
        """The same guest once more, where it answers then."""
        again = self._ask(self.excluded)
        if again.lost:
            return None
        _, repeats = repeated(asked.finding.verdict, [Verdict.OK])
        return _Found(asked=again, repeats=repeats)

    def _by_device(self) -> _Found | None:
        """The device without whose sections the guest answers."""
        recording = self.bench.buffers.pack.recordings[self._phase]
        own = self.bench.by_device(frozenset(labels_of(recording.sections)) - self.excluded)
        found = the_one(list(own), lambda names: self._ask_without(names, own).lost_beside(names))
        if found is None:
            return None
        asked = self._ask_without([found], own)
        return None if asked.lost_beside([found]) else _Found(asked=asked, sections=tuple(sorted(own[found])))

    def _ask_without(self, devices: Sequence[str], own: Mapping[str, Collection[str]]) -> _Asked:
        return self._ask(self.excluded.union(*(own[name] for name in devices)))

    def _by_two(self) -> _Found | None:
        """The guest whose sections stand once in a buffer, where they stood there twice and nothing is left out."""
        if not self._twice or self.excluded:
            return None
        once = self._ask(frozenset(), once=True)
        return None if once.lost else _Found(asked=once)

    def _tell(self, asked: _Asked, found: _Found) -> None:
        """Write down whose finding it is."""
        finding, life = asked.finding, asked.life
        verdict = finding.verdict
        if found.repeats is not None:
            verdict, _ = repeated(verdict, [Verdict.OK])
        told = replace(Told.of(finding), verdict=verdict, log=life.log, repeats=found.repeats)
        pack = self.bench.buffers.pack
        by_row: dict[str, list[Told]] = {}
        for label in found.sections:
            by_row.setdefault(pack.owner_of(label), []).append(replace(told, section=label))
        for row, findings in (by_row or {PLATFORM: [told]}).items():
            self.told.setdefault(row, []).extend(findings)
            self.counts.setdefault(row, Count(asked=life.loads_asked, passed=life.loads_acked))
        self.excluded |= set(found.sections)
        self.blamed |= set(found.sections)

    def _last(self, asked: _Asked, row: str) -> Told:
        """What the last guest says of a device. Where a part of the device was not loaded, it has another state than
        its driver, and a fault is held against nobody; where nothing of it was, all is well is no answer either."""
        if row in asked.opinions:
            opinion = asked.opinions[row]
            own = own_in(self.bench, self._phase, row)
            left_out = own & self.excluded
            if row != PLATFORM and left_out and (opinion.verdict.is_finding or left_out == own):
                cause = Undecided(why=Why.LEFT_OUT, sections=tuple(sorted(left_out)))
                return Told(verdict=Verdict.HARNESS_ERROR, causes=(cause,))
            return replace(Told.of(opinion), log=asked.life.log)
        # where the host had a hand in it, it is tried again
        undecided = not asked.finding.verdict.is_finding or bool(current_account().hindered)
        verdict = Verdict.HARNESS_ERROR if undecided else Verdict.UNSUPPORTED
        return Told(verdict=verdict, causes=(Undecided(why=Why.NOT_ASKED),))

    @property
    def _phase(self) -> str:
        return self.check.phases[0]

    @property
    def _twice(self) -> bool:
        return bool(self.bench.ability.resets_before_load)


def _lively(phases: Sequence[str], reached: Reached, guest: Sequence[Device]) -> list[Group]:
    return by_phase([phase for phase in phases if phase in LIVELY_PHASES], reached, guest)


LANES = (
    Lane(
        name=str(OracleName.GUEST),
        wave=Wave.LOOK,
        seconds=1.3,
        groups=_lively,
        judge=judge_by(lambda request, _: guest_check(request.phases[0], request.devices)),
    ),
)
