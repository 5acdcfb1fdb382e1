# SPDX-License-Identifier: GPL-2.0-or-later
"""What a lane is. A lane is one way of loading, or of looking: a migration, a schedule, an oracle.

One file adds one: it defines a :class:`Lane` and names it in :data:`harness.lanes.registry.LANES`. A lane says how
its phases and devices are split into requests, when in a run they come, and how a request is judged. It keeps
nothing between two requests: what it has to know of earlier ones stands on the bench.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from harness.devices.device import Device
from harness.lanes.judge import Bench, OnLoads, RunControls
from harness.results.document import Cell
from harness.state.transforms import GuestMode

#: Phases and devices of one request.
Group = tuple[tuple[str, ...], tuple[str, ...]]
#: Device to the phases that it has reached, in their order.
Reached = Mapping[str, Sequence[str]]


class Wave(IntEnum):
    """When a lane comes: behind the waves before it, in the phases that it loads; what those broke on is left out."""

    PRECOPY = 0
    POSTCOPY = 1
    #: The whole state is loaded.
    WHOLE = 2
    #: Sections of one device are loaded alone, or more often than the rest.
    OWN = 3
    #: Experiments, over what is left.
    LOOK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a lane is asked for.

    :param lane: its name
    :param machine: versioned machine type
    :param loads: of each cell, where the lane counts them
    """

    lane: str
    machine: str
    phases: tuple[str, ...]
    devices: tuple[str, ...]
    guest_mode: GuestMode = GuestMode.RUNNING
    loads: int = 0


#: Judges a request; the cells come as they are judged, several for a device whose sections are to blame.
Judge = Callable[[Bench, Request, OnLoads, RunControls | None], Iterator[Cell]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """A way of loading or looking.

    :param wave: when it comes; see :meth:`wave_of`
    :param waits: most of its time it waits, so that it is carried out beside those that take a core
    :param seconds: that a request takes for each of its devices, measured on two cores without KVM, with 100 loads
        where it has a schedule; asked only by who spreads requests over hosts
    :param groups: the requests that phases and devices are split into; told the phases of the recording, those that
        each device to be judged has reached, and all devices of the guest
    """

    name: str
    wave: Wave
    groups: Callable[[Sequence[str], Reached, Sequence[Device]], Iterable[Group]]
    judge: Judge
    waits: bool = False
    seconds: float = 1.0

    def wave_of(self, mode: GuestMode) -> Wave:
        """With a parked guest a device's own sections are loaded alone, whatever the lane does else."""
        return Wave.OWN if self.wave is Wave.WHOLE and mode is GuestMode.PARKED else self.wave


def all_in_one(phases: Sequence[str], reached: Reached, _guest: Sequence[Device]) -> list[Group]:
    """One request over all phases, of the devices that have reached any."""
    devices = tuple(device for device, own in reached.items() if own)
    return [(tuple(phases), devices)] if devices else []


def by_phase(phases: Sequence[str], reached: Reached, _guest: Sequence[Device]) -> list[Group]:
    """A request for each phase, of the devices that have reached it."""
    groups = [((phase,), tuple(device for device, own in reached.items() if phase in own)) for phase in phases]
    return [group for group in groups if group[1]]
