# SPDX-License-Identifier: GPL-2.0-or-later
"""What every engine has in common: what it is, what it brings back, and how the end of a QEMU is looked at.

An engine brings a recorded state into real QEMUs, in its own way. It judges nothing: a QEMU that dies, refuses or
hangs is evidence, and so is one that does well. What it comes to is for an oracle to say.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken
from harness.colo.symptom import Sign, Symptom
from harness.errors import DeadlineError, HarnessError, QemuError
from harness.guests.console import ConsoleError
from harness.qemu.monitor import CommandRefused, NoAnswer, SessionClosed
from harness.qemu.process import Exit
from harness.qemu.threads import describe_threads
from harness.qemu.vm import Vm

#: Deadline for one answer: a whole-state load takes milliseconds, a buffer of 100 loads a tenth of a second.
ANSWER_TIMEOUT_S = 20.0
#: How long a QEMU whose connection broke may take to die, and print why.
DEATH_GRACE_S = 5.0

#: Told how many more loads were acknowledged.
OnLoads = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """Where a session broke: the step, how, and in which load (1 is the first; 0 the incoming stream)."""

    step: Step
    kind: str
    symptom: Symptom
    load: int
    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was seen in one session.

    :param loads_acked: loads whose checkpoint was acknowledged with VMSTATE_LOADED
    :param checkpoints_acked: acknowledged checkpoints; fewer than loads when they stood back to back
    :param exit: how QEMU ended by itself, None when it was still there
    :param log: what QEMU printed
    :param warnings: what QEMU printed while it lived, with the load after which it was there (0: before the first)
    :param events: names of QMP events of the guest's end (SHUTDOWN, RESET, GUEST_PANICKED)
    :param load_seconds: time between the first request and the last acknowledgement
    """

    loads_asked: int
    loads_acked: int
    checkpoints_acked: int
    broken: Break | None
    exit: Exit | None
    log: str
    warnings: tuple[tuple[int, str], ...] = ()
    events: tuple[str, ...] = ()
    seconds: float = 0.0
    load_seconds: float = 0.0


class Engine(Protocol):
    """Loads what it was made for, once; it is data until then."""

    def run(self, on_loads: OnLoads = ...) -> Evidence:
        """Load everything and say what happened.

        :raises QemuError: a QEMU did not even start
        :raises Stopped: the run was told to stop
        """


def break_at(error: ChannelBroken, load: int, phase: str) -> Break:
    """Where a control engine broke."""
    return Break(step=error.step, kind=error.kind, symptom=error.symptom, load=load, phase=phase)


