# SPDX-License-Identifier: GPL-2.0-or-later
"""Does a disturbed host make healthy devices look broken?

``python tests/bench/falseverdicts.py [--runs N] [--regime NAME,...] [--machine NAME,...] [--keep DIR] [-- OPTION...]``
judges machines ``N`` times under each regime, by the command that a user types, and counts what the cells came to.
Options behind ``--`` are those of ``postload matrix``: with ``--quick`` there are loads only. Each machine is judged
once before that and left alone: that records its guest, and what it finds is no false verdict. A verdict is false when
that run has none for the same cell with the same signature.

=======  =============================================================================================================
regime   what is done to the run, again and again, until it ends
=======  =============================================================================================================
quiet    nothing: what a run comes to anyway
busy     eight processes that want a CPU run beside it
stops    the program, or one of its QEMUs, is stopped for 5 to 30 s
hits     one of its QEMUs is stopped for 5 to 30 s, or ended by SIGTERM, SIGINT, SIGHUP or SIGKILL
=======  =============================================================================================================

``--keep`` keeps the document of each run. Ends with 1 when a device was blamed falsely, and with 3 when nothing was
judged even of a run that was left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread

import psutil

from harness.report.sentences import text_of
from harness.results.document import Cell, MatrixDoc
from harness.results.signature import name_of

BUSY_PROCESSES = 8
PAUSE_S = (4.0, 12.0)
STOP_S = (5.0, 30.0)
ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
RUN_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one run came to.

    :param verdicts: how many cells came to each
    :param again: cells that were tried again
    :param right: of these, how many were judged then
    :param blamed: cells that blame a device: name, verdict and signature
    :param host: cells that the host kept from being judged, and why
    :param done: what was done to the run, by its name
    """

    verdicts: Counter[str]
    again: int
    right: int
    blamed: tuple[str, ...]
    host: tuple[str, ...]
    done: Counter[str]
    status: int
    seconds: float


def family(run: int) -> list[psutil.Process]:
    """The program and the QEMUs that it has now, the program first."""
    try:
        program = psutil.Process(run)
        return [program, *(child for child in program.children(recursive=True) if "qemu-system" in child.name())]
    except psutil.Error:
        return []


def stop_a_while(process: psutil.Process, over: Event, seconds: float) -> None:
    """Stop a process, and let it go on at the latest when the run is over."""
    process.send_signal(signal.SIGSTOP)
    over.wait(seconds)
    process.send_signal(signal.SIGCONT)


def disturb(run: int, over: Event, chance: random.Random, hits: bool, done: Counter[str]) -> None:
    """Do one thing after the other to a run, and count it."""
    while not over.wait(chance.uniform(*PAUSE_S)):
        targets = family(run)[hits:]
        if not targets:
            continue
        target = chance.choice(targets)
        end = chance.choice([None, *ENDS]) if hits else None
        with contextlib.suppress(psutil.Error):
            if end is not None:
                target.send_signal(end)
                done[end.name] += 1
                continue
            done["program stopped" if target.pid == run else "QEMU stopped"] += 1
            stop_a_while(target, over, chance.uniform(*STOP_S))


@contextlib.contextmanager
def quiet(_run: int, _chance: random.Random, _done: Counter[str]) -> Iterator[None]:
    """Leave it alone."""
    yield


