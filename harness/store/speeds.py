# SPDX-License-Identifier: GPL-2.0-or-later
"""Speeds through the nights, each by its ratio to a control of the same run, and where they changed.

What is compared:

* a device on a machine (``7.2/pc-q35-7.2/ahci``): loads a second back to back, which are loads of its own sections
  alone; the control is the machine's ``same``, which loads the whole state, in the same phase of the same run on the
  same host. A ratio of each phase, and their median;
* a machine (``7.2/pc-q35-7.2``): loads a second of ``same``; the control is the median of the other QEMUs with a
  machine of that family in the same run and phase. Without another QEMU there is none, and nothing is marked;
* whatever else stands in ``rates``, as boot times, with the control that stands beside it.

A change point is found by ranks: of all ways to part the nights into before and after, each with at least
:data:`LEAST_NIGHTS` nights, the one whose rank sum is farthest from what chance gives, in standard deviations (the
maximum of standardised Mann-Whitney statistics). It counts when it is farther than :func:`threshold` says, which is set
so that of nights that differ by chance alone one curve in :data:`ONE_IN` has one, whatever their spread is, and when
the medians differ by :data:`LEAST_CHANGE`. It is placed where least squares part the logarithms of the ratios, and both
parts are then looked at again by themselves. So a change is told when it is some nights old, six of thirty, not at
once; and none fails a run. One that was undone among the nights that are looked at may be passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from statistics import median
from typing import NamedTuple, TypeAlias

from harness.arch import family_of
from harness.store.nights import Nights, RateSample
from harness.store.read import History, RateRow
from harness.store.write import RateKind

#: Of nights without any change, one curve in so many has a mark all the same.
ONE_IN = 1_000
#: Nights on each side of a change.
LEAST_NIGHTS = 3
#: A change by less is not told, however sure it is; a share of what was before.
LEAST_CHANGE = 0.10
#: Of so many nights the largest distance that one in :data:`ONE_IN` has by chance, by ``tests/bench/alarms.py``. What
#: stands between two is taken from the greater.
_THRESHOLDS: Mapping[int, float] = {
    12: 2.89,
    13: 3.01,
    14: 3.10,
    15: 3.19,
    16: 3.26,
    17: 3.28,
    18: 3.31,
    19: 3.39,
    20: 3.39,
    21: 3.43,
    22: 3.43,
    23: 3.45,
    24: 3.47,
    25: 3.50,
    26: 3.54,
    27: 3.55,
    28: 3.53,
    29: 3.58,
    30: 3.63,
    40: 3.71,
    60: 3.84,
    90: 3.94,
    120: 3.97,
    200: 4.11,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A speed in one run.

    :param night: place of the run among those that are shown
    :param value: in the unit of the kind
    :param ratio: to the control, None where there was none
    """

    night: int
    value: float
    ratio: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedChange:
    """From one night on a speed is another one.

    :param night: the first one behind it, as in :class:`Point`
    :param before: median of the ratios until then, and ``after`` from then on
    """

    night: int
    before: float
    after: float

    @property
    def by(self) -> float:
        """The share by which it is more, or less than none when it is less."""
        return self.after / self.before - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A speed through the nights.

    :param subject: a device on a machine, a machine, or what ``rates`` names
    :param device: empty where it is none's
    :param points: by night
    :param changes: the oldest first
    """

    kind: RateKind
    subject: str
    device: str
    points: tuple[Point, ...]
    changes: tuple[SpeedChange, ...]


def curves(nights: Nights, history: History) -> list[Curve]:
    """Every speed of the shown runs: those of machines, then those of devices, then what else was measured.

    :raises HostError: the history cannot be read
    """
    same = _same(nights)
    return [*_of_machines(nights, same), *_of_devices(nights, same), *_of_rates(nights, history.rates())]


def changes(ratios: Sequence[float]) -> list[SpeedChange]:
    """Where some ratios, in the order of time, change; ``night`` is a place among them."""
    found = _starts(ratios)
    if not found:
        return []
    starts = [0, *found, len(ratios)]
    medians = [median(ratios[first:end]) for first, end in pairwise(starts)]
    return [
        SpeedChange(night=start, before=before, after=after)
        for start, (before, after) in zip(starts[1:-1], pairwise(medians), strict=True)
        if abs(after / before - 1) >= LEAST_CHANGE
    ]


def _starts(ratios: Sequence[float]) -> list[int]:
    """Where a part begins that is not as the one before it."""
    if threshold(len(ratios)) == math.inf:
        return []
    if max(map(abs, distances(_ranks(ratios)))) < threshold(len(ratios)):
        return []
    at = _parting(ratios)
    return [*_starts(ratios[:at]), at, *(at + start for start in _starts(ratios[at:]))]


def _parting(ratios: Sequence[float]) -> int:
    """Where two parts are most even in themselves: their logarithms have the least squares about the two means."""
    logs = [math.log(ratio) for ratio in ratios]
    whole, sums = sum(logs), list(accumulate(logs))
    places = range(LEAST_NIGHTS, len(logs) - LEAST_NIGHTS + 1)
    # the squares about the means are those of all, less these
    return max(places, key=lambda at: sums[at - 1] ** 2 / at + (whole - sums[at - 1]) ** 2 / (len(logs) - at))


def distances(ranks: Sequence[float]) -> list[float]:
    """How far the rank sum of the first nights is from what chance gives, in standard deviations, for each parting
    that leaves :data:`LEAST_NIGHTS` on both sides.

    :param ranks: of the nights, in the order of time; 1 is the least, nights of one value share their mean
    """
    of = len(ranks)
    sums = list(accumulate(ranks))
    return [
        (sums[first - 1] - first * (of + 1) / 2) / math.sqrt(first * (of - first) * (of + 1) / 12)
        for first in range(LEAST_NIGHTS, of - LEAST_NIGHTS + 1)
    ]


def threshold(nights: int) -> float:
    """From which distance on so many nights have changed; infinite where they are too few, or more than were tried."""
    if nights < min(_THRESHOLDS):
        return math.inf
    return next((distance for length, distance in _THRESHOLDS.items() if length >= nights), math.inf)


def _ranks(values: Sequence[float]) -> list[float]:
    """1 is the least; equal ones share the mean of theirs."""
    places: dict[float, list[int]] = {}
    for place, value in enumerate(sorted(values), 1):
        places.setdefault(value, []).append(place)
    return [(places[value][0] + places[value][-1]) / 2 for value in values]


class _Where(NamedTuple):
    """Where and when a rate was taken."""

    run: int
    host: int
    route: str
    machine: str
    phases: str


Rates = Mapping[_Where, float]


def _where(sample: RateSample) -> _Where:
    cell = sample.cell
    return _Where(sample.run, sample.host, cell.route, cell.machine, cell.phases)


def _same(nights: Nights) -> Rates:
    """Loads a second of the whole state; devices that share a session say the same."""
    found: dict[_Where, list[float]] = {}
    for sample in nights.samples:
        if sample.cell.lane == "same":
            found.setdefault(_where(sample), []).append(sample.loads_per_second)
    return {where: median(rates) for where, rates in found.items()}


def _of_machines(nights: Nights, same: Rates) -> Iterator[Curve]:
    peers: dict[tuple[int, int, str, str], list[tuple[str, float]]] = {}
    for where, rate in same.items():
        key = (where.run, where.host, family_of(where.machine), where.phases)
        peers.setdefault(key, []).append((where.route, rate))
    found: dict[str, _Pairs] = {}
    for where, rate in same.items():
        every = peers[where.run, where.host, family_of(where.machine), where.phases]
        others = [rate for route, rate in every if route != where.route]
        pairs = found.setdefault(f"{where.route}/{where.machine}", {})
        pairs.setdefault(where.run, []).append((rate, median(others) if others else None))
    for subject, pairs in sorted(found.items()):
        yield _curve(RateKind.LOADS, subject, "", nights, pairs)


def _of_devices(nights: Nights, same: Rates) -> Iterator[Curve]:
    found: dict[tuple[str, str], _Pairs] = {}
    for sample in nights.samples:
        if sample.cell.lane == "back-to-back":
            cell = sample.cell
            pairs = found.setdefault((cell.device, f"{cell.route}/{cell.machine}/{cell.device}"), {})
            pairs.setdefault(sample.run, []).append((sample.loads_per_second, same.get(_where(sample))))
    for (device, subject), pairs in sorted(found.items()):
        yield _curve(RateKind.LOADS, subject, device, nights, pairs)


def _of_rates(nights: Nights, rates: Iterable[RateRow]) -> Iterator[Curve]:
    numbers = {run.name: run.number for run in nights.shown}
    found: dict[tuple[RateKind, str], _Pairs] = {}
    for rate in rates:
        if rate.run in numbers:
            pairs = found.setdefault((rate.kind, rate.subject), {})
            pairs.setdefault(numbers[rate.run], []).append((rate.value, rate.control or None))
    for (kind, subject), pairs in sorted(found.items()):
        yield _curve(kind, subject, "", nights, pairs)


#: Of each run, by number, rates with their controls.
_Pairs: TypeAlias = dict[int, list[tuple[float, float | None]]]


def _curve(kind: RateKind, subject: str, device: str, nights: Nights, pairs: _Pairs) -> Curve:
    points = tuple(_point(night, pairs[run.number]) for night, run in enumerate(nights.shown) if run.number in pairs)
    compared = [(point.night, point.ratio) for point in points if point.ratio is not None]
    found = changes([ratio for _, ratio in compared])
    return Curve(
        kind=kind,
        subject=subject,
        device=device,
        points=points,
        changes=tuple(replace(change, night=compared[change.night][0]) for change in found),
    )


def _point(night: int, pairs: Sequence[tuple[float, float | None]]) -> Point:
    ratios = [value / control for value, control in pairs if control]
    value = median(value for value, _ in pairs)
    return Point(night=night, value=value, ratio=median(ratios) if ratios else None)
