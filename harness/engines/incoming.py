# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU brought into a recorded state by an ordinary migration stream: what every control engine starts with."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.colo.messages import Step
from harness.colo.primary import Buffer, ChannelBroken
from harness.colo.symptom import Doing, Sign, Symptom
from harness.deadline import Deadline, send_in_time
from harness.engines.buffers import Buffers
from harness.engines.evidence import symptom_of
from harness.engines.secondary import connect_incoming
from harness.engines.spare import memory_option, setup_with_spare, spare_of
from harness.errors import DeadlineError, QemuError
from harness.guests.machine import Machine, firmware_sink
from harness.packs.pack import incoming_body
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.migrationstatus import Stage, stage_of
from harness.qemu.monitor import CommandRefused
from harness.qemu.process import new_workdir
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm
from harness.state.transforms import GuestMode, encode, sections_for, without

_SEND_BUFFERS = 1024
#: Said before a destination of any version gives up a load, by its main thread or by the one that listens.
REFUSAL = re.compile(r"error while loading state for instance|load of migration failed|loadvm failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Which recorded state to bring in.

    :param excluded: labels of sections that are left out
    :param early: the device state stands in the stream twice: an early load, and a whole one behind it
    """

    buffers: Buffers
    phase: str
    mode: GuestMode = GuestMode.RUNNING
    excluded: frozenset[str] = frozenset()
    early: bool = False

    def stream(self, spare_bytes: int = 0) -> list[Buffer]:
        """The whole migration stream in pieces.

        :param spare_bytes: so much more memory has the machine that it is for
        """
        pack = self.buffers.pack
        recording = pack.recordings[self.phase]
        devices = encode(without(sections_for(recording, self.mode), self.excluded))
        if self.early:
            devices += devices
        ram = self.buffers.ram_whole(self.phase)
        if spare_bytes:
            ram = [setup_with_spare(pack, self.phase, spare_bytes), *ram[1:]]
        return [recording.head, *incoming_body(recording, ram, devices)]


class Incoming:
    """A launched QEMU, stopped, that waits for one stream. A context manager; leaving ends the process.

    :param machine: what to be; its scratch images are made here when ``images`` is None
    :param images: a folder that holds them already
    :param live: one end of a migration whose guest may run in the source; see :mod:`harness.engines.spare`
    :param timeout_s: deadline for the stream, and for each step after it
    :param scope: of the run that it belongs to
    :raises QemuError: QEMU does not start
    """

    def __init__(
        self,
        binary: QemuBinary,
        machine: Machine,
        *,
        timeout_s: float,
        scope: ProcessScope,
        images: Path | None = None,
        live: bool = False,
        extra: tuple[Option, ...] = (),
    ) -> None:
        self._timeout_s = timeout_s
        self._spare_bytes = spare_of(machine) if live else 0
        if self._spare_bytes:
            extra = (memory_option(machine, self._spare_bytes), *extra)
        workdir = new_workdir()
        if images is None:
            machine.make_files(workdir)
        incoming = Option(name="incoming", first="defer")
        command = machine.command(binary.path, images or workdir, firmware_sink(), incoming, *extra)
        self.vm = Vm(command, workdir=workdir, scope=scope)

    def load(self, state: State) -> None:
        """Bring the state in; the machine then stands still in it.

        :raises ChannelBroken: QEMU died, reported a failure or did not finish
        :raises QemuError: it does not even listen
        """
        with connect_incoming(self.vm, self._timeout_s) as sock:
            _send(sock, state.stream(self._spare_bytes), self.vm, self._timeout_s)
            self._wait_loaded()

    def resume(self, run_s: float) -> None:
        """Start the guest and let it live for a while.

        :raises ChannelBroken: at step RESUME: QEMU died, refused or does not answer
        """
        attempt(Step.RESUME, self.vm, "cont", self._timeout_s)
        drain_console(self.vm)
        if self.vm.ended(run_s):
            raise ChannelBroken(Step.RESUME, "closed", Symptom(sign=Sign.ENDED, doing=Doing.START, seconds=run_s))

    def _wait_loaded(self) -> None:
        try:
            info = self.vm.monitor.poll_until(
                "query-migrate", lambda info: stage_of(info).over, timeout_s=self._timeout_s
            )
        except DeadlineError as error:
            raise ChannelBroken(Step.INCOMING, "late", symptom_of(error)) from error
        except QemuError as error:
            raise ChannelBroken(Step.INCOMING, "closed", symptom_of(error).during(Doing.LOADING)) from error
        if stage_of(info) is not Stage.COMPLETED:
            raise ChannelBroken(Step.INCOMING, "refused", migration_ended(info))

    def close(self) -> None:
        """Kill it."""
        self.vm.close()

    def __enter__(self) -> Incoming:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def drain_console(vm: Vm) -> None:
    """Throw away what the guest's console has to say (it is in a log file as well).

    A serial port writes byte by byte, so that a socket that nobody reads is full after some 280 characters; the
    port then has a byte to send again, and 7.2 can save that as a state that it does not load ("tsr empty,
    tsr_retry=1").
    """
    with contextlib.suppress(OSError):
        while vm.console.recv(1 << 16, socket.MSG_DONTWAIT):
            pass


def attempt(step: Step, vm: Vm, command: str, timeout_s: float, **arguments: Any) -> Any:
    """Run a QMP command that the QEMU under test may die of.

    :raises ChannelBroken: at ``step``: it died (``closed``), refused (``refused``) or does not answer (``late``)
    """
    try:
        return vm.qmp(command, timeout_s, **arguments)
    except CommandRefused as error:
        raise ChannelBroken(step, "refused", symptom_of(error)) from error
    except DeadlineError as error:
        raise ChannelBroken(step, "late", symptom_of(error)) from error
    except QemuError as error:
        raise ChannelBroken(step, "closed", symptom_of(error)) from error


def migration_ended(info: dict[str, Any]) -> Symptom:
    """An incoming migration that did not come to a good end, by its ``query-migrate``."""
    return Symptom(sign=Sign.MIGRATION_ENDED, status=str(info.get("status", "")), said=str(info.get("error-desc", "")))


def ended_in_postcopy(step: Step, vm: Vm, doing: Doing | None = None, command: str = "") -> ChannelBroken:
    """The break of a postcopy destination that is gone.

    Up to 10.1 one that refuses a device calls ``exit`` in two threads at once (``process_incoming_migration_co`` and
    ``postcopy_ram_listen_thread``) and may die by a signal in there, or by an assertion on a socket that the other one
    closed (``qemu_socket_set_nonblock``, seen on 7.2): that is no crash of the device.
    """
    ended = vm.ended()
    if ended is not None and ended.signal and REFUSAL.search(vm.process.stderr()):
        died = Symptom(sign=Sign.DIED_CLEANING_UP, doing=doing, command=command, said=str(ended))
        return ChannelBroken(step, "died", died)
    return ChannelBroken(step, "closed", Symptom(sign=Sign.ENDED, doing=doing, command=command))


def _send(sock: socket.socket, buffers: Sequence[Buffer], vm: Vm, timeout_s: float) -> None:
    """Send everything; that QEMU hangs up is for its status to explain."""
    try:
        send_all(sock, buffers, vm.deadline(timeout_s))
    except TimeoutError as error:
        silent = Symptom(sign=Sign.NO_DATA_TAKEN, seconds=timeout_s)
        raise ChannelBroken(Step.INCOMING, "late", silent) from error


def send_all(sock: socket.socket, buffers: Sequence[Buffer], deadline: Deadline) -> None:
    """Send everything, or as much as is taken before the other side hangs up.

    :raises TimeoutError: it was not taken in time
    """
    try:
        for start in range(0, len(buffers), _SEND_BUFFERS):
            send_in_time(sock, b"".join(buffers[start : start + _SEND_BUFFERS]), deadline)
    except TimeoutError:
        raise
    except OSError:
        return
