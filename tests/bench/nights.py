# SPDX-License-Identifier: GPL-2.0-or-later
"""Ten real nights, from which ``tests/unit/store/test_real_nights.py`` has its history.

``python tests/bench/nights.py FOLDER`` runs them into FOLDER and prints what each told, ``--pack FILE`` puts their
events and documents into one file. Each is ``postload nightly`` over Debian's 5.2, 7.2, 10.0 and 11.1, which have to be
installed, and a build with the name ``mine`` that changes under it: see :data:`NIGHTS`. A night that did not tell what
was done to it, and nothing else, ends this with 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from harness.nights.folder import NIGHT
from harness.qemu.binary import find_binary
from harness.results.events import EVENTS_NAME

RELEASES = ("5.2", "7.2", "10.0", "11.1")
#: Up to 10.0 the platform of q35 crashes.
PLATFORM = "crash:memory_region_add_subregion_common:!subregion->container:ICH9LPC:q35"
#: Where state is loaded, e1000e has another subsystem than where it was saved.
FAULT = "-global e1000e.subsys=0x1234"
PLANTED = tuple(
    f"reject:-:ERROR: Cannot migrate while device properties (subsys/subsys_ven) differ:e1000e:{family}"
    for family in ("pc", "q35")
)
CONFIG = """\
qemus: ['5.2', '7.2', '10.0', '11.1', {{name: mine, path: mine}}]
machines: [pc-i440fx-5.2, pc-q35-5.2]
devices: [platform, ahci, virtio-blk, virtio-net, e1000e, nec-usb-xhci+msi, pcnet, lsi53c895a, pvscsi, intel-hda]
phases: [firmware]
schedules: [same, back-to-back]
loads: 5
quick: true
budget_minutes: 60
{more}"""
QUARANTINE = "quarantine: [{cell: mine/*/e1000e/*, link: 'https://example.org/1', until: 2099-12-31}]\n"
KILLED_AFTER_CELLS = 60
TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NightOfMine:
    """A night, and what it has to tell of ``mine``: findings by list. In the first all that fails is
    new; the releases change nothing after it.

    :param mine: the release that it is, None where the build failed
    :param faulty: with a planted fault
    :param killed: by SIGKILL in the middle, and begun again
    :param more: of the configuration
    """

    mine: str | None
    told: dict[str, tuple[str, ...]] = field(default_factory=dict)
    exit_code: int = 0
    faulty: bool = False
    killed: bool = False
    more: str = ""


NIGHTS = (
    NightOfMine(mine="10.0", told={"new": (PLATFORM,)}, exit_code=1),
    NightOfMine(mine="10.0"),
    NightOfMine(mine="11.1", told={"fixed": (PLATFORM,)}),
    NightOfMine(mine="11.1", killed=True),
    NightOfMine(mine="11.1", faulty=True, told={"new": PLANTED}, exit_code=1),
    NightOfMine(mine="11.1", faulty=True, more=QUARANTINE, told={"excused": PLANTED}),
    NightOfMine(mine="11.1", told={"fixed": PLANTED}),
    NightOfMine(mine=None, exit_code=3),
    NightOfMine(mine="10.0", told={"back": (PLATFORM,)}, exit_code=1),
    NightOfMine(mine="11.1", told={"fixed": (PLATFORM,)}),
)
LISTS = ("new", "back", "fixed", "unseen", "flaky", "excused", "once", "still", "not_run")


def put_mine(folder: Path, night: NightOfMine) -> None:
    """A program whose name stays, and whose content changes."""
    path = folder / "mine"
    path.unlink(missing_ok=True)
    if night.mine is None:
        return
    qemu, planted = find_binary(night.mine), f' case "$*" in\n*-incoming*) set -- "$@" {FAULT} ;;\nesac\n'
    path.write_text(f'#!/bin/sh\n{planted if night.faulty else ""}exec {qemu} "$@"\n')
    path.chmod(0o755)


def run(folder: Path, number: int) -> bool:
    """One night; whether it told what it had to."""
    night, config = NIGHTS[number], folder / "nightly.yaml"
    config.write_text(CONFIG.format(more=night.more))
    put_mine(folder, night)
    before = set(folder.glob(f"nights/*/{EVENTS_NAME}"))
    began_s = time.monotonic()
    with (folder / f"{number}.txt").open("w") as said:
        code = begun(config, said, (lambda: judged(folder, before) >= KILLED_AFTER_CELLS) if night.killed else None)
    wrong = list(wrongly_told(night, document(folder, number), code))
    print(row(folder, number, code, time.monotonic() - began_s), *wrong, sep="\n  WRONG: ", flush=True)
    return not wrong


def begun(config: Path, said: Any, kill: Callable[[], bool] | None) -> int:
    """Its exit code; where it is to be killed, that of the night that went on."""
    command = [sys.executable, "-m", "harness", "nightly", "--config", str(config)]
    process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        until_s = time.monotonic() + TIMEOUT_S
        while kill is not None and process.poll() is None and not kill():
            assert time.monotonic() < until_s, "the night does not get on"
            time.sleep(0.1)
        if kill is None:
            return process.wait(TIMEOUT_S)
    finally:
        process.kill()
        process.wait()
    return begun(config, said, None)


def judged(folder: Path, before: set[Path]) -> int:
    """How many cells the night that is not over has judged."""
    new = set(folder.glob(f"nights/*/{EVENTS_NAME}")) - before
    return sum(path.read_bytes().count(b'"event":"judged"') for path in new)


def folders(folder: Path) -> list[Path]:
    """The nights that are over, the oldest first."""
    return sorted(path.parent for path in folder.glob(f"nights/*/{NIGHT}"))


def document(folder: Path, number: int) -> dict[str, Any]:
    """What a night told."""
    found: dict[str, Any] = json.loads((folders(folder)[number] / NIGHT).read_bytes())
    return found


def told(doc: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The changes of one list."""
    return [each["change"] for each in doc["excused"]] if name == "excused" else (doc | doc["compared"])[name]


