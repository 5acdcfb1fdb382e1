# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages of a made history: five nights in which something is new, back, gone, known, or not run, with foreign names."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from pathlib import Path

from click.testing import CliRunner
from made_runs import HOST, crashed, events, judged, started

from harness.cli import cli
from harness.results.document import Cell
from harness.results.verdict import Verdict
from harness.store.engine import open_store
from harness.store.write import RunWriter

NIGHTS = 5
HOSTILE = "<img src=x onerror=alert(1)>"
NEW, BACK, GONE, STILL = "new words", "back words", "gone words", "still words"
LINK = "https://gitlab.com/qemu-project/qemu/-/issues/1"
UNJUDGED = "7.2.22/pc-q35-7.2/ahci/kernel/same"


def signature(words: str) -> str:
    """Of a cell that crashed with some words."""
    return f"crash:-:{words}:ich9_ahci:q35"


def make_history(store: str, folder: Path) -> None:
    """Write the nights.

    :param folder: of the runs; the last one has a bundle
    """
    engine = open_store(store, create=True)
    known = [{"signature": signature(STILL), "link": LINK, "affected": ["7.2"]}]
    host = {**HOST, "name": platform.node()}
    for night in range(NIGHTS):
        writer = RunWriter(engine, str(folder / f"night-{night}"))
        writer.begin(started(night, known=known, host=host))
        planned = (UNJUDGED,) if night == NIGHTS - 1 else ()
        writer.write(events(_cells(night), planned))
    engine.dispose()
    write_bundle(folder / f"night-{NIGHTS - 1}" / "bundles" / "one", signature(NEW))


def _cells(night: int) -> Iterable[Cell]:
    last = night == NIGHTS - 1

    def cell(place: str, words: str, *, broken: bool) -> Cell:
        place = f"pc-q35-7.2/{place}"
        return (
            crashed(place, words, log=f"qemu: {words} </pre><script>alert(2)</script>\n") if broken else judged(place)
        )

    yield cell("ahci/bound/same", NEW, broken=last)
    yield cell("ahci/busy/same", BACK, broken=last or night == 1)
    yield cell("nvme/bound/same", GONE, broken=not last)
    yield cell("virtio-blk/bound/same", STILL, broken=True)
    yield cell("e1000/bound/same", "", broken=False)
    yield cell(f"{HOSTILE.replace('/', '')}/bound/same", HOSTILE, broken=True)
    for device, rate in (("ahci", 1500.0), ("e1000", 900.0)):
        yield judged(f"pc-q35-7.2/{device}/bound/back-to-back", loads_per_second=rate + night)
    yield judged("pc-q35-7.2/sdhci-pci/bound/same", Verdict.UNSUPPORTED, loads_per_second=0.0)
    yield judged("pc-q35-7.2/platform/bound/same", loads_per_second=100.0)


def write_bundle(folder: Path, name: str, **more: object) -> None:
    """What pages read of a bundle."""
    folder.mkdir(parents=True)
    case = {
        "schema": "postload.case/1",
        "signature": {"name": name},
        "cell": "7.2.22/pc-q35-7.2/ahci/bound/same",
        "sentence": "one load of <ahci> is needed",
        "sections": ["ich9_ahci"],
        "loads": 1,
        **more,
    }
    (folder / "case.json").write_text(json.dumps(case))
    (folder / "reproduce.py").write_text("print('reproduced')\n")


def make_site(store: str, out: Path, *more: str) -> str:
    """Call the command; what it prints."""
    line = ["pages", "--store", store, "--out", str(out), *more]
    done = CliRunner().invoke(cli, line, standalone_mode=False, catch_exceptions=False)
    assert done.return_value == 0
    return done.output
