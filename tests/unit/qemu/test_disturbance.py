# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host did to processes, who is told of it, and what is tried again."""

from __future__ import annotations

import os
import signal

import pytest

from harness.errors import HarnessError, HinderedError, QemuError, Stopped
from harness.qemu.disturbance import (
    STARVED_S,
    STOOD_STILL_S,
    STOPPED_S,
    TRIES,
    Disturbance,
    Disturbed,
    Hindered,
    attempt,
    current_account,
    ended_by_host,
    hindered_by,
    signal_told,
    undisturbed,
)
from harness.qemu.hosttime import HostTimes
from harness.qemu.process import Exit, Process
from harness.qemu.scope import ProcessScope

GENEROUS_S = 30.0
TERM = "qemu-system-x86_64: terminating on signal 15 from pid 4242 (bash)\n"


def times(
    passed_s: float = 100.0, *, stopped_s: float = 0.0, starved_s: float = 0.0, stood_still_s: float = 0.0
) -> HostTimes:
    return HostTimes(
        passed_s=passed_s, stopped_s=stopped_s, starved_s=starved_s, stood_still_s=stood_still_s, pressure=1.2
    )


def test_what_is_too_little_to_doubt_a_finding_is_not_told() -> None:
    assert hindered_by(times()) == []
    assert hindered_by(times(stopped_s=STOPPED_S - 0.1, stood_still_s=STOOD_STILL_S - 0.1, starved_s=49.0)) == []
    assert hindered_by(times(0.5, starved_s=STARVED_S - 0.1)) == []


def test_what_kept_a_process_from_working() -> None:
    assert hindered_by(times(stopped_s=20.04)) == [Hindered(how=Disturbance.STOPPED, seconds=20.0)]
    assert hindered_by(times(stood_still_s=25.0)) == [Hindered(how=Disturbance.STOOD_STILL, seconds=25.0)]
    assert hindered_by(times(starved_s=60.0)) == [
        Hindered(how=Disturbance.STARVED, seconds=60.0, share=0.6, pressure=1.0)
    ]


def test_time_in_which_it_was_stopped_is_none_that_it_could_have_had() -> None:
    found = hindered_by(times(stopped_s=60.0, starved_s=30.0))
    assert [each.how for each in found] == [Disturbance.STOPPED, Disturbance.STARVED]
    assert found[1].share == 0.75


@pytest.mark.parametrize(
    ("stderr", "told"),
    [
        (TERM, (15, "from pid 4242 (bash)")),
        ("qemu-system-x86_64: terminating on signal 2\n", (2, "")),
        ("qemu: terminating on signal 1 from pid 7 (<unknown process>)", (1, "from pid 7 (<unknown process>)")),
        ("qemu: Assertion `signal' failed", None),
        ("", None),
    ],
)
def test_qemu_says_who_told_it_to_end(stderr: str, told: tuple[int, str] | None) -> None:
    assert signal_told(stderr) == told


@pytest.mark.parametrize(
    ("signal_name", "crashed", "stderr", "how"),
    [
        (None, False, "", None),
        ("SIGTERM", False, TERM, Disturbance.ENDED),
        ("SIGKILL", False, "", Disturbance.ENDED),
        ("SIGXCPU", False, "", Disturbance.ENDED),
        ("SIGABRT", True, "qemu: x: Assertion `y' failed.", None),
        ("SIGSEGV", True, "", None),
        # out of memory: what this host does not have, and what no host has
        (None, False, "qemu: cannot set up guest memory 'pc.ram': Cannot allocate memory", Disturbance.OUT_OF_MEMORY),
        (
            "SIGTRAP",
            True,
            "GLib-ERROR **: ../glib/gmem.c:106: failed to allocate 65536 bytes",
            Disturbance.OUT_OF_MEMORY,
        ),
        ("SIGTRAP", True, "GLib-ERROR **: failed to allocate 18446744073709551615 bytes", None),
        # a device that returned ENOMEM refused the load
        (None, False, "qemu: load of migration failed: Cannot allocate memory", None),
    ],
)
def test_whether_the_host_ended_it(
    signal_name: str | None, crashed: bool, stderr: str, how: Disturbance | None
) -> None:
    found = ended_by_host(4711, signal_name, crashed, stderr)
    assert (found and found.how) == how
    assert found is None or found.fatal


def test_one_that_the_kernel_took_for_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "Out of memory: Killed process 4711 (qemu-system-x86) total-vm:9kB"
    records = [b"6,1,2,-;booted\n", f"3,8,9,-;{line}\n SUBSYSTEM=x\n".encode(), b"6,9,9,-;Killed process 47111 (x)\n"]

    def read(log: int, _count: int) -> bytes:
        assert log == 99
        if not records:
            raise BlockingIOError
        return records.pop(0)

    monkeypatch.setattr(os, "open", lambda path, flags: 99)
    monkeypatch.setattr(os, "read", read)
    monkeypatch.setattr(os, "close", lambda log: None)
    assert ended_by_host(4711, "SIGKILL", False, "") == Hindered(
        how=Disturbance.OUT_OF_MEMORY, signal="SIGKILL", said=line
    )


