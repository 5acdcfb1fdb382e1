# SPDX-License-Identifier: GPL-2.0-or-later
"""The controls of a finding: the same state where nothing is stale, and where it was reset; they give it its class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from threading import Lock

from harness.engines.buffers import Selection
from harness.engines.colo import Session
from harness.engines.evidence import Evidence
from harness.engines.fresh import Fresh
from harness.engines.incoming import State
from harness.engines.loadvm import Loadvm
from harness.engines.pair import Pair
from harness.engines.schedule import Checkpoint, LoadPlan
from harness.errors import HarnessError, QemuError, Stopped
from harness.lanes.judge import Bench, Classed
from harness.oracles.classify import Control, Controls, classify, results
from harness.oracles.load import Judgement, judge
from harness.oracles.marker import moment_of
from harness.qemu.disturbance import attempt
from harness.results.cause import Undecided, Why
from harness.results.outcome import Moment
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode

FRESH_PROCESSES = 3
LOADVM_LOADS = 5
#: Loads of the same bytes: one at a time, and in one buffer.
SAME_LOADS = 5
CONTROL_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlCase:
    """What is controlled: a phase, the sections that were blamed there, and those left out from the start."""

    phase: str
    sections: tuple[str, ...]
    excluded: frozenset[str]


@dataclass(slots=True, kw_only=True)
class ControlRoom:
    """Runs the controls of each case once, however many cells ask for them.

    :param pair: also with a real primary
    """

    bench: Bench
    pair: bool = False
    _kept: dict[ControlCase, Controls] = field(default_factory=dict)
    _locks: dict[ControlCase, Lock] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def judge(
        self, phase: str, sections: tuple[str, ...], excluded: frozenset[str], found: Judgement, evidence: Evidence
    ) -> Classed:
        """Class of a finding, and what the controls gave.

        :raises Stopped: the run was told to stop
        """
        case = ControlCase(phase=phase, sections=sections, excluded=excluded)
        with self._lock:
            lock = self._locks.setdefault(case, Lock())
        with lock:
            controls = self._kept.get(case) or self._run_undisturbed(case)
        return Classed(
            failure_class=classify(found, evidence, controls),
            controls=results(controls, found),
            moment=controls.moment,
        )

    def _run_undisturbed(self, case: ControlCase) -> Controls:
        """Those that the host disturbed are not kept: their finding will be tried again."""
        with attempt() as account:
            controls = self._run(case)
        if not account.hindered:
            self._kept[case] = controls
        return controls

    def _run(self, case: ControlCase) -> Controls:
        controls = Controls(
            fresh=_control(lambda: self._fresh(case)),
            loadvm=_control(lambda: self._loadvm(case)),
            pair=_control(lambda: self._pair(case)) if self.pair else None,
            resets_before_load=self.bench.ability.resets_before_load,
        )
        if not case.sections:
            return controls
        one_by_one = self._session(case, (Checkpoint(phase=case.phase),) * SAME_LOADS)
        together = self._session(case, (Checkpoint(phase=case.phase, repeat=SAME_LOADS),))
        same = _control(one_by_one.run, parked=True)
        back_to_back = _control(together.run, parked=True)
        return replace(controls, same=same, back_to_back=back_to_back, moment=_moment(one_by_one, same))

    def _fresh(self, case: ControlCase) -> Evidence:
        state = State(buffers=self.bench.buffers, phase=case.phase, excluded=case.excluded)
        return Fresh(
            binary=self.bench.binary,
            state=state,
            processes=FRESH_PROCESSES,
            timeout_s=CONTROL_TIMEOUT_S,
            scope=self.bench.scope,
        ).run()

    def _pair(self, case: ControlCase) -> Evidence:
        state = State(buffers=self.bench.buffers, phase=case.phase, excluded=case.excluded)
        return Pair(
            binary=self.bench.binary, dialect=self.bench.ability.dialect, state=state, scope=self.bench.scope
        ).run()

    def _loadvm(self, case: ControlCase) -> Evidence:
        plan = LoadPlan(incoming=case.phase, checkpoints=(Checkpoint(phase=case.phase),) * LOADVM_LOADS)
        return Loadvm(
            binary=self.bench.binary,
            buffers=self.bench.buffers,
            plan=plan,
            excluded=case.excluded,
            timeout_s=CONTROL_TIMEOUT_S,
            scope=self.bench.scope,
        ).run()

    def _session(self, case: ControlCase, checkpoints: tuple[Checkpoint, ...]) -> Session:
        return Session(
            binary=self.bench.binary,
            dialect=self.bench.ability.dialect,
            buffers=self.bench.buffers,
            plan=LoadPlan(incoming=case.phase, checkpoints=checkpoints),
            selection=Selection(own=frozenset(case.sections), whole=False),
            mode=GuestMode.PARKED,
            timeout_s=CONTROL_TIMEOUT_S,
            scope=self.bench.scope,
        )


def _moment(session: Session, control: Control) -> Moment | None:
    """Whether the load broke or the start of the guest behind it; None when it passed or cannot be told."""
    if control.ok or not control.decided:
        return None
    try:
        return moment_of(session, control.passed, control.judgement.verdict)
    except QemuError:
        return None


def _control(run: Callable[[], Evidence], *, parked: bool = False) -> Control:
    """A control that could not be run is undecided, and says why."""
    try:
        evidence = run()
    except Stopped:
        raise
    except (QemuError, HarnessError) as error:
        undecided = Undecided(why=Why.ERROR, said=str(error))
        return Control(judgement=Judgement(verdict=Verdict.HARNESS_ERROR, cause=undecided), asked=0, passed=0)
    return Control.of(judge(evidence), evidence, parked=parked)
