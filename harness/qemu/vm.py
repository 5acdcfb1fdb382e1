# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual machine: a QEMU process with its QMP session and its serial console, all over socket pairs.

Socket pairs need no path, no listening and no retry: both ends exist before QEMU starts, and both close when
either side dies.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.deadline import Deadline, in_time
from harness.errors import DeadlineError, HostError, QemuError, Unmigratable
from harness.qemu.beside import LineEnd
from harness.qemu.cmdline import CommandLine, Option
from harness.qemu.ivshmem import IvshmemServer, is_ivshmem
from harness.qemu.lonetap import HeldTap, is_lone_tap
from harness.qemu.migrationstatus import Stage, stage_of
from harness.qemu.monitor import COMMAND_TIMEOUT_S, Monitor
from harness.qemu.process import Exit, Process, new_workdir, socket_path
from harness.qemu.scope import ProcessScope
from harness.qemu.swtpm import TpmEmulator
from harness.qemu.vhostdisk import StorageDaemon, is_vhost_disk

START_TIMEOUT_S = 30.0


class Vm:
    """QEMU with a monitor. Use it as a context manager; leaving ends the process.

    :param command: the machine; monitor and console are added here
    :param workdir: scratch folder of the process, made when None
    :param passed: further sockets that the command line names by number
    :param scope: the run that it belongs to (see :class:`~harness.qemu.process.Process`)
    :raises QemuError: QEMU ended before it greeted; the message holds what it printed
    :raises MissingError: it has a TPM, a tap or a disk of its own, and there is none to be had here
    """

    def __init__(
        self,
        command: CommandLine,
        *,
        workdir: Path | None = None,
        passed: Sequence[socket.socket] = (),
        env: dict[str, str] | None = None,
        scope: ProcessScope | None = None,
    ) -> None:
        folder = workdir or new_workdir()
        try:
            taps = [HeldTap(option) for option in command.options if is_lone_tap(option)]
            self._beside = _beside(command, scope)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        command = _without_lineless(_with_taps(command, taps))
        qmp, qmp_child = socket.socketpair()
        self.console, console_child = socket.socketpair()
        line = command.plus(
            *_socket_chardev("postload-qmp", qmp_child),
            Option(name="mon", props={"chardev": "postload-qmp", "mode": "control"}),
            *_socket_chardev("postload-console", console_child, logfile=str(folder / "console.log")),
            Option(name="serial", first="chardev:postload-console"),
            *(each.option for each in self._beside),
        )
        inherited: list[socket.socket | FileIO] = [qmp_child, console_child, *(each.line for each in self._beside)]
        inherited += [file for tap in taps for file in tap.files]
        try:
            self.process = Process(
                line.argv(),
                scope=scope,
                passed=[*inherited, *passed],
                workdir=folder,
                env=env,
                confinement=command.confinement,
            )
        except BaseException:
            self._close_beside()
            self.console.close()
            qmp.close()
            raise
        finally:
            for sock in inherited:
                sock.close()
        try:
            self.monitor = Monitor(qmp, self.process.clock, timeout_s=START_TIMEOUT_S)
        except (QemuError, DeadlineError) as error:
            ended = self.process.wait(1.0)
            text = self.process.stderr().strip()
            self._give_up()
            how = f"it ended with {ended}" if ended else str(error)
            raise QemuError(f"{command.binary} did not start: {how}: {text or 'it printed nothing'}") from error
        except BaseException:
            # under gdb a QEMU takes seconds to greet, and a Ctrl-C may come
            self._give_up()
            raise
        #: Bytes that it had printed when it greeted: warnings of its start, which no load is to blame for.
        self.printed_at_start = self.process.stderr_size()

    def _give_up(self) -> None:
        self._close_beside()
        self.console.close()
        self.process.close()

    @property
    def workdir(self) -> Path:
        """Scratch folder of this process; it goes away with it."""
        return self.process.workdir

    def qmp(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S, **arguments: Any) -> Any:
        """Run a QMP command; see :meth:`Monitor.execute`."""
        return self.monitor.execute(command, timeout_s, **arguments)

    def ended(self, within_s: float = 0.0) -> Exit | None:
        """How QEMU ended, or None while it runs."""
        return self.process.wait(within_s) if within_s else self.process.poll()

    def deadline(self, timeout_s: float) -> Deadline:
        """A wait for this QEMU; see :meth:`Process.deadline`."""
        return self.process.deadline(timeout_s)

    def console_text(self) -> str:
        """Everything the serial console printed so far."""
        try:
            return (self.workdir / "console.log").read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def close(self) -> None:
        """Kill QEMU and what works beside it, close both sockets, remove the scratch folder."""
        self.process.kill()
        self._close_beside()
        self.monitor.close()
        self.console.close()
        self.process.close()

    def _close_beside(self) -> None:
        for each in self._beside:
            each.close()

    def __enter__(self) -> Vm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _beside(command: CommandLine, scope: ProcessScope | None) -> list[LineEnd]:
    """What a command line wants beside its QEMU."""
    started: list[LineEnd] = []
    try:
        for option in command.options:
            if option.name == "tpmdev":
                started.append(TpmEmulator(option, scope=scope, confinement=command.confinement))
            elif is_vhost_disk(option):
                started.append(StorageDaemon(option, scope=scope, confinement=command.confinement))
            elif is_ivshmem(option):
                started.append(IvshmemServer(option))
    except BaseException:
        for each in started:
            each.close()
        raise
    return started