def symptom_of(error: HarnessError) -> Symptom:
    """What an error of a QEMU or its guest comes to as data."""
    match error:
        case CommandRefused():
            return Symptom(sign=Sign.REFUSED, command=error.command, said=error.text)
        case NoAnswer(last=None):
            return Symptom(sign=Sign.NO_ANSWER, command=error.command, seconds=error.seconds)
        case NoAnswer():
            last = json.dumps(error.last, sort_keys=True, default=str)
            return Symptom(sign=Sign.NOT_DONE, command=error.command, seconds=error.seconds, said=last)
        case SessionClosed():
            return Symptom(sign=Sign.SESSION_CLOSED, command=error.command, said=error.how)
        case ConsoleError():
            return error.symptom
    return Symptom(sign=Sign.ERROR, said=str(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What an engine counted itself.

    :param asked: loads that were to be made
    :param passed: loads that were acknowledged
    :param checkpoints: acknowledged ones; as many as loads when None
    :param load_seconds: time that the passed loads took
    :param warnings: what QEMU printed, with the load after which it was there
    """

    asked: int
    passed: int
    checkpoints: int | None = None
    load_seconds: float = 0.0
    warnings: tuple[tuple[int, str], ...] = ()


def evidence_of(vm: Vm, count: Count, broken: Break | None, started: float, printed: int | None = None) -> Evidence:
    """What is to be seen of a QEMU that a session is over with.

    :param started: ``time.monotonic()`` at the beginning
    :param printed: bytes that it had printed by then; those of its start when None
    """
    ended = end_within(vm, grace_s(broken))
    hung = broken is not None and broken.kind == "late" and ended is None
    if hung:
        vm.process.clock.close()  # what a debugger does to it now is not the host's doing
    since = vm.printed_at_start if printed is None else printed
    return Evidence(
        loads_asked=count.asked,
        loads_acked=count.passed,
        checkpoints_acked=count.passed if count.checkpoints is None else count.checkpoints,
        broken=broken,
        exit=ended,
        log="\n".join([own_words(vm.process.stderr(since)), *([describe_threads(vm.process.pid)] if hung else [])]),
        warnings=count.warnings,
        # of one that broke it is known already that it is not well
        events=() if ended or hung else guest_events(vm, DEATH_GRACE_S if broken else ANSWER_TIMEOUT_S),
        seconds=time.monotonic() - started,
        load_seconds=count.load_seconds,
    )


def grace_s(broken: Break | None) -> float:
    """How long it may take to die: a QEMU that aborts closes its sockets before it is gone, while one that loaded all,
    or that refused a load and keeps its connection, must still be there."""
    return DEATH_GRACE_S if broken is not None and broken.kind in ("closed", "unexpected") else 0.0


def end_within(vm: Vm, within_s: float) -> Exit | None:
    """How QEMU ended; one that somebody told to end by a signal is waited for, as it says so before it leaves."""
    ended = vm.ended(within_s)
    if ended is None and any(_reason(event) == _BY_SIGNAL for event in vm.monitor.drain_events()):
        return vm.ended(DEATH_GRACE_S)
    return ended


_BY_SIGNAL = "host-signal"
#: The reason of a reset that ``system_reset`` asked for.
ASKED_FOR = "host-qmp-system-reset"
_GUEST_ENDS = ("SHUTDOWN", "RESET", "GUEST_PANICKED", "GUEST_CRASHLOADED")


def guest_events(vm: Vm, timeout_s: float = ANSWER_TIMEOUT_S) -> tuple[str, ...]:
    """Names of the events of the guest's end that came so far; ``NO-ANSWER`` when QEMU's main loop hangs."""
    try:
        # any answer at all: a process whose main loop hangs is not well, though its session had acknowledged
        vm.qmp("query-status", timeout_s=timeout_s)
    except (QemuError, DeadlineError):
        return ("NO-ANSWER",)
    return guest_ends(vm)


def guest_ends(vm: Vm) -> tuple[str, ...]:
    """Names of the events of the guest's end that came so far."""
    return tuple(e["event"] for e in vm.monitor.drain_events() if e["event"] in _GUEST_ENDS and not _by_others(e))


def _by_others(event: dict[str, Any]) -> bool:
    """A reset that is part of loading a snapshot, or that this program asked for, or an end that somebody on the host
    wanted: not the guest's."""
    return _reason(event) in ("snapshot-load", ASKED_FOR, _BY_SIGNAL)


def _reason(event: dict[str, Any]) -> str:
    return str(event.get("data", {}).get("reason", ""))


#: Said because of what this program does: it ends QEMU by a signal, and speaks QMP through an old option.
_NOT_ITS_OWN = re.compile(r"^\S+: (terminating on signal |-mon chardev=postload-qmp).*\n?", re.MULTILINE)


#: A word behind which QEMU began its next message without a new line: the program's name stands against it. That a path
#: ends in such a name is no second message.
_NOT_ENDED = re.compile(r"(?<=\s)([^\s/]*[\w.!?)\]'\"])(?=(?:qemu-system-[\w-]+|qemu-kvm): )")


def own_words(stderr: str) -> str:
    """What QEMU printed, each message in a line, and without what it says because of this program."""
    return _NOT_ITS_OWN.sub("", _NOT_ENDED.sub(r"\1\n", stderr)).strip()
