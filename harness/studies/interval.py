# SPDX-License-Identifier: GPL-2.0-or-later
"""Question 4: checkpoint frequency, loads survived and time spent loading.

No dirty pages are sent: what is measured is the secondary's own share (stop, restore RAM from the cache, load the
device state, start), which a real primary waits for in every checkpoint.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from harness.colo.messages import U32, Message
from harness.colo.primary import ChannelBroken
from harness.deadline import in_time
from harness.errors import HarnessError
from harness.state.transforms import GuestMode, encode
from harness.studies.findings import How, IntervalCase, IntervalFigures, IntervalFinding
from harness.studies.model import Lab, Question, whole
from harness.studies.patient import EOF, REQUEST, SEND, Patient, sections_of, size_message

_ANSWER_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """One checkpoint in seconds: request to reply, reply to RECEIVED, RECEIVED to LOADED."""

    stop_s: float
    receive_s: float
    load_s: float

    @property
    def total_s(self) -> float:
        """Request to LOADED: as long as the guest stands still."""
        return self.stop_s + self.receive_s + self.load_s


def watch(lab: Lab, interval_ms: float) -> tuple[list[Times], int, float, str]:
    """Checkpoints at one pace: times of those that passed, how many were asked for, seconds, what broke it.

    :raises HarnessError: a healthy secondary was not
    """
    devices = encode(sections_of(lab, lab.before, GuestMode.RUNNING)) * (2 if lab.resets else 1)
    tail = (SEND, EOF, size_message(len(devices) + 1), devices, EOF)
    times: list[Times] = []
    try:
        with Patient(lab) as patient:
            began = time.monotonic()
            end = began + lab.effort.watch_s
            while time.monotonic() < end:
                lab.scope.check()
                time.sleep(interval_ms / 1000)
                took = _one(patient, tail)
                if took is None:
                    broken = patient.reaction().said or str(How.SILENT)
                    return times, len(times) + 1, time.monotonic() - began, broken
                times.append(took)
            return times, len(times), time.monotonic() - began, ""
    except ChannelBroken as error:
        raise HarnessError(f"the secondary was not healthy before: {error}") from error


def _one(patient: Patient, tail: Sequence[bytes]) -> Times | None:
    moments = [time.monotonic()]
    patient.send(REQUEST)
    for wanted in (Message.CHECKPOINT_REPLY, Message.VMSTATE_RECEIVED, Message.VMSTATE_LOADED):
        if wanted is Message.VMSTATE_RECEIVED:
            patient.send(*tail)
        if not _receive(patient, wanted):
            return None
        moments.append(time.monotonic())
    first, second, third, last = moments
    return Times(stop_s=second - first, receive_s=third - second, load_s=last - third)


def _receive(patient: Patient, wanted: Message) -> bool:
    deadline, data = patient.vm.deadline(_ANSWER_S), b""
    try:
        while len(data) < U32.size:
            piece = in_time(patient.sock, deadline, partial(patient.sock.recv, U32.size - len(data)))
            if not piece:
                return False
            data += piece
    except OSError:
        return False
    return bool(U32.unpack(data)[0] == wanted)


def case_of(interval_ms: float, times: Sequence[Times], asked: int, seconds: float, broken: str) -> IntervalCase:
    """The figures of one interval; times in milliseconds, shares of the time that passed."""
    totals = sorted(t.total_s * 1000 for t in times) or [0.0]
    loads = [t.load_s * 1000 for t in times] or [0.0]
    return IntervalCase(
        interval_ms=interval_ms,
        asked=asked,
        survived=len(times),
        seconds=round(seconds, 3),
        mean_ms=round(statistics.fmean(totals), 3),
        p95_ms=round(totals[min(len(totals) - 1, int(0.95 * len(totals)))], 3),
        load_mean_ms=round(statistics.fmean(loads), 3),
        stopped_share=round(sum(totals) / 1000 / seconds, 4) if seconds else 0.0,
        loading_share=round(sum(loads) / 1000 / seconds, 4) if seconds else 0.0,
        broken=broken,
    )


def ask(lab: Lab) -> IntervalFinding:
    """Every interval, one after the other: times are not to be shared with another QEMU of ours."""
    cases = []
    for interval_ms in lab.effort.intervals_ms:
        lab.stage(f"{lab.family}: checkpoints, the guest runs {interval_ms:g} ms between them")
        cases.append(case_of(interval_ms, *whole(partial(watch, lab, interval_ms))))
    figures = IntervalFigures(asked=sum(c.asked for c in cases), survived=sum(c.survived for c in cases))
    return IntervalFinding(figures=figures, cases=tuple(cases))


QUESTION = Question(number=4, ask=ask)