def _with_taps(command: CommandLine, taps: Sequence[HeldTap]) -> CommandLine:
    """The command line with the files of taps that it names."""
    made = iter(taps)
    return replace(command, options=tuple(next(made).option if is_lone_tap(o) else o for o in command.options))


def _without_lineless(command: CommandLine) -> CommandLine:
    """The command line without what :func:`_beside` has options with a line in place of."""
    kept = (option for option in command.options if not is_vhost_disk(option) and not is_ivshmem(option))
    return replace(command, options=tuple(kept))


def _socket_chardev(name: str, child: socket.socket, **more: str) -> tuple[Option, ...]:
    child.set_inheritable(True)
    return (Option(name="chardev", first="socket", props={"id": name, "fd": child.fileno(), **more}),)


def migrate_to_socket(vm: Vm, sock_path: Path, sink: Path, *, timeout_s: float) -> int:
    """Let a stopped machine write its whole migration stream to ``sink``; returns bytes.

    A unix socket instead of ``exec:`` keeps a shell, and a second process to lose, out of it.

    :raises Unmigratable: a device of the machine blocks migration, with QEMU's text
    :param sock_path: in the QEMU's own folder
    :raises QemuError: migration failed, with QEMU's text
    :raises DeadlineError: not complete within ``timeout_s``
    :raises HostError: no space for the stream
    """
    deadline = vm.deadline(timeout_s)
    with socket.socket(socket.AF_UNIX) as server, socket_path(sock_path) as address:
        server.bind(str(address))
        # behind walls QEMU may be another user; nobody else gets into its folder
        sock_path.chmod(0o666)
        server.listen(1)
        _migrate(vm, f"unix:{address}")
        try:
            size = _drain(server, sink, deadline)
        finally:
            sock_path.unlink(missing_ok=True)
    info = vm.monitor.poll_until("query-migrate", lambda info: stage_of(info).over, timeout_s=max(0.5, deadline.left_s))
    if stage_of(info) is not Stage.COMPLETED:
        raise QemuError(f"migrate: {info['status']}: {info.get('error-desc', 'no reason given')}")
    return size


def _migrate(vm: Vm, uri: str) -> None:
    try:
        vm.qmp("migrate", uri=uri)
    except QemuError as error:
        # "blocked" alone is what 5.2 says
        info = vm.qmp("query-migrate")
        if info.get("blocked-reasons") or info.get("blocked"):
            raise Unmigratable(str(error)) from error
        raise


def _drain(server: socket.socket, sink: Path, deadline: Deadline) -> int:
    size = 0
    buffer = bytearray(1 << 20)
    try:
        connection, _ = in_time(server, deadline, server.accept)
        with connection, sink.open("wb") as file:
            while count := in_time(connection, deadline, partial(connection.recv_into, buffer)):
                file.write(memoryview(buffer)[:count])
                size += count
            return size
    except TimeoutError as error:
        raise DeadlineError(f"migrate: the stream stopped after {size} bytes") from error
    except OSError as error:
        raise HostError(f"cannot write {sink}: {error.strerror or error}") from error
