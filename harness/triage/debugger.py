# SPDX-License-Identifier: GPL-2.0-or-later
"""A script that stands in for the program of a QEMU, and starts that under gdb.

gdb starts QEMU, instead of being attached to it: then it may trace its child wherever a debugger may run at all, also
where Yama forbids to attach (``kernel.yama.ptrace_scope``). The script becomes gdb, and gdb starts the program behind a
shell, which is left by ``exec``, so that a wrapper script may stand there as well.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

#: A stack that is deeper is cut.
FRAMES = 48
_DENIED = re.compile(r".*(ptrace|Operation not permitted|Could not trace|not traced).*")


class GdbLauncher:
    """The script, and the files beside it.

    :param folder: where it lies, of its own
    :param commands: what gdb does, from before the program is started to its end
    """

    def __init__(self, folder: Path, gdb: str, program: Path, commands: Sequence[str]) -> None:
        self.path = folder / "qemu"
        self._pid = folder / "pid"
        words = [gdb, "-nx", "-batch", "-quiet", *(word for line in _settings() for word in ("-iex", line))]
        words += [word for line in (*_COMMANDS, *commands) for word in ("-ex", line)]
        start = folder / "start"
        start.write_text(f'exec {shlex.quote(str(program))} "$@"\n')
        words += ["--args", "/bin/sh", str(start)]
        # gdb quotes the arguments for a shell, and takes the user's, whatever that may be
        lines = ("#!/bin/sh", f"echo $$ > {shlex.quote(str(self._pid))}", "export SHELL=/bin/sh")
        self.path.write_text("\n".join([*lines, f'exec {shlex.join(words)} "$@"', ""]))
        self.path.chmod(0o700)

    def processes(self) -> tuple[int, ...]:
        """gdb, if it is there and a child of this process, and what it has started; a number given anew is neither."""
        try:
            pid = int(self._pid.read_text())
            status = Path(f"/proc/{pid}/stat").read_text()
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except (OSError, ValueError):
            return ()
        if int(status[status.rindex(")") + 2 :].split()[1]) != os.getpid():
            return ()
        return (pid, *map(int, children))

    def signal(self, number: signal.Signals) -> bool:
        """Send gdb a signal, if it is there."""
        for pid in self.processes()[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
                return True
        return False


def denied_line(said: str) -> str:
    """The line of what gdb said that says that it may not look, empty where none does."""
    denied = _DENIED.search(said)
    return denied[0].strip()[-300:] if denied else ""


def _settings() -> list[str]:
    debuginfod = "on" if os.environ.get("DEBUGINFOD_URLS") else "off"
    return [f"set debuginfod enabled {debuginfod}", "set auto-load off", "set startup-with-shell on"]


#: QEMU's own signals are its own business: it kicks its CPU threads with SIGUSR1.
_COMMANDS = (
    "set confirm off",
    "set pagination off",
    "set width 0",
    "set print frame-arguments none",
    f"set backtrace limit {FRAMES}",
    # a second address space layout is as good as the first, and containers forbid to choose one
    "set disable-randomization off",
    "set print thread-events off",
    "handle all nostop noprint pass",
)
