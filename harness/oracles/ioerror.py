# SPDX-License-Identifier: GPL-2.0-or-later
"""Oracle ``io-error``: from what was seen of a secondary with failing disks to a verdict. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.engines.colo import Evidence
from harness.experiments.ioerror import Interval, IoErrors
from harness.oracles.load import judge
from harness.results.verdict import Verdict

#: What ``runstate_set`` prints before it aborts (``softmmu/runstate.c``).
_TRANSITION = "invalid runstate transition"


@dataclass(frozen=True, slots=True, kw_only=True)
class IoJudgement:
    """A verdict on one secondary.

    :param text: one line: what happened
    :param details: what it rests on, for a JSON document
    """

    verdict: Verdict
    text: str
    details: dict[str, Any] = field(default_factory=dict)


def judge_io_errors(seen: IoErrors) -> IoJudgement:
    """Judge a secondary. It is well when every load is acknowledged, the failover ends, and no request is lost.

    A machine that stops again after the failover is well too, as long as its disk fails for good: it holds its
    request back, as ``werror=stop`` asks for.
    """
    verdict, text = _verdict(seen)
    return IoJudgement(verdict=verdict, text=text, details=_details(seen))


def _verdict(seen: IoErrors) -> tuple[Verdict, str]:
    if seen.exit is not None or seen.broken is not None:
        return _broken(seen)
    if seen.failover:
        return Verdict.HANG, f"the failover did not end: {seen.failover}"
    if seen.loads_acked < seen.loads_asked or seen.after is None:
        return Verdict.HARNESS_ERROR, f"{seen.loads_acked} of {seen.loads_asked} loads acknowledged"
    if seen.faults and not any(i.held for i in (*seen.intervals, seen.after)) and "BLOCK_IO_ERROR" not in seen.events:
        return Verdict.HARNESS_ERROR, f"no request met the failing sector of {', '.join(seen.faults)}"
    if seen.stuck:
        return Verdict.GUEST_FAULT, f"the guest does not answer after the failover: {seen.stuck}"
    lost = [f"{disk}: {status}" for disk, status in seen.requests.items() if status != "0"]
    if lost:
        return Verdict.GUEST_FAULT, f"requests that were held back did not succeed: {', '.join(lost)}"
    wanted = "io-error" if seen.faults and not seen.once else "running"
    if seen.after.status != wanted:
        return Verdict.GUEST_FAULT, f"after the failover the machine is {seen.after.status}, not {wanted}"
    return Verdict.OK, f"{seen.loads_acked} loads; after the failover {_said(seen.after)}"


def _broken(seen: IoErrors) -> tuple[Verdict, str]:
    evidence = Evidence(
        loads_asked=seen.loads_asked,
        loads_acked=seen.loads_acked,
        checkpoints_acked=seen.loads_acked,
        broken=seen.broken,
        exit=seen.exit,
        log=seen.log,
    )
    judgement = judge(evidence)
    line = next((line for line in seen.log.splitlines() if _TRANSITION in line), None)
    if line is None or seen.exit is None or not seen.exit.crashed:
        return judgement.verdict, judgement.text
    where = f"load {seen.broken.load}" if seen.broken else "after the failover"
    return Verdict.CRASH, f"{where}: {seen.exit}: {line[line.index(_TRANSITION) :]}"


def _said(interval: Interval) -> str:
    held = ", ".join(f"{disk} held {count} back" for disk, count in interval.held.items())
    return f"{interval.status}{f' ({held})' if held else ''}"


def _details(seen: IoErrors) -> dict[str, Any]:
    return {
        "phase": seen.phase,
        "faults": dict(seen.faults),
        "once": seen.once,
        "loads": [seen.loads_acked, seen.loads_asked],
        "intervals": [_said(interval) for interval in seen.intervals],
        "after": _said(seen.after) if seen.after else None,
        "requests": dict(seen.requests),
        "events": list(seen.events),
        "log": seen.log,
        "seconds": round(seen.seconds, 2),
    }
