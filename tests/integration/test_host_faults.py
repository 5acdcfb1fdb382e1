# SPDX-License-Identifier: GPL-2.0-or-later
"""What the host does to real QEMUs, and to the program itself, is blamed on nobody and tried again; a QEMU that could
run and does not answer hangs all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from harness import deadline as deadline_module
from harness.colo.messages import SIZE_MESSAGE, U32, Message, Step
from harness.engines.buffers import Buffers, Selection
from harness.engines.colo import Session, _Tally
from harness.engines.probe import probe_colo
from harness.engines.schedule import Checkpoint, Schedule, plan_loads
from harness.engines.secondary import Secondary
from harness.errors import HinderedError
from harness.oracles.load import judge
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.disturbance import TRIES, Account, Disturbance, Hindered, attempt
from harness.results.verdict import Verdict
from harness.results.voided import is_void
from harness.state.transforms import GuestMode

Done = subprocess.CompletedProcess[str]

DEADLINE_S = 2.0
LOADS = 1000


def session(
    binary: QemuBinary, pack: StatePack, loads: int, timeout_s: float, kind: type[Session] = Session
) -> Session:
    return kind(
        binary=binary,
        dialect=probe_colo(binary).dialect,
        buffers=Buffers(pack),
        plan=plan_loads(Schedule.SAME, ["bound"], loads),
        selection=Selection(own=frozenset(pack.sections_of("ahci"))),
        mode=GuestMode.PARKED,
        timeout_s=timeout_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteShort(Session):
    """The fifth buffer is said to be one byte longer than it is: QEMU waits for that byte, as one that hangs does."""

    def _load(self, secondary: Secondary, checkpoint: Checkpoint, before: str, tally: _Tally) -> None:
        primary = secondary.primary
        if primary.checkpoints < 4:
            Session._load(self, secondary, checkpoint, before, tally)
            return
        devices = self.buffers.devices(checkpoint.phase, self.mode, self.selection, 1)
        primary.request()
        primary._receive(Step.REQUEST, 4)
        size = SIZE_MESSAGE.pack(Message.VMSTATE_SIZE, len(devices) + 2)
        primary._send(Step.SEND, [U32.pack(Message.VMSTATE_SEND), b"\0", size, devices, b"\0"])
        primary._acknowledged(0.0)


def test_a_qemu_that_hangs_does_so_with_the_states_of_its_threads(binary: QemuBinary, pc_pack: StatePack) -> None:
    with attempt() as account:
        evidence = session(binary, pc_pack, 1000, 2.0, ByteShort).run()
    judgement = judge(evidence)
    assert judgement.verdict is Verdict.HANG
    assert evidence.loads_acked == 4
    assert "threads of QEMU while it did not answer:" in evidence.log
    assert "sleeping" in evidence.log
    # the debugger that looked at its threads is not taken for somebody who stopped it
    assert not is_void(judgement.verdict, account.hindered)


def test_one_that_is_left_alone_is_not(binary: QemuBinary, pc_pack: StatePack) -> None:
    evidence = session(binary, pc_pack, 50, timeout_s=20.0).run()
    assert judge(evidence).verdict is Verdict.OK
    assert evidence.loads_acked == 50


def secondaries(of: int) -> Iterator[psutil.Process]:
    """The QEMUs below a process that wait for, or have had, an incoming stream."""
    for child in psutil.Process(of).children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if "defer" in words and Path(words[0]).name.startswith("qemu-system"):
            yield child


class Hand:
    """Does something to the secondary of this process, in the midst of its loads."""

    def __init__(self, act: Callable[[psutil.Process], None]) -> None:
        self._act = act
        self._go = threading.Event()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def told(self, _more: int) -> None:
        """Loads were acknowledged: the first time the session is held up until the hand did its work."""
        if not self._go.is_set():
            self._go.set()
            self._done.wait(60.0)

    def _run(self) -> None:
        if self._go.wait(60.0):
            for secondary in secondaries(os.getpid()):
                self._act(secondary)


def acted(hand: Hand) -> None:
    hand._done.set()


def kinds(account: Account) -> set[Disturbance]:
    return {each.how for each in account.hindered}


def test_one_that_is_stopped_for_longer_than_its_deadline_goes_on(binary: QemuBinary, pc_pack: StatePack) -> None:
    def stop_a_while(secondary: psutil.Process) -> None:
        secondary.send_signal(signal.SIGSTOP)
        acted(hand)
        time.sleep(3 * DEADLINE_S)
        secondary.send_signal(signal.SIGCONT)

    hand = Hand(stop_a_while)
    with attempt() as account:
        evidence = session(binary, pc_pack, LOADS, DEADLINE_S).run(hand.told)
    assert (judge(evidence).verdict, evidence.loads_acked) == (Verdict.OK, LOADS)
    assert Disturbance.STOPPED in kinds(account)


def test_one_that_stays_stopped_is_given_up_and_is_no_hang(
    binary: QemuBinary, pc_pack: StatePack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadline_module, "PATIENCE_S", 3.0)

    def stop(secondary: psutil.Process) -> None:
        secondary.send_signal(signal.SIGSTOP)
        acted(hand)

    hand = Hand(stop)
    with attempt() as account, pytest.raises(HinderedError, match="kept from running"):
        session(binary, pc_pack, LOADS, DEADLINE_S).run(hand.told)
    assert Disturbance.STOPPED in kinds(account)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_one_that_somebody_ends_is_the_hosts_and_says_by_whom(
    binary: QemuBinary, pc_pack: StatePack, number: signal.Signals
) -> None:
    def end(secondary: psutil.Process) -> None:
        secondary.send_signal(number)
        acted(hand)

    hand = Hand(end)
    with attempt() as account:
        evidence = session(binary, pc_pack, LOADS, DEADLINE_S).run(hand.told)
    judgement = judge(evidence)
    assert judgement.verdict is Verdict.HOST
    assert judgement.cause == Hindered(how=Disturbance.ENDED, signal=number.name)
    (found,) = account.hindered
    assert (found.how, found.signal) == (Disturbance.ENDED, number.name)
    assert number is signal.SIGKILL or f"from pid {os.getpid()}" in found.said


#: Asks a QEMU that is stopped, with a deadline of two seconds.
ASKS = """
import sys
from harness.guests.machine import small_machine
from harness.qemu.disturbance import attempt
from harness.qemu.process import new_workdir
from harness.qemu.vm import Vm
import signal, os
workdir = new_workdir()
with attempt() as account, Vm(small_machine(sys.argv[2]).command(sys.argv[1], workdir), workdir=workdir) as vm:
    os.kill(vm.process.pid, signal.SIGSTOP)
    print(vm.process.pid, flush=True)
    print(vm.qmp("query-status", 2.0)["status"])