@contextlib.contextmanager
def busy(_run: int, _chance: random.Random, done: Counter[str]) -> Iterator[None]:
    """Eight that want a CPU."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY_PROCESSES)]
    done["busy processes"] += len(others)
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextlib.contextmanager
def disturbed(run: int, chance: random.Random, done: Counter[str], *, hits: bool) -> Iterator[None]:
    """Stop the program or a QEMU now and then; or stop and end QEMUs alone."""
    over = Event()
    hand = Thread(target=disturb, args=(run, over, chance, hits, done))
    hand.start()
    try:
        yield
    finally:
        over.set()
        hand.join()


Regime = Callable[[int, random.Random, "Counter[str]"], contextlib.AbstractContextManager[None]]
REGIMES: dict[str, Regime] = {
    "quiet": quiet,
    "busy": busy,
    "stops": lambda run, chance, done: disturbed(run, chance, done, hits=False),
    "hits": lambda run, chance, done: disturbed(run, chance, done, hits=True),
}


def matrix(machine: str, regime: Regime, chance: random.Random, options: list[str], keep: Path) -> Result:
    """One matrix under a regime.

    :param keep: where its document goes
    """
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="plf-") as folder:
        argv = [sys.executable, "-m", "harness", "matrix", "--machine", machine, "--out", folder, *options]
        begun = time.monotonic()
        said = Path(folder) / "stderr"
        with said.open("w") as stderr, subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=stderr) as run:
            try:
                with regime(run.pid, chance, done):
                    status = run.wait(RUN_TIMEOUT_S)
            finally:
                run.kill()
        seconds = time.monotonic() - begun
        document = Path(folder) / "matrix.json"
        cells = MatrixDoc.from_json(json.loads(document.read_text())).cells if document.exists() else ()
        keep.mkdir(parents=True, exist_ok=True)
        for file in filter(Path.exists, (document, said)):
            shutil.copy(file, keep)
        error = "" if cells else (said.read_text().strip().splitlines() or ["no cell, and not a word"])[-1]
    return read(cells, error, done, status, seconds)


def read(cells: Sequence[Cell], error: str, done: Counter[str], status: int, seconds: float) -> Result:
    """Count the cells of a run.

    :param error: why it has none
    """
    again = [cell for cell in cells if cell.outcome.hindered]
    return Result(
        verdicts=Counter(cell.verdict for cell in cells),
        again=len(again),
        right=sum(not cell.verdict.is_undecided for cell in again),
        blamed=tuple(f"{cell.id} {cell.verdict} {name_of(cell)}" for cell in cells if cell.verdict.is_finding),
        host=tuple(f"{cell.id} {cell.verdict}: {text_of(cell)}" for cell in cells if cell.verdict.is_undecided)
        or ((error,) if error else ()),
        done=done,
        status=status,
        seconds=seconds,
    )


def main() -> int:
    """Run all regimes; a line for each run, and one for all of a regime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each machine under each regime [default: 5]")
    parser.add_argument("--regime", default="busy,stops,hits")
    parser.add_argument("--machine", default="pc,virt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the documents [default: they go]")
    parser.add_argument("options", nargs="*", help="of postload matrix, behind --")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))  # so that the run that goes on is ended too
    false = 0
    with tempfile.TemporaryDirectory(prefix="plf-") as scratch:
        keep = given.keep or Path(scratch)
        for machine in given.machine.split(","):
            alone = matrix(machine, quiet, random.Random(given.seed), given.options, keep / f"alone-{machine}")
            print(f"left alone, {machine}: {line(alone)}", flush=True)
            tell("found when left alone", alone.blamed)
            tell("not judged when left alone", alone.host)
            if not alone.verdicts:
                return 3
            for name in given.regime.split(","):
                results = []
                for number in range(given.runs):
                    chance = random.Random(f"{given.seed} {name} {machine} {number}")
                    folder = keep / f"{name}-{machine}-{number + 1}"
                    result = matrix(machine, REGIMES[name], chance, given.options, folder)
                    result = replace(result, blamed=tuple(set(result.blamed) - set(alone.blamed)))
                    results.append(result)
                    print(f"{name} {machine} {number + 1}: {line(result)}", flush=True)
                    tell("FALSE", result.blamed)
                    tell("not judged", result.host)
                false += sum(len(result.blamed) for result in results)
                print(summary(name, machine, results), flush=True)
    return 1 if false else 0


def tell(what: str, cells: Sequence[str]) -> None:
    """A line for each cell."""
    for each in cells:
        print(f"  {what}: {each}", flush=True)


def line(result: Result) -> str:
    """One run."""
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(result.verdicts.items()))
    done = ", ".join(f"{count} {what}" for what, count in sorted(result.done.items())) or "nothing"
    tried = f"{result.again} tried again, {result.right} of them judged then"
    return f"{verdicts}; {tried}; {done} in {result.seconds:.0f} s; status {result.status}"


def summary(name: str, machine: str, results: list[Result]) -> str:
    """All runs of a regime."""
    cells = sum(result.verdicts.total() for result in results)
    host = sum(result.verdicts["host"] for result in results)
    again, right = sum(result.again for result in results), sum(result.right for result in results)
    blamed = sum(len(result.blamed) for result in results)
    return (
        f"{name} {machine}, {len(results)} runs: {cells} cells, {blamed} blame a device falsely, {host} host, "
        f"{again} tried again and {right} of these judged then"
    )


if __name__ == "__main__":
    sys.exit(main())
