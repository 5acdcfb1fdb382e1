# SPDX-License-Identifier: GPL-2.0-or-later
"""A deadline counts the time that its clocks do not take out, and no wait is endless."""

from __future__ import annotations

import socket
import time

import pytest

from harness.deadline import LONGEST_S, PATIENCE_S, Deadline, Lost, in_time, send_in_time
from harness.errors import HinderedError


class Host:
    """A host whose time goes on as it is told, and which loses some of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.gone = Lost(total_s=7.0, held_s=3.0)  # of earlier waits
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)

    def lost(self) -> Lost:
        return self.gone

    def passes(self, seconds: float, *, held_s: float = 0.0, still_s: float = 0.0, ran: bool = False) -> None:
        self.now_s += seconds
        self.gone = Lost(
            total_s=self.gone.total_s + held_s + still_s,
            held_s=self.gone.held_s + held_s,
            in_a_row_s=0.0 if ran else self.gone.in_a_row_s + held_s,
        )


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def test_without_a_clock_all_time_counts(host: Host) -> None:
    deadline = Deadline(20.0)
    host.passes(19.0, held_s=19.0)
    assert deadline.left_s == pytest.approx(1.0)
    assert not deadline.over
    host.passes(1.0)
    assert deadline.over


def test_time_that_was_lost_does_not_count(host: Host) -> None:
    deadline = Deadline(20.0, host)
    host.passes(30.0, held_s=15.0, still_s=10.0)
    assert deadline.left_s == pytest.approx(15.0)
    host.passes(15.0)
    assert deadline.over


def test_it_is_lost_for_whoever_waits_for_two(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Host(monkeypatch)
    deadline = Deadline(20.0, host, other)
    host.passes(0.0, held_s=4.0)
    other.passes(25.0, held_s=3.0)
    assert deadline.left_s == pytest.approx(2.0)


def test_who_stands_still_is_given_up_and_that_is_no_late_answer(host: Host) -> None:
    deadline = Deadline(20.0, host)
    host.passes(PATIENCE_S, held_s=PATIENCE_S)
    assert not deadline.over
    host.passes(1.0, held_s=1.0)
    with pytest.raises(HinderedError, match=f"{PATIENCE_S + 1:.0f} s of {PATIENCE_S + 1:.0f} s"):
        _ = deadline.over


def test_who_got_little_cpu_is_waited_for_and_not_for_ever(host: Host) -> None:
    deadline = Deadline(20.0, host)
    for _ in range(int(LONGEST_S / PATIENCE_S)):
        host.passes(PATIENCE_S, held_s=PATIENCE_S, ran=True)
        assert deadline.left_s == pytest.approx(20.0)
    host.passes(1.0, held_s=1.0, ran=True)
    with pytest.raises(HinderedError):
        _ = deadline.over


def test_what_was_held_before_the_wait_does_not_count(host: Host) -> None:
    host.passes(PATIENCE_S, held_s=PATIENCE_S)
    deadline = Deadline(20.0, host)
    host.passes(1.0, held_s=1.0)
    assert deadline.left_s == pytest.approx(20.0)


def test_time_in_which_this_program_stood_still_tries_nobodys_patience(host: Host) -> None:
    deadline = Deadline(20.0, host)
    host.passes(3600.0, still_s=3600.0)
    assert deadline.left_s == pytest.approx(20.0)


def test_one_that_is_over_is_over_however_long_it_took(host: Host) -> None:
    deadline = Deadline(20.0, host)
    host.passes(200.0, held_s=180.0)
    assert deadline.over


def test_a_slice_is_short_and_never_nothing(host: Host) -> None:
    assert Deadline(20.0).slice_s == 0.5
    assert Deadline(0.2).slice_s == pytest.approx(0.2)
    assert Deadline(0.0).slice_s > 0


def test_a_socket_that_takes_nothing_ends_with_the_deadline() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with pytest.raises(TimeoutError):
            send_in_time(ours, bytes(1 << 22), Deadline(0.05))
        theirs.sendall(b"x")
        assert in_time(ours, Deadline(20.0), lambda: ours.recv(1)) == b"x"
        with pytest.raises(TimeoutError):
            in_time(ours, Deadline(0.05), lambda: ours.recv(1))
