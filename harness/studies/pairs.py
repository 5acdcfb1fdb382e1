# SPDX-License-Identifier: GPL-2.0-or-later
"""What a real primary does when its real secondary, or the connection between them, fails.

The two talk through a relay of ours, which can spoil a device buffer, go silent, or hang up.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.colo.messages import Message
from harness.colo.primary import ChannelBroken
from harness.deadline import Deadline
from harness.engines.evidence import own_words
from harness.engines.incoming import Incoming, State
from harness.engines.pair import let_cpu_threads_go_first
from harness.engines.secondary import capabilities, connect_incoming
from harness.errors import DeadlineError, HarnessError, QemuError
from harness.oracles.load import crash_line, error_line
from harness.qemu.cmdline import Option
from harness.qemu.process import socket_path
from harness.qemu.vm import Vm
from harness.stream import wire
from harness.studies.findings import PairFault, PrimaryCase
from harness.studies.model import Lab, whole
from harness.studies.patient import DEATH_S, colo_exit, guest_answers

#: Long enough for the fault to be there before the next checkpoint begins.
DELAY_MS = 400
TIMEOUT_S = 15.0
#: Checkpoints that pass before something goes wrong. Under TCG a primary is likely to hang by itself in its second
#: (see :mod:`harness.engines.pair`), and a load that is refused is the first one, for the same reason.
HEALTHY = 1
#: How long a primary may take to notice, and then to go on by itself.
NOTICE_S = 3.0
ANSWER_S = 5.0
_POLL_S = 0.02
_BANDWIDTH = 1 << 40
_PIECE_BYTES = 1 << 20
_TRIES = 3

#: What goes wrong, in the order of the table.
FAULTS = (PairFault.KILLED, PairFault.REFUSES, PairFault.CLOSED, PairFault.SILENT)


class Relay:
    """Passes bytes on between a primary and its secondary, both ways, and counts what the secondary loaded.

    :param upstream: connected to the secondary
    :param server: listens for the primary
    :param marked: bytes in a device buffer that :meth:`spoil` looks for
    """

    def __init__(self, upstream: socket.socket, server: socket.socket, marked: bytes) -> None:
        self._upstream = upstream
        self._server = server
        self._marked = marked
        self._spoiling = False
        self._silent = threading.Event()
        self._downstream: socket.socket | None = None
        self.ready = False
        self.loaded = 0
        self.spoiled = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def spoil(self) -> None:
        """From now on the section's version_id, which stands behind the marked bytes, is a wrong one."""
        self._spoiling = True

    def silence(self) -> None:
        """Pass nothing on any more, and keep both connections."""
        self._silent.set()

    def close(self) -> None:
        """Hang up on both."""
        self._silent.set()
        for sock in (self._downstream, self._upstream, self._server):
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def _accept(self) -> None:
        try:
            self._server.settimeout(TIMEOUT_S)
            self._downstream, _ = self._server.accept()
        except OSError:
            return
        back = threading.Thread(target=self._back, args=(self._downstream,), daemon=True)
        back.start()
        self._forth(self._downstream)

    def _forth(self, source: socket.socket) -> None:
        held = b""
        with contextlib.suppress(OSError):
            while piece := source.recv(_PIECE_BYTES):
                if self._silent.is_set():
                    return
                held = self._changed(held + piece) if self._spoiling else piece
                self._upstream.sendall(held)
                held = b""

    def _changed(self, data: bytes) -> bytes:
        """A wrong version behind each mark; a mark that two pieces share is found in a later checkpoint."""
        at = data.find(self._marked)
        if at < 0 or at + len(self._marked) + 4 > len(data):
            return data
        end = at + len(self._marked)
        self.spoiled = True
        return data[:end] + wire.U32.pack(0x7FFF) + data[end + 4 :]

    def _back(self, sink: socket.socket) -> None:
        left = b""
        with contextlib.suppress(OSError):
            while piece := self._upstream.recv(_PIECE_BYTES):
                if self._silent.is_set():
                    return
                left += piece
                whole = len(left) - len(left) % 4
                words = [wire.U32.unpack_from(left, at)[0] for at in range(0, whole, 4)]
                self.ready = self.ready or Message.CHECKPOINT_READY in words
                self.loaded += words.count(Message.VMSTATE_LOADED)
                left = left[whole:]
                sink.sendall(piece)
            # a secondary that dies closes its end, and its primary must see that
            sink.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PairSeen:
    """A primary at one moment: ``query-status``, and whether its guest answers."""

    status: str
    alive: bool