def sh(script: str, scope: ProcessScope | None = None) -> Process:
    return Process(["/bin/sh", "-c", script], scope=scope)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_the_account_has_what_somebody_else_ended(number: signal.Signals) -> None:
    with attempt() as account, sh("exec sleep 1000") as process:
        os.kill(process.pid, number)
        assert process.wait(GENEROUS_S) == Exit(status=-number, signal=number.name)
    assert [(each.how, each.signal) for each in account.hindered] == [(Disturbance.ENDED, number.name)]


def test_one_that_was_told_to_end_has_the_signal_though_it_left_with_status_0() -> None:
    with attempt() as account, sh(f"echo '{TERM.strip()}' >&2") as process:
        assert process.wait(GENEROUS_S) == Exit(status=0, signal="SIGTERM")
    assert account.hindered == (Hindered(how=Disturbance.ENDED, signal="SIGTERM", said="from pid 4242 (bash)"),)


def test_one_that_was_told_to_end_and_did_not_before_it_was_killed() -> None:
    with attempt() as account, sh(f"echo '{TERM.strip()}' >&2; exec sleep 1000") as process:
        while not process.stderr_size():
            process.wait(0.05)
    assert [each.signal for each in account.hindered] == ["SIGTERM"]


def test_what_this_program_ends_is_nobody_elses_doing() -> None:
    with attempt() as account, ProcessScope() as scope:
        with sh("exec sleep 1000"), sh("exit 3") as process:
            process.wait(GENEROUS_S)
        with sh("kill -SEGV $$") as process:
            process.wait(GENEROUS_S)
        with sh("exec sleep 1000", scope) as process:
            scope.close()
            assert process.wait(GENEROUS_S) is not None
    assert account.hindered == ()


def test_a_part_of_an_attempt_tells_the_whole() -> None:
    with attempt() as whole:
        with attempt() as part, sh("kill -TERM $$") as process:
            process.wait(GENEROUS_S)
        assert part.hindered == whole.hindered != ()
        with attempt() as other:
            assert current_account() is other
        assert other.hindered == ()
    assert current_account().hindered == ()


def test_of_each_kind_the_longest_is_told_and_a_signal_once() -> None:
    class Clock:
        def __init__(self, seen: HostTimes) -> None:
            self.times = seen

    with attempt() as account:
        for seen in (times(stopped_s=3.0), times(stopped_s=9.0), times(stopped_s=5.0, stood_still_s=6.0)):
            account.follow(Clock(seen))  # type: ignore[arg-type]
        for _ in range(2):
            account.ended(Hindered(how=Disturbance.ENDED, signal="SIGKILL"))
    assert account.hindered == (
        Hindered(how=Disturbance.ENDED, signal="SIGKILL"),
        Hindered(how=Disturbance.STOPPED, seconds=9.0),
        Hindered(how=Disturbance.STOOD_STILL, seconds=6.0),
    )


KILLED = Hindered(how=Disturbance.ENDED, signal="SIGTERM")


class Work:
    """Comes to what it is told, and is disturbed as often as it is told."""

    def __init__(self, *results: object, disturbed: int = TRIES, by: Hindered = KILLED) -> None:
        self.results = list(results)
        self.disturbed = disturbed
        self.by = by
        self.tries = 0

    def __call__(self) -> object:
        self.tries += 1
        if self.tries <= self.disturbed:
            current_account().ended(self.by)
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


def test_what_was_disturbed_and_failed_is_done_again() -> None:
    work = Work(QemuError("gone"), "good", disturbed=1)
    assert (undisturbed(work), work.tries) == ("good", 2)


def test_what_failed_undisturbed_is_not_done_again() -> None:
    work = Work(QemuError("no such machine"), disturbed=0)
    with pytest.raises(QemuError, match="no such machine"):
        undisturbed(work)
    assert work.tries == 1


def test_a_good_result_stands_whatever_the_host_did() -> None:
    work = Work("good")
    assert (undisturbed(work, lambda result, _: result == "bad"), work.tries) == ("good", 1)


def test_a_bad_result_stands_when_nobody_disturbed_it() -> None:
    work = Work("bad", "bad", disturbed=1)
    assert (undisturbed(work, lambda result, _: result == "bad"), work.tries) == ("bad", 2)


def test_in_the_end_it_is_the_host_that_is_told_of() -> None:
    work = Work(*["bad"] * (TRIES - 1), QemuError("gone"))
    with pytest.raises(Disturbed, match="gone") as caught:
        undisturbed(work, lambda *_: True)
    assert work.tries == TRIES
    assert caught.value.hindered == (Hindered(how=Disturbance.ENDED, signal="SIGTERM"),)
    assert isinstance(caught.value, HarnessError)


SLOW = Hindered(how=Disturbance.STARVED, seconds=9.0, share=0.9)


def test_what_fails_again_and_again_of_a_qemu_that_is_merely_slow_fails() -> None:
    work = Work(*[QemuError("no such property")] * TRIES, by=SLOW)
    with pytest.raises(QemuError, match="no such property") as caught:
        undisturbed(work)
    assert work.tries == TRIES
    assert not isinstance(caught.value, Disturbed)


def test_one_that_was_given_up_for_want_of_a_cpu_is_the_hosts() -> None:
    work = Work(*[HinderedError("kept from running")] * TRIES, by=SLOW)
    with pytest.raises(Disturbed, match="kept from running"):
        undisturbed(work)


def test_a_run_that_was_stopped_is_not_tried_again() -> None:
    work = Work(Stopped("stopped"))
    with pytest.raises(Stopped):
        undisturbed(work)
    assert work.tries == 1
