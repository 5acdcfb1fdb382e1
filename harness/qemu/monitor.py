# SPDX-License-Identifier: GPL-2.0-or-later
"""QMP with deadlines, over qemu.qmp.

qemu.qmp is asyncio and has no timeouts, and an event listener does not wake when QEMU dies; so every call here
runs its own loop for as long as its deadline, and nothing waits on an event without one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

from qemu.qmp import ExecInterruptedError, ExecuteError, Message, QMPClient, QMPError

from harness.deadline import Clock, Deadline
from harness.errors import DeadlineError, QemuError

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)

T = TypeVar("T")

COMMAND_TIMEOUT_S = 20.0
_END_WAIT_S = 0.2
_END_TRIES = 10


class CommandRefused(QemuError):
    """QEMU answered a command with an error; ``text`` is its description."""

    def __init__(self, command: str, text: str) -> None:
        self.command = command
        self.text = text
        super().__init__(f"{command}: {text}")


class NoAnswer(DeadlineError):
    """A command was not answered, or not as it was waited for.

    :param seconds: the deadline
    :param last: the last answer, where there was one
    """

    def __init__(self, command: str, seconds: float, last: object = None) -> None:
        self.command = command
        self.seconds = seconds
        self.last = last
        found = f"no answer within {seconds:g} s" if last is None else f"still {last!r} after {seconds:g} s"
        super().__init__(f"QMP {command}: {found}")


class SessionClosed(QemuError):
    """QEMU closed the session: most often it is gone.

    :param how: name of what was seen of it
    """

    def __init__(self, command: str, how: str) -> None:
        self.command = command
        self.how = how
        super().__init__(f"QMP {command}: QEMU closed the session ({how})")


# Big qom lists are larger than the default buffer, and a reply over the limit ends the session.
_REPLY_LIMIT_BYTES = 64 * 1024 * 1024


class _Client(QMPClient):
    """qemu.qmp makes a text of each message for a log, whether anybody keeps one: two for each load, of events."""

    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg


class Monitor:
    """A QMP session over a connected socket.

    :param sock: the harness's end of a socket pair
    :param clocks: of the QEMU at the other end: time in which it could not run counts for no deadline
    :raises QemuError: QEMU closed the socket before or while it greeted
    :raises DeadlineError: no greeting within ``timeout_s``
    """

    def __init__(self, sock: socket.socket, *clocks: Clock, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        self._clocks = clocks
        self._loop = asyncio.new_event_loop()
        self._interrupted = False
        self._client = _Client("postload", readbuflen=_REPLY_LIMIT_BYTES)
        self.events: list[dict[str, Any]] = []
        try:
            self._run(self._client.connect(sock), timeout_s, "greeting")
        except BaseException:
            self.close()
            raise

    def execute(self, command: str, timeout_s: float = COMMAND_TIMEOUT_S, **arguments: Any) -> Any:
        """Run a command and return its value; ``_`` in argument names stands for ``-``.

        :raises CommandRefused: QEMU answered with an error
        :raises QemuError: QEMU closed the session
        :raises DeadlineError: no answer within ``timeout_s``
        """
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        try:
            return self._run(self._client.execute(command, named or None), timeout_s, command)
        except ExecuteError as error:
            raise CommandRefused(command, error.error.error.desc) from _bare(error)

    def poll_until(
        self, command: str, done: Callable[[Any], bool], *, timeout_s: float, interval_s: float = 0.005
    ) -> Any:
        """Repeat a query until ``done(answer)``; returns the last answer.

        :raises DeadlineError: not done within ``timeout_s``
        """
        deadline = Deadline(timeout_s, *self._clocks)
        while True:
            answer = self.execute(command, timeout_s=max(0.1, deadline.left_s))
            if done(answer):
                return answer
            if deadline.over:
                raise NoAnswer(command, timeout_s, answer)
            time.sleep(interval_s)
            interval_s = min(interval_s * 1.5, 0.1)

    def drain_events(self) -> list[dict[str, Any]]:
        """Events that came so far, oldest first."""
        with contextlib.suppress(QMPError, QemuError, DeadlineError, OSError, EOFError):
            self._run(asyncio.sleep(0.001), 1.0, "events")
        self.events += map(dict, self._client.events.clear())
        return self.events

    def close(self) -> None:
        """End the session; never raises for a QEMU that is gone."""
        if self._loop.is_closed():
            return
        # what is left of an interrupted session fails in ways that tell nobody anything
        self._loop.set_exception_handler(lambda *_: None)
        try:
            if not self._interrupted:
                with contextlib.suppress(Exception):
                    self._run(self._client.disconnect(), 1.0, "disconnect")
        finally:
            try:
                self._end_tasks()
            finally:
                self._loop.close()

    def _end_tasks(self) -> None:
        """Each task that was interrupted raises that anew, through the loop, and stops the others: go on with them."""
        interrupted = False
        for _ in range(_END_TRIES):
            tasks = asyncio.all_tasks(self._loop)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            try:
                self._loop.run_until_complete(asyncio.wait(tasks, timeout=_END_WAIT_S))
            except (KeyboardInterrupt, SystemExit):
                interrupted = not self._interrupted
            except (Exception, asyncio.CancelledError):
                continue
        if interrupted:
            raise KeyboardInterrupt

    def _run(self, work: Any, timeout_s: float, what: str) -> Any:
        try:
            return self._loop.run_until_complete(self._within(work, Deadline(timeout_s, *self._clocks)))
        except TimeoutError as error:
            raise NoAnswer(what, timeout_s) from error
        except ExecuteError:
            raise
        except (ExecInterruptedError, QMPError, EOFError, OSError) as error:
            raise SessionClosed(what, type(error).__name__) from _bare(error)
        except (KeyboardInterrupt, SystemExit):
            self._interrupted = True
            raise

    async def _within(self, work: Any, deadline: Deadline) -> Any:
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=deadline.slice_s)
                if deadline.over and not task.done():
                    raise TimeoutError
        finally:
            task.cancel()
        return task.result()


def _bare(error: Exception) -> Exception:
    """Without its frames, and without what was being handled when it came: asyncio has it in a cycle, and with it all
    that these know of, whole recordings among it, until somebody looks for garbage."""
    error.__traceback__ = error.__context__ = None
    return error
