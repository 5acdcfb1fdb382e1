# SPDX-License-Identifier: GPL-2.0-or-later
"""Experiment: one ordinary incoming migration into a new process, and then the guest is asked how it is.

A migration that QEMU calls completed can leave a guest without a clock, a disk or a network. The questions are those
of :mod:`harness.experiments.guestlife`, which asks after COLO's failover; :mod:`harness.oracles.guestfault`
judges both.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from harness.colo.primary import ChannelBroken
from harness.devices.device import Device
from harness.engines.buffers import Buffers
from harness.engines.evidence import ANSWER_TIMEOUT_S, DEATH_GRACE_S, Break, break_at, end_within, own_words
from harness.engines.incoming import Incoming, State
from harness.experiments.guestlife import DisksWhy, GuestLife, answered_ends
from harness.experiments.interview import CHECK_TIMEOUT_S, After, Answers, Interview, recorded_devices, unbound_devices
from harness.guests.machine import DiskKind
from harness.qemu.binary import QemuBinary
from harness.qemu.process import Exit
from harness.qemu.scope import ProcessScope

#: In these the devices are bound, so that the guest can be asked about them at once.
PHASES = ("bound", "busy")
#: How long a QEMU whose guest fell silent may take to die.
_SILENT_GRACE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """How the process was at the end."""

    exit: Exit | None
    events: tuple[str, ...]
    log: str


def plain_life(
    binary: QemuBinary,
    buffers: Buffers,
    phase: str,
    devices: Iterable[Device] | None = None,
    *,
    excluded: frozenset[str] = frozenset(),
    scope: ProcessScope,
    check_timeout_s: float = CHECK_TIMEOUT_S,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> GuestLife:
    """Load ``phase`` once, as an ordinary destination does, start the guest and ask it.

    :param binary: the loading side; it is the machine of ``buffers``
    :param devices: instead of those that the pack was recorded with, as it says itself
    :param excluded: labels of sections left out of the stream
    :param check_timeout_s: how long one device's check may take
    :param timeout_s: deadline for the load, and for the guest's start
    :raises QemuError: QEMU did not even start
    :raises Stopped: the run was told to stop
    """
    started = time.monotonic()
    pack = buffers.pack
    interview = Interview(
        plan=pack.manifest.plan,
        phase=phase,
        devices=recorded_devices(pack, devices),
        silent=unbound_devices(pack, phase),
        scope=scope,
        check_timeout_s=check_timeout_s,
    )
    interview.check_stop()
    state = State(buffers=buffers, phase=phase, excluded=excluded)
    answers = Answers()
    machine = interview.machine(buffers.machine, DiskKind.PLAIN)
    with Incoming(binary, machine, timeout_s=timeout_s, scope=scope) as qemu:
        broken = _start(qemu, state)
        if broken is None:
            interview.ask(qemu.vm, answers)
        ended = _ended(qemu, broken, answers)
    return GuestLife(
        phase=phase,
        devices=tuple(entry.name for entry in pack.manifest.devices),
        kernel_names=interview.kernel_names(),
        unasked=interview.unasked(),
        disks=DiskKind.PLAIN,
        disks_why=DisksWhy.ONE_LOAD,
        loads_asked=1,
        loads_acked=0 if broken else 1,
        broken=broken,
        exit=ended.exit,
        events=ended.events,
        stuck=answers.stuck,
        clocks=tuple(answers.clocks),
        checks=tuple(answers.checks),
        kernel_log=answers.kernel_log,
        log=ended.log,
        seconds=time.monotonic() - started,
        after=After.MIGRATION,
    )


def _start(qemu: Incoming, state: State) -> Break | None:
    try:
        qemu.load(state)
        qemu.resume(0.0)
    except ChannelBroken as error:
        return break_at(error, 1, state.phase)
    return None


def _ended(qemu: Incoming, broken: Break | None, answers: Answers) -> _Ended:
    dying = broken is not None and broken.kind == "closed"
    ended = end_within(qemu.vm, DEATH_GRACE_S if dying else _SILENT_GRACE_S if answers.stuck else 0.0)
    return _Ended(exit=ended, events=() if ended else answered_ends(qemu.vm), log=own_words(qemu.vm.process.stderr()))
