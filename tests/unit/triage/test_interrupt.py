# SPDX-License-Identifier: GPL-2.0-or-later
"""A second Ctrl-C while the first is cleaned up after."""

from __future__ import annotations

import os
import signal

import pytest

from harness.qemu.scope import ProcessScope
from harness.triage.interrupt import one_interrupt


def interrupted(cleaned: list[str]) -> None:
    with one_interrupt():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            cleaned.append("all")


def test_the_first_ends_it_and_the_second_does_not_end_the_cleaning() -> None:
    cleaned: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupted(cleaned)
    assert cleaned == ["all"]
    assert signal.getsignal(signal.SIGINT) is before


def test_without_one_it_changes_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    with one_interrupt():
        pass
    assert signal.getsignal(signal.SIGINT) is before


def test_work_that_can_be_stopped_is_asked_to_first() -> None:
    scope = ProcessScope()
    with one_interrupt(scope):
        os.kill(os.getpid(), signal.SIGINT)
        assert scope.stopped
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
