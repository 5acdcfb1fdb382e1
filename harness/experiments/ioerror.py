# SPDX-License-Identifier: GPL-2.0-or-later
"""Experiment: a secondary whose disk fails, or that is brought the state of a machine whose disk failed.

With ``werror=stop,rerror=stop`` a request that fails is held back by its device, and the machine stops with the
run state ``io-error`` (``block/block-backend.c:blk_error_action``). The device state then has the request in it
(``hw/block/virtio-blk.c:virtio_blk_save_device``, ``hw/ide/ahci.c:vmstate_ncq_tfs``), and whoever loads it and
starts the guest sends the request again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken
from harness.colo.symptom import Doing, Symptom
from harness.devices.phases import NOTHING_TO_DO_STATUS
from harness.engines.evidence import DEATH_GRACE_S, Break, break_at, end_within, own_words, symptom_of
from harness.engines.secondary import end_colo
from harness.engines.setting import Setting
from harness.errors import DeadlineError, GuestError, QemuError
from harness.guests.console import Console
from harness.guests.faults import halts
from harness.qemu.process import Exit
from harness.qemu.vm import Vm
from harness.state.transforms import GuestMode, encode, without

#: Where the recorded state has a request of each failing disk in it that is held back.
PHASE = "io-error"
LOADS = 5
#: How long the guest of a secondary may take to hit the sector that fails.
HALT_TIMEOUT_S = 10.0
GUEST_TIMEOUT_S = 30.0
#: How long a request that was sent again may take. The guest's drivers of SCSI, ATA, USB and NVMe give a request up
#: after 30 s and send another one, which is not what is asked for.
ANSWER_WITHIN_S = 15.0
#: How long the guest of a secondary with healthy disks runs behind each load.
RUN_S = 0.02
#: What a request came to in the guest; anything else is what the guest says of it.
ANSWERED, WAITING = "answered", "waiting"
#: In the midst of what ``disk_busy`` writes and reads over and over (``guests/init.sh``).
BUSY_SECTOR = 2048
_POLL_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """The time between two checkpoints.

    :param status: run state at its end
    :param held: requests that each failing disk held back in it, by the disk's node
    """

    status: str
    held: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class IoErrors:
    """What was seen of one secondary.

    :param faults: the secondary's own disks that fail, node to sector; none when its disks are healthy
    :param intervals: one behind each acknowledged load
    :param broken: where the loads broke, or the failover (``load`` is then the last one)
    :param failover: why the failover did not end, None where it did
    :param after: what followed the failover: run state, and what the disks held back
    :param requests: device to what its request came to in the guest: ``answered``, ``waiting``, or what the guest
        says; empty when nobody was asked
    :param stuck: why the guest was not to be asked, None where it was
    :param events: names of all QMP events, in order
    :param log: what QEMU printed
    """

    phase: str
    faults: Mapping[str, int]
    once: bool
    loads_asked: int
    loads_acked: int
    intervals: tuple[Interval, ...]
    broken: Break | None = None
    exit: Exit | None = None
    failover: Symptom | None = None
    after: Interval | None = None
    requests: Mapping[str, str] = field(default_factory=dict)
    stuck: Symptom | None = None
    events: tuple[str, ...] = ()
    log: str = ""
    seconds: float = 0.0


def io_errors(
    setting: Setting,
    *,
    faults: Mapping[str, int],
    asked: Mapping[str, str] | None = None,
    once: bool = False,
    loads: int = LOADS,
    halt_timeout_s: float = HALT_TIMEOUT_S,
) -> IoErrors:
    """Load a phase ``loads`` times into a secondary whose disks fail or not, let it fail between, and fail over.

    Where the build resets before each load, every buffer holds the whole state, and a second time behind it what is not
    excluded, for devices in use.

    :param faults: failing disks of the secondary; each interval lasts until all of them have stopped the machine
    :param asked: device to the guest's command that says what its request of phase ``io-error`` came to in the end
    :param once: only the first request to a failing sector fails
    :raises QemuError: the secondary did not even start
    :raises Stopped: the run was told to stop
    """
    started = time.monotonic()
    sections = setting.sections(GuestMode.RUNNING)
    loaded = encode(without(sections, setting.excluded))
    seen = _FaultSeen()
    with setting.secondary(setting.buffers.machine.with_faults(faults, once=once)) as secondary:
        vm = secondary.vm
        try:
            setting.begin(secondary, GuestMode.RUNNING)
            while seen.loads < loads:
                setting.scope.check()
                before = len(halts(vm))
                secondary.primary.checkpoint(encode(sections) + loaded if setting.resets else loaded)
                seen.loads += 1
                wait = bool(faults) and not (once and before)
                seen.intervals.append(_interval(vm, before, faults, halt_timeout_s if wait else 0.0))
                if not faults:
                    time.sleep(RUN_S)
        except ChannelBroken as error:
            seen.broken = setting.broken(error, seen.loads)
        except (QemuError, DeadlineError) as error:
            between = ChannelBroken(Step.RESUME, "closed", symptom_of(error).during(Doing.BETWEEN))
            seen.broken = break_at(between, seen.loads, setting.phase)
        if seen.broken is None:
            _fail_over(vm, seen, {} if once else faults)
            _ask(vm, seen, asked or {})
        dying = seen.broken is not None or seen.failover is not None
        ended = end_within(vm, DEATH_GRACE_S if dying else 0.0)
        return IoErrors(
            phase=setting.phase,
            faults=dict(faults),
            once=once,
            loads_asked=loads,
            loads_acked=seen.loads,
            intervals=tuple(seen.intervals),
            broken=seen.broken,
            exit=ended,
            failover=seen.failover,
            after=seen.after,
            requests=seen.requests,
            stuck=seen.stuck,
            events=tuple(event["event"] for event in vm.monitor.drain_events()),
            log=own_words(vm.process.stderr()),
            seconds=time.monotonic() - started,
        )


@dataclass(slots=True, kw_only=True)
class _FaultSeen:
    loads: int = 0
    intervals: list[Interval] = field(default_factory=list)
    broken: Break | None = None
    failover: Symptom | None = None
    after: Interval | None = None
    requests: dict[str, str] = field(default_factory=dict)
    stuck: Symptom | None = None


def _interval(vm: Vm, before: int, faults: Collection[str], timeout_s: float) -> Interval:
    """Wait for the machine to stop for an I/O error of each failing disk, if there is anything to wait for.

    :param before: how many requests had been held back when it began
    """
    deadline = vm.deadline(timeout_s)
    while True:
        status = str(vm.qmp("query-status")["status"])
        held = halts(vm)[before:]
        halted = status == "io-error"
        if deadline.over or (halted and set(held) >= set(faults)):
            return Interval(status=status, held={disk: held.count(disk) for disk in sorted(set(held))})
        if halted:
            vm.qmp("cont")
        time.sleep(_POLL_S)


def _fail_over(vm: Vm, seen: _FaultSeen, faults: Collection[str]) -> None:
    """End COLO and see what the machine comes to.

    :param faults: disks whose failing sector the guest will hit again
    """
    before = len(halts(vm))
    try:
        if end_colo(vm) in ("paused", "io-error"):
            # one that holds a request back waits for a word too, to try again
            vm.qmp("cont")
        seen.after = _interval(vm, before, faults, HALT_TIMEOUT_S if faults else 0.0)
    except (QemuError, DeadlineError) as error:
        seen.failover = symptom_of(error)


def _ask(vm: Vm, seen: _FaultSeen, asked: Mapping[str, str]) -> None:
    if seen.after is None or seen.after.status != "running":
        return
    try:
        console = Console(vm.console, vm.process.clock)
        console.run("clock", GUEST_TIMEOUT_S)
        deadline = vm.deadline(ANSWER_WITHIN_S)
        for device, command in asked.items():
            while (state := _request(console, command)) == WAITING and not deadline.over:
                time.sleep(10 * _POLL_S)
            seen.requests[device] = state
    except GuestError as error:
        seen.stuck = symptom_of(error)


def _request(console: Console, command: str) -> str:
    answer = console.ask(command, GUEST_TIMEOUT_S)
    if answer.status == NOTHING_TO_DO_STATUS:
        return WAITING
    return answer.said or f"status {answer.status}" if answer.status else ANSWERED
