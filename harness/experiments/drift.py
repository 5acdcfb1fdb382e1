# SPDX-License-Identifier: GPL-2.0-or-later
"""The drift experiment: what a secondary saves after one load, half-way, and after n loads of one recording.

The guest is parked, so whatever moves in its state was moved by the loads, or by time. ``xen-save-devices-state``
(``qmp_xen_save_devices_state`` in ``migration/savevm.c``) writes the device sections of a stopped machine; the
next checkpoint starts it again. Where a build resets the machine before each buffer, only loads within one buffer
meet a used device: there the state stands n times in one buffer instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from harness.colo.messages import Step
from harness.colo.primary import ChannelBroken
from harness.colo.symptom import Doing
from harness.engines.evidence import DEATH_GRACE_S, Break, break_at, symptom_of
from harness.engines.reset import reset_machine
from harness.engines.secondary import Secondary
from harness.engines.setting import Setting
from harness.errors import QemuError, StreamError
from harness.qemu.look import Look, look_at
from harness.qemu.vm import Vm
from harness.state.transforms import GuestMode, encode, label_of, sections_for, without
from harness.stream.model import Section
from harness.stream.reader import read_foreign
from harness.stream.vmdesc import VmDesc

#: Loads after which the state is compared; each costs 2 to 4 ms.
DRIFT_LOADS = 50
#: The machine runs this long between a load and the ``stop``. Timers that the load armed for "now" (virtio-net's
#: announcement), and a guest's next tick, fire in this time; without it they fire before one save and not another.
SETTLE_S = 0.01
#: And this long, without any load, before the last save: what moves then moves by time.
IDLE_S = 0.03

#: A section as it shall stand in load k (1 is the first), from the recorded one.
Change = Callable[[Section, int], Section]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The device state that QEMU saved after ``load`` loads (1 is the first), by section label.

    :param look: what it showed besides; None where that was not asked
    """

    load: int
    sections: Mapping[str, Section]
    look: Look | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftRun:
    """What one session brought.

    :param sent: what was loaded first, by section label: the recording with its CPUs parked
    :param snapshots: in order of their loads: after the first, half-way, and the last; fewer when it broke
    :param loads_acked: loads into a used device that were acknowledged, the first included
    :param recorded: what the recorded machine showed besides its state; None where nobody looked
    :param idle: saved once more after the last load, when time had passed and nothing had been loaded
    :param excluded: labels of sections that came with the incoming stream only
    :param back_to_back: the loads stood in one buffer, because the build resets before each buffer
    """

    machine: str
    phase: str
    sent: Mapping[str, Section]
    snapshots: tuple[Snapshot, ...]
    loads_asked: int
    loads_acked: int
    seconds: float
    broken: Break | None
    recorded: Look | None = None
    idle: Snapshot | None = None
    excluded: frozenset[str] = frozenset()
    back_to_back: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftExperiment(Setting):
    """Loads one phase n times into one parked secondary and reads its state back.

    :param loads: 2 or more
    :param idle_s: how long the parked machine runs before the save that no load comes before
    :param change: makes a state wrong on purpose: the control of the oracle
    :param reset_first: each load stands in a checkpoint of its own, behind a reset of the machine
    """

    loads: int = DRIFT_LOADS
    idle_s: float = IDLE_S
    change: Change | None = None
    reset_first: bool = False

    @property
    def in_one_buffer(self) -> bool:
        """The loads before a save stand in one buffer: the build resets before each, and would reset between them."""
        return self.resets and not self.reset_first

    def run(self) -> DriftRun:
        """Load and save; a secondary that breaks is a result.

        :raises QemuError: the secondary did not start, or refused to save its state
        :raises StreamError: what it saved is no device state
        :raises Stopped: the run was told to stop
        """
        started = time.monotonic()
        recording = self.recording
        parked = sections_for(recording, GuestMode.PARKED)
        session = _Session(self, without(parked, self.excluded), recording.vmdesc)
        with self.secondary(replace(self.buffers.machine, resettable=self.reset_first)) as secondary:
            broken = session.run(secondary)
        return DriftRun(
            machine=self.buffers.machine.name,
            phase=self.phase,
            sent=by_label(session.sent(1)),
            snapshots=tuple(session.snapshots),
            recorded=self.buffers.pack.look(self.phase),
            loads_asked=self.loads,
            loads_acked=session.acked,
            seconds=time.monotonic() - started,
            broken=broken,
            idle=session.idle,
            excluded=self.excluded,
            back_to_back=self.in_one_buffer,
        )


