# SPDX-License-Identifier: GPL-2.0-or-later
"""Ordinary migration of a recorded guest into a new process, before any checkpoint: does this QEMU take the state?

A section that is refused here would be refused in the incoming stream of every COLO session too. It is left out of
what comes behind, so that it does not hide what the other devices do; its own row loads it all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.ddmin import ddmin
from harness.engines.evidence import Count, Evidence
from harness.engines.fresh import Fresh
from harness.engines.incoming import State
from harness.engines.postcopy import Postcopy, probe_postcopy
from harness.experiments.plainlife import plain_life
from harness.lanes.checks import Experiment, OracleCheck, OracleName, Told, judge_by
from harness.lanes.guest import LIVELY_PHASES
from harness.lanes.judge import MAX_BLAMED, Bench, repeated
from harness.lanes.lane import Lane, Wave, all_in_one
from harness.names import PLATFORM
from harness.oracles.guestfault import judge_life
from harness.oracles.load import Judgement, judge
from harness.results.cause import Undecided, Why, located
from harness.results.outcome import Repeats
from harness.results.verdict import Verdict
from harness.state.transforms import cpu_labels, labels_of

Engine = Callable[[Bench, State], Evidence]


def _plain(bench: Bench, check: OracleCheck) -> Experiment:
    """Every phase by precopy; where it came from another QEMU or host, the guest is asked how it is."""
    tally = _RowTally.of(bench, check.rows)
    for phase in check.phases:
        _one_phase(bench, phase, _by_precopy, tally)
    bench.refused = frozenset(tally.refused)
    details = _live(bench, check, tally) if bench.came and not tally.refused else {}
    return _outcome(tally, "fresh", details)


def _early(bench: Bench, check: OracleCheck) -> Experiment:
    """Every phase by precopy, its device state twice in one stream: no reset comes between the two loads, as upstream
    plans it for virtio-net ("early VMSD": once while memory is sent, and whole at the end)."""
    tally = _RowTally.of(bench, check.rows)
    for phase in check.phases:
        _one_phase(bench, phase, _by_two_loads, tally)
    return _outcome(tally, "fresh", {})


def _by_two_loads(bench: Bench, state: State) -> Evidence:
    return _by_precopy(bench, replace(state, early=True))


def _postcopy(bench: Bench, check: OracleCheck) -> Experiment:
    """Every phase by postcopy, whole at first: a failure at post_load in there is told apart from one by precopy."""
    ability = probe_postcopy(bench.binary, bench.buffers.machine, bench.scope)
    if not ability.usable:
        unavailable = Undecided(why=Why.UNAVAILABLE, lack=ability.lack, said=ability.said)
        said = [Told(verdict=Verdict.HOST, causes=(unavailable,))]
        return Experiment(told=dict.fromkeys(check.rows, said), loads_asked=0, loads_acked=0, engine="postcopy")
    tally = _RowTally.of(bench, check.rows)
    pages = PageTally()
    for phase in check.phases:
        _one_phase(bench, phase, pages.load, tally)
    return _outcome(tally, "postcopy", {"pages": pages.to_json()})


def _by_precopy(bench: Bench, state: State) -> Evidence:
    return Fresh(binary=bench.binary, state=state, processes=1, scope=bench.scope).run()


@dataclass(slots=True)
class PageTally:
    """Loads by postcopy, their pages counted: sent before, sent behind the guest, and fetched by its faults."""

    early: int = 0
    late: int = 0
    by_fault: int = 0

    def load(self, bench: Bench, state: State) -> Evidence:
        evidence = Postcopy(binary=bench.binary, state=state, scope=bench.scope).run()
        self.early += evidence.pages.early
        self.late += evidence.pages.late
        self.by_fault += evidence.pages.by_fault
        return evidence

    def to_json(self) -> dict[str, int]:
        return {"early": self.early, "late": self.late, "by_fault": self.by_fault}


def _live(bench: Bench, check: OracleCheck, tally: _RowTally) -> dict[str, Any]:
    """Ask a guest that came by precopy for its clock, disks, network and kernel log."""
    phase = next((phase for phase in reversed(LIVELY_PHASES) if phase in check.phases), None)
    if phase is None:
        return {}
    life = plain_life(bench.binary, bench.buffers, phase, devices=bench.devices, scope=bench.scope)
    tally.count(frozenset(), passed=bool(life.loads_acked))
    for row, judgement in judge_life(life).items():
        if row in tally.told and judgement.verdict is not Verdict.OK:
            causes = tuple(located(cause, phase=phase) for cause in judgement.causes)
            tally.told[row].append(Told(verdict=judgement.verdict, causes=causes, log=life.log))
    return {"asked_how_it_is": phase}


def _outcome(tally: _RowTally, engine: str, details: dict[str, Any]) -> Experiment:
    return Experiment(
        told={row: found or [_passed(*tally.loads[row])] for row, found in tally.told.items()},
        loads_asked=0,
        loads_acked=0,
        loads={row: Count(asked=asked, passed=acked, checkpoints=0) for row, (asked, acked) in tally.loads.items()},
        excluded=frozenset(tally.refused),
        own_loaded=True,
        engine=engine,
        details=details,
    )


def _passed(asked: int, acked: int) -> Told:
    """Nothing was found against a row: a load that broke for nobody's section is not one that it passed."""
    if asked and asked == acked:
        return Told(verdict=Verdict.OK)
    return Told(verdict=Verdict.HARNESS_ERROR, causes=(Undecided(why=Why.OTHERS, acked=acked, asked=asked),))


