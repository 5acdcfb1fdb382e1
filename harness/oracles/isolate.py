# SPDX-License-Identifier: GPL-2.0-or-later
"""When a whole state breaks a secondary: which section did it.

The guest is parked, so that sections can be loaded without the rest. First a sweep: every section alone, one
checkpoint each, in one secondary; where that breaks, the suspect is confirmed alone in a new process. When no
section does it alone, the smallest set that does is searched for by delta debugging.

The same section breaks most phases and lanes of a guest, and each of these is searched: so whom QEMU itself names, and
what broke in the same way before, is tried first, and costs one process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from harness.colo.primary import ChannelBroken, Dialect
from harness.ddmin import ddmin
from harness.engines.buffers import Buffers, Selection
from harness.engines.colo import Session
from harness.engines.schedule import Checkpoint, LoadPlan
from harness.engines.secondary import Secondary
from harness.oracles.load import Judgement, judge
from harness.packs.pack import incoming_body
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.results.outcome import Isolation, IsolationWay
from harness.state.transforms import GuestMode, cpu_labels, labels_of

#: A section that hangs costs its deadline at every try.
ISOLATE_TIMEOUT_S = 5.0
#: How often a section is loaded when the whole state did not break at once.
MAX_REPEATS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Blame:
    """What was found.

    :param sections: the sections needed, one in nearly every case
    :param how: how they were found
    :param judgement: of the last session that broke with these sections alone
    :param phase: in which they were loaded when that is not the phase whose load broke: their state breaks the reset
        that comes before it, or a secondary that only waits
    """

    sections: tuple[str, ...]
    how: Isolation
    judgement: Judgement
    phase: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A section that broke something before.

    :param broke: what that came to
    """

    section: str
    broke: Judgement


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolator:
    """Searches in one pack with one binary.

    :param resets: the build resets the machine before each load (see :class:`harness.engines.probe.ColoAbility`)
    :param again: load each section twice in one buffer
    :param repeated: the sections stood more than once in a buffer when it broke: what does not break with each section
        once in a buffer is searched for with each twice
    :param reset_first: the machine was reset before each load, by this program
    :param scope: of the run; told to stop, the search raises :class:`~harness.errors.Stopped`
    """

    binary: QemuBinary
    dialect: Dialect
    buffers: Buffers
    resets: bool
    again: bool = False
    repeated: bool = False
    reset_first: bool = False
    suspects: list[Suspect] = field(default_factory=list)
    scope: ProcessScope = field(default_factory=ProcessScope)

    def find(
        self,
        before: str,
        phase: str,
        load: int,
        excluded: frozenset[str],
        judgement: Judgement,
        absent: frozenset[str] | None = None,
    ) -> Blame | None:
        """Find what breaks a secondary that is in state ``before`` when ``phase`` is loaded.

        :param load: in which load the whole state broke; later ones are searched with repeated loads
        :param judgement: what the whole state came to; only such a break counts, by its verdict and its assertion
        :param absent: without which an incoming stream of state ``before`` is known to be taken; None: it is tried
        :return: None when the parked guest does not break at all
        """
        found = self._found(before, phase, load, excluded, judgement, absent)
        if found is None and self.repeated and not self.again:
            found = replace(self, again=True)._found(before, phase, load, excluded, judgement, absent)
        return found

    def find_incoming(self, phase: str, absent: frozenset[str], judgement: Judgement) -> Blame | None:
        """Find what breaks the incoming stream itself: the section that QEMU names, else the fewest that break it
        beside what is in every machine, else of all sections but the CPU's.

        :param absent: what it leaves out already
        :param judgement: what came of it; only such a break counts, by its verdict and its assertion
        :return: None when it does not break again
        """
        case = _Isolation(self, phase, phase, 1, judgement)
        recording = self.buffers.pack.recordings[phase]
        labels = [label for label in labels_of(recording.sections) if label not in absent | cpu_labels(recording)]
        if judgement.named in labels:
            return _alone(judgement.named, judgement, case)
        devices = self.buffers.pack.manifest.devices
        added = {label for device in devices if not device.recipe.rest for label in device.sections}
        for suspect in self._likely(labels, judgement):
            found = case.minimise_incoming([suspect], absent | (set(labels) - {suspect}))
            if found is not None:
                return found
        for among in ([label for label in labels if label in added], labels):
            found = case.minimise_incoming(among, absent) if among else None
            if found is not None:
                return found
        return None

    def find_at_reset(self, phase: str, absent: frozenset[str], judgement: Judgement) -> Blame | None:
        """Find what a machine must have loaded so that it does not live through its reset.

        :param phase: that is loaded when the reset comes
        :param absent: what its incoming stream leaves out already
        :return: None when it does not break again, or breaks whatever it has loaded
        """
        case = _Isolation(self, phase, phase, 1, judgement)
        recording = self.buffers.pack.recordings[phase]
        labels = [label for label in labels_of(recording.sections) if label not in absent | cpu_labels(recording)]
        found = case.minimise_incoming(labels, absent, reset=True)
        return None if found is None else replace(found, phase=phase)

    def _found(
        self,
        before: str,
        phase: str,
        load: int,
        excluded: frozenset[str],
        judgement: Judgement,
        absent: frozenset[str] | None,
    ) -> Blame | None:
        case = _Isolation(self, before, phase, 1 if load <= 1 else min(2 * load, MAX_REPEATS), judgement)
        found = self._breaking(case, excluded, absent)
        if found is None or not (self.resets or self.reset_first) or case.breaks(()) is None:
            return found
        # its reset does it, whatever is loaded behind that: by what is there already, or by what is not
        return None if case.absent else self.find_at_reset(before, case.absent, judgement)

    def _breaking(self, case: _Isolation, excluded: frozenset[str], absent: frozenset[str] | None) -> Blame | None:
        """Whose load breaks it."""
        judgement = case.whole
        # the state of another QEMU may hold sections that this one refuses: then no load would ever be tried
        case.absent = case.refused_at_start(excluded) if absent is None else absent
        labels = labels_of(self.buffers.pack.recordings[case.phase].sections)
        labels = [label for label in labels if label not in excluded]
        for suspect in self._likely(labels, judgement):
            found = case.breaks([suspect])
            if found:
                return _alone(suspect, found, case)
        # whom QEMU names does it with others, or not each time: no other one does it alone
        alone = not self.reset_first and judgement.named not in labels
        return (case.sweep(self._suspects_first(labels)) if alone else None) or case.minimise(labels)

    def _likely(self, labels: Sequence[str], judgement: Judgement) -> list[str]:
        """Whom QEMU names; else what broke in this way before."""
        if judgement.named is not None and judgement.named in labels:
            return [judgement.named]
        alike = {each.section: None for each in self.suspects if _is_alike(each.broke, judgement)}
        return [label for label in alike if label in labels]

    def _suspects_first(self, labels: Sequence[str]) -> list[str]:
        known = {each.section for each in self.suspects}
        return sorted(labels, key=lambda label: label not in known)


