# SPDX-License-Identifier: GPL-2.0-or-later
"""Six real nights, from which ``tests/unit/store/test_real_nights.py`` has its history.

``python tests/bench/nights.py FOLDER [--nights N,N]`` runs them into FOLDER, ``--pack FILE`` puts their events into one
file. Each is ``postload matrix --quick`` over four QEMUs: Debian's 7.2, 10.0 and 11.1, which have to be installed,
and a build with the name ``mine`` that changes under it. At first it is 10.0, then 11.1, in which the platform of q35
is mended; then 11.1 with a planted fault, then 11.1 again, and 10.0 once more. One night is killed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import zstandard

from harness.cache import CACHE_VARIABLE, cache_root
from harness.qemu.binary import find_binary

#: What ``mine`` is, night by night.
NIGHTS = ("10.0", "11.1", "11.1", "broken", "11.1", "10.0")
KILLED, KILLED_AFTER_CELLS = 2, 8
MATRIX = (
    "matrix", "--quick", "--qemu", "7.2", "--qemu", "10.0", "--qemu", "11.1", "--qemu", "mine",
    "--machine", "pc-i440fx-7.2,pc-q35-7.2", "--device", "platform,e1000e,nec-usb-xhci+msi", "--phase", "firmware",
    "--schedule", "same", "--loads", "5",
)  # fmt: skip
TIMEOUT_S = 900.0


def own_cache(folder: Path) -> Path:
    """A cache with all that the user's has, but for the names of QEMUs, which are its own."""
    cache = folder / "cache"
    if not cache.exists():
        (cache / "qemus").mkdir(parents=True)
        for path in cache_root().iterdir():
            if path.name != "qemus":
                (cache / path.name).symlink_to(path)
        shutil.copytree(cache_root() / "qemus" / "names", cache / "qemus" / "names")
    return cache


def broken(folder: Path, qemu: Path) -> Path:
    """A QEMU with a planted fault: where state is loaded, e1000e has another subsystem than where it was saved."""
    path = folder / "broken"
    option = "-global e1000e.subsys=0x1234"
    path.write_text(f'#!/bin/sh\ncase "$*" in\n*-incoming*) exec {qemu} "$@" {option} ;;\nesac\nexec {qemu} "$@"\n')
    path.chmod(0o755)
    return path


def run(folder: Path, number: int) -> None:
    """One night."""
    kind = NIGHTS[number]
    program = broken(folder, find_binary("11.1")) if kind == "broken" else find_binary(kind)
    environment = {**os.environ, CACHE_VARIABLE: str(own_cache(folder))}
    postload = [sys.executable, "-m", "harness"]
    subprocess.run([*postload, "qemu", "remove", "mine"], env=environment, capture_output=True, check=False)
    subprocess.run([*postload, "qemu", "install", f"mine={program}"], env=environment, check=True, timeout=TIMEOUT_S)
    out = folder / str(number)
    with (folder / f"{number}.txt").open("w") as said:
        night = subprocess.Popen([*postload, *MATRIX, "--out", out], env=environment, stdout=said, stderr=said)
        while number == KILLED and night.poll() is None and judged(out) < KILLED_AFTER_CELLS:
            time.sleep(0.1)
        if number == KILLED:
            night.kill()
        night.wait(TIMEOUT_S)
    print(f"night {number}: {judged(out)} cells, exit code {night.returncode}", flush=True)


def judged(out: Path) -> int:
    """How many cells a night has judged."""
    events = out / "cells.jsonl"
    return events.read_bytes().count(b'"event":"judged"') if events.exists() else 0


def pack(folder: Path, file: Path) -> None:
    """The events of all nights in one file, without the coverage and without where they were made."""
    lines = []
    for number in range(len(NIGHTS)):
        for line in (folder / str(number) / "cells.jsonl").read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n") and b'"event":"state"' not in line:
                lines.append(line.replace(str(folder).encode(), b"/srv/nights"))
    file.write_bytes(zstandard.ZstdCompressor(level=22).compress(b"".join(lines)))


def main() -> int:
    """Parse, then run or pack."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nights", default=",".join(map(str, range(len(NIGHTS)))), help="which, several by commas")
    parser.add_argument("--pack", type=Path, metavar="FILE")
    given = parser.parse_args()
    if given.pack:
        pack(given.folder, given.pack)
        return 0
    for number in map(int, given.nights.split(",")):
        run(given.folder.absolute(), number)
    return 0


if __name__ == "__main__":
    sys.exit(main())
