# SPDX-License-Identifier: GPL-2.0-or-later
"""What the threads of a QEMU are doing: states from /proc, and a backtrace where gdb is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from harness.errors import HinderedError
from harness.qemu.hosttime import run_watched

GDB_TIMEOUT_S = 30.0
_FRAMES = 12
_STATES = {"R": "running", "S": "sleeping", "D": "waiting for I/O", "T": "stopped", "t": "traced", "Z": "dead"}

#: Begins what is added to the log of a QEMU that did not answer.
THREADS = "threads of QEMU while it did not answer:"

#: Numbers of ``nanosleep`` and ``clock_nanosleep`` in ``/proc/PID/task/TID/syscall``.
_SLEEPS = {"x86_64": ("35", "230"), "aarch64": ("101", "115")}.get(os.uname().machine, ())
#: A process is at rest when it is found so this often in a row, at this distance.
_LOOKS = 3
_POLL_S = 0.002


def wait_at_rest(pid: int, timeout_s: float) -> None:
    """Wait until every thread of a process waits for something to happen, at most for a time.

    QEMU's RCU thread sleeps for some milliseconds again and again while it holds back what it is to free, and waits on
    a futex when it has nothing (``util/rcu.c:call_rcu_thread``): none that sleeps or runs means that all is freed.
    Where that cannot be seen the whole time is waited.
    """
    end, quiet = time.monotonic() + timeout_s, 0
    while quiet < _LOOKS and time.monotonic() < end:
        quiet = quiet + 1 if _at_rest(pid) else 0
        time.sleep(_POLL_S)


def _at_rest(pid: int) -> bool:
    try:
        calls = [task.joinpath("syscall").read_text().split()[0] for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return False
    return bool(_SLEEPS) and not {"running", *_SLEEPS} & set(calls)


def describe_threads(pid: int) -> str:
    """A line for each thread, then the backtraces.

    :return: text for a log; says why where something could not be had, and never raises for a process that is gone
    """
    lines = [_thread(task) for task in sorted(Path(f"/proc/{pid}/task").glob("[0-9]*"))]
    return "\n".join([THREADS, *lines, _backtrace(pid)])


def _thread(task: Path) -> str:
    try:
        # comm may hold spaces and brackets: the state is the first field behind the last bracket
        stat = (task / "stat").read_text()
        name = stat[stat.index("(") + 1 : stat.rindex(")")]
        state = stat[stat.rindex(")") + 2 :].split()[0]
    except (OSError, ValueError, IndexError):
        return f"  {task.name}: gone"
    return f"  {task.name} {name}: {_STATES.get(state, state)}{_wait_channel(task)}"


def _wait_channel(task: Path) -> str:
    try:
        channel = (task / "wchan").read_text().strip()
    except OSError:
        return ""
    return f" in {channel}" if channel not in ("", "0") else ""


def _backtrace(pid: int) -> str:
    gdb = shutil.which("gdb")
    if gdb is None:
        return "no backtrace: gdb is not installed"
    argv = [gdb, "-p", str(pid), "-batch", "-nx", "-ex", "set pagination off", "-ex", f"thread apply all bt {_FRAMES}"]
    try:
        nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
        done = run_watched(argv, timeout_s=GDB_TIMEOUT_S, stdin=nothing, stdout=pipe, stderr=pipe, text=True)
    except (OSError, subprocess.TimeoutExpired, HinderedError) as error:
        return f"no backtrace: {error}"
    frames = [line for line in done.stdout.splitlines() if line.startswith(("#", "Thread "))]
    return "\n".join(frames) or f"no backtrace: gdb said: {done.stderr.strip()[-400:] or 'nothing'}"
