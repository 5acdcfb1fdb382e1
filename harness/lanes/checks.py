# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracles that look at more than the answers of a secondary: one experiment, a cell for each row.

An experiment loads a whole machine; its findings are per section or per device. They are put together here into
one cell for each row, with the worst section's verdict, and the figures of every section in ``details``.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from harness.devices.device import Device
from harness.devices.saved import Rule
from harness.engines.evidence import Count
from harness.engines.setting import Setting
from harness.errors import HarnessError, HostError, QemuError, Stopped, StreamError
from harness.experiments.drift import DriftExperiment
from harness.experiments.leak import find_leaks
from harness.lanes.judge import Bench, OnLoads, RunControls
from harness.lanes.lane import Group, Judge, Lane, Reached, Request, Wave, by_phase
from harness.names import PLATFORM
from harness.oracles.drift import judge_drift, rules_for
from harness.oracles.leak import Suspects, judge_leaks, run_details
from harness.oracles.oracle import Opinion
from harness.oracles.outside import judge_outside
from harness.results.cause import Cause, Undecided, Why, located
from harness.results.document import Cell
from harness.results.key import RUNNING, CellKey
from harness.results.outcome import Outcome, Repeats
from harness.results.verdict import FailureClass, Verdict, rank
from harness.state.transforms import labels_of