@dataclass(slots=True, kw_only=True)
class _RowTally:
    """What came of all phases, by row.

    :param row_of: whose section it is
    :param loads: loads asked and acknowledged that a row's own sections were part of, or that broke for them
    """

    row_of: Callable[[str], str]
    told: dict[str, list[Told]]
    loads: dict[str, list[int]]
    refused: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, bench: Bench, rows: Sequence[str]) -> _RowTally:
        return cls(
            row_of=bench.buffers.pack.owner_of, told={row: [] for row in rows}, loads={row: [0, 0] for row in rows}
        )

    def count(self, absent: frozenset[str], *, passed: bool, blamed: Sequence[str] = ()) -> None:
        """Count one load: a load that breaks for one section says nothing of the other rows."""
        hurt = {self.row_of(label) for label in blamed}
        without = {self.row_of(label) for label in absent}
        for row, (asked, acked) in self.loads.items():
            if (row in hurt) if hurt else (row not in without):
                self.loads[row] = [asked + 1, acked + passed]


def _one_phase(bench: Bench, phase: str, engine: Engine, tally: _RowTally) -> None:
    """Load a phase; without what is refused, until it passes or nobody can be blamed."""
    for _ in range(MAX_BLAMED):
        absent = frozenset(tally.refused)
        state = State(buffers=bench.buffers, phase=phase, excluded=absent)
        judgement = judge(engine(bench, state))
        if judgement.verdict is Verdict.OK:
            tally.count(absent, passed=True)
            return
        if judgement.verdict.is_finding and judgement.named is None and _passes(engine, bench, state):
            # leaving sections out one by one would blame an innocent one
            tally.count(absent, passed=True)
            # it is the platform's; where that is not judged, no other row may be ok over it
            tally.count(absent, passed=False, blamed=[PLATFORM] if PLATFORM in tally.told else ())
            verdict, repeats = repeated(judgement.verdict, [Verdict.OK])
            _tell(tally, phase, replace(judgement, verdict=verdict), (), repeats)
            return
        blamed = _blamed(bench, phase, engine, absent, judgement)
        tally.count(absent, passed=False, blamed=blamed)
        _tell(tally, phase, judgement, blamed)
        if not blamed:
            return
        tally.refused.update(blamed)
    given_up = Undecided(why=Why.TOO_MANY, phase=phase, sections=tuple(sorted(tally.refused)))
    for told in tally.told.values():
        told.append(Told(verdict=Verdict.HARNESS_ERROR, causes=(given_up,)))


def _passes(engine: Engine, bench: Bench, state: State) -> bool:
    return judge(engine(bench, state)).verdict is Verdict.OK


def _blamed(bench: Bench, phase: str, engine: Engine, absent: frozenset[str], judgement: Judgement) -> tuple[str, ...]:
    """The section that QEMU names, else the fewest without which the load passes."""
    if not judgement.verdict.is_finding:
        return ()
    recording = bench.buffers.pack.recordings[phase]
    left = [label for label in labels_of(recording.sections) if label not in absent]
    if judgement.named in left:
        return (judgement.named,)

    def passes_without(labels: Sequence[str]) -> Judgement | None:
        state = State(buffers=bench.buffers, phase=phase, excluded=absent | frozenset(labels))
        found = judge(engine(bench, state))
        return found if found.verdict is Verdict.OK else None

    # What precopy refused already is the first to be suspected; a postcopy that fails names no section from 10.1 on.
    # A guest whose CPU is left out triple-faults as soon as it is started, so that nothing would pass without all.
    cpus = cpu_labels(recording)
    devices = [label for label in left if label not in cpus]
    for suspects in ([label for label in left if label in bench.refused], devices, left):
        whole = passes_without(suspects) if suspects else None
        if whole:
            return ddmin(suspects, passes_without, whole)[0]
    return ()


def _tell(
    tally: _RowTally, phase: str, judgement: Judgement, blamed: Sequence[str], repeats: Repeats | None = None
) -> None:
    causes = () if judgement.cause is None else (located(judgement.cause, phase=phase),)
    if not judgement.verdict.is_finding:
        for told in tally.told.values():
            told.append(Told(verdict=judgement.verdict, causes=causes, log=judgement.log))
        return
    for label in blamed or (None,):
        row = tally.row_of(label) if label else PLATFORM
        # a section of a device that is not judged is left out behind this, and each cell names it as excluded
        if row in tally.told:
            tally.told[row].append(
                Told(verdict=judgement.verdict, section=label, causes=causes, log=judgement.log, repeats=repeats)
            )


def migration_check(oracle: OracleName, phases: Sequence[str], rows: Sequence[str]) -> OracleCheck:
    """A migration of all phases; a cell for each row."""
    run = {OracleName.PLAIN: _plain, OracleName.EARLY: _early, OracleName.POSTCOPY: _postcopy}[oracle]
    return OracleCheck(oracle=oracle, phases=tuple(phases), rows=tuple(rows), run=run)


LANES = (
    Lane(
        name=str(OracleName.PLAIN),
        wave=Wave.PRECOPY,
        seconds=0.8,
        groups=all_in_one,
        judge=judge_by(lambda request, _: migration_check(OracleName.PLAIN, request.phases, request.devices)),
    ),
    Lane(
        name=str(OracleName.EARLY),
        wave=Wave.POSTCOPY,
        seconds=1.1,
        groups=all_in_one,
        judge=judge_by(lambda request, _: migration_check(OracleName.EARLY, request.phases, request.devices)),
    ),
    Lane(
        name=str(OracleName.POSTCOPY),
        wave=Wave.POSTCOPY,
        seconds=1.1,
        groups=all_in_one,
        judge=judge_by(lambda request, _: migration_check(OracleName.POSTCOPY, request.phases, request.devices)),
    ),
)
