# SPDX-License-Identifier: GPL-2.0-or-later
"""Two runs in one process, with real secondaries: one is stopped in the middle, the other does not notice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from harness.engines.schedule import Schedule
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary, probe_binary
from harness.results.events import Started
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode
from harness.work.asked import Options
from harness.work.run import Run, load_pack_rows

LOADS = 200
#: So many that a run of them does not end while the test lasts.
ENDLESS = 1_000_000
TIMEOUT_S = 180.0


class Watcher:
    """Says when its run is in the middle of a cell, and holds it there when it was asked to."""

    def __init__(self) -> None:
        self.loading = Event()
        self.may_go_on = Event()

    def loads(self, cell_id: str, total: int) -> None:
        if total:
            self.loading.set()
            assert self.may_go_on.wait(TIMEOUT_S)

    def start_cell(self, cell_id: str) -> None: ...
    def stage(self, text: str) -> None: ...


def run_of(binary: QemuBinary, pack: StatePack, loads: int, watcher: Watcher) -> Run:
    options = Options(
        binaries=(binary,), accel="tcg", machines=(pack.manifest.machine,), profiles=(),
        devices=("ahci",), phases=("bound",), schedules=(Schedule.SAME,), guest_modes=(GuestMode.PARKED,),
        loads=loads, jobs=1, run_s=0.0, quick=True,
    )  # fmt: skip
    started = Started(command=("postload",), host={})
    return Run(options, watcher=watcher, started=started, write=lambda _: None)


def test_of_two_runs_the_stopped_one_alone_ends(qemu_path: Path, pc_pack: StatePack) -> None:
    binary = probe_binary(qemu_path, pc_pack.device_types)
    cut_watcher, whole_watcher = Watcher(), Watcher()
    cut = run_of(binary, pc_pack, ENDLESS, cut_watcher)
    whole = run_of(binary, pc_pack, LOADS, whole_watcher)
    with ThreadPoolExecutor() as pool:
        ends = [pool.submit(load_pack_rows, run, pc_pack) for run in (cut, whole)]
        try:
            cut_watcher.may_go_on.set()
            assert cut_watcher.loading.wait(TIMEOUT_S)
            assert whole_watcher.loading.wait(TIMEOUT_S)
            cut.stop()
            stopped = ends[0].result(timeout=TIMEOUT_S)
            # its secondary waits in the middle of its loads, and has lost nothing
            assert not ends[1].done()
        finally:
            whole_watcher.may_go_on.set()
            cut.stop()
        done = ends[1].result(timeout=TIMEOUT_S)
    assert (stopped.complete, stopped.cells) == (False, ())
    assert done.complete
    assert [(cell.verdict, cell.loads_acked) for cell in done.cells] == [(Verdict.OK, LOADS)]
