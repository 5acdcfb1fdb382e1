# SPDX-License-Identifier: GPL-2.0-or-later
"""What can be told of a process by the system calls that its threads are in."""

from __future__ import annotations

import subprocess
import time

import pytest

from harness.qemu import threads


@pytest.mark.parametrize(
    ("program", "rests"), [("input()", True), ("import time; time.sleep(600)", False), ("while True: pass", False)]
)
def test_who_sleeps_or_runs_is_not_at_rest(program: str, rests: bool) -> None:
    said = f"print('ready', flush=True)\n{program}"
    with subprocess.Popen(["python3", "-c", said], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            tries = 6000
            while threads._at_rest(process.pid) is not rests and tries:
                time.sleep(0.01)
                tries -= 1
            threads.wait_at_rest(process.pid, 600.0 if rests else 0.05)
            assert threads._at_rest(process.pid) is rests
        finally:
            process.kill()


def test_a_process_that_is_gone_is_waited_for_no_longer_than_was_asked() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    threads.wait_at_rest(process.pid, 0.01)
