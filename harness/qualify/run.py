# SPDX-License-Identifier: GPL-2.0-or-later
"""Qualify one QEMU for the guests of another: run the pairs, and turn the matrix into an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.errors import PostloadError, Stopped
from harness.facts.kvm import KvmTried
from harness.names import DECIDING, USES
from harness.qemu.binary import QemuBinary
from harness.qualify.answer import Leg, answer_leg, legs_of
from harness.qualify.evidence import GuestWitness
from harness.qualify.model import Answer, Ending, PairAnswer, QualifyDoc, worst
from harness.qualify.pairs import QemuPair, at_home, ending
from harness.results.document import MatrixDoc
from harness.work.asked import Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What is known beside the cells.

    :param binaries: every QEMU of the run by its hash
    :param deciding: the uses that count; empty for those that count by the versions of a pair
    :param witness: asks the QEMUs for causes; None gives the bare answers
    :param travelled: the guests came in a pack, so that the build that recorded is no mere comparison
    :param kvm: whether state that KVM refuses could be seen on this host
    """

    binaries: Mapping[str, QemuBinary]
    deciding: Sequence[str] = ()
    witness: GuestWitness | None = None
    travelled: bool = False
    kvm: KvmTried | None = None


def pair_subjects(pairs: Sequence[QemuPair]) -> list[Subject]:
    """What a run begins with: a recording, and its loads, for each pair."""
    return [Subject(recorder=pair.recorder, loader=pair.loader, machine=pair.machine) for pair in pairs]


def home_subjects(pairs: Sequence[QemuPair], doc: MatrixDoc, context: Context) -> list[Subject]:
    """The guests that broke abroad, loaded by their own recorders: is it new, or was it so before?"""
    broken: dict[tuple[str, str], set[str]] = {}
    for leg in legs_of(doc):
        answered = answer_leg(leg, None, context.deciding).devices
        # what does not decide is a reason all the same, and asks as well whether it is new
        failed = {d.device for d in answered if d.answer is Answer.UNKNOWN or Answer.NO_GO in d.uses.values()}
        broken.setdefault(_home_key(leg), set()).update(failed)
    there = (pair for pair in pairs if pair.loader.machine(pair.machine) is not None)
    homes = [(pair, broken.get((pair.machine, pair.recorder.sha256))) for pair in at_home(there)]
    return [
        Subject(recorder=pair.recorder, loader=pair.loader, machine=pair.machine, devices=frozenset(devices))
        for pair, devices in homes
        if devices
    ]


def qualify_doc(doc: MatrixDoc, context: Context) -> QualifyDoc:
    """The answer of a run; the guests that stayed at home are compared with, and do not count.

    A run that was stopped early has no go: what it has not loaded may break. No cause is looked for either.
    """
    context = context if doc.complete else replace(context, witness=None)
    legs = legs_of(doc)
    homes = {_home_key(leg): leg for leg in legs if leg.at_home}
    answers = tuple(_answered(leg, homes.get(_home_key(leg)), context) for leg in legs)
    if not doc.complete:
        answers = tuple(_stopped(answer) for answer in answers)
    abroad = [answer for answer in answers if not answer.home]
    whole = worst(answer.answer for answer in abroad)
    deciding = {use for answer in abroad for use in answer.deciding} or set(context.deciding or DECIDING)
    return QualifyDoc(
        command=doc.command,
        started=doc.started,
        seconds=doc.seconds,
        complete=doc.complete,
        answer=Answer.UNKNOWN if whole is Answer.NONE or (whole is Answer.GO and not doc.complete) else whole,
        deciding=tuple(use for use in USES if use in deciding),
        loads=sum(answer.loads for answer in answers),
        pairs=answers,
        kvm=context.kvm,
    )


def _stopped(pair: PairAnswer) -> PairAnswer:
    """An answer of a run that was stopped: migrations are judged whole, checkpoints may lack any of their cells."""

    def doubted(answer: Answer) -> Answer:
        return Answer.UNKNOWN if answer is Answer.GO else answer

    devices = tuple(
        replace(device, answer=doubted(device.answer), uses={**device.uses, "colo": doubted(device.uses["colo"])})
        for device in pair.devices
    )
    uses = {**pair.uses, "colo": doubted(pair.uses["colo"])}
    return replace(pair, answer=doubted(pair.answer), uses=uses, devices=devices)


def _answered(leg: Leg, home: Leg | None, context: Context) -> PairAnswer:
    stays = leg is home and not context.travelled
    witness = None if stays else context.witness
    answer = answer_leg(leg, home, context.deciding, witness.explain if witness else None)
    answer = replace(answer, home=stays, endings=tuple(_endings(leg, context)))
    if witness is None:
        return answer
    try:
        static, no_static = witness.static(leg), ""
    except Stopped:
        raise
    except PostloadError as error:
        static, no_static = {}, str(error)
    devices = tuple(replace(device, static=static.get(device.device, ())) for device in answer.devices)
    return replace(answer, devices=devices, changes=tuple(witness.changes(leg)), no_static=no_static)


def _home_key(leg: Leg) -> tuple[str, str]:
    return leg.machine, leg.recorder.sha256


def _endings(leg: Leg, context: Context) -> Iterator[Ending]:
    for qemu in dict.fromkeys((leg.recorder, leg.loader)):
        binary = context.binaries.get(qemu.sha256)
        state = ending(binary, leg.machine) if binary else None
        if state:
            yield Ending(state=state, version=qemu.version)
