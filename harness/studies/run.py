# SPDX-License-Identifier: GPL-2.0-or-later
"""Answer the questions: have the recordings, find what breaks a healthy secondary, then ask."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from harness import names
from harness.arch import architecture_of
from harness.devices.device import Device
from harness.engines.buffers import Buffers
from harness.engines.probe import probe_colo
from harness.engines.schedule import Schedule, plan_loads
from harness.errors import HarnessError, PostloadError, UsageError
from harness.guests.build import GuestMaker
from harness.names import USUAL_PHASES, in_order
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.scope import ProcessScope
from harness.state import recordings
from harness.state.owners import settled
from harness.state.recorder import Plan
from harness.state.recordings import planned_guests, recording_plan
from harness.studies import framing, half, interval, loads
from harness.studies.model import ClaimsDoc, Effort, Lab, Question, StudyAnswer, document

_ALL = (loads.QUESTION, half.QUESTION, framing.QUESTION, interval.QUESTION)
QUESTIONS: Mapping[int, Question] = in_order("questions", names.QUESTIONS, {each.number: each for each in _ALL})
#: Loads of the whole state after which a machine counts as healthy enough for the questions behind the first.
_TRIAL_LOADS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be answered.

    :param machines: asked question 1
    :param others: machines asked the other questions, which take longer
    :param begin: told the number of each question when its turn comes
    :param stage: told what is going on
    """

    binary: QemuBinary
    machines: Sequence[str]
    others: Sequence[str]
    questions: Sequence[int]
    accel: str
    devices: Sequence[Device]
    guest: GuestMaker
    workers: int = 2
    effort: Effort = field(default_factory=Effort)
    command: Sequence[str] = ()
    begin: Callable[[int], None] = lambda _: None
    stage: Callable[[str], None] = lambda _: None
    scope: ProcessScope = field(default_factory=ProcessScope)


def answer_all(asked: Asked) -> ClaimsDoc:
    """The document; a question that could not be answered says why.

    :raises UsageError: this QEMU has no such machine
    :raises PostloadError: no guest, no recording, or this QEMU cannot do COLO
    """
    started = time.monotonic()
    answers: list[StudyAnswer] = []
    with ExitStack() as stack, _ends_all(asked.scope):
        labs = {name: stack.enter_context(_lab(asked, name)) for name in dict.fromkeys(_names(asked))}
        ready: dict[str, Lab] = {}
        for number in sorted(set(asked.questions)):
            question = QUESTIONS[number]
            asked.begin(number)
            if number == loads.QUESTION.number:
                answers.append(question.answer([labs[name] for name in asked.machines]))
                continue
            for name in asked.others:
                ready[name] = ready.get(name) or _without_broken(labs[name])
            answers.append(question.answer([ready[name] for name in asked.others]))
    return document(asked.binary, answers, asked.command, time.monotonic() - started)


def _names(asked: Asked) -> list[str]:
    """Machines that any of the questions needs."""
    first = asked.machines if loads.QUESTION.number in asked.questions else ()
    more = asked.others if set(asked.questions) - {loads.QUESTION.number} else ()
    return [*first, *more]


@contextmanager
def _ends_all(scope: ProcessScope) -> Iterator[None]:
    """Whatever ends the questions ends every QEMU of theirs."""
    try:
        yield
    except BaseException:
        scope.close()
        raise


def _without_broken(lab: Lab) -> Lab:
    """The same machine without the sections that break a healthy secondary."""
    lab.stage(f"{lab.family}: does a healthy secondary load the whole state?")
    trial = plan_loads(Schedule.SAME, [lab.before], _TRIAL_LOADS)
    excluded, _ = loads.find_broken(lab, "trial", trial)
    return replace(lab, excluded=excluded)


@contextmanager
def _lab(asked: Asked, machine: str) -> Iterator[Lab]:
    family, name = machine_names(asked.binary, machine)
    ability = probe_colo(asked.binary, asked.scope)
    devices = [d for d in asked.devices if recordings.missing(d, asked.binary, machine, family) is None]
    first = planned_guests(name, family, devices).guests[0]
    able, _ = settled(asked.binary, first, asked.accel, asked.scope)
    guest = asked.guest(architecture_of(name), able.wide)
    plan = recording_plan(binary=asked.binary, accel=asked.accel, guest=guest, planned=able, phases=USUAL_PHASES)
    with kept_pack(plan, asked.stage, asked.scope) as pack:
        lab = Lab(
            binary=asked.binary,
            ability=ability,
            buffers=Buffers(pack),
            workers=asked.workers,
            effort=asked.effort,
            scope=asked.scope,
            stage=asked.stage,
        )
        if lab.before not in pack.phases or lab.after not in pack.phases:
            raise HarnessError(f"{pack.path}: phases {lab.before} and {lab.after} are needed, it has {pack.phases}")
        yield lab


def kept_pack(plan: Plan, stage: Callable[[str], None], scope: ProcessScope | None = None) -> StatePack:
    """The recording that a matrix would use, made when there is none.

    :raises PostloadError: it could not be made
    """
    return recordings.Recordings(fresh=False, stage=stage, message=stage, scope=scope).pack(plan)


def machine_names(binary: QemuBinary, wanted: str) -> tuple[str, str]:
    """Family and versioned name of a machine.

    :raises UsageError: this QEMU has no such machine
    """
    if binary.machine(wanted) is None:
        raise UsageError(f"{binary.path} has no machine {wanted}")
    return recordings.machine_names(binary, wanted)


def exit_status(doc: ClaimsDoc) -> int:
    """0 when every question was answered, else 3."""
    return 0 if doc.complete else PostloadError.exit_code
