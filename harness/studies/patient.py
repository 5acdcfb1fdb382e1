# SPDX-License-Identifier: GPL-2.0-or-later
"""A secondary that is treated badly on purpose: bytes of any kind go to it, and everything it does is noted."""

from __future__ import annotations

import contextlib
import re
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from harness.colo.messages import SIZE_MESSAGE, U32, Message, name_of
from harness.colo.primary import Buffer, Primary
from harness.deadline import Deadline, in_time, send_in_time
from harness.engines.evidence import own_words
from harness.engines.secondary import capabilities, connect_incoming
from harness.errors import DeadlineError, GuestError, QemuError
from harness.guests.console import Console
from harness.guests.machine import firmware_sink
from harness.oracles.load import crash_line, error_line
from harness.packs.pack import incoming_body
from harness.qemu.cmdline import Option
from harness.qemu.process import new_workdir
from harness.qemu.vm import Vm
from harness.state.transforms import GuestMode, encode, sections_for, without
from harness.stream.model import Section
from harness.stream.wire import PAGE_SIZE
from harness.studies.findings import How, Takeover
from harness.studies.model import Lab

START_TIMEOUT_S = 20.0
#: A load takes milliseconds, so does its refusal; what is silent for so long is taken for a hang.
REACTION_S = 3.0
#: A secondary that serves COLO answers a request within a millisecond.
REQUEST_S = 1.0
TAKEOVER_S = 2.5
#: How long a guest may take to answer at least, and how many times as long as a healthy one took.
CONSOLE_S = 1.5
CONSOLE_TIMES = 4.0
HEALTHY_CONSOLE_S = 20.0
#: Pages that differ between two phases, of which this many tell whose memory a guest has.
WITNESSES = 48
DEATH_S = 2.0
_SLICE_S = 0.02
_LOW_BYTES = 256 << 20
_FIRST_PAGE = 256

REQUEST = U32.pack(Message.CHECKPOINT_REQUEST)
SEND = U32.pack(Message.VMSTATE_SEND)
EOF = b"\0"


