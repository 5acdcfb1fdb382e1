# SPDX-License-Identifier: GPL-2.0-or-later
"""An interrupt in the middle of a QMP session leaves no traceback of its tasks behind; no QEMU is started."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import sys
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from harness.qemu.monitor import Monitor, SessionClosed

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}}


def _serve(sock: socket.socket, closes: bool = False) -> None:
    """Greets, and answers its first command, which is ``qmp_capabilities``; no other one.

    :param closes: it hangs up at the second
    """
    with sock:
        sock.sendall(json.dumps(GREETING).encode() + b"\n")
        asked = json.loads(sock.recv(4096))
        answer = {"return": {}, **{key: asked[key] for key in asked if key == "id"}}
        sock.sendall(json.dumps(answer).encode() + b"\n")
        while sock.recv(4096) and not closes:
            pass


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    ours, its = socket.socketpair()
    thread = threading.Thread(target=_serve, args=(its,), daemon=True)
    thread.start()
    yield Monitor(ours)
    ours.close()
    thread.join(5.0)


async def _interrupted() -> None:
    await asyncio.sleep(0.05)
    raise KeyboardInterrupt


def _strike(loop: asyncio.AbstractEventLoop, where: str) -> None:
    """Let an interrupt come while a callback of the loop runs, or while a task does."""

    def now() -> None:
        raise KeyboardInterrupt

    if where == "callback":
        loop.call_later(0.05, now)
    else:
        loop.create_task(_interrupted())


@pytest.mark.parametrize("where", ["callback", "task"])
def test_a_session_that_is_interrupted_ends_without_a_word(
    monitor: Monitor,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    unraised: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraised.append)
    loop = monitor._loop
    _strike(loop, where)
    with pytest.raises(KeyboardInterrupt):
        monitor.execute("query-status")
    monitor.close()
    assert loop.is_closed()
    del monitor
    gc.collect()
    assert unraised == []
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_an_interrupt_while_a_session_is_closed_is_not_lost(monitor: Monitor) -> None:
    loop = monitor._loop
    loop.call_soon(_strike, loop, "callback")

    async def slow() -> None:
        await asyncio.sleep(5.0)

    monitor._client.disconnect = slow  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        monitor.close()
    assert loop.is_closed()


class _AtHand:
    """What somebody had at hand who asked."""


def _session_that_qemu_closes() -> weakref.ref[_AtHand]:
    at_hand = _AtHand()
    ours, its = socket.socketpair()
    thread = threading.Thread(target=_serve, args=(its, True), daemon=True)
    thread.start()
    monitor = Monitor(ours)
    with contextlib.suppress(SessionClosed):  # pytest.raises keeps frames itself
        monitor.execute("query-status")
        pytest.fail("it was not closed")
    monitor.close()
    thread.join(5.0)
    return weakref.ref(at_hand)


def test_a_session_that_qemu_closed_keeps_nothing_of_whoever_asked() -> None:
    """A pack of 100 MB was kept so after each crash, until Python looked for garbage."""
    gc.disable()
    try:
        assert _session_that_qemu_closes()() is None
    finally:
        gc.enable()
