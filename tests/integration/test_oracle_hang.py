# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle of hangs: a QEMU that is stopped from outside does not answer, and one that is left alone does."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil

from harness.engines.buffers import Buffers, Selection
from harness.engines.colo import Session
from harness.engines.probe import probe_colo
from harness.engines.schedule import Schedule, plan_loads
from harness.oracles.load import judge
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode


def session(binary: QemuBinary, pack: StatePack, loads: int, timeout_s: float) -> Session:
    return Session(
        binary=binary,
        dialect=probe_colo(binary).dialect,
        buffers=Buffers(pack),
        plan=plan_loads(Schedule.SAME, ["bound"], loads),
        selection=Selection(own=frozenset(pack.sections_of("ahci"))),
        mode=GuestMode.PARKED,
        timeout_s=timeout_s,
    )


def freeze_when_loading(loaded: threading.Event) -> None:
    """SIGSTOP for the secondary of this process, told by its -incoming."""
    if loaded.wait(60):
        for child in psutil.Process(os.getpid()).children(recursive=True):
            if "defer" in child.cmdline():
                child.send_signal(signal.SIGSTOP)


def test_a_frozen_qemu_is_a_hang_with_the_states_of_its_threads(binary: QemuBinary, pc_pack: StatePack) -> None:
    loaded = threading.Event()
    freezer = threading.Thread(target=freeze_when_loading, args=(loaded,))
    freezer.start()

    def told(_more: int) -> None:
        if not loaded.is_set():
            loaded.set()
            time.sleep(1)  # the session is held up here until the signal is there

    evidence = session(binary, pc_pack, 1000, timeout_s=2.0).run(told)
    freezer.join(60)
    judgement = judge(evidence)
    assert judgement.verdict is Verdict.HANG
    assert 0 < evidence.loads_acked < 1000
    assert "threads of QEMU while it did not answer:" in evidence.log
    assert "stopped" in evidence.log


def test_one_that_is_left_alone_is_not(binary: QemuBinary, pc_pack: StatePack) -> None:
    evidence = session(binary, pc_pack, 50, timeout_s=20.0).run()
    assert judge(evidence).verdict is Verdict.OK
    assert evidence.loads_acked == 50