class _Isolation:
    """One search."""

    def __init__(self, owner: Isolator, before: str, phase: str, repeats: int, whole: Judgement) -> None:
        self.owner = owner
        self.before = before
        self.phase = phase
        self.repeats = repeats
        self.whole = whole
        self.absent: frozenset[str] = frozenset()

    def breaks(self, labels: Sequence[str]) -> Judgement | None:
        """Load these sections alone into a new process; the judgement when it breaks in the same way."""
        judgement = judge(self._session(labels).run())
        return judgement if judgement.is_break_of(self.whole) else None

    def minimise_incoming(self, among: Sequence[str], absent: frozenset[str], *, reset: bool = False) -> Blame | None:
        """The fewest of some sections that break the incoming stream; None where it breaks without any of them.

        :param reset: it is the reset behind the stream that breaks
        """
        behind = (Checkpoint(phase=self.phase),) if reset else ()

        def breaks(labels: Sequence[str]) -> Judgement | None:
            self.absent = absent | (set(among) - set(labels))
            incoming = LoadPlan(incoming=self.before, checkpoints=behind)
            judgement = judge(replace(self._session(()), plan=incoming).run())
            return judgement if judgement.is_break_of(self.whole) else None

        whole = None if breaks(()) else breaks(among)
        return None if whole is None else self._smallest(among, breaks, whole)

    def refused_at_start(self, excluded: frozenset[str]) -> frozenset[str]:
        """What to leave out of the incoming stream: all that is excluded, where it is taken without that alone."""
        if not excluded or _Sweep(self, ()).begins():
            return frozenset()
        self.absent = excluded
        return excluded if _Sweep(self, ()).begins() else frozenset()

    def sweep(self, labels: Sequence[str]) -> Blame | None:
        """Each section alone, in one process as long as it lives."""
        left = list(labels)
        while left:
            at = _Sweep(self, left).run()
            if at is None:
                return None
            found = self.breaks([left[at]])
            if found:
                self.owner.suspects.append(Suspect(section=left[at], broke=found))
                return _alone(left[at], found, self)
            left = left[at + 1 :]
        return None

    def minimise(self, labels: Sequence[str]) -> Blame | None:
        """The smallest set that breaks it; None when all of them together do not."""
        whole = self.breaks(labels)
        return None if whole is None else self._smallest(labels, self.breaks, whole)

    def _smallest(
        self, labels: Sequence[str], breaks: Callable[[Sequence[str]], Judgement | None], whole: Judgement
    ) -> Blame:
        smallest, judgement = ddmin(labels, breaks, whole)
        if len(smallest) == 1:
            return _alone(smallest[0], judgement, self)
        how = self.isolation(IsolationWay.SMALLEST_SET, of=len(labels))
        return Blame(sections=smallest, how=how, judgement=judgement)

    def isolation(self, way: IsolationWay, of: int) -> Isolation:
        """How sections were found by this search."""
        return Isolation(way=way, loads=self.repeats, together=self.owner.again, of=of)

    def selection(self, labels: Sequence[str]) -> Selection:
        """These sections alone; where a reset comes first, with the parked CPU that would else start to run."""
        recording = self.owner.buffers.pack.recordings[self.phase]
        cpu = cpu_labels(recording) if self.owner.resets or self.owner.reset_first else frozenset()
        return Selection(own=frozenset(labels) | cpu, whole=False, again=self.owner.again)

    def _session(self, labels: Sequence[str]) -> Session:
        return Session(
            binary=self.owner.binary,
            dialect=self.owner.dialect,
            buffers=self.owner.buffers,
            plan=LoadPlan(incoming=self.before, checkpoints=(Checkpoint(phase=self.phase),) * self.repeats),
            selection=self.selection(labels),
            mode=GuestMode.PARKED,
            absent=self.absent,
            timeout_s=ISOLATE_TIMEOUT_S,
            scope=self.owner.scope,
            reset_first=self.owner.reset_first,
        )


