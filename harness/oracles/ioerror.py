# SPDX-License-Identifier: GPL-2.0-or-later
"""Oracle ``io-error``: from what was seen of a secondary with failing disks to a verdict. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from harness.colo.messages import Step
from harness.engines.evidence import Evidence
from harness.experiments.interview import After
from harness.experiments.ioerror import ANSWERED, PHASE, Interval, IoErrors
from harness.oracles.load import end_of, judge
from harness.oracles.oracle import Opinion
from harness.results.cause import Broke, Cause, Check, During, FailedCheck, GuestFaulted, Undecided, Why, located
from harness.results.verdict import Verdict

#: What ``runstate_set`` prints before it aborts (``softmmu/runstate.c``).
_TRANSITION = "invalid runstate transition"


def judge_io_errors(seen: IoErrors, disks: Collection[str] | None = None, device: str | None = None) -> Opinion:
    """Judge a secondary. It is well when every load is acknowledged, the failover ends, and no request is lost.

    A request that the loaded state holds back is sent again when the machine goes on: on a healthy disk it is answered,
    and on one that fails it is held back again. A machine that stops again after the failover is well too, as long as
    its disk fails for good.

    :param disks: the failing ones that are looked at, by default all
    :param device: whose request is looked at, by default those of all that were asked
    """
    verdict, cause = _verdict(seen, seen.faults if disks is None else disks, device)
    return Opinion(verdict=verdict, causes=() if cause is None else (cause,), details=_details(seen))


def _verdict(seen: IoErrors, disks: Collection[str], device: str | None) -> tuple[Verdict, Cause | None]:
    during = During.FAILING_DISK if seen.faults else During.HEALTHY_DISK
    if seen.exit is not None or seen.broken is not None:
        return _broken(seen, during)
    if seen.failover is not None:
        late = Broke(step=Step.FAILOVER, phase=seen.phase, during=during, how="late", symptom=seen.failover)
        return Verdict.HANG, late
    if seen.loads_acked < seen.loads_asked or seen.after is None:
        missing = Undecided(why=Why.LOADS, acked=seen.loads_acked, asked=seen.loads_asked, during=during)
        return Verdict.HARNESS_ERROR, missing
    unmet = sorted(set(disks) - {disk for i in (*seen.intervals, seen.after) for disk in i.held}) if seen.faults else []
    if unmet and seen.phase != PHASE:
        return Verdict.HARNESS_ERROR, Undecided(why=Why.NOT_MET, said=", ".join(unmet), during=during)
    lost = FailedCheck(check=Check.RESENT, said=", ".join(unmet)) if unmet else None
    fault = lost or _fault(seen, seen.after, device)
    if fault is None:
        return Verdict.OK, None
    return Verdict.GUEST_FAULT, GuestFaulted(
        step=Step.AFTER, phase=seen.phase, during=during, checks=(fault,), after=After.FAILOVER
    )


def _fault(seen: IoErrors, after: Interval, device: str | None) -> FailedCheck | None:
    if seen.stuck is not None:
        return FailedCheck(check=Check.CONSOLE, symptom=seen.stuck)
    asked = {name: state for name, state in seen.requests.items() if device in (None, name)}
    lost = [f"{name}: {state}" for name, state in asked.items() if state != ANSWERED]
    if lost:
        return FailedCheck(check=Check.REQUESTS, said=", ".join(lost))
    wanted = "io-error" if seen.faults and not seen.once else "running"
    return FailedCheck(check=Check.STATE, said=after.status, wanted=wanted) if after.status != wanted else None


def _broken(seen: IoErrors, during: During) -> tuple[Verdict, Cause | None]:
    evidence = Evidence(
        loads_asked=seen.loads_asked,
        loads_acked=seen.loads_acked,
        checkpoints_acked=seen.loads_acked,
        broken=seen.broken,
        exit=seen.exit,
        log=seen.log,
    )
    judgement = judge(evidence)
    cause = None if judgement.cause is None else located(judgement.cause, during=during)
    line = next((line for line in seen.log.splitlines() if _TRANSITION in line), None)
    if line is None or seen.exit is None or not seen.exit.crashed:
        return judgement.verdict, cause
    broken = seen.broken
    at = {"step": Step.LOAD, "load": broken.load} if broken else {"step": Step.FAILOVER}
    said = line[line.index(_TRANSITION) :]
    return Verdict.CRASH, end_of(seen.log, seen.exit, {**at, "phase": seen.phase, "during": during}, said)


def _plain(interval: Interval) -> dict[str, Any]:
    return {"status": interval.status, "held": dict(interval.held)}


def _details(seen: IoErrors) -> dict[str, Any]:
    return {
        "phase": seen.phase,
        "faults": dict(seen.faults),
        "once": seen.once,
        "loads": [seen.loads_acked, seen.loads_asked],
        "intervals": [_plain(interval) for interval in seen.intervals],
        "after": _plain(seen.after) if seen.after else None,
        "requests": dict(seen.requests),
        "events": list(seen.events),
        "log": seen.log,
        "seconds": round(seen.seconds, 2),
    }