class OracleName(StrEnum):
    """What is looked at; the value stands in a cell's ``oracle``."""

    DRIFT = "drift"
    LEAK = "leak"
    PLAIN = "plain"
    EARLY = "early"
    POSTCOPY = "postcopy"
    GUEST = "guest"
    IO_ERROR = "io-error"
    RESET = "reset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What an oracle says of one section, or of one device as a whole (``section`` None)."""

    verdict: Verdict
    section: str | None = None
    causes: tuple[Cause, ...] = ()
    log: str = ""
    repeats: Repeats | None = None
    failure_class: FailureClass | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, opinion: Opinion, section: str | None = None) -> Told:
        """An opinion of an oracle."""
        return cls(
            verdict=opinion.verdict,
            section=section,
            causes=opinion.causes,
            log=opinion.log,
            details=opinion.details,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What one experiment brought.

    :param told: for each row, what is said of its sections
    :param loads: for each row, the loads and checkpoints that count for it, where that is not all of them
    :param blamed: those of the excluded ones that were loaded at first: their own row has the finding
    :param own_loaded: a row whose own sections are among the excluded ones did load them
    """

    told: Mapping[str, Sequence[Told]]
    loads_asked: int
    loads_acked: int
    loads: Mapping[str, Count] = field(default_factory=dict)
    excluded: frozenset[str] = frozenset()
    blamed: frozenset[str] = frozenset()
    own_loaded: bool = False
    engine: str = "colo"
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleCheck:
    """One experiment to be made on one machine.

    :param phases: those it loads
    :param rows: the devices that get a cell
    """

    oracle: OracleName
    phases: tuple[str, ...]
    rows: tuple[str, ...]
    run: Callable[[Bench, OracleCheck], Experiment]

    def key(self, like: CellKey, device: str) -> CellKey:
        """Of the cell of one device.

        :param like: any cell of the same route and machine
        """
        return replace(
            like,
            device=device,
            phases=self.phases,
            lane=str(self.oracle),
            guest_mode=RUNNING,
            rest=0,
        )


def perform(check: OracleCheck, bench: Bench) -> list[Cell]:
    """Make the experiment; a cell for each row, in the rows' order.

    :raises HostError: no space; nothing more can be judged
    :raises Stopped: the run was told to stop
    """
    started = time.monotonic()
    try:
        experiment = check.run(bench, check)
    except (HostError, Stopped):
        raise
    except (QemuError, HarnessError, StreamError) as error:
        causes = (Undecided(why=Why.ERROR, said=str(error)),)
        told = {row: [Told(verdict=Verdict.HARNESS_ERROR, causes=causes)] for row in check.rows}
        experiment = Experiment(told=told, loads_asked=0, loads_acked=0)
    seconds = time.monotonic() - started
    cells = [_cell(check, bench, row, experiment, seconds) for row in check.rows]
    # one experiment loaded for all of them, where it does not count loads by row
    first = next((cell.id for cell in cells if cell.device not in experiment.loads), "")
    own = {first, *(cell.id for cell in cells if cell.device in experiment.loads)}
    return [cell if cell.id in own else replace(cell, shared_with=first) for cell in cells]


def judge_by(make: Callable[[Request, Bench], OracleCheck]) -> Judge:
    """Judges a request by one experiment."""

    def judge(bench: Bench, request: Request, _on_loads: OnLoads, _control: RunControls | None) -> Iterator[Cell]:
        yield from perform(make(request, bench), bench)

    return judge


def drift_check(phase: str, rows: Sequence[str]) -> OracleCheck:
    """State after one load against state after many, for every section of a phase."""
    return OracleCheck(oracle=OracleName.DRIFT, phases=(phase,), rows=tuple(rows), run=_drift)


def _drift(bench: Bench, check: OracleCheck) -> Experiment:
    phase = check.phases[0]
    excluded = excluded_in(bench, check)
    run = DriftExperiment.of(setting_of(bench, phase, excluded)).run()
    judged = judge_drift(run, drift_rules(bench))
    rows = _by_row(bench, check, judged)
    # another QEMU, or other options, show the same machine otherwise
    same = bench.recorder.sha256 == bench.loader.sha256 and not bench.buffers.machine.extra
    outside = judge_outside(run, bench.buffers.pack.manifest.plan, PLATFORM) if same else {}
    # a device that was not loaded shows the state of a reset
    loaded = {
        row: opinion for row, opinion in outside.items() if not excluded & set(bench.buffers.pack.sections_of(row))
    }
    told = {
        row: [*(_drift_told(label, judged[label]) for label in labels), *(Told.of(o) for o in _of(loaded, row))]
        for row, labels in rows
    }
    return Experiment(told=told, loads_asked=run.loads_asked, loads_acked=run.loads_acked, excluded=excluded)


def _of(opinions: Mapping[str, Opinion], row: str) -> list[Opinion]:
    return [opinions[row]] if row in opinions else []


def drift_rules(bench: Bench) -> tuple[Rule, ...]:
    """What the devices of a bench allow to drift."""
    return rules_for(bench.devices, {d.name: d.sections for d in bench.buffers.pack.manifest.devices})


def _drift_told(label: str, opinion: Opinion) -> Told:
    details = {key: value for key, value in opinion.details.items() if value and key != "loads"}
    return replace(Told.of(opinion, label), details=details)


def leak_check(phase: str, rows: Sequence[str]) -> OracleCheck:
    """What each section's load leaves behind, loaded alone and back to back thousands of times."""
    return OracleCheck(oracle=OracleName.LEAK, phases=(phase,), rows=tuple(rows), run=_leak)


def _leak(bench: Bench, check: OracleCheck) -> Experiment:
    phase = check.phases[0]
    excluded = excluded_in(bench, check)
    every = labels_of(bench.buffers.pack.recordings[phase].sections)
    asked = [label for _, labels in _by_row(bench, check, every) for label in labels]
    result = find_leaks(setting_of(bench, phase, excluded), suspects=Suspects(), labels=asked)
    judged = judge_leaks(result)
    told = {
        row: [
            replace(
                Told.of(judged[name], name),
                causes=tuple(located(cause, phase=phase) for cause in judged[name].causes),
            )
            for name in labels
        ]
        for row, labels in _by_row(bench, check, judged)
    }
    counted: Counter[str] = Counter()
    checkpoints: Counter[str] = Counter()
    for run in result.runs:
        for series in (*run.sections, *run.once):
            counted[series.label] += series.loads
            checkpoints[series.label] += series.checkpoints
    return Experiment(
        told=told,
        loads_asked=result.loads_asked,
        loads_acked=result.loads_acked,
        loads={
            row: Count(
                asked=sum(counted[name] for name in labels),
                passed=sum(counted[name] for name in labels),
                checkpoints=sum(checkpoints[name] for name in labels),
            )
            for row, labels in _by_row(bench, check, judged)
        },
        excluded=excluded,
        details={"run": run_details(result.first)},
    )


def setting_of(bench: Bench, phase: str, excluded: frozenset[str]) -> Setting:
    """A phase of a bench's pack; what its QEMU does not take in an incoming stream is not in that either."""
    return Setting(
        binary=bench.binary,
        dialect=bench.ability.dialect,
        resets=bool(bench.ability.resets_before_load),
        buffers=bench.buffers,
        phase=phase,
        excluded=excluded,
        absent=bench.refused,
        scope=bench.scope,
    )


def excluded_in(bench: Bench, check: OracleCheck) -> frozenset[str]:
    """What was blamed in the phase, in whichever schedule: an experiment may load back to back."""
    return bench.known(check.phases, twice=True)


def own_in(bench: Bench, phase: str, row: str) -> frozenset[str]:
    """A device's own sections in a phase."""
    pack = bench.buffers.pack
    return frozenset(labels_of(pack.recordings[phase].sections)) & frozenset(pack.sections_of(row))


def _by_row(bench: Bench, check: OracleCheck, labels: Iterable[str]) -> list[tuple[str, list[str]]]:
    """The labels of each row; what nobody owns (a section that appeared) is the platform's."""
    pack = bench.buffers.pack
    return [(row, [label for label in labels if pack.owner_of(label) == row]) for row in check.rows]


def _cell(check: OracleCheck, bench: Bench, row: str, experiment: Experiment, seconds: float) -> Cell:
    pack = bench.buffers.pack
    own = own_in(bench, check.phases[0], row)
    loaded = own if experiment.own_loaded else own & experiment.blamed
    excluded = experiment.excluded - loaded
    told = list(experiment.told.get(row, ())) or [_untold(own & excluded)]
    verdict = min((t.verdict for t in told), key=rank)
    count = experiment.loads.get(row, Count(asked=experiment.loads_asked, passed=experiment.loads_acked))
    outcome = Outcome(verdict=verdict) if verdict is Verdict.OK else _outcome(verdict, told)
    key = check.key(bench.machine_key, row)
    return Cell(
        key=replace(key, rest=1 if own & excluded else 0),
        record_qemu=bench.recorder,
        load_qemu=bench.loader,
        outcome=replace(
            outcome,
            loads_asked=count.asked,
            loads_acked=count.passed,
            checkpoints_acked=count.passed if count.checkpoints is None else count.checkpoints,
        ),
        sections=tuple(sorted(own - excluded)),
        excluded=tuple(sorted(excluded)),
        details={**experiment.details, **{t.section or row: dict(t.details) for t in told if t.details}},
        pack=str(pack.source),
        engine=experiment.engine,
        seconds=round(seconds, 3),
    )


def _untold(left_out: Collection[str]) -> Told:
    """Of a row of which an experiment says nothing.

    :param left_out: its sections that were not loaded
    """
    why = Undecided(why=Why.LEFT_OUT if left_out else Why.NOT_JUDGED, sections=tuple(sorted(left_out)))
    return Told(verdict=Verdict.HARNESS_ERROR, causes=(why,))


def _outcome(verdict: Verdict, told: Sequence[Told]) -> Outcome:
    """The worst of what was told, put together."""
    worst = [t for t in told if t.verdict is verdict]
    causes = [cause for each in worst for cause in each.causes]
    return Outcome(
        verdict=verdict,
        failure_class=next((each.failure_class for each in worst if each.failure_class), None),
        causes=tuple(cause for at, cause in enumerate(causes) if cause not in causes[:at]),
        sections=tuple(dict.fromkeys(each.section for each in worst if each.section)),
        repeats=next((each.repeats for each in worst if each.repeats), None),
        log="\n".join(dict.fromkeys(each.log for each in worst if each.log)),
    )


def _settled(phases: Sequence[str], reached: Reached, guest: Sequence[Device]) -> list[Group]:
    """Each device where its driver is bound, or in the first phase that it has."""
    best = {row: [next((phase for phase in ("bound", *own) if phase in own), "")] for row, own in reached.items()}
    return by_phase(phases, best, guest)


#: The longest first.
LANES = (
    Lane(
        name=str(OracleName.LEAK),
        wave=Wave.LOOK,
        waits=True,
        seconds=11.0,
        groups=_settled,
        judge=judge_by(lambda request, _: leak_check(request.phases[0], request.devices)),
    ),
    Lane(
        name=str(OracleName.DRIFT),
        wave=Wave.LOOK,
        seconds=0.2,
        groups=by_phase,
        judge=judge_by(lambda request, _: drift_check(request.phases[0], request.devices)),
    ),
)
