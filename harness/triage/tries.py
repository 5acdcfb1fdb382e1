# SPDX-License-Identifier: GPL-2.0-or-later
"""One try of one candidate: a new secondary, a deadline, and only the failure that is looked for counts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from harness.engines.buffers import Buffers, Selection
from harness.engines.colo import Pace, Session
from harness.engines.evidence import Evidence
from harness.engines.probe import ColoAbility
from harness.engines.schedule import LoadPlan
from harness.errors import HarnessError, HostError, QemuError, Stopped, UsageError
from harness.experiments.leak import LeakBench, LeakBudget
from harness.names import AS_RECORDED
from harness.oracles.leak import MIN_LEAK_BYTES, growth
from harness.oracles.load import is_spoilt, judge
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import Disturbed, undisturbed
from harness.qemu.scope import ProcessScope
from harness.results.cause import Leaked, LoadedBy, Resource
from harness.results.document import Cell
from harness.results.signature import Signature, signature_of, signature_of_cell
from harness.results.verdict import Verdict
from harness.state.transforms import cpu_labels, label_of
from harness.triage.cells import at_start, phase_of
from harness.triage.minimise import Attempt, NotReproduced, Search
from harness.triage.quickleak import still_leaks
from harness.triage.reduced import Candidate, Labels, Reduced

#: Deadlines of one answer: with the whole machine in it, and of what is small.
WHOLE_TIMEOUT_S, SMALL_TIMEOUT_S = 20.0, 6.0
#: The guest runs so long after each load, as it does in a matrix.
RUN_S = 0.002
_INSTEAD = {"drift": ", and postload bundle takes it as it is"}
#: Budget of the measurement that a reduction ends with.
LEAK_BUDGET = LeakBudget(samples=6, section_s=0.15, min_loads=1200, max_loads=4000, once_checkpoints=100)


@dataclass(slots=True, kw_only=True)
class Target:
    """What is made smaller.

    :param pace: of a guest that is not parked
    """

    cell: Cell
    binary: QemuBinary
    ability: ColoAbility
    buffers: Buffers
    scope: ProcessScope = field(default_factory=ProcessScope)
    pace: Pace = field(default_factory=lambda: Pace(run_s=RUN_S))

    @property
    def kind(self) -> str:
        """``load`` or ``leak``."""
        return "leak" if self.cell.verdict is Verdict.LEAK else "load"

    @property
    def once(self) -> bool:
        """The leak is COLO's: it is measured with one load in each checkpoint."""
        leaks = [cause for cause in self.cell.outcome.causes if isinstance(cause, Leaked)]
        return bool(leaks) and all(leak.way is LoadedBy.CHECKPOINT for leak in leaks)

    @property
    def resets(self) -> bool:
        """The build resets the machine before each load."""
        return bool(self.ability.resets_before_load)

    @property
    def phase(self) -> str:
        """Where it failed."""
        return phase_of(self.cell)

    @property
    def at_start(self) -> bool:
        """It failed in the incoming stream, before any checkpoint."""
        return at_start(self.cell)

    @property
    def hint(self) -> Labels:
        """Sections that were blamed, and are there."""
        return frozenset(self.cell.blamed) & self.labels

    @property
    def labels(self) -> Labels:
        """Every section of the phase that may be loaded."""
        sections = self.buffers.pack.recordings[self.phase].sections
        return frozenset(label_of(section) for section in sections) - frozenset(self.cell.left_out)

    @property
    def control(self) -> str:
        """A section whose load allocates nothing."""
        return self.buffers.pack.architecture.leak_control

    @property
    def cpu(self) -> Labels:
        """The sections that park the guest."""
        return cpu_labels(self.buffers.pack.recordings[self.phase])


def check_target(cell: Cell) -> None:
    """A cell that can be made smaller.

    :raises UsageError: it holds no finding, or one of an oracle whose experiments are not loads alone
    """
    if not cell.verdict.is_finding:
        raise UsageError(f"{cell.id}: its verdict is {cell.verdict}: there is nothing to minimise")
    leak = cell.lane == "leak" and cell.verdict is Verdict.LEAK
    if not cell.by_load and cell.lane not in AS_RECORDED and not leak:
        raise UsageError(
            f"{cell.id}: a finding of oracle {cell.lane} ({cell.verdict}) cannot be minimised: expected one of a "
            f"load, a migration or a leak; postload explain has all that is known of it{_INSTEAD.get(cell.lane, '')}"
        )
    if leak and not cell.blamed:
        raise UsageError(f"{cell.id}: a leak without a section cannot be minimised")