def primary_cases(lab: Lab) -> list[PrimaryCase]:
    """Each fault in a pair of its own, one after the other: every primary is kept on one host CPU.

    A pair that does not get to its checkpoints gives a row with ``undecided``.

    :raises Stopped: the run was told to stop
    """
    # nothing can be left out of what a real primary sends: where a section breaks the secondary, that is the fault
    faults = FAULTS if not lab.excluded else (PairFault.OWN,)
    return [_with_tries(lab, fault) for fault in faults]


def _with_tries(lab: Lab, fault: PairFault) -> PrimaryCase:
    """A primary under TCG can hang by itself before anything went wrong (see :mod:`harness.engines.pair`)."""
    why = ""
    for _ in range(_TRIES):
        lab.scope.check()
        try:
            return whole(partial(primary_case, lab, fault))
        except HarnessError as error:
            why = str(error)
    return PrimaryCase(fault=fault, undecided=why)


def primary_case(lab: Lab, fault: PairFault) -> PrimaryCase:
    """One pair, one fault.

    :raises HarnessError: the pair did not get to its checkpoints
    """
    machine = lab.buffers.machine
    named = Option(name="name", first="postload-primary", props={"debug-threads": True})
    with (
        Incoming(lab.binary, machine, timeout_s=TIMEOUT_S, scope=lab.scope, live=True, extra=(named,)) as primary,
        Incoming(lab.binary, machine, timeout_s=TIMEOUT_S, scope=lab.scope, live=True) as secondary,
    ):
        try:
            primary.load(State(buffers=lab.buffers, phase=lab.before))
            primary.resume(0.0)
        except ChannelBroken as error:
            raise HarnessError(f"the primary of a pair cannot be brought into {lab.before}: {error}") from error
        relay = _joined(lab, primary.vm, secondary.vm)
        try:
            _wait_healthy(lab, relay, primary.vm, secondary.vm, fault)
            _break(fault, relay, secondary.vm)
            return _observe(fault, relay, primary.vm, secondary.vm)
        finally:
            relay.close()


