# SPDX-License-Identifier: GPL-2.0-or-later
"""Engine ``postcopy``: a recorded state by a postcopy migration into new processes, the harness as its source.

The exchange, as QEMU's source has it (``migration/migration.c``: ``migration_thread``, ``postcopy_start``; the
other side in ``migration/savevm.c``: ``loadvm_process_command``)::

    source       head, OPEN_RETURN_PATH, PING 1, POSTCOPY_ADVISE
    source       RAM START, RAM PART with the early pages, POSTCOPY_RAM_DISCARD of the late ones, PING 2
    destination  PONG 1, PONG 2                its RAM is as it should be before the switch
    source       PACKAGED: LISTEN, device sections, PING 3, RUN; PING 4
    destination  REQ_PAGES ...                 any page that its devices or its guest look at, from LISTEN on
    source       RAM PART with that page
    destination  PONG 3                        every device is loaded, every post_load passed
    source       RAM PART with the rest, RAM END, EOF
    destination  SHUT

So a break is at step INCOMING up to PONG 2, at LOAD up to PONG 3, and at RESUME behind that: when the guest is
started, while it runs with half of its memory missing, and when the rest comes. A load that fails between LISTEN and
RUN leaves the destination no way back, which is why it is told apart from the same load by an ordinary stream: a
``post_load`` that passes there can fail here, since guest memory is not there yet and comes by page faults.

Pages of zeros are sent early. Of the others one in :attr:`Postcopy.late_every` is late: it is sent when it is
asked for, or at the end. There is always a late one: a destination that was told to discard nothing refuses RUN
("wrong postcopy state"), since ``loadvm_postcopy_handle_listen`` then calls ``postcopy_ram_prepare_discard``, which
takes the state back. A real source does not wait for PONG 3 but goes on to push pages, and a destination of 11.1
whose device load failed reads the stream to its end before it gives up; so when PONG 3 does not come, the rest is
pushed at once.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.colo.messages import Step
from harness.colo.primary import Buffer, ChannelBroken
from harness.colo.symptom import Doing, Sign, Symptom
from harness.engines.evidence import (
    ANSWER_TIMEOUT_S,
    DEATH_GRACE_S,
    Break,
    Count,
    Evidence,
    OnLoads,
    break_at,
    evidence_of,
    own_words,
    symptom_of,
)
from harness.engines.fresh import merge
from harness.engines.incoming import (
    Incoming,
    State,
    attempt,
    drain_console,
    ended_in_postcopy,
    migration_ended,
    send_all,
)
from harness.engines.pagesource import Page, PageCount, PageSource
from harness.engines.postcopywire import Ping, encode_advise, encode_discards, encode_package, encode_ping, runs_of
from harness.engines.secondary import connect_incoming
from harness.errors import DeadlineError, HarnessError, QemuError
from harness.guests.machine import Machine
from harness.qemu.binary import QemuBinary
from harness.qemu.migrationstatus import Stage, stage_of
from harness.qemu.monitor import CommandRefused
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm
from harness.state.transforms import encode, sections_for, without
from harness.stream import wire
from harness.stream.ram import ram_section_buffers
from harness.stream.writer import encode_command

#: How long the guest lives with its late pages missing, and again when it has them all.
RUN_S = 0.2
CAPABILITY = "postcopy-ram"
#: Without PONG 3 for so long, the rest of the pages is pushed: device state loads in hundredths of a second.
PATIENCE_S = 2.0
_PROBE_TIMEOUT_S = 10.0
_LOOK_EVERY_S = 0.1
_STATUS_TIMEOUT_S = 1.0
_UNPRIVILEGED = Path("/proc/sys/vm/unprivileged_userfaultfd")


class PostcopyLack(StrEnum):
    """Why there is no postcopy; of the last three QEMU says more."""

    CAPABILITY = "capability"  # this QEMU has no such migration capability
    KERNEL = "kernel"  # it has no userfaultfd
    PRIVILEGE = "privilege"  # userfaultfd is not for this user
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostcopyAbility:
    """Whether a build, as a machine, on this host, can be the destination of a postcopy.

    :param lack: why not; None when it can
    :param said: by QEMU
    """

    lack: PostcopyLack | None = None
    said: str = ""

    @property
    def usable(self) -> bool:
        return self.lack is None


@dataclass(frozen=True, slots=True, kw_only=True)
class PostcopyEvidence(Evidence):
    """What was seen of postcopy loads.

    :param pages: of one process; of the first that was not well, when there are several
    :param shut: the destination ended the return path with a SHUT; one of 11.1 was once seen to close it without
    """

    pages: PageCount = field(default_factory=PageCount)
    shut: bool = False


def probe_postcopy(binary: QemuBinary, machine: Machine, scope: ProcessScope) -> PostcopyAbility:
    """Let the build try: with the capability it registers a piece of memory with userfaultfd there and then.

    ``postcopy_ram_supported_by_host`` (``migration/postcopy-ram.c``), called when the capability is switched on in a
    process that waits for its incoming stream.

    :raises QemuError: it does not start as that machine
    """
    if CAPABILITY not in binary.capabilities:
        return PostcopyAbility(lack=PostcopyLack.CAPABILITY)
    with Incoming(binary, machine, timeout_s=_PROBE_TIMEOUT_S, scope=scope) as qemu:
        try:
            allow_postcopy(qemu.vm)
        except CommandRefused as error:
            said = [error.text, *own_words(qemu.vm.process.stderr()).splitlines()]
            return PostcopyAbility(lack=_host_lack(), said=" / ".join(said))
    return PostcopyAbility()


def allow_postcopy(vm: Vm) -> None:
    """Switch the capability on, at either side.

    :raises CommandRefused: the host has no userfaultfd for it, or a device objects
    """
    vm.qmp("migrate-set-capabilities", capabilities=[{"capability": CAPABILITY, "state": True}])


def _host_lack() -> PostcopyLack:
    """What is missing on the host, as far as it can be seen from here."""
    try:
        allowed = _UNPRIVILEGED.read_text().strip() != "0"
    except OSError:
        return PostcopyLack.KERNEL
    with suppress(OSError), Path("/dev/userfaultfd").open("rb"):
        allowed = True
    return PostcopyLack.REFUSED if allowed else PostcopyLack.PRIVILEGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Postcopy:
    """One state into ``processes`` new processes by postcopy.

    :param late_every: of the pages with content, each n-th is left out until it is asked for; with 1 it is all
    :param run_s: how long the guest runs with pages missing, and again with all of them
    :param timeout_s: deadline for each step
    :param scope: of the run: owns its processes, and is told when it shall end
    """

    binary: QemuBinary
    state: State
    processes: int = 1
    late_every: int = 1
    run_s: float = RUN_S
    timeout_s: float = ANSWER_TIMEOUT_S
    scope: ProcessScope = field(default_factory=ProcessScope)

    def run(self, on_loads: OnLoads = lambda _: None) -> PostcopyEvidence:
        """All processes as one piece of evidence.

        :raises QemuError: a process did not start, or the host cannot do it (see :func:`probe_postcopy`)
        :raises HarnessError: no page would be late
        :raises Stopped: the run was told to stop
        """
        seen = []
        for evidence in self.each():
            seen.append(evidence)
            on_loads(evidence.loads_acked)
        merged = merge(seen)
        assert isinstance(merged, PostcopyEvidence)  # it is one of those seen, with other counts
        return merged

    def each(self) -> Iterator[PostcopyEvidence]:
        """The evidence of each process as it comes."""
        stream = _Stream.of(self.state, self.late_every)
        for number in range(1, self.processes + 1):
            self.scope.check()
            yield self._one(stream, number)

    def _one(self, stream: _Stream, number: int) -> PostcopyEvidence:
        started = time.monotonic()
        with Incoming(self.binary, self.state.buffers.machine, timeout_s=self.timeout_s, scope=self.scope) as qemu:
            allow_postcopy(qemu.vm)
            begun = time.monotonic()
            with connect_incoming(qemu.vm, self.timeout_s) as sock:
                load = _Load(qemu.vm, sock, stream, self.run_s, self.timeout_s)
                broken = self._load(load, number)
            count = Count(asked=1, passed=0 if broken else 1, load_seconds=(load.loaded or time.monotonic()) - begun)
            evidence = evidence_of(qemu.vm, count, broken, started)
        seen = {f.name: getattr(evidence, f.name) for f in fields(Evidence)}
        return PostcopyEvidence(**seen, pages=load.pages(), shut=load.source.shut is not None)

    def _load(self, load: _Load, number: int) -> Break | None:
        try:
            load.run()
        except ChannelBroken as error:
            return break_at(error, number, self.state.phase)
        finally:
            load.source.close()
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stream:
    """What is sent, made once."""

    before: Sequence[Buffer]
    package: bytes
    early: int
    late: Sequence[Page]
    section_id: int

    @classmethod
    def of(cls, state: State, late_every: int) -> _Stream:
        recording = state.buffers.pack.recordings[state.phase]
        early, late = split_pages(state, late_every)
        before: list[Buffer] = [
            recording.head,
            encode_command(wire.CommandType.OPEN_RETURN_PATH),
            encode_ping(Ping.SETUP),
            encode_advise(),
            recording.setup,
            *ram_section_buffers(wire.SectionType.PART, recording.ram_section_id, early),
            *_discards(late),
            encode_ping(Ping.PRECOPY_DONE),
        ]
        devices = encode(without(sections_for(recording, state.mode), state.excluded))
        return cls(
            before=before,
            package=encode_package(devices) + encode_ping(Ping.PACKAGE_SENT),
            early=len(early),
            late=late,
            section_id=recording.ram_section_id,
        )


def split_pages(state: State, late_every: int) -> tuple[list[Page], list[Page]]:
    """The guest's memory as early and late pages, in the order of the recording's blocks.

    :raises HarnessError: there is no late one
    """
    pack = state.buffers.pack
    index = iter(pack.recordings[state.phase].index)
    early: list[Page] = []
    late: list[Page] = []
    seen = 0
    for block in pack.manifest.blocks:
        for address in range(0, block.size_bytes, wire.PAGE_SIZE):
            page = pack.page(next(index))
            seen += page is not None
            is_late = page is not None and seen % late_every == 0
            (late if is_late else early).append((block.name, address, page))
    if not late:
        raise HarnessError(f"postcopy: of {seen} pages none is the {late_every}th: nothing would be late")
    return early, late


def _discards(late: Sequence[Page]) -> Iterator[bytes]:
    for name in dict.fromkeys(block for block, _, _ in late):
        yield from encode_discards(name, runs_of([at for block, at, _ in late if block == name]))


class _Load:
    """One load into one process."""

    def __init__(self, vm: Vm, sock: socket.socket, stream: _Stream, run_s: float, timeout_s: float) -> None:
        self._vm = vm
        self._sock = sock
        self._stream = stream
        self._run_s = run_s
        self._timeout_s = timeout_s
        self.source = PageSource(sock, stream.late, stream.section_id, vm.process.clock, timeout_s=timeout_s)
        #: When the last device was loaded.
        self.loaded: float | None = None

    def pages(self) -> PageCount:
        return self.source.count(self._stream.early)

    def run(self) -> None:
        """All of it, up to a guest that ran with all its memory.

        :raises ChannelBroken: with the step at which the destination failed
        """
        self.source.start()
        self._send(Step.INCOMING, self._stream.before, Doing.BEFORE_PACKAGE)
        self._pong(Step.INCOMING, Ping.PRECOPY_DONE, Doing.BEFORE_PACKAGE)
        self._send(Step.LOAD, [self._stream.package], Doing.PACKAGE)
        if not self.source.wait(lambda: self.source.has_pong(Ping.DEVICES_LOADED), min(PATIENCE_S, self._timeout_s)):
            self.source.push_rest()
        self._pong(Step.LOAD, Ping.DEVICES_LOADED, Doing.PACKAGE)
        self.loaded = time.monotonic()
        self._resume()
        self.source.push_rest()
        self._until(Step.RESUME, lambda: self.source.shut is not None or self._completed_without(), Doing.REST)
        self._completed()
        self._live(Doing.WITH_PAGES)

    def _resume(self) -> None:
        """Start the guest; before RUN is through, ``cont`` would only note that the guest shall be started."""
        deadline = self._vm.deadline(self._timeout_s)
        while attempt(Step.RESUME, self._vm, "query-status", self._timeout_s)["status"] == "inmigrate":
            if deadline.over:
                late = Symptom(sign=Sign.NOT_STARTED, seconds=self._timeout_s)
                raise ChannelBroken(Step.RESUME, "late", late)
            time.sleep(0.002)
        attempt(Step.RESUME, self._vm, "cont", self._timeout_s)
        self._live(Doing.WITHOUT_PAGES)

    def _live(self, doing: Doing) -> None:
        drain_console(self._vm)
        if self._vm.ended(self._run_s):
            raise ChannelBroken(Step.RESUME, "closed", Symptom(sign=Sign.ENDED, doing=doing, seconds=self._run_s))

    def _completed_without(self) -> bool:
        return (
            self.source.gone is not None
            and not self._vm.ended()
            and stage_of(self._info(Step.RESUME)) is Stage.COMPLETED
        )

    def _completed(self) -> None:
        if self.source.shut:
            shut = Symptom(sign=Sign.SHUT, doing=Doing.REST, said=str(self.source.shut))
            raise ChannelBroken(Step.RESUME, "refused", shut)
        deadline = self._vm.deadline(self._timeout_s)
        while stage_of(info := self._info(Step.RESUME)) is not Stage.COMPLETED:
            if stage_of(info).bad:
                raise ChannelBroken(Step.RESUME, "refused", migration_ended(info))
            if deadline.over:
                status = str(info.get("status", "none"))
                late = Symptom(sign=Sign.NOT_DONE, status=status, seconds=self._timeout_s)
                raise ChannelBroken(Step.RESUME, "late", late)
            time.sleep(0.005)

    def _pong(self, step: Step, ping: Ping, doing: Doing) -> None:
        self._until(step, lambda: self.source.has_pong(ping), doing)

    def _until(self, step: Step, done: Callable[[], bool], doing: Doing) -> None:
        """Wait for something on the return path, and find out how it ended when it does not come."""
        deadline = self._vm.deadline(self._timeout_s)
        while not self.source.wait(done, _LOOK_EVERY_S):
            if self.source.gone is not None or self.source.shut:
                raise self._given_up(step, doing)
            if stage_of(info := self._info(step)).bad:
                raise ChannelBroken(step, "refused", migration_ended(info).during(doing))
            if deadline.over:
                late = Symptom(sign=Sign.NO_ANSWER, doing=doing, seconds=self._timeout_s)
                raise ChannelBroken(step, "late", late)

    def _given_up(self, step: Step, doing: Doing) -> ChannelBroken:
        """The destination hung up, or said by its SHUT that it failed; it need not come to its end after that."""
        if self._vm.ended(DEATH_GRACE_S):
            return ended_in_postcopy(step, self._vm, doing)
        gone = self.source.gone
        sign, said = (Sign.SHUT, str(self.source.shut)) if gone is None else (Sign.HUNG_UP, gone)
        status = str(self._info(step).get("status", "none"))
        return ChannelBroken(step, "refused", Symptom(sign=sign, doing=doing, said=said, status=status))

    def _info(self, step: Step) -> dict[str, Any]:
        """``query-migrate``, or nothing while the main loop is busy with the load."""
        try:
            return dict(self._vm.qmp("query-migrate", _STATUS_TIMEOUT_S))
        except DeadlineError:
            return {}
        except QemuError as error:
            if self._vm.ended(DEATH_GRACE_S):
                raise ended_in_postcopy(step, self._vm, command="query-migrate") from error
            raise ChannelBroken(step, "late", symptom_of(error)) from error

    def _send(self, step: Step, buffers: Sequence[Buffer], doing: Doing) -> None:
        """Send everything; that QEMU hangs up is for its status to explain."""
        try:
            send_all(self._sock, buffers, self._vm.deadline(self._timeout_s))
        except TimeoutError as error:
            silent = Symptom(sign=Sign.NO_DATA_TAKEN, doing=doing, seconds=self._timeout_s)
            raise ChannelBroken(step, "late", silent) from error