class Tries:
    """Tries candidates on a real QEMU."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.wanted = signature_of_cell(target.cell)
        #: Evidence of the last try of this process that failed in the wanted way.
        self.seen: Evidence | None = None
        self.leak: dict[str, Any] = {}

    def attempt(self, candidate: Candidate) -> Attempt:
        """One try in a new secondary.

        :raises HostError: no space
        :raises Disturbed: the host disturbed each try, so that nobody knows whether it fails
        :raises Stopped: told to stop
        """
        self._target.scope.check()
        began = time.monotonic()
        run = self._leak if self._target.kind == "leak" else self._load
        try:
            found = run(candidate)
        except (HostError, Stopped, Disturbed):
            raise
        except (QemuError, HarnessError):
            # QEMU refuses the command line, or the pack has nothing to send
            found = Attempt(hit=False, tested=False)
        return replace(found, seconds=round(time.monotonic() - began, 4))

    def figures(self, search: Search[Candidate]) -> dict[str, Any]:
        """What a leak of the best candidate comes to; empty for a load.

        :raises NotReproduced: the oracle does not call it a leak
        """
        if self._target.kind == "leak":
            began = time.monotonic()
            measured = self.measure_leak(search.best)
            search.sessions, search.loads = search.sessions + 1, search.loads + measured.loads
            search.seconds += time.monotonic() - began
            if not measured.hit:
                raise NotReproduced(0, 1)
        return self.leak

    def signature(self, evidence: Evidence) -> Signature | None:
        """The name of what a session came to."""
        cell = self._target.cell
        outcome = replace(judge(evidence).outcome, sections=cell.blamed)
        return signature_of(outcome, machine=cell.machine, device=cell.device)

    def _load(self, candidate: Candidate) -> Attempt:
        evidence = undisturbed(self.session(candidate).run, is_spoilt)
        verdict = judge(evidence).verdict
        begun = evidence.broken is None or evidence.broken.load > 0
        # of an incoming stream that was taken nothing behind it matters
        passed = begun if self._target.at_start else verdict is Verdict.OK
        # the same words of another experiment do not count: a section is refused in a checkpoint as in a stream
        wanted = self.wanted if verdict.is_finding and begun is not self._target.at_start else None
        found = None if wanted is None else self.signature(evidence)
        hit = found is not None and wanted is not None and found.name == wanted.name
        if hit:
            self.seen = evidence
        broken = evidence.broken is not None and evidence.broken.load > 0
        return Attempt(hit=hit, tested=hit or passed, loads=evidence.loads_acked + broken)

    def session(self, candidate: Candidate) -> Session:
        """The session that loads a candidate."""
        target = self._target
        small = candidate.ram is not None and candidate.start is not None
        return Session(
            binary=target.binary,
            dialect=target.ability.dialect,
            buffers=Reduced(target.buffers, candidate),
            plan=LoadPlan(incoming=candidate.incoming, checkpoints=candidate.steps),
            selection=Selection(own=candidate.own),
            mode=candidate.mode,
            pace=target.pace,
            timeout_s=SMALL_TIMEOUT_S if small else WHOLE_TIMEOUT_S,
            scope=target.scope,
        )

    def _leak(self, candidate: Candidate) -> Attempt:
        return undisturbed(
            lambda: self._leak_once(candidate),
            lambda result, hindered: not result.hit and any(each.fatal for each in hindered),
        )

    def _leak_once(self, candidate: Candidate) -> Attempt:
        if self._wanted_bytes is None:
            return self.measure_leak(candidate)
        (label,) = candidate.own
        leaks, loads = still_leaks(self._bench(candidate), label, self._wanted_bytes, once=self._target.once)
        return Attempt(hit=bool(leaks), tested=leaks is not None, loads=loads)

    @property
    def _wanted_bytes(self) -> float | None:
        """Half of the growth that the cell has: less is another leak. None when it is not the heap that grows."""
        cell = self._target.cell
        found = [heap_growth(cell, label) for label in cell.blamed]
        best = max(found, default=0.0)
        return max(MIN_LEAK_BYTES, best / 2) if best > MIN_LEAK_BYTES else None

    def measure_leak(self, candidate: Candidate) -> Attempt:
        """Measure a leak with the oracle's own care; the figures are kept."""
        labels = sorted(candidate.own)
        bench = self._bench(candidate)
        run = bench.run([], once=labels) if self._target.once else bench.run(labels)
        measured = run.once if self._target.once else run.sections
        for series in measured:
            grown = growth(run, series)
            if grown.leaks:
                self.leak = {
                    "bytes_per_load": round(grown.memory.estimate, 3),
                    "low": round(grown.memory.low, 3),
                    "high": round(grown.memory.high, 3),
                    "floor_bytes": round(grown.floor_bytes, 3),
                    "loads": grown.loads,
                    "loads_per_checkpoint": series.repeat,
                    "chunks": [[size, round(count / max(1, grown.loads), 2)] for size, count in series.chunks[:3]],
                }
                return Attempt(hit=True, loads=run.loads_acked)
        return Attempt(hit=False, tested=len(measured) == len(labels), loads=run.loads_acked)

    def _bench(self, candidate: Candidate) -> LeakBench:
        target = self._target
        return LeakBench(
            binary=target.binary,
            dialect=target.ability.dialect,
            resets=target.resets,
            buffers=Reduced(target.buffers, candidate),
            phase=candidate.incoming,
            excluded=frozenset(target.cell.left_out),
            scope=target.scope,
            budget=LEAK_BUDGET,
        )


def heap_growth(cell: Cell, label: str) -> float:
    """Bytes for each load that the cell's figures have for a section."""
    leaks = (cause for cause in cell.outcome.causes if isinstance(cause, Leaked) and cause.section == label)
    return next((leak.per_load for leak in leaks if leak.resource is Resource.MEMORY), 0.0)
