# SPDX-License-Identifier: GPL-2.0-or-later
"""Outside of the saved state: does a machine that was loaded show what the recorded one showed?

A register that a load forgets is in no saved field that differs. What follows from it is: a memory region that is not
mapped, a disk that is not locked, a link that is not up. The recorded machine was looked at before it was saved, the
loaded one when it is at rest after a load (:mod:`harness.qemu.look`); what differs and moves by no rule is drift.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from harness.experiments.drift import DriftRun
from harness.guests.plan import PORT, GuestPlan
from harness.oracles.oracle import Opinion
from harness.qemu.look import ABOUT, Line, Look
from harness.results.cause import Derived
from harness.results.verdict import Verdict

#: More lines than this are counted only.
MAX_TOLD = 16
_BAR = re.compile(r"([0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) BAR \d+ memory at (0x[0-9a-f]+) of (\d+)")
_REGION = re.compile(r".*: ([0-9a-f]{16})-[0-9a-f]{16} ")
#: What the command line says of a disk: that of a recorded guest may fail, and that of the loaded one is well.
_DISK = re.compile(r".* / (?:drive|rerror|werror) = ")
_PCI = re.compile(r"00:([0-9a-f]{2}\.[0-7]) ")


def judge_outside(run: DriftRun, plan: GuestPlan, rest: str) -> dict[str, Opinion]:
    """An opinion on each device for which something differs.

    :param plan: of the guest, to tell whose a line is
    :param rest: the device that owns what nobody else does
    """
    looks = [(snapshot.load, snapshot.look) for snapshot in run.snapshots if snapshot.look is not None]
    if run.recorded is None or not looks:
        return {}
    found: dict[str, dict[str, dict[Line, tuple[int, bool]]]] = {}
    for load, look in looks:
        for is_new, lines in ((False, run.recorded - look), (True, look - run.recorded)):
            for line in filter(_is_state, lines):
                owner = _owner(line, plan, run.recorded + look) or rest
                found.setdefault(owner, {}).setdefault(line[0], {}).setdefault(line, (load, is_new))
    return {
        owner: Opinion(
            verdict=Verdict.DRIFT,
            causes=tuple(_cause(about, parts[about], run.phase) for about in ABOUT if about in parts),
        )
        for owner, parts in found.items()
    }


def _cause(about: str, lines: Mapping[Line, tuple[int, bool]], phase: str) -> Derived:
    gone = sorted(text for (_, text), (_, is_new) in lines.items() if not is_new)
    new = sorted(text for (_, text), (_, is_new) in lines.items() if is_new)
    return Derived(
        about=about,
        gone=tuple(gone[:MAX_TOLD]),
        new=tuple(new[:MAX_TOLD]),
        count=len(lines),
        load=min(load for load, _ in lines.values()),
        phase=phase,
    )


def _is_state(line: Line) -> bool:
    about, text = line
    return about != "device" or _DISK.match(text) is None


def _owner(line: Line, plan: GuestPlan, looks: Look) -> str:
    """Whose a line is: of the device whose node it names, or whose place on the bus, or whose BAR it lies in."""
    about, text = line
    for placed in plan.devices:
        names = (placed.id, *placed.backends.values())
        if placed.owner and any(re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text) for name in names):
            return placed.owner
    if about == "pci":
        return _at(text, plan)
    if about == "memory" and (region := _REGION.match(text)):
        address = int(region[1], 16)
        return next((_at(where, plan) for where, start, end in _bars(looks) if start <= address < end), "")
    return ""


def _at(text: str, plan: GuestPlan) -> str:
    """The owner of what is at a place of the root bus."""
    place = _PCI.match(text)
    if place is None:
        return ""
    return next((d.owner for d in plan.devices if d.slot == place[1] and d.type != PORT), "")


def _bars(looks: Look) -> Iterator[tuple[str, int, int]]:
    for about, text in looks:
        if about == "pci" and (bar := _BAR.match(text)):
            start = int(bar[2], 16)
            yield f"{bar[1]} ", start, start + int(bar[3])
