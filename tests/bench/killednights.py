# SPDX-License-Identifier: GPL-2.0-or-later
"""Kill nights at random moments: ``python tests/bench/killednights.py --moments 50``.

One night after the other is begun, killed by SIGKILL after a random time, and begun again, until it is over; then the
next one begins, with an empty folder. Each killed process is looked after: none of its QEMUs may be left. Of each night
that is over, every planned cell has to be judged once, in its events and in the history. Ends with 1 when one is not.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from harness.arch import X86_64
from harness.nights.folder import NIGHT
from harness.qemu.binary import host_binary
from harness.results.events import EVENTS_NAME, CellsPlanned, Judged, read_events
from harness.store.read import open_history

CONFIG = """\
qemus: ['{qemu}']
machines: [pc]
devices: [ahci, virtio-blk]
phases: [firmware, bound]
loads: 20
quick: true
"""
#: Nothing of a killed process may live longer.
GONE_S = 20.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument(
        "--longest", type=float, default=9.0, help="seconds after which a night is killed at the latest"
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    dice = random.Random(given.seed)
    killed = nights = cells = 0
    while killed < given.moments:
        with tempfile.TemporaryDirectory(prefix="plk-", dir="/tmp") as folder:
            killed += _until_over(Path(folder), dice, given.longest, given.moments - killed)
            found = _check(Path(folder))
        nights += 1
        cells += found
        print(f"{killed} of {given.moments} moments, {nights} nights, {cells} cells: each judged once", flush=True)
    return 0


def _until_over(folder: Path, dice: random.Random, longest_s: float, moments: int) -> int:
    """Begin a night again and again; how often it was killed. The last time it may end."""
    (folder / "nightly.yaml").write_text(CONFIG.format(qemu=host_binary(X86_64.program)))
    killed = 0
    while True:
        process = _begun(folder)
        try:
            process.wait(dice.uniform(0.5, longest_s) if killed < moments else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            _gone(folder)
            continue
        assert process.returncode == 0, f"the night ended with {process.returncode}"
        return killed


def _begun(folder: Path) -> subprocess.Popen[bytes]:
    (folder / "tmp").mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "harness", "nightly", "--config", str(folder / "nightly.yaml")],
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _gone(folder: Path) -> None:
    """No process has the folder in its command line any more."""
    until_s = time.monotonic() + GONE_S
    while any(_names(process, folder) for process in psutil.process_iter()):
        assert time.monotonic() < until_s, "a QEMU is left of a night that was killed"
        time.sleep(0.1)


def _names(process: psutil.Process, folder: Path) -> bool:
    try:
        return any(str(folder) in word for word in process.cmdline())
    except psutil.Error:
        return False


def _check(folder: Path) -> int:
    (path,) = folder.glob(f"nights/*/{EVENTS_NAME}")
    assert (path.parent / NIGHT).exists()
    events = list(read_events(path))
    planned = {name for event in events if isinstance(event, CellsPlanned) for name in event.cells}
    judged = Counter(event.cell.id for event in events if isinstance(event, Judged))
    assert set(judged.values()) == {1}, judged
    assert planned <= set(judged), planned - set(judged)
    with open_history(str(folder / "history.db")) as history:
        (run,) = history.runs()
        kept = {row.cell for row in history.cells(run) if row.verdict is not None}
    assert kept == set(judged), kept ^ set(judged)
    return len(judged)


if __name__ == "__main__":
    sys.exit(main())
