# SPDX-License-Identifier: GPL-2.0-or-later
"""A COLO secondary: a QEMU with our guest's machine, our harness as its primary."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.colo.primary import Buffer, Dialect, Primary
from harness.colo.symptom import Sign, Symptom
from harness.errors import QemuError
from harness.guests.machine import Machine, firmware_sink
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import Option
from harness.qemu.process import new_workdir, socket_path
from harness.qemu.scope import ProcessScope
from harness.qemu.vm import Vm

FAILOVER_TIMEOUT_S = 10.0
#: Run states that a secondary comes to after its failover.
_SETTLED = ("running", "paused", "io-error", "guest-panicked", "shutdown")


class Secondary:
    """A launched secondary, waiting for its incoming stream. A context manager; leaving ends the process.

    :param timeout_s: deadline for every answer of the COLO session
    :param scope: of the run that it belongs to
    :param env: its environment, this process's when None
    :raises QemuError: QEMU does not start, or refuses to be a secondary
    """

    def __init__(
        self,
        binary: QemuBinary,
        machine: Machine,
        dialect: Dialect,
        *,
        timeout_s: float,
        scope: ProcessScope,
        extra: tuple[Option, ...] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        self._dialect = dialect
        workdir = new_workdir()
        machine.make_files(workdir)
        incoming = Option(name="incoming", first="defer")
        command = machine.command(binary.path, workdir, firmware_sink(), incoming, *extra)
        self.vm = Vm(command, workdir=workdir, env=env, scope=scope)
        try:
            sock = _connect(self.vm, dialect, timeout_s)
            self.primary = Primary(sock, self.vm.process.clock, timeout_s=timeout_s, watch=self._given_up)
        except BaseException:
            self.vm.close()
            raise

    def start(self, head: Buffer, body: Iterable[Buffer]) -> None:
        """Bring it the recorded machine; on return it has said CHECKPOINT_READY.

        :raises ChannelBroken: it did not
        """
        self.primary.start(head, body, self._dialect)

    def _given_up(self) -> Symptom | None:
        return left_colo(self.vm.monitor.drain_events())

    def close(self) -> None:
        """Hang up and kill it."""
        self.primary.close()
        self.vm.close()

    def __enter__(self) -> Secondary:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def left_colo(events: Iterable[dict[str, Any]]) -> Symptom | None:
    """That COLO ended, as some events tell; None where none does."""
    for event in events:
        if event["event"] == "COLO_EXIT":
            return Symptom(sign=Sign.LEFT_COLO, said=str(event.get("data", {}).get("reason", "unknown")))
    return None


def end_colo(vm: Vm) -> str:
    """Fail over: the secondary leaves COLO.

    :return: its run state: ``paused`` for one that was started with ``-S`` and waits for a word
    :raises QemuError: QEMU refused, or is gone
    :raises DeadlineError: it did not get there within :data:`FAILOVER_TIMEOUT_S`
    """
    vm.qmp("x-colo-lost-heartbeat")
    vm.monitor.poll_until(
        "query-colo-status", lambda answer: answer.get("mode") == "none", timeout_s=FAILOVER_TIMEOUT_S
    )
    answer = vm.monitor.poll_until(
        "query-status", lambda answer: answer["status"] in _SETTLED, timeout_s=FAILOVER_TIMEOUT_S
    )
    return str(answer["status"])


def capabilities(dialect: Dialect) -> list[dict[str, object]]:
    """What a secondary of this dialect has to have switched on."""
    names = ["return-path", "x-colo"] if dialect.return_path else ["x-colo"]
    return [{"capability": name, "state": True} for name in names]


def _connect(vm: Vm, dialect: Dialect, timeout_s: float) -> socket.socket:
    vm.qmp("migrate-set-capabilities", capabilities=capabilities(dialect))
    return connect_incoming(vm, timeout_s)


def connect_incoming(vm: Vm, timeout_s: float) -> socket.socket:
    """Let a QEMU that waits for its incoming stream listen, and connect to it.

    :raises QemuError: it does not listen
    """
    with socket_path(vm.workdir / "incoming.sock") as address:
        vm.qmp("migrate-incoming", uri=f"unix:{address}")
        return _connected(vm, address, timeout_s)


def _connected(vm: Vm, address: Path, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    deadline = vm.deadline(timeout_s)
    while True:
        try:
            sock.connect(str(address))
            return sock
        except OSError as error:
            # 11.1 answers the command before it listens
            if vm.ended() or deadline.over:
                sock.close()
                said = vm.process.stderr()[-400:]
                raise QemuError(f"QEMU does not listen for its incoming stream: {error}: {said}") from error
            time.sleep(0.002)
