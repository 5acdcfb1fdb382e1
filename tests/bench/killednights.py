# SPDX-License-Identifier: GPL-2.0-or-later
"""Kill nights, their workers or their database at random moments: ``python tests/bench/killednights.py --moments 50``.

One night after the other is begun, killed by SIGKILL after a random time, and begun again, until it is over; then the
next one begins, with an empty folder. With ``--workers`` two workers of a PostgreSQL do what a night has to, and one of
them is killed and replaced instead. With ``--database`` it is the PostgreSQL that a night writes into, and it is
started again. Each killed process is looked after: none of its QEMUs may be left. Of each night that is over, every
planned cell has to be judged once, in its events and in the history; a worker's job that was hit three times comes to
nothing, which is told. Ends with 1 when a cell is lost or comes twice.
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
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from harness.arch import X86_64
from harness.nights.folder import NIGHT
from harness.qemu.binary import host_binary
from harness.results.events import EVENTS_NAME, CellsPlanned, Judged, read_events
from harness.store.read import open_history

if TYPE_CHECKING:
    from made_postgresql import Server

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
#: A night that nobody kills is over within this.
NIGHT_S = 600.0
#: A worker that does not say for three seconds that it lives is taken for dead.
WORK = ("work", "--jobs", "1", "--lost", "3")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--moments", type=int, default=50)
    parser.add_argument(
        "--longest", type=float, default=9.0, help="seconds after which a night is killed at the latest"
    )
    parser.add_argument("--seed", type=int, default=0)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--workers", action="store_true", help="kill the workers of nights, and not the nights")
    what.add_argument("--database", action="store_true", help="kill the PostgreSQL of nights, and not the nights")
    given = parser.parse_args()
    dice = random.Random(given.seed)
    killed = nights = cells = undecided = 0
    with _server() if given.workers or given.database else nullcontext() as server:
        while killed < given.moments:
            with tempfile.TemporaryDirectory(prefix="plk-", dir="/tmp") as name:
                folder, left = Path(name), given.moments - killed
                if server is None:
                    killed += _until_over(folder, dice, given.longest, left)
                    store = str(folder / "history.db")
                else:
                    store = server.cluster.url(server.cluster.create())
                    with_it = _with_workers if given.workers else partial(_with_database, server)
                    killed += with_it(folder, store, dice, given.longest, left)
                found, lost = _check(folder, store)
            nights, cells, undecided = nights + 1, cells + found, undecided + lost
            told = f", {undecided} came to nothing" if given.workers else ""
            print(f"{killed} of {given.moments} moments, {nights} nights, {cells} cells: each once{told}", flush=True)
    return 0


@contextmanager
def _server() -> Iterator[Server]:
    """A PostgreSQL that is there for so long."""
    sys.path.append(str(Path(__file__).parents[1] / "unit" / "made"))
    from made_postgresql import programs, started_server

    bin_dir = programs()
    assert bin_dir is not None, "Debian's package postgresql is not there"
    with started_server(bin_dir) as server:
        yield server


def _with_database(
    server: Server, folder: Path, store: str, dice: random.Random, longest_s: float, moments: int
) -> int:
    """A night whose database is killed and started again; how often. One that ended for that is begun again."""
    _configure(folder, f"store: {store}\n")
    night, killed = _begun(folder), 0
    try:
        while True:
            try:
                night.wait(dice.uniform(0.5, longest_s) if killed < moments else NIGHT_S)
            except subprocess.TimeoutExpired:
                assert killed < moments, "the night does not end"
                server.kill()
                time.sleep(dice.uniform(0.0, 3.0))
                server.start()
                killed += 1
                continue
            _gone(folder)
            if night.returncode == 0:
                return killed
            assert night.returncode == 3, f"the night ended with {night.returncode}"
            night = _begun(folder)
    finally:
        night.kill()


def _with_workers(folder: Path, store: str, dice: random.Random, longest_s: float, moments: int) -> int:
    """A night that workers do; how often one of them was killed. Each has its scratch folder."""
    _configure(folder, f"remote: true\nstore: {store}\n")
    names = count()

    def worker() -> tuple[Path, subprocess.Popen[bytes]]:
        own = folder / f"worker-{next(names):04}"
        return own, _started(own, *WORK, "--store", store, "--qemu", host_binary(X86_64.program))

    workers = [worker(), worker()]
    night = _begun(folder)
    killed = 0
    try:
        while killed < moments:
            try:
                night.wait(dice.uniform(0.5, longest_s))
                break
            except subprocess.TimeoutExpired:
                place = dice.randrange(len(workers))
                own, victim = workers[place]
                assert victim.poll() is None, f"a worker ended with {victim.returncode}"
                victim.kill()
                victim.wait()
                killed += 1
                _gone(own)
                workers[place] = worker()
        code = night.wait(NIGHT_S)
        assert code in (0, 3), f"the night ended with {code}"
    finally:
        night.kill()
        for _, process in workers:
            process.terminate()
            process.wait(GONE_S)
    for own, _ in workers:
        _gone(own)
    return killed


def _configure(folder: Path, more: str = "") -> None:
    (folder / "nightly.yaml").write_text(CONFIG.format(qemu=host_binary(X86_64.program)) + more)


def _until_over(folder: Path, dice: random.Random, longest_s: float, moments: int) -> int:
    """Begin a night again and again; how often it was killed. The last time it may end."""
    _configure(folder)
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
    return _started(folder / "tmp", "nightly", "--config", folder / "nightly.yaml")


def _started(scratch: Path, *words: object) -> subprocess.Popen[bytes]:
    """The program, with a folder that all of its QEMUs name."""
    scratch.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "harness", *map(str, words)],
        env={**os.environ, "TMPDIR": str(scratch)},
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


def _check(folder: Path, store: str) -> tuple[int, int]:
    """How many cells there are, and how many of them came to nothing."""
    (path,) = folder.glob(f"nights/*/{EVENTS_NAME}")
    assert (path.parent / NIGHT).exists()
    events = list(read_events(path))
    planned = {name for event in events if isinstance(event, CellsPlanned) for name in event.cells}
    judged = Counter(event.cell.id for event in events if isinstance(event, Judged))
    assert set(judged.values()) == {1}, judged
    assert planned <= set(judged), planned - set(judged)
    with open_history(store) as history:
        (run,) = history.runs()
        kept = {row.cell: row.verdict for row in history.cells(run) if row.verdict is not None}
    assert set(kept) == set(judged), set(kept) ^ set(judged)
    return len(judged), sum(verdict.is_undecided for verdict in kept.values())


if __name__ == "__main__":
    sys.exit(main())
