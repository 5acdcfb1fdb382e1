# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle ``io-error``: the state of disks that failed, in a secondary whose disks are healthy, and in one whose
disks fail too.

Both secondaries are shared by all devices of a guest that have such a disk: each of them is asked for its own request.
What breaks a shared one, and each finding, is made again for the device alone, with the other devices' sections left
out of the loads.

The platform answers for what no device can help: what the next checkpoint makes of a secondary that its own disk has
stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from harness.devices.device import NOTHING, Device
from harness.experiments.ioerror import LOADS, PHASE, IoErrors, io_errors
from harness.guests.plan import guest_command
from harness.lanes.checks import (
    Experiment,
    OracleCheck,
    OracleName,
    Told,
    excluded_in,
    judge_by,
    setting_of,
)
from harness.lanes.judge import Bench, repeated
from harness.lanes.lane import Group, Lane, Reached, Wave
from harness.names import PLATFORM
from harness.oracles.ioerror import judge_io_errors
from harness.oracles.oracle import Opinion
from harness.results.cause import Undecided, Why
from harness.results.verdict import FailureClass, Verdict

#: The disk of the secondary, as the details of a cell name it.
_HEALTHY, _FAILING = "healthy disk", "failing disk"
#: How often the state is loaded behind the incoming stream, which has it already: 7.2 to 10.0 abort at a checkpoint of
#: a machine that its own disk has stopped.
_SESSIONS = {_HEALTHY: LOADS, _FAILING: 0}


def io_error_check(rows: Sequence[str]) -> OracleCheck:
    """The halted state of failed disks.

    :param rows: devices that have one, and the platform
    """
    return OracleCheck(oracle=OracleName.IO_ERROR, phases=(PHASE,), rows=tuple(rows), run=_io_error)


@dataclass(slots=True, kw_only=True)
class _Sessions:
    """Makes the secondaries of one guest, and counts their loads.

    :param devices: those with a disk that failed, by name
    :param excluded: sections that are not loaded in any
    """

    bench: Bench
    devices: Mapping[str, Device]
    excluded: frozenset[str]
    asked: int = 0
    acked: int = 0

    def run(self, disk: str, names: Sequence[str], loads: int, absent: frozenset[str] = frozenset()) -> IoErrors:
        """Load the halted state of all; the disks of some fail too, or are asked for their requests.

        :param absent: sections that come with the incoming stream only
        """
        devices = [self.devices[name] for name in names]
        plan = self.bench.buffers.pack.manifest.plan
        setting = setting_of(self.bench, PHASE, self.excluded | absent)
        seen = io_errors(
            replace(setting, absent=setting.absent & setting.excluded),
            faults={node: at for d in devices for node, at in d.failing().items()} if disk == _FAILING else {},
            asked={d.name: guest_command(d, "failed", plan) for d in devices if d.guest.failed != NOTHING}
            if disk == _HEALTHY
            else {},
            loads=loads,
        )
        self.asked += seen.loads_asked
        self.acked += seen.loads_acked
        return seen

    def alone(self, disk: str, name: str, loads: int) -> Opinion:
        """What one device comes to without the others."""
        others = {other for other in self.devices if other != name}
        pack = self.bench.buffers.pack
        absent = frozenset(label for other in others for label in pack.sections_of(other))
        return self.judged(self.run(disk, [name], loads, absent), name)

    def judged(self, seen: IoErrors, name: str) -> Opinion:
        """What a session says of one device."""
        disks = self.devices[name].failing() if seen.faults else ()
        return judge_io_errors(seen, disks, name)


def _io_error(bench: Bench, check: OracleCheck) -> Experiment:
    failing = {device.name: device for device in bench.devices if device.faults and device.name in check.rows}
    # without its own sections a device has no request to send again
    own = {label for name in failing for label in bench.buffers.pack.sections_of(name)}
    sessions = _Sessions(bench=bench, devices=failing, excluded=excluded_in(bench, check) - own)
    told: dict[str, list[Told]] = {row: [] for row in check.rows}
    details = {}
    for disk, loads in _SESSIONS.items() if failing else ():
        shared = sessions.run(disk, list(failing), loads)
        details[disk] = judge_io_errors(shared).details
        for name, said in _told(sessions, shared, disk).items():
            told[name].append(said)
    if PLATFORM in told:
        well = [name for name in failing if all(said.verdict is Verdict.OK for said in told[name])]
        told[PLATFORM].append(_platform(sessions, well))
    return Experiment(
        told=told,
        loads_asked=sessions.asked,
        loads_acked=sessions.acked,
        excluded=sessions.excluded,
        own_loaded=True,
        details=details,
    )


def _told(sessions: _Sessions, shared: IoErrors, disk: str) -> dict[str, Told]:
    """What a shared session says of each device, and the device alone where that is not well."""
    first = {name: sessions.judged(shared, name) for name in sessions.devices}
    again = {
        name: sessions.alone(disk, name, shared.loads_asked)
        for name, opinion in first.items()
        if opinion.verdict.is_finding
    }
    broke = shared.broken is not None or shared.exit is not None
    guilty = any(opinion.verdict.is_finding for opinion in again.values())
    told = {}
    for name, opinion in first.items():
        if name not in again:
            told[name] = replace(
                Told.of(opinion), log=shared.log if opinion.verdict is not Verdict.OK else "", details={}
            )
        elif broke and guilty and again[name].verdict is Verdict.OK:
            # another device's: what this one's state does was seen alone
            told[name] = replace(Told.of(again[name]), details={})
        else:
            told[name] = _finding(sessions, opinion, again[name], disk, name, shared.log)
    return told


def _finding(sessions: _Sessions, opinion: Opinion, again: Opinion, disk: str, name: str, log: str) -> Told:
    verdict, repeats = repeated(opinion.verdict, [again.verdict])
    found = None
    if repeats.seen == repeats.of:
        # the incoming stream alone, which is the first load into a new process
        once = sessions.alone(disk, name, 0).verdict
        known = {Verdict.OK: FailureClass.NOT_REENTRANT, opinion.verdict: FailureClass.FAILS}
        found = known.get(once)
    worse = again if again.verdict is opinion.verdict else opinion
    return replace(Told.of(worse), verdict=verdict, repeats=repeats, failure_class=found, log=log)


def _platform(sessions: _Sessions, well: Sequence[str]) -> Told:
    """The next checkpoints of a secondary that its own disk has stopped.

    :param well: devices whose requests are sent again: the disk is that of one of them
    """
    if not well:
        return Told(verdict=Verdict.HARNESS_ERROR, causes=(Undecided(why=Why.NOT_JUDGED),))
    opinion = sessions.alone(_FAILING, well[0], LOADS)
    if not opinion.verdict.is_finding:
        return Told.of(opinion)
    verdict, repeats = repeated(opinion.verdict, [sessions.alone(_FAILING, well[0], LOADS).verdict])
    return replace(Told.of(opinion), verdict=verdict, repeats=repeats)


def _with_faults(_phases: Sequence[str], reached: Reached, guest: Sequence[Device]) -> list[Group]:
    here = [row for row, own in reached.items() if PHASE in own]
    failing = {device.name for device in guest if device.faults}
    rows = tuple(row for row in here if row in failing)
    rest = tuple(row for row in here if row == PLATFORM)
    return [((PHASE,), (*rows, *rest))] if rows else []


LANES = (
    Lane(
        name=str(OracleName.IO_ERROR),
        wave=Wave.LOOK,
        seconds=5.0,
        groups=_with_faults,
        judge=judge_by(lambda request, _: io_error_check(request.devices)),
    ),
)
