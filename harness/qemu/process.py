# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU process: launched so that it cannot outlive the harness, watched, ended, its words kept."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType

from harness.deadline import Deadline
from harness.errors import MissingError, QemuError, Stopped
from harness.qemu.disturbance import current_account, ended_by_host, signal_told
from harness.qemu.hosttime import HostClock
from harness.qemu.scope import ProcessScope
from harness.qemu.walls import Confinement

#: How much of stderr is read back; a QEMU that repeats itself must not fill memory.
STDERR_LIMIT_BYTES = 256 * 1024

# setpriv asks the kernel for SIGKILL at the parent's death; the parent may have died before that, so the
# shell compares its parent once more. `-run-with exit-with-parent=on` would do, but only on new builds.
_GUARD = 'test "$PPID" = "$1" || exit 125; shift; exec "$@"'


#: Signals that a process brings upon itself. All others come from outside, or tell of a limit of the host's.
_OWN_FAULT = frozenset({"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How a process ended: a status, or a signal.

    :param signal: that killed it; with status 0 that somebody told QEMU to end by, which then leaves in an orderly way
    """

    status: int
    signal: str | None = None

    def __str__(self) -> str:
        return self.signal or f"exit status {self.status}"

    @property
    def crashed(self) -> bool:
        """Ended by a signal that it brought upon itself."""
        return self.signal in _OWN_FAULT


def _exit_of(returncode: int, told: str | None) -> Exit:
    if returncode >= 0:
        return Exit(status=returncode, signal=None if returncode else told)
    return Exit(status=returncode, signal=_name_of(-returncode))


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def guarded(argv: Sequence[str]) -> list[str]:
    """``argv`` behind a guard that kills it when this process dies, however that happens."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise MissingError("setpriv is missing: it is in Debian's package util-linux")
    return [setpriv, "--pdeathsig", "KILL", "sh", "-c", _GUARD, "sh", str(os.getpid()), *argv]


class Process:
    """One child with a folder of its own for sockets and scratch files; both go away with :meth:`close`.

    :param argv: program and arguments
    :param passed: sockets and files that the child inherits under their own numbers
    :param workdir: folder for scratch files, made when None
    :param confinement: the walls that it is started behind
    :param scope: the run that it belongs to; one that belongs to none ends with :meth:`close`, or with this process
    :raises QemuError: it cannot be started
    :raises Stopped: the run is over
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        scope: ProcessScope | None = None,
        passed: Sequence[socket.socket | FileIO] = (),
        workdir: Path | None = None,
        env: dict[str, str] | None = None,
        confinement: Confinement | None = None,
    ) -> None:
        self.argv = list(argv)
        self.workdir = workdir or new_workdir()
        self._stderr_path = self.workdir / "stderr.log"
        with self._stderr_path.open("wb") as stderr:
            self._printed = self._stderr_path.open("rb")
            try:
                self._popen = subprocess.Popen(
                    guarded(argv) if confinement is None else confinement.plus(self.workdir).argv(argv),
                    stdin=subprocess.DEVNULL,
                    stdout=stderr,
                    stderr=subprocess.STDOUT,
                    pass_fds=[sock.fileno() for sock in passed],
                    env=env,
                    # a Ctrl-C at the terminal is for the harness: a QEMU that it ended would look like a guest's end
                    process_group=0,
                )
            except OSError as error:
                self._remove()
                raise QemuError(f"cannot start {self.argv[0]}: {error}") from error
        self._scope = scope or ProcessScope()
        try:
            self._scope.add(self._popen)
        except Stopped:
            self._remove()
            raise
        self._exit: Exit | None = None
        self._killed = False
        #: Knows which time it could use.
        self.clock = HostClock.of(self.pid)
        self._account = current_account()
        self._account.follow(self.clock)

    @property
    def pid(self) -> int:
        """Process id; setpriv and the shell replace themselves, so it is the program's own."""
        return self._popen.pid

    def poll(self) -> Exit | None:
        """How it ended, or None while it runs."""
        code = self._popen.poll()
        return None if code is None else self._reaped(code)

    def wait(self, timeout_s: float) -> Exit | None:
        """Wait for the end; None when it still runs after ``timeout_s`` in which it could have.

        :raises HinderedError: it was kept from running for too long
        """
        deadline = self.deadline(timeout_s)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._reaped(self._popen.wait(timeout=deadline.slice_s))
            if deadline.over:
                return None

    def deadline(self, timeout_s: float) -> Deadline:
        """A wait for this process: time in which it could not run does not count."""
        return Deadline(timeout_s, self.clock)

    def kill(self) -> Exit:
        """SIGKILL and reap; the exit tells how it had ended if it was dead before."""
        if self._popen.poll() is None:
            self._killed = True
            self._popen.kill()
        return self._reaped(self._popen.wait())

    def stderr(self, since: int = 0) -> str:
        """What it printed so far (the last 256 KiB).

        :param since: bytes that are left out, as :meth:`stderr_size` gave them
        """
        try:
            with self._stderr_path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(since, size - STDERR_LIMIT_BYTES))
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def stderr_size(self) -> int:
        """Bytes printed so far; cheap enough to be asked after every load."""
        return 0 if self._printed.closed else os.fstat(self._printed.fileno()).st_size

    def close(self) -> None:
        """Kill it if need be and remove its folder."""
        self.kill()
        self._remove()

    def _remove(self) -> None:
        self._printed.close()
        shutil.rmtree(self.workdir, ignore_errors=True)

    def _reaped(self, code: int) -> Exit:
        self._scope.discard(self._popen)
        if self._exit is None:
            self.clock.close()
            said = self.stderr()
            by_whom = signal_told(said)
            told = _name_of(by_whom[0]) if by_whom else None
            self._exit = _exit_of(code, told)
            ours = self._killed or self._scope.stopped
            by = told or (None if ours else self._exit.signal)
            end = ended_by_host(self.pid, by, self._exit.crashed, said)
            if end is not None:
                self._account.ended(end)
        return self._exit

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


#: Folders of runs that were killed are told by the pid in their name.
_WORKDIR_PREFIX = "postload-run-"


def new_workdir() -> Path:
    """A scratch folder that names its owner, so that a later run can sweep it after a kill -9."""
    return Path(tempfile.mkdtemp(prefix=f"{_WORKDIR_PREFIX}{os.getpid()}-"))


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A scratch folder for the length of a block; after a kill -9 a later run sweeps it too."""
    folder = new_workdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_workdirs() -> int:
    """Remove scratch folders whose owner is dead; returns how many."""
    count = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_WORKDIR_PREFIX}*"):
        owner = folder.name.removeprefix(_WORKDIR_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(folder, ignore_errors=True)
            count += 1
    return count


#: ``sun_path`` of a unix socket without its terminating zero (``unix(7)``).
_SOCKET_PATH_BYTES = 107


@contextlib.contextmanager
def socket_path(path: Path) -> Iterator[Path]:
    """A name for a unix socket that fits into its address, here and in a child, however deep the folder is."""
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        yield path
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/{os.getpid()}/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
