# SPDX-License-Identifier: GPL-2.0-or-later
"""The class of a finding, from the controls that were run beside it. Pure; nothing is started here.

The first row that fits decides. "Alike" is the same kind of break: both QEMU's own end (crash, hang, reject), or
the same verdict; two logs that name different sections are never alike. "Decided" is a control that came to ok or
to a finding. "Enough" loads are at least as many as the finding needed.

== ====================================================================================== ====================
no what was seen                                                                          class
== ====================================================================================== ====================
1  the finding is flaky, or the cell is none                                              none
2  a real pair passed enough loads: the harness does what a real primary does not         none
3  fresh was not run or is undecided                                                      none
4  fresh breaks alike when the guest is started, and QEMU itself ended                    resume
5  fresh breaks alike otherwise                                                           fails
6  fresh breaks in another way                                                            none
7  the incoming stream of the session broke, though fresh passes; or the device buffer
   was not received whole                                                                 none
8  a load was acknowledged, and QEMU crashed or hung before it took the next request     resume
9  the last load, with a section behind it that no QEMU knows, is refused for that
   section: the load had passed                                                           resume
10 parked: broke after n loads with n starts; n loads in one buffer, with one start, pass
   (and the build does not reset before a load)                                           resume
11 loadvm breaks alike: a used process breaks although it was reset                       not-reentrant
12 the same bytes twice into a machine that no guest has used since break alike           not-reentrant
13 the same bytes often in one buffer break alike                                         not-reentrant
14 the same bytes pass enough loads into an unused machine, and loadvm passes enough with
   the guest running; the build does not reset before a load                              stale-without-reset
15 anything else                                                                          none
== ====================================================================================== ====================

Rows 12 and 14 tell the two apart by the finding's own cause. ``not-reentrant``: the second load of what is there
already breaks, nothing else is needed. ``stale-without-reset``: only another state, or what a running guest left,
breaks it, and a reset before the load takes it away. A loadvm that passes stands with both; one that breaks
excludes the second.

A guest that is parked has no fault to show: for a guest-fault a control that was parked says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.colo.messages import Step
from harness.engines.evidence import Evidence
from harness.oracles.load import Judgement, crash_line, error_line
from harness.results.outcome import ControlName, ControlResult, Moment
from harness.results.verdict import FailureClass, Verdict

#: QEMU itself ended or gave up; the oracles of the guest and of the state say the rest.
_BREAKS = frozenset({Verdict.CRASH, Verdict.HANG, Verdict.REJECT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What one control gave.

    :param asked: loads, or processes for ``fresh``, that were asked for
    :param passed: of these, those that passed
    :param moment: when it broke, where the engine can tell; None when it passed or cannot
    :param brought_in: False when not even the first state could be brought in, so that nothing was tried
    :param parked: the guest ran no code between the loads
    """

    judgement: Judgement
    asked: int
    passed: int
    moment: Moment | None = None
    brought_in: bool = True
    parked: bool = False

    @classmethod
    def of(cls, judgement: Judgement, evidence: Evidence, *, parked: bool = False) -> Control:
        """From what an engine brought back and what it was judged to be."""
        broken = evidence.broken
        moment = None
        if broken is not None and broken.step in (Step.INCOMING, Step.RESUME) and broken.load:
            moment = Moment.RESUME if broken.step is Step.RESUME else Moment.LOAD
        return cls(
            judgement=judgement,
            asked=evidence.loads_asked,
            passed=evidence.loads_acked,
            moment=moment,
            brought_in=broken is None or broken.load > 0,
            parked=parked,
        )

    @property
    def decided(self) -> bool:
        """Whether it came to something."""
        verdict = self.judgement.verdict
        return self.brought_in and (verdict is Verdict.OK or (verdict.is_finding and verdict is not Verdict.FLAKY))

    @property
    def ok(self) -> bool:
        """Whether all of it passed."""
        return self.judgement.verdict is Verdict.OK and self.passed > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """The controls and experiments of one finding; None is one that was not run.

    :param fresh: the same state into new processes, one load each
    :param loadvm: the same states as snapshots, a reset before each load
    :param pair: a real primary and a real secondary; it confirms, and never makes a class
    :param same: a secondary whose guest is parked, brought into the state that broke and then loaded with the same
        bytes (engine ``colo``); the isolated section alone where one is blamed
    :param back_to_back: the same bytes many times in one buffer, guest parked (engine ``colo``)
    :param moment: from :class:`harness.oracles.marker.moment_of`: when the load that broke did
    :param resets_before_load: the build resets the machine before each checkpoint's load
    """

    fresh: Control | None = None
    loadvm: Control | None = None
    pair: Control | None = None
    same: Control | None = None
    back_to_back: Control | None = None
    moment: Moment | None = None
    resets_before_load: bool | None = None


