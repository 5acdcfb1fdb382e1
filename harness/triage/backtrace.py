# SPDX-License-Identifier: GPL-2.0-or-later
"""Repeat a failure under gdb and bring back the stack of the thread that failed.

A script stands in for QEMU (:mod:`harness.triage.debugger`), so that whatever runs the case needs to know nothing of
gdb. A QEMU that hangs is interrupted.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.deadline import Deadline, Lost
from harness.engines.colo import Session
from harness.engines.evidence import Evidence
from harness.errors import HinderedError, PostloadError
from harness.oracles.load import crash_line
from harness.oracles.words import failed_assertion
from harness.qemu.hosttime import HostClock
from harness.qemu.process import scratch_folder
from harness.qemu.threads import THREADS
from harness.results.frames import Frame, short_form
from harness.results.sanitizer import first_report
from harness.triage.debugger import GdbLauncher, denied_line

DEADLINE_S = 60.0
#: gdb reads QEMU's symbols before it lets it run.
_SLOWER_S = 15.0
_POLL_S = 0.1

#: Everything else is QEMU's own business: it kicks its CPU threads with SIGUSR1.
_FATAL = ("SIGABRT", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGSYS")
_STOPPED = re.compile(r"received signal (SIG[A-Z0-9]+|SIG\d+)|Program terminated with signal (SIG[A-Z0-9]+)")
_ENDED = re.compile(r"exited (normally|with code \d+)")
_THREAD = re.compile(r"^Thread (\d+) \((?P<what>.*)\):?$")
_FRAME = re.compile(
    r"^#(?P<number>\d+)\s+(?:(?P<address>0x[0-9a-f]+) in )?(?P<function>[^\s(][^(]*?|\?\?) \((?P<args>.*?)\)"
    r"(?: at (?P<file>[^\s:]+):(?P<line>\d+))?(?: from (?P<module>\S+))?\s*$"
)


class StackHow(StrEnum):
    """How a stack was got, or why not; the value is what is stored."""

    NO_GDB = "no-gdb"
    LATE = "gdb-late"
    DENIED = "gdb-denied"  # ``said`` is gdb's line
    FAILED = "failed"  # ``said`` is the text of an error
    NOT_AGAIN = "not-again"  # ``said`` is how QEMU ended
    NO_MACHINE = "no-machine"  # QEMU ``qemu`` has no machine ``said``
    INTERRUPTED = "interrupted"  # under gdb, while it did not answer
    STOPPED = "stopped"  # under gdb, by its signal
    PRINTED = "printed"  # by the sanitizer ``said``
    THREADS = "threads"  # of the QEMU that hung, as the run saw them


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtrace:
    """The stack of a failure.

    :param frames: of the thread that failed, innermost first; empty when none could be had
    :param short: names from QEMU's innermost frame to the one that dispatched the load; empty when there is none
    :param how: it was got, or why not
    :param said: see :class:`StackHow`
    :param debug: debug symbols were found
    :param qemu: version and path of the QEMU that was looked at, where it is not the cell's own
    :param signal: what stopped it, empty for one that was interrupted
    :param threads: of a hang, the stacks of the other threads, by name
    """

    frames: tuple[Frame, ...] = ()
    short: str = ""
    how: StackHow = StackHow.NO_GDB
    said: str = ""
    debug: bool = False
    qemu: str = ""
    signal: str = ""
    threads: tuple[tuple[str, tuple[Frame, ...]], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "frames": [frame.to_json() for frame in self.frames],
            "short": self.short,
            "how": str(self.how),
            "said": self.said,
            "debug": self.debug,
            "qemu": self.qemu,
            "signal": self.signal or None,
        }


def backtrace_of(session: Session, *, timeout_s: float = DEADLINE_S) -> Backtrace:
    """Repeat a session that crashed or hung under gdb.

    :param timeout_s: for all of it
    :return: without frames, and with the reason in ``how``, where there is no gdb, where it may not trace, where the
        failure did not come again or not in time; never an error of its own
    """
    program = Path(session.binary.path)
    seen: list[Evidence] = []

    def run(launcher: Path, progress: Callable[[], None]) -> str:
        binary = replace(session.binary, path=str(launcher))
        buffers = session.buffers.looked_at(str(program))
        again = replace(session, binary=binary, buffers=buffers, timeout_s=timeout_s)
        seen.append(again.run(lambda loads: progress() if loads else None))
        return seen[-1].log

    return backtrace_by(run, program, answer_timeout_s=session.timeout_s, timeout_s=timeout_s)


def backtrace_by(
    run: Callable[[Path, Callable[[], None]], str],
    program: Path,
    *,
    answer_timeout_s: float,
    timeout_s: float = DEADLINE_S,
) -> Backtrace:
    """The same for anything that runs a case.

    :param run: is given the path of a program to launch instead of ``program``, and something to call whenever the
        case got on; it returns what QEMU printed. It must wait ``timeout_s`` for an answer, for a QEMU that is being
        looked at gives none.
    :param answer_timeout_s: after so long without progress it is taken to hang
    """
    gdb = shutil.which("gdb")
    if gdb is None:
        return Backtrace(how=StackHow.NO_GDB)
    with scratch_folder() as folder:
        launcher = _Launcher(folder, gdb, program)
        with _watch(launcher, answer_timeout_s + _SLOWER_S, timeout_s) as watch:
            try:
                log, failed = run(launcher.path, watch.progress), ""
            except PostloadError as error:
                log, failed = "", str(error)
        return _read(launcher.output(), log, failed, watch)


class _Launcher(GdbLauncher):
    """gdb looks at what stops QEMU, and writes down what it sees."""

    def __init__(self, folder: Path, gdb: str, program: Path) -> None:
        self._log = folder / "gdb.log"
        super().__init__(folder, gdb, program, self._commands())

    def _commands(self) -> list[str]:
        return [
            "set print entry-values no",
            "set follow-fork-mode parent",
            "set detach-on-fork on",
            f"handle {' '.join(_FATAL)} stop print pass",
            f"set logging file {self._log}",
            # the first is how it was spelt before gdb 12
            "set logging on",
            "set logging enabled on",
            "run",
            "bt",
            "echo \\n== all threads ==\\n",
            "thread apply all bt",
            "kill",
        ]

    def output(self) -> str:
        """What gdb said."""
        with contextlib.suppress(OSError):
            return self._log.read_text(errors="replace")
        return ""

    def stopped(self) -> bool:
        """Whether QEMU is being looked at already."""
        return _STOPPED.search(self.output()) is not None


class _GdbClock:
    """Time in which gdb, or the QEMU under it, could not run. Both are there only some time after the wait began."""

    def __init__(self, launcher: _Launcher) -> None:
        self._launcher = launcher
        self._clocks: dict[int, HostClock] = {}

    def follow(self) -> None:
        """Look for the processes."""
        for pid in self._launcher.processes():
            if pid not in self._clocks:
                self._clocks = {**self._clocks, pid: HostClock.of(pid)}

    def lost(self) -> Lost:
        """See :class:`harness.deadline.Clock`: that of the process that lost most."""
        return max((clock.lost() for clock in self._clocks.values()), key=lambda lost: lost.total_s, default=Lost())

    def close(self) -> None:
        """They are gone."""
        for clock in self._clocks.values():
            clock.close()


class _GdbWatch:
    """Interrupts a QEMU that does not get on, and ends a gdb that takes too long."""

    def __init__(self, launcher: _Launcher, answer_s: float, timeout_s: float) -> None:
        self.interrupted = False
        self.expired = False
        self._launcher = launcher
        self._answer_s = answer_s
        self._clock = _GdbClock(launcher)
        self._clock.follow()
        self._end = Deadline(timeout_s, self._clock)
        self._silence = Deadline(answer_s, self._clock)
        self.done = threading.Event()

    def progress(self) -> None:
        """The case got on."""
        self._silence = Deadline(self._answer_s, self._clock)

    def loop(self) -> None:
        while not self.done.wait(_POLL_S):
            self._clock.follow()
            try:
                if not self._end.over:
                    self._interrupt()
                    continue
            except HinderedError:
                pass  # the host took too much of the time
            self.expired = True
            self._launcher.signal(signal.SIGKILL)
            break
        self._clock.close()

    def _interrupt(self) -> None:
        """A program that does not get on; gdb hands a SIGINT that it gets on to the program that it runs."""
        # one that is being looked at does not get on either
        if not self.interrupted and not self._launcher.stopped() and self._silence.over:
            self.interrupted = self._launcher.signal(signal.SIGINT)


@contextlib.contextmanager
def _watch(launcher: _Launcher, answer_s: float, timeout_s: float) -> Iterator[_GdbWatch]:
    watch = _GdbWatch(launcher, min(answer_s, timeout_s * 2 / 3), timeout_s)
    thread = threading.Thread(target=watch.loop, name="postload-gdb-watch", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.done.set()
        thread.join()


def _read(output: str, log: str, failed: str, watch: _GdbWatch) -> Backtrace:
    stopped = _STOPPED.search(output)
    name = (stopped[1] or stopped[2]) if stopped else ""
    if watch.expired:
        return Backtrace(how=StackHow.LATE)
    if not stopped:
        return _why_not(output, log, failed)
    first, _, rest = output.partition("== all threads ==")
    frames = parse_frames(first)
    threads = parse_threads(rest)
    if name == "SIGINT":
        frames = _hanging(threads) or frames
    short = short_form(frames, "" if name == "SIGINT" else _named_in(log))
    return Backtrace(
        frames=frames,
        short=short,
        how=StackHow.INTERRUPTED if name == "SIGINT" else StackHow.STOPPED,
        debug=any(frame.file for frame in frames if frame.in_qemu),
        signal="" if name == "SIGINT" else name,
        threads=threads if name == "SIGINT" else (),
    )


def _why_not(output: str, log: str, failed: str) -> Backtrace:
    said = f"{output}\n{log}\n{failed}"
    denied = denied_line(said)
    if denied:
        return Backtrace(how=StackHow.DENIED, said=denied)
    if failed:
        return Backtrace(how=StackHow.FAILED, said=failed[-300:])
    ended = _ENDED.search(output)
    return Backtrace(how=StackHow.NOT_AGAIN, said=ended[0] if ended else "")


def _named_in(log: str) -> str:
    """The function that the log names: it may be one that the program does not export."""
    report = first_report(log)
    line = crash_line(log)
    if report and report.function:
        return report.function
    if line is None:
        return ""
    failed = failed_assertion(line)
    return failed.function if failed else ""


def parse_frames(text: str) -> tuple[Frame, ...]:
    """The first stack in what gdb printed; inlined frames have no address."""
    frames: list[Frame] = []
    for line in text.splitlines():
        match = _FRAME.match(line)
        if match is None:
            continue
        if int(match["number"]) < len(frames):
            break
        function = match["function"]
        frames.append(
            Frame(
                number=int(match["number"]),
                function="" if function in ("??", "<signal handler called>") else function,
                file=match["file"] or "",
                line=int(match["line"] or 0),
                module=match["module"] or "",
                address=match["address"] or "",
            )
        )
    return tuple(frames)


def parse_threads(text: str) -> tuple[tuple[str, tuple[Frame, ...]], ...]:
    """Stacks by thread, as ``thread apply all bt`` prints them: ``1 Thread 0x7f (LWP 12) "qemu"`` and its frames."""
    found: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        match = _THREAD.match(line)
        if match:
            found.append((f"{match[1]} {match['what']}", []))
        elif found:
            found[-1][1].append(line)
    return tuple((title, parse_frames("\n".join(lines))) for title, lines in found)


def hang_frames(log: str) -> tuple[Frame, ...]:
    """Of a session's log that ends with the threads of a QEMU that did not answer: the stack of the one that hangs."""
    return _hanging(parse_threads(log.partition(THREADS)[2]))


#: A thread that loads has one of these in its stack, the most telling first.
_LOADING = ("vmstate_load_state", "vmstate_load_vmsd", "qemu_loadvm_state_main", "colo_process_incoming_thread")


def _hanging(threads: Sequence[tuple[str, tuple[Frame, ...]]]) -> tuple[Frame, ...]:
    """The stack of the thread that loads, else of the main thread."""
    for function in _LOADING:
        for _, stack in threads:
            if any(frame.function == function for frame in stack):
                return stack
    return next((stack for title, stack in threads if title.startswith("1 ")), ())