print(*(each.how for each in account.hindered))
"""


def test_a_program_that_stands_still_for_longer_than_its_deadline_misses_no_answer(binary: QemuBinary) -> None:
    argv = [sys.executable, "-c", ASKS, binary.path, "pc"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        qemu = int(program.stdout.readline())
        time.sleep(0.5)
        program.send_signal(signal.SIGSTOP)
        os.kill(qemu, signal.SIGCONT)
        time.sleep(6.5)
        program.send_signal(signal.SIGCONT)
        said, _ = program.communicate(timeout=60)
    assert program.returncode == 0
    assert said.splitlines()[0] == "prelaunch"
    assert "stood-still" in said.splitlines()[1]


def lasting(of: int) -> list[psutil.Process]:
    """The secondaries below a process that live for a second: those of a cell, and not one that is only asked."""
    found = set(secondaries(of))
    time.sleep(1.0 if found else 0.01)
    return list(found & set(secondaries(of)))


MATRIX = ("matrix", "--machine", "pc", "--device", "ahci", "--phase", "bound", "--schedule", "same", "--quick")


def test_a_cell_whose_qemu_was_ended_is_right_at_the_second_try(
    started: Callable[..., subprocess.Popen[str]], pc_pack: StatePack, scratch: Path
) -> None:
    run = started(*MATRIX, "--loads", 300, "--run-ms", 20, "--json", "--out", scratch / "out")
    end = time.monotonic() + 60.0
    while not (found := lasting(run.pid)):
        assert run.poll() is None, "it ended before a secondary was seen for a while"
        assert time.monotonic() < end
    for secondary in found:
        secondary.terminate()
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 0
    (cell,) = [cell for cell in json.loads(said)["cells"] if cell["key"]["device"] == "ahci"]
    assert cell["outcome"]["verdict"] == "ok"
    (why,) = cell["outcome"]["hindered"]
    assert (why["how"], why["signal"]) == ("ended", "SIGTERM")


def booting(of: int) -> Iterator[psutil.Process]:
    """The QEMUs below a process that boot a guest to be recorded."""
    for child in psutil.Process(of).children(recursive=True):
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if "-kernel" in words and "defer" not in words and Path(words[0]).name.startswith("qemu-system"):
            yield child


def test_a_recording_that_is_hit_in_each_try_is_the_hosts_and_made_by_the_next_run(
    started: Callable[..., subprocess.Popen[str]], own_cache: Path, scratch: Path
) -> None:
    argv = [*MATRIX, "--phase", "firmware", "--loads", 2, "--json", "--out", scratch / "out"]
    env = {"POSTLOAD_CACHE": str(own_cache)}
    run = started(*argv, env=env)
    hit = set()
    while run.poll() is None:
        try:
            for qemu in booting(run.pid):
                qemu.kill()
                hit.add(qemu.pid)
        except psutil.Error:
            break
        time.sleep(0.02)
    said, told = run.communicate(timeout=60)
    assert len(hit) == TRIES, told
    assert run.returncode == 3
    outcomes = [cell["outcome"] for cell in json.loads(said)["cells"]]
    assert {outcome["verdict"] for outcome in outcomes} == {"host"}
    assert {outcome["causes"][0]["signal"] for outcome in outcomes} == {"SIGKILL"}
    assert "QEMU was ended from outside by SIGKILL" in " ".join(told.split())
    again = started(*argv, env=env)
    said, told = again.communicate(timeout=120)
    assert again.returncode == 0, told
    assert {cell["outcome"]["verdict"] for cell in json.loads(said)["cells"]} == {"ok"}
    assert "recording pc" in told