def classify(colo: Judgement, evidence: Evidence, controls: Controls) -> FailureClass | None:
    """The class of a finding; None when the controls do not allow one.

    :param colo: what the session came to that found it
    :param evidence: of that session; where a smaller case was found, of the smallest one that breaks alike
    """
    if not colo.verdict.is_finding or colo.verdict is Verdict.FLAKY:
        return None
    case = _Case(colo, evidence, controls)
    if case.contradicted():
        return None
    fresh = controls.fresh
    if fresh is None or not fresh.decided:
        return None
    if not fresh.ok:
        return case.in_fresh(fresh)
    if not case.in_load():
        return None
    return case.resume() or case.reentrancy()


class _Case:
    """One finding and what may be said of it."""

    def __init__(self, colo: Judgement, evidence: Evidence, controls: Controls) -> None:
        self._colo = colo
        self._broken = evidence.broken
        self._controls = controls
        self._needed = max(1, evidence.broken.load if evidence.broken else evidence.loads_acked)
        self._is_break = colo.verdict in _BREAKS

    def contradicted(self) -> bool:
        """Row 2: what a real pair passed counts, whatever became of the pair afterwards."""
        pair = self._controls.pair
        if pair is None or not self._is_break or not self._broken or not self._broken.load:
            return False
        return pair.passed >= self._needed and not self._alike(pair)

    def in_fresh(self, fresh: Control) -> FailureClass | None:
        """Rows 4 to 6."""
        if not self._alike(fresh):
            return None
        if fresh.moment is Moment.RESUME and self._is_break and self._controls.moment is not Moment.LOAD:
            return FailureClass.RESUME
        return FailureClass.FAILS

    def in_load(self) -> bool:
        """Row 7: False when the session broke where no device is loaded."""
        if self._broken is None:
            return True
        return self._broken.load > 0 and self._broken.step is not Step.SEND

    def resume(self) -> FailureClass | None:
        """Rows 8 to 10."""
        if not self._is_break or self._broken is None:
            return None
        told = self._after_load() or self._controls.moment is Moment.RESUME or self._by_starts()
        return FailureClass.RESUME if told else None

    def reentrancy(self) -> FailureClass | None:
        """Rows 11 to 14."""
        seen = self._controls
        if self._is_break and self._broken is not None and self._broken.step is Step.REQUEST:
            return None  # no load was going on
        if any(control is not None and self._alike(control) for control in (seen.loadvm, seen.same, seen.back_to_back)):
            return FailureClass.NOT_REENTRANT
        running = seen.loadvm is not None and not seen.loadvm.parked
        if running and seen.resets_before_load is False and self._passes(seen.same) and self._passes(seen.loadvm):
            return FailureClass.STALE_WITHOUT_RESET
        return None

    def _after_load(self) -> bool:
        """Row 8: LOADED had come, so the guest had been started."""
        assert self._broken is not None  # resume() looked
        ended = self._colo.verdict in (Verdict.CRASH, Verdict.HANG)
        return ended and self._broken.step is Step.REQUEST and self._broken.load > 1

    def _by_starts(self) -> bool:
        same, together = self._controls.same, self._controls.back_to_back
        if same is None or together is None or self._controls.resets_before_load is not False:
            return False
        if self._controls.moment is Moment.LOAD or not same.parked or not together.parked:
            return False
        return self._alike(same) and together.ok and together.passed > same.passed > 0

    def _passes(self, control: Control | None) -> bool:
        if control is None or not control.ok or not control.decided:
            return False
        if control.parked and self._colo.verdict is Verdict.GUEST_FAULT:
            return False
        return control.passed >= self._needed

    def _alike(self, control: Control) -> bool:
        theirs = control.judgement
        if not control.decided or theirs.verdict is Verdict.OK:
            return False
        if self._colo.named and theirs.named and self._colo.named != theirs.named:
            return False
        return theirs.verdict is self._colo.verdict or (self._is_break and theirs.verdict in _BREAKS)


def results(controls: Controls, colo: Judgement) -> tuple[ControlResult, ...]:
    """Which controls were run and what they gave.

    :param colo: the finding's own judgement; a control that says the same is ``alike``
    """
    run = {
        ControlName.FRESH: controls.fresh,
        ControlName.LOADVM: controls.loadvm,
        ControlName.PAIR: controls.pair,
        ControlName.SAME: controls.same,
        ControlName.BACK_TO_BACK: controls.back_to_back,
    }
    return tuple(_result(name, control, colo) for name, control in run.items() if control is not None)


def _result(name: ControlName, control: Control, colo: Judgement) -> ControlResult:
    message = _message(control.judgement)
    return ControlResult(
        name=name,
        verdict=control.judgement.verdict,
        asked=control.asked,
        passed=control.passed,
        decided=control.decided,
        brought_in=control.brought_in,
        moment=control.moment,
        alike=bool(message) and message == _message(colo),
        cause=control.judgement.cause,
    )


def _message(judgement: Judgement) -> str | None:
    return crash_line(judgement.log) or error_line(judgement.log)
