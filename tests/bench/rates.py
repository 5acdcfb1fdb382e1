# SPDX-License-Identifier: GPL-2.0-or-later
"""How many loads a second, and how much of a bare socket loop's rate the harness reaches.

``python tests/bench/rates.py [--qemu PATH] [--pack FOLDER] [--rounds N]``. For each figure one secondary is opened, its
guest parked, and the same bytes are sent to it in turn, round by round, by the loop of
:class:`harness.engines.colo.Session` and by a loop of ``sendall`` and ``recv`` with everything encoded before. It is
one process for both because two processes of the same QEMU differ by more than the two loops do on a busy host. Rates
are medians of the rounds, and so is the ratio; that of the best rounds, which one lucky round decides, stands beside
it. Ends with 1 when a ratio of medians is below the limit.
"""

from __future__ import annotations

import argparse
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from harness.colo.primary import Buffer
from harness.devices.recipe import load_recipes
from harness.engines import colo as engine
from harness.engines.buffers import Buffers, Selection
from harness.engines.colo import Session
from harness.engines.probe import ColoAbility, probe_colo
from harness.engines.schedule import Checkpoint, LoadPlan
from harness.engines.secondary import Secondary
from harness.guests.build import build_guest
from harness.guests.recipe import load_recipe
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary, find_binary, probe_binary
from harness.qemu.scope import ProcessScope
from harness.state.recorder import record
from harness.state.recordings import planned_guests, recording_plan
from harness.state.transforms import GuestMode

LIMIT = 0.9
PHASE = "bound"
TIMEOUT_S = 60.0
REQUEST, REPLY, SEND, SIZE, RECEIVED, LOADED = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One figure: ``checkpoints`` buffers with ``repeat`` loads each."""

    name: str
    device: str
    whole: bool
    checkpoints: int
    repeat: int = 1


CASES = (
    Case(name="whole state, one checkpoint", device="platform", whole=True, checkpoints=100),
    Case(name="AHCI alone, one checkpoint", device="ahci", whole=False, checkpoints=500),
    Case(name="AHCI back to back, 100 a buffer", device="ahci", whole=False, checkpoints=30, repeat=100),
    Case(name="virtio-blk back to back, 100 a buffer", device="virtio-blk", whole=False, checkpoints=6, repeat=100),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all cases share."""

    binary: QemuBinary
    ability: ColoAbility
    buffers: Buffers

    def selection(self, case: Case) -> Selection:
        return Selection(own=frozenset(self.buffers.pack.sections_of(case.device)), whole=case.whole)


Rate = Callable[[Setup, Case, "Opened"], float]


class Opened(Secondary):
    """A secondary that sessions find started: the incoming stream is sent once."""

    started = False

    def start(self, head: Buffer, body: Iterable[Buffer]) -> None:
        if not self.started:
            super().start(head, body)
            self.started = True


def harness_rate(setup: Setup, case: Case, secondary: Opened) -> float:
    """Loads a second of a session's own loop, from its first request to its last acknowledgement."""
    session = Session(
        binary=setup.binary,
        dialect=setup.ability.dialect,
        buffers=setup.buffers,
        plan=LoadPlan(incoming=PHASE, checkpoints=(Checkpoint(phase=PHASE, repeat=case.repeat),) * case.checkpoints),
        selection=setup.selection(case),
        mode=GuestMode.PARKED,
        timeout_s=TIMEOUT_S,
    )
    tally = engine._Tally(lambda _: None)
    broken = session._load_all(secondary, tally)
    if broken is not None:
        raise SystemExit(f"{case.name}: {broken.symptom}: {secondary.vm.process.stderr()}")
    return tally.loads / tally.seconds


def bare_rate(setup: Setup, case: Case, secondary: Opened) -> float:
    """Loads a second of the same bytes over a plain blocking socket."""
    devices = setup.buffers.devices(PHASE, GuestMode.PARKED, setup.selection(case), case.repeat)
    request = struct.pack(">I", REQUEST)
    load = struct.pack(">IBIQ", SEND, 0, SIZE, len(devices) + 1) + devices + b"\0"
    reply, done = struct.pack(">I", REPLY), struct.pack(">II", RECEIVED, LOADED)
    sock = secondary.primary._sock
    started = time.monotonic()
    for _ in range(case.checkpoints):
        sock.sendall(request)
        if sock.recv(4, socket.MSG_WAITALL) != reply:
            raise SystemExit(f"{case.name}: no CHECKPOINT_REPLY")
        sock.sendall(load)
        if sock.recv(8, socket.MSG_WAITALL) != done:
            raise SystemExit(f"{case.name}: not loaded")
    return case.checkpoints * case.repeat / (time.monotonic() - started)


def rounds_of(setup: Setup, case: Case, rounds: int) -> tuple[list[float], list[float]]:
    """Rates of the harness and of the bare loop; who goes first changes from round to round."""
    rates: dict[Rate, list[float]] = {harness_rate: [], bare_rate: []}
    secondary = Opened(
        setup.binary, setup.buffers.pack.machine, setup.ability.dialect, timeout_s=TIMEOUT_S, scope=ProcessScope()
    )
    with secondary:
        for number in range(-1, rounds):
            for rate in list(rates)[:: 1 if number % 2 else -1]:
                if number < 0 and rate is bare_rate:
                    continue  # the first session of all brings the incoming stream, and warms up
                value = rate(setup, case, secondary)
                rates[rate] += [value] if number >= 0 else []
    return rates[harness_rate], rates[bare_rate]


def measure(setup: Setup, rounds: int) -> bool:
    """Print the table; whether every ratio is above the limit."""
    print(f"QEMU {setup.binary.version} ({setup.binary.build}), {setup.buffers.pack.manifest.machine}, guest parked")
    print(f"{'loads a second, median of ' + str(rounds):40} {'harness':>10} {'bare loop':>10} {'ratio':>6} {'best':>6}")
    enough = True
    for case in CASES:
        if not case.whole and setup.ability.resets_before_load:
            print(f"{case.name:40} this QEMU resets before each load: one section alone does not run")
            continue
        ours, bare = rounds_of(setup, case, rounds)
        best, middle = max(ours) / max(bare), median(ours) / median(bare)
        enough = enough and middle >= LIMIT
        print(f"{case.name:40} {median(ours):10.0f} {median(bare):10.0f} {middle:6.2f} {best:6.2f}", flush=True)
    return enough


def _recorded(binary: QemuBinary, folder: Path) -> Path:
    machine = binary.machine("pc")
    if machine is None:
        raise SystemExit(f"{binary.path} has no machine pc")
    devices = [device for device in load_recipes().devices.values() if device.default]
    planned = planned_guests(machine.name, "pc", devices).guests[0]
    guest = build_guest(load_recipe())
    plan = recording_plan(binary=binary, accel="tcg", guest=guest, planned=planned, phases=(PHASE,))
    return record(plan, folder / "pack")


def main() -> int:
    """Parse, record if need be, measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--qemu", default="qemu-system-x86_64", help="QEMU to measure; the host's")
    parser.add_argument("--pack", type=Path, help="a state pack of it for pc; else one is recorded")
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    binary = probe_binary(find_binary(given.qemu))
    with tempfile.TemporaryDirectory() as folder, StatePack(given.pack or _recorded(binary, Path(folder))) as pack:
        setup = Setup(binary=binary, ability=probe_colo(binary), buffers=Buffers(pack))
        return 0 if measure(setup, given.rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
