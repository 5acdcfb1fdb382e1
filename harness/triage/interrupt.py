# SPDX-License-Identifier: GPL-2.0-or-later
"""Ctrl-C that is pressed twice: what the first one began to clean up is not left half done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from harness.qemu.scope import ProcessScope


@contextmanager
def one_interrupt(scope: ProcessScope | None = None) -> Iterator[None]:
    """A SIGINT is a KeyboardInterrupt, and further ones are nothing until this is left.

    :param scope: told to stop by the first SIGINT, for work that looks at it and ends in an orderly way; then only
        the second is a KeyboardInterrupt

    In a thread that is not the main one it does nothing, as no signal is handled there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def first(_number: int, _frame: FrameType | None) -> None:
        if scope is not None and not scope.stopped:
            scope.stop()
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