def _joined(lab: Lab, primary: Vm, secondary: Vm) -> Relay:
    wanted = capabilities(lab.ability.dialect)
    secondary.qmp("migrate-set-capabilities", capabilities=wanted)
    upstream = connect_incoming(secondary, TIMEOUT_S)
    server = socket.socket(socket.AF_UNIX)
    sections = lab.buffers.pack.recordings[lab.before].sections
    middle = sections[len(sections) // 2]
    name = middle.idstr.encode()
    marked = bytes([len(name)]) + name + wire.U32.pack(middle.instance_id)
    primary.qmp("migrate-set-capabilities", capabilities=[*wanted, {"capability": "events", "state": True}])
    primary.qmp("migrate-set-parameters", x_checkpoint_delay=DELAY_MS, max_bandwidth=_BANDWIDTH)
    path: Path = primary.workdir / "relay.sock"
    with socket_path(path) as address:
        server.bind(str(address))
        server.listen(1)
        relay = Relay(upstream, server, marked)
        primary.qmp("migrate", uri=f"unix:{address}")
    return relay


def _wait_healthy(lab: Lab, relay: Relay, primary: Vm, secondary: Vm, fault: PairFault) -> None:
    """Until it is time for the fault."""
    yielding = False
    deadline = Deadline(TIMEOUT_S, primary.process.clock, secondary.process.clock)
    while relay.loaded < HEALTHY:
        ready = relay.ready and fault is PairFault.REFUSES
        if ready or (fault is PairFault.OWN and secondary.ended() is not None):
            return
        events = primary.monitor.drain_events()
        if not yielding and _in_colo(events):
            yielding = True
            let_cpu_threads_go_first(primary.process.pid)
        if lab.scope.stopped or deadline.over:
            raise HarnessError(f"a real pair loaded {relay.loaded} of {HEALTHY} checkpoints within {TIMEOUT_S:g} s")
        time.sleep(_POLL_S)


def _break(fault: PairFault, relay: Relay, secondary: Vm) -> None:
    actions: dict[PairFault, Callable[[], object]] = {
        PairFault.KILLED: secondary.process.kill,
        PairFault.REFUSES: relay.spoil,
        PairFault.CLOSED: relay.close,
        PairFault.SILENT: relay.silence,
        PairFault.OWN: lambda: None,
    }
    actions[fault]()


def _observe(fault: PairFault, relay: Relay, primary: Vm, secondary: Vm) -> PrimaryCase:
    """First without a word to the primary, then after ``x-colo-lost-heartbeat``."""
    deadline = primary.deadline(NOTICE_S)
    while not deadline.over and primary.ended() is None and colo_exit(primary) is None:
        time.sleep(_POLL_S)
    # the time that it takes to go on, or not
    time.sleep(0.3)
    reason = colo_exit(primary)
    if fault is PairFault.REFUSES and not relay.spoiled:
        raise HarnessError("the pair ended before a section could be spoiled")
    untold = _look(primary)
    if untold.status == "no-answer":
        raise HarnessError("the primary answers no command, as it can under TCG by itself")
    refused = _tell(primary)
    told = _look(primary)
    ended = primary.ended(DEATH_S if told.status == "gone" else 0.0)
    other = secondary.ended()
    return PrimaryCase(
        fault=fault,
        noticed=reason is not None or ended is not None,
        colo_exit=reason,
        exit=None if ended is None else str(ended),
        said=_said(primary),
        status_untold=untold.status,
        alive_untold=untold.alive,
        refused=refused,
        status_told=told.status,
        alive_told=told.alive,
        checkpoints_before=relay.loaded,
        secondary_exit=None if other is None else str(other),
        secondary_said=_said(secondary),
        secondary_colo_exit=None if other is not None else colo_exit(secondary),
    )


def _look(vm: Vm) -> _PairSeen:
    try:
        status = str(vm.qmp("query-status", ANSWER_S)["status"])
    except (QemuError, DeadlineError):
        return _PairSeen(status="gone" if vm.ended(DEATH_S) is not None else "no-answer", alive=False)
    return _PairSeen(status=status, alive=status == "running" and guest_answers(vm, ANSWER_S) is not None)


def _tell(vm: Vm) -> str:
    try:
        vm.qmp("x-colo-lost-heartbeat", ANSWER_S)
    except (QemuError, DeadlineError) as error:
        return (str(error).splitlines() or [""])[0]
    deadline = vm.deadline(NOTICE_S)
    with contextlib.suppress(QemuError, DeadlineError):
        while not deadline.over and vm.qmp("query-status", ANSWER_S)["status"] != "running":
            time.sleep(_POLL_S)
    return ""


def _said(vm: Vm) -> str:
    log = own_words(vm.process.stderr())
    lines = [line for line in log.splitlines() if line.strip()]
    return crash_line(log) or error_line(log) or (lines[-1].strip() if lines else "")


def _in_colo(events: list[dict[str, Any]]) -> bool:
    return any(event["event"] == "MIGRATION" and event["data"]["status"] == "colo" for event in events)
