# SPDX-License-Identifier: GPL-2.0-or-later
"""Stands in for QEMU as a COLO secondary: speaks QMP over an inherited socket and COLO over a unix socket.

``-fake WORD`` among its arguments says how it behaves, see :data:`_LOADS` and the uses of ``fake`` below.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

END_OF_STREAM = b"\x06\x00\x00\x00\x02{}"
ASSERTION = "qemu-fake: ../hw/toy.c:{line}: toy_load: Assertion `!{what}' failed.\n"


def main() -> None:
    """Until it is told to stop, or does what it was told."""
    fake = sys.argv[sys.argv.index("-fake") + 1] if "-fake" in sys.argv else "ok"
    machine = sys.argv[sys.argv.index("-machine") + 1]
    if fake == "no-machine" and machine != "toy":
        sys.stderr.write("qemu-fake: unsupported machine type\nUse -machine help to list supported machines\n")
        sys.exit(1)
    if fake == "no-start":
        sys.stderr.write("qemu-fake: out of toys\n")
        sys.exit(1)
    told = next(m for m in (re.search(r"id=reproduce-qmp,fd=(\d+)", a) for a in sys.argv) if m)
    qmp = socket.socket(fileno=int(told[1]))
    version = {"qemu": {"major": 9, "minor": 8, "micro": 7}, "package": ""}
    _say(qmp, {"QMP": {"version": version, "capabilities": []}})
    for line in qmp.makefile("rb"):
        _command(qmp, json.loads(line), fake, "toy-2" if machine == "toy" else machine)


def _command(qmp: socket.socket, message: dict[str, Any], fake: str, machine: str) -> None:
    command, arguments = message["execute"], message["arguments"]
    if command == "query-migrate-capabilities":
        names = ["events"] if fake == "no-colo" else ["x-colo", "return-path"]
        _say(qmp, {"return": [{"capability": name, "state": False} for name in names]})
    elif command == "qom-get":
        _say(qmp, {"return": f"{machine}-machine"})
    elif command == "migrate-set-capabilities" and fake == "new" and len(arguments["capabilities"]) == 1:
        _say(qmp, {"error": {"class": "GenericError", "desc": "'x-colo' requires capability 'return-path'"}})
    elif command == "migrate-incoming":
        server = socket.socket(socket.AF_UNIX)
        server.bind(arguments["uri"][len("unix:") :])
        server.listen(1)
        _say(qmp, {"return": {}})
        if os.fork() == 0:
            return  # the child goes on with QMP
        _secondary(server.accept()[0], qmp, fake, machine)
    elif command == "xen-save-devices-state":
        _STATE[0] += fake == "moves"
        mark = struct.pack(">I", 7)
        state = b"QEVM\0\0\0\x03\x04" + mark + b"\x03toy\0\0\0\0\0\0\0\x01" + bytes(_STATE) + b"\x7e" + mark + b"\0"
        Path(arguments["filename"]).write_bytes(state)
        _say(qmp, {"return": {}})
    else:
        _say(qmp, {"return": {}})


#: Payload of the section that is saved; with ``-fake moves`` it is never the same twice.
_STATE = [1]


def _secondary(sock: socket.socket, qmp: socket.socket, fake: str, machine: str) -> None:
    head = _exactly(sock, 13)
    name = _exactly(sock, struct.unpack(">I", head[9:13])[0]).decode()
    if name != machine:
        sys.stderr.write(f"qemu-fake: Machine type received is '{name}' and local is '{machine}'\n")
        _end(1)
    _, command, _ = struct.unpack(">BHH", _exactly(sock, 5))
    if (command == 1) != (fake == "new"):
        sys.stderr.write("qemu-fake: load of migration failed\n")
        _end(1)
    body = b""
    while not body.endswith(END_OF_STREAM):
        body += _exactly(sock, 1)
    if fake == "old" and b"\x05\x07toy/new" in body:
        sys.stderr.write("qemu-fake: error while loading state for instance 0x0 of device 'toy'\n")
        _end(1)
    if fake == "refuse-start":
        sys.stderr.write("qemu-fake: VQ 0 vring.num 1024 exceeds allocated max 256\n")
        sys.stderr.write("qemu-fake: error while loading state for instance 0x0 of device 'toy'\n")
        _end(1)
    if command == 1:
        sock.sendall(struct.pack(">HHI", 1, 4, 0))
    sock.sendall(struct.pack(">I", 0))
    while True:
        _checkpoint(sock, qmp, fake)


def _checkpoint(sock: socket.socket, qmp: socket.socket, fake: str) -> None:
    _exactly(sock, 4)
    sock.sendall(struct.pack(">I", 2))
    _exactly(sock, 5)
    _, size = struct.unpack(">IQ", _exactly(sock, 12))
    _exactly(sock, size)
    sock.sendall(struct.pack(">I", 5))
    if fake in _LOADS:
        _LOADS[fake](qmp)
    sock.sendall(struct.pack(">I", 6))


def _abort(line: int, what: str) -> Callable[[socket.socket], None]:
    def act(_: socket.socket) -> None:
        sys.stderr.write(ASSERTION.format(line=line, what=what))
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGABRT)

    return act


def _refuse(qmp: socket.socket) -> None:
    sys.stderr.write("qemu-fake: error while loading state for instance 0x0 of device '0000:00:02.0/toy'\n")
    sys.stderr.flush()
    _say(qmp, {"event": "COLO_EXIT", "data": {"mode": "secondary", "reason": "error"}, "timestamp": {}})
    time.sleep(60)


def _now_and_then(qmp: socket.socket) -> None:
    """Every fourth process of a test."""
    count = Path(os.environ["FAKE_COUNT"])
    number = int(count.read_text() or "0") if count.exists() else 0
    count.write_text(str(number + 1))
    if number % 4 == 3:
        _abort(10, "boom")(qmp)


def _stopped(*pids: int) -> None:
    """Somebody stops processes for longer than a deadline of one second, and lets them go on one after the other."""
    goes_on = "; ".join(f"kill -CONT {pid}; sleep 0.5" for pid in pids)
    subprocess.Popen(["sh", "-c", f"sleep 1.5; {goes_on}"], start_new_session=True)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)


def _stopped_and_hangs(_: socket.socket) -> None:
    _stopped(os.getpid())
    time.sleep(60)


def _told_to_end(_: socket.socket) -> None:
    sys.stderr.write("qemu-fake: terminating on signal 15 from pid 1 (init)\n")
    _end(0)


_LOADS: dict[str, Callable[[socket.socket], None]] = {
    "crash": _abort(10, "boom"),
    "old": _abort(12, "boom"),
    "other-crash": _abort(10, "bang"),
    "hang": lambda _: time.sleep(60),
    "refuse": _refuse,
    "segv": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
    "shutdown": lambda _: _end(0),
    "flaky": _now_and_then,
    "stopped": lambda _: _stopped(os.getpid()),
    "all-stopped": lambda _: _stopped(os.getppid(), os.getpid()),
    "stopped-and-hangs": _stopped_and_hangs,
    "told-to-end": _told_to_end,
    "killed": lambda _: os.kill(os.getpid(), signal.SIGKILL),
}


def _exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            _end(0)
        data += piece
    return data


def _say(qmp: socket.socket, message: dict[str, Any]) -> None:
    qmp.sendall(json.dumps(message).encode() + b"\r\n")


def _end(code: int) -> None:
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
