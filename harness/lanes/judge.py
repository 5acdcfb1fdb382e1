# SPDX-License-Identifier: GPL-2.0-or-later
"""Judge one cell: load, look, and when it broke find out whose fault it is, so that no row hides another's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from threading import Lock

from harness.devices.device import Device
from harness.engines.colo import Buffers, Evidence, Pace, Selection, Session
from harness.engines.probe import ColoAbility
from harness.engines.schedule import LoadPlan, Schedule, plan_loads
from harness.errors import HarnessError, HostError, QemuError, Stopped
from harness.oracles.isolate import Blame, Isolator
from harness.oracles.load import Judgement, judge, warnings_of
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.results.document import REST_SUFFIX, Cell, Finding, Qemu
from harness.results.plan import CellPlan, pair_label
from harness.results.verdict import FailureClass, Verdict
from harness.state.transforms import GuestMode, label_of

#: A row with more broken sections than this is given up on; what was found is in its cells.
MAX_BLAMED = 8
#: How often a finding that no section could be blamed for is tried again.
REPEATS = 2

OnLoads = Callable[[str, int], None]
#: Phase, blamed sections and left out ones, the finding and its evidence; gives the class and what the controls gave.
RunControls = Callable[[str, tuple[str, ...], frozenset[str], Judgement, Evidence], tuple[FailureClass | None, str]]


class Reason(StrEnum):
    """Why a section is left out."""

    BROKE = "broke"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """A section that is known to break a secondary, or to be refused in an ordinary migration.

    :param phase: in which it broke; one that is refused is so in all, and has none here
    :param twice: it broke where it stood twice in a buffer of a build that resets before each load
    """

    section: str
    reason: Reason
    phase: str = ""
    twice: bool = False


@dataclass(kw_only=True)
class Bench:
    """One pack under one QEMU, with what was learnt about it so far; shared by the cells of a machine.

    :param devices: those that the guest has, as their recipes tell
    :param came: the guest came from elsewhere: another QEMU, or another host
    :param blamed: sections that broke a secondary, by phase and by whether they stood twice in a buffer of a
        build that resets before each load (elsewhere it makes no difference)
    :param refused: sections that this QEMU refuses already in an ordinary migration: only their own rows load them
    """

    binary: QemuBinary
    ability: ColoAbility
    buffers: Buffers
    pace: Pace
    scope: ProcessScope
    devices: tuple[Device, ...] = ()
    came: bool = False
    blamed: dict[tuple[str, bool], set[str]] = field(default_factory=dict)
    refused: frozenset[str] = frozenset()
    lock: Lock = field(default_factory=Lock)

    def tell(self, known: Iterable[Exclusion]) -> None:
        """Let it know what others found out."""
        for one in known:
            if one.reason is Reason.REFUSED:
                self.refused |= {one.section}
            else:
                self.blamed.setdefault((one.phase, one.twice), set()).add(one.section)

    @property
    def exclusions(self) -> frozenset[Exclusion]:
        """All that it knows, to be told to another bench."""
        with self.lock:
            broke = {
                Exclusion(section=label, reason=Reason.BROKE, phase=phase, twice=twice)
                for (phase, twice), labels in self.blamed.items()
                for label in labels
            }
        return frozenset(broke | {Exclusion(section=label, reason=Reason.REFUSED) for label in self.refused})

    @property
    def label(self) -> str:
        """How cell ids name the QEMU, or the pair of them."""
        return pair_label(Qemu(**self.buffers.pack.manifest.qemu).short, self.binary.short)

    def isolator(self, again: bool) -> Isolator:
        """A search over this pack that tries the known culprits first.

        :param again: the sections stood more than once in a buffer when it broke
        """
        with self.lock:
            known = sorted({label for labels in self.blamed.values() for label in labels})
        return Isolator(
            binary=self.binary,
            dialect=self.ability.dialect,
            buffers=self.buffers,
            resets=bool(self.ability.resets_before_load),
            again=self._twice(again),
            suspects=known,
            scope=self.scope,
        )

    def blame(self, phase: str, again: bool, labels: tuple[str, ...]) -> None:
        """Remember what broke in a phase."""
        with self.lock:
            self.blamed.setdefault((phase, self._twice(again)), set()).update(labels)

    def known(self, phases: tuple[str, ...], again: bool, own: frozenset[str]) -> frozenset[str]:
        """Sections of other rows that are known to break in these phases."""
        with self.lock:
            broken = [self.blamed.get((phase, self._twice(again)), set()) for phase in phases]
        return self.refused.union(*broken) - own

    def _twice(self, again: bool) -> bool:
        return again and bool(self.ability.resets_before_load)


def judge_cell(plan: CellPlan, bench: Bench, on_loads: OnLoads, control: RunControls | None = None) -> Iterator[Cell]:
    """Judge a planned cell; more than one comes back when a section of the row is to blame.

    The first holds the finding; the last, with ``+rest`` in its id, judges the row without what was blamed.
    Sections of other rows that break the secondary are left out and named in ``excluded``.

    :param control: runs the controls of a finding; without it a finding has no class
    :raises HostError: no space; nothing more can be judged
    :raises Stopped: the run was told to stop
    """
    row = _Row(plan, bench, on_loads, control)
    try:
        yield from row.cells()
    except (HostError, Stopped):
        raise
    except (QemuError, HarnessError) as error:
        yield row.undecided(str(error))


class _Row:
    """The state of one cell being judged."""

    def __init__(self, plan: CellPlan, bench: Bench, on_loads: OnLoads, control: RunControls | None) -> None:
        self._plan = plan
        self._control = control
        self._bench = bench
        self._id = plan.id(bench.label)
        self._on_loads = on_loads
        self._all = frozenset(bench.buffers.pack.sections_of(plan.device)) & self._labels()
        self._blamed: list[str] = []
        self._started = time.monotonic()
        self._told = 0

    def cells(self) -> Iterator[Cell]:
        if not self._all:
            yield self.undecided(f"the recording has no section of {self._plan.device}")
            return
        while True:
            known = self._bench.known(self._plan.phases, self._again, self._own)
            excluded = known | frozenset(self._blamed)
            evidence = self._session(excluded).run(self._tell)
            judgement = self._trusted(judge(evidence), excluded)
            if judgement.verdict is Verdict.OK or not judgement.verdict.is_finding:
                yield self._cell(evidence, judgement, excluded, None)
                return
            blame = self._blame(evidence, judgement, excluded)
            if blame is None:
                judgement = self._again_and_again(judgement, excluded)
            foreign = blame is not None and not frozenset(blame.sections) & self._own
            if not foreign:
                yield self._controlled(self._cell(evidence, judgement, excluded, blame), evidence, judgement, blame)
            if blame is None or len(self._blamed) >= MAX_BLAMED:
                return
            self._bench.blame(self._failing_phase(evidence), self._again, blame.sections)
            if not foreign:
                self._blamed += blame.sections
                self._started = time.monotonic()
                if not self._own:
                    return

    def _controlled(self, cell: Cell, evidence: Evidence, judgement: Judgement, blame: Blame | None) -> Cell:
        """The cell with its class, when there are controls and the load is what they can speak of."""
        broken = evidence.broken
        if self._control is None or broken is None or broken.load == 0:
            return cell
        sections = blame.sections if blame else ()
        failure_class, said = self._control(broken.phase, sections, frozenset(cell.excluded), judgement, evidence)
        return replace(cell, failure_class=failure_class, controls=said)

    def _again_and_again(self, first: Judgement, excluded: frozenset[str]) -> Judgement:
        """Repeat what no section alone was found to do: a verdict that does not come back each time is flaky."""
        again = [self._trusted(judge(self._session(excluded).run()), excluded).verdict for _ in range(REPEATS)]
        verdicts = [first.verdict] + [verdict for verdict in again if not verdict.is_undecided]
        same = verdicts.count(first.verdict)
        if same == len(verdicts):
            return replace(first, text=f"{first.text} ({same} of {same} runs)")
        others = ", ".join(sorted({v.value for v in verdicts if v is not first.verdict}))
        text = f"{first.verdict} in {same} of {len(verdicts)} runs, {others} in the others: {first.text}"
        return replace(first, verdict=Verdict.FLAKY, text=text)

    def _trusted(self, judgement: Judgement, excluded: frozenset[str]) -> Judgement:
        """Where a build resets before each load, a section that is left out is in reset state under a running
        guest: that the guest breaks then says nothing of the sections that were loaded."""
        if judgement.verdict is not Verdict.GUEST_FAULT or not excluded or not self._bench.ability.resets_before_load:
            return judgement
        text = f"the guest broke, with {', '.join(sorted(excluded))} left out and so in reset state: {judgement.text}"
        return replace(judgement, verdict=Verdict.HARNESS_ERROR, text=text)

    @property
    def _own(self) -> frozenset[str]:
        return self._all - frozenset(self._blamed)

    @property
    def _again(self) -> bool:
        return self._plan.schedule is Schedule.BACK_TO_BACK

    def _labels(self) -> frozenset[str]:
        recordings = self._bench.buffers.pack.recordings
        present = [{label_of(s) for s in recordings[phase].sections} for phase in self._plan.phases]
        return frozenset(set.intersection(*present))

    def _session(self, excluded: frozenset[str]) -> Session:
        resets = bool(self._bench.ability.resets_before_load)
        parked = self._plan.guest_mode is GuestMode.PARKED
        self._told = 0
        return Session(
            binary=self._bench.binary,
            dialect=self._bench.ability.dialect,
            buffers=self._bench.buffers,
            plan=self._load_plan(),
            selection=Selection(own=self._own, excluded=excluded, whole=resets or not parked),
            mode=self._plan.guest_mode,
            absent=self._bench.refused & excluded,
            pace=self._bench.pace,
            scope=self._bench.scope,
        )

    def _load_plan(self) -> LoadPlan:
        return plan_loads(Schedule(self._plan.schedule), self._plan.phases, self._plan.loads)

    def _tell(self, more: int) -> None:
        self._told += more
        self._on_loads(self._id, self._told)

    def _failing_phase(self, evidence: Evidence) -> str:
        return evidence.broken.phase if evidence.broken else self._plan.phases[-1]

    def _blame(self, evidence: Evidence, judgement: Judgement, excluded: frozenset[str]) -> Blame | None:
        """Who did it; a guest that broke, or a session that broke without a load, has no section to blame."""
        if judgement.verdict is Verdict.GUEST_FAULT or evidence.broken is None or evidence.broken.load == 0:
            return None
        before = self._load_plan().phase_before(evidence.broken.load)
        return self._bench.isolator(self._again).find(
            before, evidence.broken.phase, evidence.broken.load, excluded, judgement.verdict
        )

    def _cell(self, evidence: Evidence, judgement: Judgement, excluded: frozenset[str], blame: Blame | None) -> Cell:
        rate = evidence.loads_acked / evidence.load_seconds if evidence.load_seconds else 0.0
        finding = None if judgement.verdict is Verdict.OK else self._finding(evidence, judgement, blame)
        return self._frame(
            verdict=judgement.verdict,
            finding=finding,
            excluded=tuple(sorted(excluded)),
            loads_acked=evidence.loads_acked,
            checkpoints_acked=evidence.checkpoints_acked,
            warnings=warnings_of(evidence),
            loads_per_second=round(rate, 1),
        )

    def _finding(self, evidence: Evidence, judgement: Judgement, blame: Blame | None) -> Finding:
        section = ", ".join(blame.sections) if blame else judgement.named
        broken = evidence.broken
        return Finding(
            section=section,
            phase=broken.phase if broken else None,
            load=broken.load if broken else evidence.loads_acked,
            text=judgement.text,
            log=judgement.log,
            exit=str(evidence.exit) if evidence.exit else None,
            isolated=blame.how if blame else None,
        )

    def _suffix(self) -> str:
        """``+rest`` for the second look at a row, ``+rest2`` for the third."""
        count = len(self._blamed)
        return "" if not count else REST_SUFFIX + (str(count) if count > 1 else "")

    def undecided(self, text: str) -> Cell:
        return self._frame(verdict=Verdict.HARNESS_ERROR, finding=Finding(text=text))

    def _frame(self, *, verdict: Verdict, finding: Finding | None, **more: object) -> Cell:
        pack = self._bench.buffers.pack
        return Cell(
            id=self._id + self._suffix(),
            record_qemu=Qemu(**pack.manifest.qemu),
            load_qemu=Qemu(**self._bench.binary.identity()),
            machine=self._plan.machine,
            accel=pack.manifest.accel,
            device=self._plan.device,
            phases=self._plan.phases,
            schedule=str(self._plan.schedule),
            verdict=verdict,
            guest_mode=str(self._plan.guest_mode),
            sections=tuple(sorted(self._own)),
            loads_asked=self._plan.loads,
            finding=finding,
            pack=str(pack.source),
            seconds=round(time.monotonic() - self._started, 3),
            **more,  # type: ignore[arg-type]
        )
