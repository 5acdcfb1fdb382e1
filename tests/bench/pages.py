# SPDX-License-Identifier: GPL-2.0-or-later
"""What the pages of a long history cost.

``python tests/bench/pages.py [--runs N] [--cells N] [--store URL]``. A history is made of N runs of N cells (150
devices on four QEMUs, some findings that come and go, some nights that were cut off), then its pages are written.
Ends with 1 when a million outcomes, or the same share for others, take more than :data:`LIMIT_S`.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import sqlalchemy as sa

from harness.results.key import CellKey
from harness.results.verdict import Verdict
from harness.store import tables as t
from harness.store.engine import open_store, writing

#: For a million outcomes.
LIMIT_S = 60.0
QEMUS = ("5.2.0", "7.2.22", "10.0.13", "11.1.0")
MACHINES = ("pc-i440fx-7.2", "pc-q35-7.2")
PHASES = ("firmware", "kernel", "bound", "busy", "unbound", "rebound")
LANES = (
    *((phase, lane) for lane in ("same", "back-to-back", "drift") for phase in PHASES),
    ("all", "alternate"),
    ("all", "walk"),
    ("busy", "leak"),
)
DEVICES = (
    "platform",
    "ahci",
    "virtio-blk",
    "virtio-net",
    "nvme",
    "e1000",
    "usb-tablet",
    "megasas",
    "ich9-intel-hda",
    "rtl8139",
)
START = datetime(2026, 1, 1, 22, tzinfo=UTC)


def make_history(engine: sa.Engine, runs: int, cells: int, seed: int = 1) -> None:
    """Fill an empty history."""
    chance = random.Random(seed)
    keys = _keys(cells)
    signatures = [f"crash:some_function_{number}:!ptr->field:section{number}:q35" for number in range(20)]
    signatures += [f"drift::reg{number}+mask:dev{number}:pc" for number in range(10)]
    broken = {key: chance.randrange(30) for key in chance.sample(range(len(keys)), max(2, len(keys) // 25))}
    begins = {key: chance.randrange(-runs, runs) for key in broken}
    with writing(engine) as connection:
        connection.execute(
            t.hosts.insert(),
            [
                {"id": 1, "name": "alpha", "sha256": "a", "facts": "{}"},
                {"id": 2, "name": "beta", "sha256": "b", "facts": "{}"},
            ],
        )
        connection.execute(
            t.builds.insert(),
            [
                {"id": at + 1, "sha256": f"{at:064x}", "version": label, "build": "", "path": "/q", "label": label}
                for at, label in enumerate(QEMUS)
            ],
        )
        connection.execute(t.cells.insert(), [_cell(at + 1, key) for at, key in enumerate(keys)])
        connection.execute(t.signatures.insert(), [_signature(at + 1, name) for at, name in enumerate(signatures)])
        for run in range(runs):
            host = 1 + run % 2
            speed = (1.0 if host == 1 else 0.7) * chance.lognormvariate(0, 0.1)
            until = len(keys) if run % 17 != 5 else len(keys) // 2
            connection.execute(t.runs.insert(), [_run(run, host, "ended" if until == len(keys) else "killed")])
            connection.execute(
                t.machines.insert(),
                [
                    {
                        "run_id": run + 1,
                        "machine": machine,
                        "loader_id": qemu + 1,
                        "recorder_id": qemu + 1,
                        "colo": "unsafe" if "q35" in machine else "safe",
                        "document": "{}",
                    }
                    for machine in MACHINES
                    for qemu in range(4)
                ],
            )
            connection.execute(
                t.outcomes.insert(),
                [
                    _outcome(run, runs, at, key, host, speed, at < until, broken, begins, chance)
                    for at, key in enumerate(keys)
                ],
            )


def _keys(cells: int) -> list[CellKey]:
    devices = max(1, round(cells / (len(QEMUS) * len(MACHINES) * len(LANES))))
    names = [DEVICES[at] if at < len(DEVICES) else f"device-{at}" for at in range(devices)]
    every = product(names, MACHINES, QEMUS, LANES)
    return [
        CellKey.parse(f"{qemu}/{machine}/{device}/{phases}/{lane}") for device, machine, qemu, (phases, lane) in every
    ][:cells]


def _cell(number: int, key: CellKey) -> dict[str, object]:
    return {
        "id": number,
        "key": str(key),
        "line": key.line,
        "recorder": key.route.recorder,
        "loader": key.route.loader,
        "machine": key.machine,
        "device": key.device,
        "phases": key.where,
        "lane": key.lane,
    }


def _signature(number: int, name: str) -> dict[str, object]:
    kind, function, assertion, section, family = name.split(":")
    return {
        "id": number,
        "name": name,
        "kind": kind,
        "function": function,
        "assertion": assertion,
        "file": "hw/x.c",
        "section": section,
        "family": family,
    }


def _run(run: int, host: int, state: str) -> dict[str, object]:
    started = (START + timedelta(days=run)).isoformat()
    return {
        "id": run + 1,
        "name": f"{started[:10].replace('-', '')}-220000-{run:06x}",
        "started": started,
        "command": json.dumps(["postload", "nightly"]),
        "program": "0.1.0",
        "host_id": host,
        "folder": "",
        "state": state,
        "seconds": 7000.0 + 40 * (run % 7),
        "alive": 0.0,
    }


def _outcome(
    run: int,
    runs: int,
    at: int,
    key: CellKey,
    host: int,
    speed: float,
    judged: bool,
    broken: dict[int, int],
    begins: dict[int, int],
    chance: random.Random,
) -> dict[str, object]:
    row: dict[str, object] = {
        "run_id": run + 1,
        "cell_id": at + 1,
        "host_id": host,
        "verdict": None,
        "failure_class": None,
        "signature_id": None,
        "loader_id": None,
        "recorder_id": None,
        "known": None,
        "seen": None,
        "tries": None,
        "loads_asked": None,
        "loads_acked": None,
        "seconds": None,
        "loads_per_second": None,
    }
    if not judged:
        return row
    qemu = QEMUS.index(key.route.loader) + 1
    row |= {
        "verdict": str(Verdict.OK),
        "loader_id": qemu,
        "recorder_id": qemu,
        "loads_asked": 100,
        "loads_acked": 100,
        "seconds": 0.6,
    }
    slow = 0.6 if key.device == "nvme" and run > runs - 9 else 1.0
    base = {"same": 150.0, "back-to-back": 2400.0 * slow}.get(key.lane, 0.0)
    row["loads_per_second"] = base * speed * chance.lognormvariate(0, 0.05)
    if at in broken and run >= begins[at] and (broken[at] < 20 or chance.random() < 0.4):
        crash = broken[at] < 20
        row |= {
            "verdict": "crash" if crash else "drift",
            "failure_class": "not-reentrant",
            "signature_id": broken[at] + 1,
            "loads_per_second": 0.0,
        }
        row |= {"known": "https://gitlab.com/qemu-project/qemu/-/issues/1" if broken[at] == 3 else None}
    return row


def _write(store: str, out: Path) -> float:
    from harness.commands.pages import write_pages

    began = time.monotonic()
    write_pages(store=store, out=out, last=30, against=None, rules=None)
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--store", help="an empty one, or the one of an earlier call [default: a scratch file]")
    parser.add_argument("--out", type=Path, help="keep the pages there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        store = given.store or str(Path(scratch) / "history.db")
        engine = open_store(store, create=True)
        with engine.connect() as connection:
            made = connection.execute(sa.select(sa.func.count()).select_from(t.runs)).scalar_one()
        if not made:
            began = time.monotonic()
            make_history(engine, given.runs, given.cells)
            print(f"history: {given.runs} runs of {given.cells} cells, made in {time.monotonic() - began:.1f} s")
        engine.dispose()
        out = given.out or Path(scratch) / "site"
        took = _write(store, out)
        files = [path for path in out.rglob("*") if path.is_file()]
    limit = LIMIT_S * max(1.0, given.runs * given.cells / 1e6)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"pages: {took:.1f} s of {limit:.0f} s, {len(files)} files, {memory:.0f} MiB of memory")
    return int(took > limit)


if __name__ == "__main__":
    sys.exit(main())
