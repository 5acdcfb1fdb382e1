# SPDX-License-Identifier: GPL-2.0-or-later
"""Drive the guest's shell over its serial line with pexpect."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass

import pexpect
from pexpect.socket_pexpect import SocketSpawn

from harness.colo.symptom import Doing, Sign, Symptom
from harness.deadline import Clock, Deadline
from harness.errors import GuestError

_PROMPT = re.compile(rb"postload# ")
_STATUS = re.compile(rb"POSTLOAD rc=(\d+)\r?\n")
#: How much of what was printed is told.
_TAIL_CHARS = 600


class ConsoleError(GuestError):
    """The guest's shell did not do as it should.

    :param symptom: the same as the text, as data
    """

    def __init__(self, text: str, symptom: Symptom) -> None:
        super().__init__(text)
        self.symptom = symptom


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """What came of a command line: its exit status, and what it printed."""

    command: str
    status: int
    text: str

    @property
    def said(self) -> str:
        """The last of what it printed."""
        return self.text.strip()[-_TAIL_CHARS:]

    @property
    def complaint(self) -> ConsoleError:
        """How it failed."""
        return ConsoleError(
            f"guest command {self.command!r} failed with status {self.status}: {self.said or 'it printed nothing'}",
            Symptom(sign=Sign.FAILED, command=self.command, exit=self.status, said=self.said),
        )


class Console:
    """A shell on a serial line; the guest prints ``POSTLOAD READY`` and shows the prompt when it is up.

    :param sock: connected to the serial port
    :param clocks: of the QEMU: time in which it could not run counts for no deadline
    """

    def __init__(self, sock: socket.socket, *clocks: Clock) -> None:
        self._clocks = clocks
        self._spawn = SocketSpawn(sock, timeout=10)
        self._spawn.delaybeforesend = None

    def wait_ready(self, timeout_s: float) -> None:
        """Wait for the guest's first prompt.

        :raises GuestError: it did not come in time, or the machine ended; with the last words of the console
        """
        self._expect(re.compile(rb"POSTLOAD READY"), timeout_s, "the guest did not boot", Doing.BOOT)
        self._expect(_PROMPT, timeout_s, "the guest's shell did not start", Doing.SHELL)

    def run(self, command: str, timeout_s: float = 30.0) -> str:
        """Run a command line and return what it printed.

        :raises GuestError: its status is not 0, or it did not end within ``timeout_s``
        """
        answer = self.ask(command, timeout_s)
        if answer.status:
            raise answer.complaint
        return answer.text

    def ask(self, command: str, timeout_s: float = 30.0) -> CommandResult:
        """Run a command line that may fail.

        :raises GuestError: it did not end within ``timeout_s``
        """
        self.begin(command)
        answer = self.answer(command, timeout_s)
        assert answer is not None  # there is nothing else to wait for
        return answer

    def begin(self, command: str) -> None:
        """Type a command line, for :meth:`answer` to wait for.

        :raises GuestError: the console is gone
        """
        self.send(f"{command}; echo POSTLOAD rc=$?")

    def answer(
        self, command: str, timeout_s: float, instead: Callable[[], bool] = lambda: False
    ) -> CommandResult | None:
        """What came of a command line that was begun.

        :param instead: also ends the wait: None then, and the answer is still to come
        :raises GuestError: it did not end within ``timeout_s``
        """
        text = f"guest command {command!r} did not end"
        if not self._expect(_STATUS, timeout_s, text, command=command, instead=instead):
            return None
        match, printed = self._spawn.match, self._spawn.before
        assert isinstance(match, re.Match)
        assert isinstance(printed, bytes)  # a SocketSpawn without encoding
        self._expect(_PROMPT, timeout_s, "the guest's prompt did not come back", Doing.PROMPT, command)
        text = printed.decode(errors="replace").replace("\r\n", "\n")
        return CommandResult(command=command, status=int(match[1]), text=text)

    def send(self, command: str) -> None:
        """Type a command line and wait for nothing, for one that stops the machine.

        :raises GuestError: the console is gone
        """
        try:
            self._spawn.sendline(command)
        except OSError as error:
            raise _gone(command, error) from error

    def _expect(
        self,
        pattern: re.Pattern[bytes],
        timeout_s: float,
        what: str,
        doing: Doing | None = None,
        command: str = "",
        instead: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Whether the pattern came, and not what was waited for instead."""
        deadline = Deadline(timeout_s, *self._clocks)
        try:
            while self._spawn.expect([pattern, pexpect.TIMEOUT], timeout=deadline.slice_s):
                if instead():
                    return False
                if deadline.over:
                    raise pexpect.TIMEOUT("late")
            return True
        except (pexpect.TIMEOUT, pexpect.EOF, OSError) as error:
            tail = self._spawn.buffer or self._spawn.before
            said = tail[-_TAIL_CHARS:].decode(errors="replace").strip() if isinstance(tail, bytes) else ""
            late = isinstance(error, pexpect.TIMEOUT)
            how = f"within {timeout_s:g} s" if late else "before the machine ended"
            sign, seconds = (Sign.NO_ANSWER, timeout_s) if late else (Sign.ENDED, None)
            raise ConsoleError(
                f"{what} {how}; the console's last words: {said or 'nothing'}",
                Symptom(sign=sign, doing=doing, command=command, seconds=seconds, said=said),
            ) from error


def _gone(command: str, error: OSError) -> ConsoleError:
    return ConsoleError(
        f"guest command {command!r}: the console is gone ({error})",
        Symptom(sign=Sign.CLOSED, command=command, said=str(error)),
    )