def wrongly_told(night: NightOfMine, doc: dict[str, Any], code: int) -> Iterator[str]:
    """What of a night is not as it has to be."""
    if code != night.exit_code:
        yield f"exit code {code}, not {night.exit_code}"
    if doc["resumed"] is not night.killed:
        yield f"resumed: {doc['resumed']}"
    for name in LISTS[:-2]:
        changes = told(doc, name)
        mine = {each["signature"] for each in changes if each["cell"].startswith("mine/")}
        wanted = set(night.told.get(name, ()))
        if mine != wanted and not (doc["first"] and wanted < mine):
            yield f"{name} of mine: {sorted(mine)}"
        others = {each["cell"] for each in changes if not each["cell"].startswith("mine/")}
        if others and not doc["first"]:
            yield f"{name} of the releases: {sorted(others)}"
    lost = [each["cell"] for each in told(doc, "not_run") if night.mine or not each["cell"].startswith("mine/")]
    if lost or doc["missing"]:
        yield f"not run: {lost or doc['missing']}"


def row(folder: Path, number: int, code: int, took_s: float) -> str:
    """Of the table in ``docs/nightly.md``."""
    night, doc = NIGHTS[number], document(folder, number)
    what = f"{night.mine}{', a fault planted' * night.faulty}" if night.mine else "not there"
    what += ", killed and begun again" * night.killed + ", e1000e quarantined" * bool(night.more)
    counts = [len(told(doc, name)) or "" for name in LISTS]
    return f"| {number} | {what} | {' | '.join(map(str, counts))} | {code} | {took_s:.0f} s |"


def pack(folder: Path, file: Path) -> None:
    """All nights in one file, without the coverage and without where they were made: for each a line with its number
    of events, these, and its document in a line."""
    lines = []
    for night in folders(folder):
        events = (night / EVENTS_NAME).read_bytes().splitlines(keepends=True)
        events = [line for line in events if b'"event":"state"' not in line]
        doc = json.dumps(json.loads((night / NIGHT).read_bytes())).encode() + b"\n"
        lines += [b"%d\n" % len(events), *events, doc]
    data = b"".join(lines).replace(str(folder).encode(), b"/srv/nights")
    file.write_bytes(zstandard.ZstdCompressor(level=22).compress(data))


def main() -> int:
    """Parse, then run or pack."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pack", type=Path, metavar="FILE")
    given = parser.parse_args()
    folder = given.folder.absolute()
    if given.pack:
        pack(folder, given.pack)
        return 0
    folder.mkdir(parents=True)
    print(f"| night | mine is | {' | '.join(LISTS)} | exit | took |", flush=True)
    well = [run(folder, number) for number in range(len(NIGHTS))]
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