class _Sweep:
    """Sections one by one into one secondary."""

    def __init__(self, case: _Isolation, labels: Sequence[str]) -> None:
        self._case = case
        self._labels = labels

    def begins(self) -> bool:
        """Whether a secondary takes the incoming stream."""
        with self._secondary() as secondary:
            return self._start(secondary)

    def run(self) -> int | None:
        """Index of the section at which the secondary broke; None when it took them all."""
        case, owner = self._case, self._case.owner
        buffers = owner.buffers
        with self._secondary() as secondary:
            if not self._start(secondary):
                return None
            ram = buffers.ram_difference(case.phase, case.before)
            for index, label in enumerate(self._labels):
                owner.scope.check()
                devices = buffers.devices(case.phase, GuestMode.PARKED, case.selection([label]), 1)
                try:
                    for _ in range(case.repeats):
                        secondary.primary.checkpoint(devices, ram)
                        ram = []
                except ChannelBroken:
                    return index
        return None

    def _secondary(self) -> Secondary:
        owner = self._case.owner
        machine = owner.buffers.machine
        return Secondary(owner.binary, machine, owner.dialect, timeout_s=ISOLATE_TIMEOUT_S, scope=owner.scope)

    def _start(self, secondary: Secondary) -> bool:
        case, buffers = self._case, self._case.owner.buffers
        recording = buffers.pack.recordings[case.before]
        whole = buffers.whole_state(case.before, GuestMode.PARKED, case.absent)
        try:
            secondary.start(recording.head, incoming_body(recording, buffers.ram_whole(case.before), whole))
        except ChannelBroken:
            return False
        return True


def _is_alike(broke: Judgement, judgement: Judgement) -> bool:
    """Whether two broke in the same way, also in that neither asserted anything."""
    return broke.is_break_of(judgement) and broke.assertion == judgement.assertion


def _alone(label: str, judgement: Judgement, case: _Isolation) -> Blame:
    return Blame(sections=(label,), how=case.isolation(IsolationWay.ALONE, of=1), judgement=judgement)
