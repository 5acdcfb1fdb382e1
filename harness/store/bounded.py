# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections to PostgreSQL that wait for no answer without end.

A server that was stopped, or a network that was cut, says nothing at all: libpq would wait for hours. Here each answer
has a deadline, a shorter one from when whoever asks was told to stop, and Ctrl-C ends a wait at once. A connection that
did not get its answer is closed, for nobody knows what the server makes of the question.

Imported only where a history is a PostgreSQL.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import psycopg
from psycopg import waiting

#: How long an answer is waited for by whoever was told to stop.
LAST_ANSWER_S = 0.5
_LOOK_S = 0.1
T = TypeVar("T")


def bounded_connection(answer_s: float, stopped: Callable[[], bool] = lambda: False) -> type[psycopg.Connection[Any]]:
    """The class of connections of somebody.

    :param answer_s: how long an answer is waited for
    :param stopped: whether that one was told to stop
    """

    class BoundedConnection(psycopg.Connection[Any]):
        def wait(self, gen: Generator[Any, Any, T], interval: float = _LOOK_S, timeout: float | None = None) -> T:
            """Every question goes through here: ``gen`` says what of the socket it waits for, and is told of that.

            :raises psycopg.OperationalError: no answer came in time
            """
            try:
                return waiting.wait(_until(gen, stopped, timeout or answer_s), self.pgconn.socket, interval=_LOOK_S)
            except (_Unanswered, KeyboardInterrupt):
                self.close()
                raise

    return BoundedConnection


class _Unanswered(psycopg.OperationalError):
    """The server is there, and says nothing."""


def _until(gen: Generator[Any, Any, T], stopped: Callable[[], bool], timeout_s: float) -> Generator[Any, Any, T]:
    """The same generator with a deadline. It is asked each :data:`_LOOK_S`, also when nothing came."""
    ends_s = time.monotonic() + timeout_s
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if stopped():
                ends_s = min(ends_s, time.monotonic() + LAST_ANSWER_S)
            if not ready and time.monotonic() > ends_s:
                raise _Unanswered("the server does not answer")
            wanted = gen.send(ready)
    except StopIteration as done:
        result: T = done.value
        return result