def saved_after(loads: int) -> tuple[int, ...]:
    """After which loads the state is saved: the first, the middle one, the last; each once."""
    return tuple(sorted({1, (loads + 1) // 2, loads}))


class _Session:
    """The loads of one run, and what came of them."""

    def __init__(self, owner: DriftExperiment, sections: list[Section], vmdesc: VmDesc) -> None:
        self._sections = sections
        self.snapshots: list[Snapshot] = []
        self.idle: Snapshot | None = None
        self.acked = 0
        self._owner = owner
        self._vmdesc = vmdesc
        self._change = owner.change or (lambda section, _: section)

    def run(self, secondary: Secondary) -> Break | None:
        try:
            self._owner.begin(secondary, GuestMode.PARKED)
            for first, last in self._buffers():
                self._owner.scope.check()
                if self._owner.reset_first and not self._owner.resets:
                    reset_machine(secondary.vm, self._owner.timeout_s)
                secondary.primary.checkpoint(b"".join(self._state(load) for load in range(first, last + 1)))
                self.acked = last
                if last in saved_after(self._owner.loads):
                    time.sleep(SETTLE_S)
                    self.snapshots.append(replace(self._saved(secondary.vm), look=look_at(secondary.vm)))
            self.idle = self._idle(secondary.vm)
        except ChannelBroken as error:
            return self._owner.broken(error, self.acked)
        except QemuError as error:
            if not secondary.vm.ended(DEATH_GRACE_S):
                raise
            died = ChannelBroken(Step.LOAD, "closed", symptom_of(error).during(Doing.SAVING))
            return break_at(died, self.acked, self._owner.phase)
        return None

    def sent(self, load: int) -> list[Section]:
        """What stands in a load."""
        return [self._change(section, load) for section in self._sections]

    def _buffers(self) -> Iterator[tuple[int, int]]:
        """First and last load of each buffer; behind a reset the count starts anew."""
        if self._owner.in_one_buffer:
            return ((1, last) for last in saved_after(self._owner.loads))
        return ((load, load) for load in range(1, self._owner.loads + 1))

    def _state(self, load: int) -> bytes:
        return encode(self.sent(load))

    def _saved(self, vm: Vm) -> Snapshot:
        saved = by_label(reversed(saved_sections(vm, self._vmdesc)))
        sent = by_label(self._sections)
        sections = {name: decoded_as(sent.get(name), saved[name]) for name in saved}
        return Snapshot(load=self.acked, sections=sections)

    def _idle(self, vm: Vm) -> Snapshot:
        vm.qmp("cont")
        self._owner.scope.wait(self._owner.idle_s)
        return self._saved(vm)


def by_label(sections: Iterable[Section]) -> dict[str, Section]:
    """Sections by the name that reports give them; the last of those that share one.

    ``find_se`` of ``migration/savevm.c`` loads all of these into the first that saves itself under the name: what was
    sent last is what the first of a saved state must be.
    """
    return {label_of(section): section for section in sections}


def decoded_as(sent: Section | None, saved: Section) -> Section:
    """What was saved, taken apart by the codec of what was sent: the recipe of its device named it."""
    if sent is None or sent.desc is None or saved.desc is None:
        return saved
    return replace(saved, desc=replace(saved.desc, decoder=sent.desc.decoder))


def saved_sections(vm: Vm, vmdesc: VmDesc) -> list[Section]:
    """Stop the machine and let QEMU write its device state. The next checkpoint starts it again.

    :raises QemuError: QEMU refused, or died
    :raises StreamError: what it wrote is no device state
    """
    path = vm.workdir / "drift.state"
    vm.qmp("stop")
    # live: else QEMU inactivates the disks of a machine that is stopped already, which cannot be done twice
    vm.qmp("xen-save-devices-state", filename=str(path), live=False)
    data = path.read_bytes()
    path.unlink()
    return split_saved(data, vmdesc)


def split_saved(data: bytes, vmdesc: VmDesc) -> list[Section]:
    """Cut a saved device state into sections, also where one is longer or shorter than it was when recorded.

    :param data: magic, version, FULL sections, EOF
    :param vmdesc: says how long each section was; where no footer stands there, it is looked for
    :raises StreamError: no such state, or it is cut
    """
    stream = read_foreign(data, vmdesc=vmdesc)
    if stream.tail:
        raise StreamError(stream.size, "a saved device state does not end with EOF")
    return stream.devices