def size_message(size_bytes: int) -> bytes:
    """VMSTATE_SIZE with its value."""
    return SIZE_MESSAGE.pack(Message.VMSTATE_SIZE, size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """What a secondary did within :data:`REACTION_S`.

    :param messages: COLO messages that came, by name
    :param colo_exit: reason of the event COLO_EXIT, or None
    :param said: the most telling line on stderr, or empty
    :param exit: how QEMU ended, or None
    :param closed: it closed the connection
    """

    messages: tuple[str, ...]
    colo_exit: str | None
    said: str
    exit: str | None
    closed: bool

    @property
    def loaded(self) -> bool:
        """It acknowledged the checkpoint as loaded."""
        return Message.VMSTATE_LOADED.name in self.messages

    @property
    def how(self) -> How:
        """All of it in one word."""
        if self.exit is not None:
            return How.ENDED if self.exit == "exit status 0" else How.CRASH
        if self.loaded:
            return How.LOADED
        if self.colo_exit is not None:
            return How.REFUSED
        return How.CLOSED if self.closed else How.SILENT


class Patient:
    """A launched secondary in the state of ``lab.before``. A context manager; leaving ends the process.

    :param mode: whether its guest runs
    :raises QemuError: QEMU does not start
    :raises ChannelBroken: the healthy incoming stream was not taken
    """

    def __init__(self, lab: Lab, mode: GuestMode = GuestMode.RUNNING) -> None:
        machine = lab.buffers.machine
        self.lab = lab
        workdir = new_workdir()
        machine.make_files(workdir)
        incoming = Option(name="incoming", first="defer")
        self.vm = Vm(
            machine.command(lab.binary.path, workdir, firmware_sink(), incoming), workdir=workdir, scope=lab.scope
        )
        try:
            self.vm.qmp("migrate-set-capabilities", capabilities=capabilities(lab.ability.dialect))
            self.sock = connect_incoming(self.vm, START_TIMEOUT_S)
            self.primary = Primary(self.sock, self.vm.process.clock, timeout_s=START_TIMEOUT_S)
            recording = lab.buffers.pack.recordings[lab.before]
            devices = encode(sections_for(recording, mode))
            body = incoming_body(recording, lab.buffers.ram_whole(lab.before), devices)
            self.primary.start(recording.head, body, lab.ability.dialect)
        except BaseException:
            self.close()
            raise

    def whole_rest(self, phase: str) -> Reaction:
        """The rest of a healthy checkpoint, behind its CHECKPOINT_REPLY."""
        devices = encode(sections_of(self.lab, phase, GuestMode.RUNNING))
        self.send(SEND, *self.ram(phase), EOF, size_message(len(devices) + 1), devices, EOF)
        return self.reaction()

    def ram(self, phase: str) -> list[bytes | memoryview]:
        """Pages of a phase that differ from the first one's."""
        return self.lab.buffers.ram_difference(phase, self.lab.before)

    def send(self, *buffers: Buffer) -> None:
        """Send what the secondary still takes; that it hangs up is seen in its reaction."""
        with contextlib.suppress(OSError):
            send_in_time(self.sock, b"".join(buffers), self.vm.deadline(REACTION_S))

    def reply(self) -> bool:
        """CHECKPOINT_REQUEST, and whether CHECKPOINT_REPLY comes."""
        self.send(REQUEST)
        return self._answer(self.vm.deadline(REQUEST_S)) == Message.CHECKPOINT_REPLY.name

    def hang_up(self) -> None:
        """Close the connection."""
        self.sock.close()

    def reaction(self, *, listen: bool = True, timeout_s: float = REACTION_S) -> Reaction:
        """Watch until it has loaded, refused, ended or hung up, or the time is over.

        :param listen: read its messages; not after :meth:`hang_up`
        """
        deadline = self.vm.deadline(timeout_s)
        messages: list[str] = []
        closed = False
        while not deadline.over:
            answer = self._answer(self.vm.deadline(_SLICE_S)) if listen and not closed else None
            if not listen or closed:
                time.sleep(_SLICE_S)
            closed = closed or answer == ""
            messages += [answer] if answer else []
            if Message.VMSTATE_LOADED.name in messages or self._colo_exit() is not None:
                break
            if self.vm.ended(DEATH_S if closed else 0.0) is not None:
                break
        ended = self.vm.ended()
        log = own_words(self.vm.process.stderr())
        return Reaction(
            messages=tuple(messages),
            colo_exit=self._colo_exit(),
            said=_telling(log),
            exit=None if ended is None else str(ended),
            closed=closed,
        )

    def ram_of_next(self) -> float | None:
        """Share of pages that are as in ``lab.after``, of those that differ from ``lab.before``; None if not told.

        QEMU writes guest-physical memory to a file (QMP ``pmemsave``), which wants a main loop that answers.
        """
        saved = self.vm.workdir / "page"
        same = 0
        pages = witnesses(self.lab)
        try:
            for address, content in pages:
                self.vm.qmp("pmemsave", TAKEOVER_S, val=address, size=PAGE_SIZE, filename=str(saved))
                same += saved.read_bytes() == content
        except (QemuError, DeadlineError, OSError):
            return None
        return same / len(pages) if pages else None

    def take_over(self, console_s: float = HEALTHY_CONSOLE_S) -> Takeover:
        """``x-colo-lost-heartbeat``, and what becomes of the guest.

        :param console_s: how long the guest's shell may take to answer
        """
        try:
            status, refused, told = self._fail_over()
        except (QemuError, DeadlineError) as error:
            return Takeover(status="gone" if self.vm.ended(DEATH_S) else "no-answer", refused=_first_line(error))
        if status != "running":
            return Takeover(status=status, refused=refused, told=told)
        answer_s = guest_answers(self.vm, console_s)
        if self.vm.ended() is not None:
            status = "gone"
        return Takeover(status=status, refused=refused, told=told, alive=answer_s is not None, answer_s=answer_s)

    def _fail_over(self) -> tuple[str, str, bool]:
        refused, told = "", False
        try:
            self.vm.qmp("x-colo-lost-heartbeat", TAKEOVER_S)
        except QemuError as error:
            if self.vm.ended(DEATH_S) is not None:
                raise
            refused = _first_line(error)
        status = self._status_within(TAKEOVER_S if not refused else 0.2)
        if status == "paused":
            # a secondary that was started with -S waits for a word
            self.vm.qmp("cont", TAKEOVER_S)
            status, told = self._status_within(TAKEOVER_S), True
        return status, refused, told

    def _status_within(self, timeout_s: float) -> str:
        deadline = self.vm.deadline(timeout_s)
        while True:
            status = str(self.vm.qmp("query-status", TAKEOVER_S)["status"])
            colo = str(self.vm.qmp("query-colo-status", TAKEOVER_S)["mode"])
            if (status in ("running", "paused") and colo == "none") or deadline.over:
                return status
            time.sleep(_SLICE_S)

    def _colo_exit(self) -> str | None:
        return colo_exit(self.vm)

    def _answer(self, deadline: Deadline) -> str | None:
        """Name of the next message; empty at the end of the connection, None when nothing comes in time."""
        data = b""
        while len(data) < U32.size:
            try:
                piece = in_time(self.sock, deadline, partial(self.sock.recv, U32.size - len(data)))
            except TimeoutError:
                return None
            except OSError:
                return ""
            if not piece:
                return ""
            data += piece
        return name_of(U32.unpack(data)[0])

    def close(self) -> None:
        """Kill it."""
        if hasattr(self, "sock"):
            self.sock.close()
        self.vm.close()

    def __enter__(self) -> Patient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def sections_of(lab: Lab, phase: str, mode: GuestMode) -> list[Section]:
    """Device state of a phase without what is excluded."""
    return without(sections_for(lab.buffers.pack.recordings[phase], mode), lab.excluded)


def colo_exit(vm: Vm) -> str | None:
    """Reason of the event COLO_EXIT, when it came."""
    events: list[dict[str, Any]] = vm.monitor.drain_events()
    for event in events:
        if event["event"] == "COLO_EXIT":
            return str(event.get("data", {}).get("reason", "unknown"))
    return None


def guest_answers(vm: Vm, timeout_s: float) -> float | None:
    """Seconds until the guest's shell answered on its console; None when it did not in time."""
    started = time.monotonic()
    try:
        Console(vm.console, vm.process.clock).run("echo alive", timeout_s)
    except (GuestError, OSError):
        return None
    return time.monotonic() - started


def witnesses(lab: Lab) -> list[tuple[int, bytes]]:
    """Pages of guest memory that differ between the two phases: physical address, and content in ``lab.after``.

    Only of the first 256 MiB of the largest block, which lies where the architecture has it.
    """
    pack = lab.buffers.pack
    before, after = pack.recordings[lab.before].index, pack.recordings[lab.after].index
    block, start = pack.manifest.main_ram()
    count = min(block.size_bytes, _LOW_BYTES) // PAGE_SIZE
    # the first megabyte is the firmware's, and partly not RAM
    different = [n for n in range(_FIRST_PAGE, count) if before[start + n] != after[start + n]]
    chosen = different[:: max(1, len(different) // WITNESSES)][:WITNESSES]
    base = pack.architecture.ram_base
    return [(base + n * PAGE_SIZE, bytes(pack.page(after[start + n]) or bytes(PAGE_SIZE))) for n in chosen]


def _telling(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    return crash_line(log) or error_line(log) or (re.sub(r"^\S*qemu\S*: ", "", lines[-1].strip()) if lines else "")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]
