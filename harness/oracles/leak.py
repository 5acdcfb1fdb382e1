# SPDX-License-Identifier: GPL-2.0-or-later
"""From looks at a process to a verdict on leaks: robust slopes with their uncertainty. Pure.

A section leaks when the lower end of the interval of its slope lies above the noise floor of the run, in two processes,
and is no small part of the slope: growth that may as well be a thousandth of the figure is not told as one.
Its figure is that of one load in each checkpoint, which is what COLO does. Where only loads that stand in one buffer
leak, the figure is theirs, and the leak is not COLO's.

One definition holds wherever a leak is spoken of: bytes of the heap in use (of all private memory, by the page, where
the heap cannot be walked) for each load, less what a checkpoint without the section costs, with Sen's 99 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from harness.experiments.leak import FRAMEWORK, LeakBudget, LeakResult, LeakRun, Sample, Series
from harness.oracles import load
from harness.oracles.oracle import Opinion
from harness.results.cause import During, Figure, Leaked, LoadedBy, Resource, located
from harness.results.verdict import Verdict

#: Bytes a load. The smallest allocation takes 32 bytes of heap, so one that every second load loses is seen.
MIN_LEAK_BYTES = 16.0
#: Descriptors or threads a load: one in a thousand loads would end a secondary within a day.
MIN_LEAK_COUNT = 0.001
#: Of a growth that is sure the lower end of the interval is at least this part.
SURE_PART = 0.25
#: Two-sided 99 % of the normal distribution.
_Z = 2.5758
#: Loads in a batch of one load a checkpoint, for the noise of one.
_ONCE_BATCH = LeakBudget().once_checkpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class Slope:
    """Growth for each load (or checkpoint) with its 99 % interval."""

    estimate: float
    low: float
    high: float

    @property
    def is_sure(self) -> bool:
        """The interval says how much it is, and not only that it grows."""
        return self.low >= SURE_PART * self.estimate

    def as_json(self) -> dict[str, float]:
        """For reports."""
        return {"estimate": round(self.estimate, 4), "low": round(self.low, 4), "high": round(self.high, 4)}

    def less(self, other: Slope) -> Slope:
        """This growth without another, the uncertainties added."""
        return Slope(estimate=self.estimate - other.estimate, low=self.low - other.high, high=self.high - other.low)

    def over(self, count: float) -> Slope:
        """The same for each of ``count``."""
        return Slope(estimate=self.estimate / count, low=self.low / count, high=self.high / count)


NO_GROWTH = Slope(estimate=0.0, low=0.0, high=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """What one section adds for each load, in one run.

    :param memory: bytes of the heap, exactly, the framework's own taken off; all private memory, by the page, where
        the heap could not be walked
    :param outside: bytes by the page, private and not of the heap
    :param private: bytes by the page, of all private memory
    :param floor_bytes: what would not be called a leak in this run
    :param state_bytes: how much the saved state grew, when it grew at every look; else 0
    """

    memory: Slope
    outside: Slope
    private: Slope
    descriptors: Slope
    threads: Slope
    state_bytes: int
    floor_bytes: float
    loads: int

    @property
    def leaks(self) -> bool:
        """Whether this run alone says that it leaks."""
        return bool(self.reasons)

    @property
    def reasons(self) -> tuple[str, ...]:
        """What grows: ``memory``, ``pages``, ``descriptors``, ``threads``, ``state``."""
        found = {
            "memory": self.memory.low > self.floor_bytes,
            "pages": self.outside.low > self.floor_bytes,
            "descriptors": self.descriptors.low > MIN_LEAK_COUNT,
            "threads": self.threads.low > MIN_LEAK_COUNT,
            "state": self.state_bytes > 0,
        }
        return tuple(name for name, grows in found.items() if grows)


def theil_sen(points: Sequence[tuple[float, float]]) -> Slope:
    """Median of the slopes between all pairs of points, with Sen's 99 % interval.

    The interval is that of Kendall's statistic (Sen 1968), its two ranks rounded outwards.

    :param points: x, ascending, and y
    :raises ValueError: fewer than three points, or two with the same x
    """
    if len(points) < 3:
        raise ValueError(f"{len(points)} points have no slope with an interval")
    slopes = sorted(
        (right[1] - left[1]) / (right[0] - left[0])
        for index, left in enumerate(points)
        for right in points[index + 1 :]
        if right[0] > left[0] or _same(left, right)
    )
    n, pairs = len(points), len(slopes)
    spread = _Z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(0, math.floor((pairs - spread) / 2) - 1)
    high = min(pairs - 1, math.ceil((pairs + spread) / 2))
    middle = (slopes[(pairs - 1) // 2] + slopes[pairs // 2]) / 2
    return Slope(estimate=middle, low=slopes[low], high=slopes[high])


def _same(left: tuple[float, float], right: tuple[float, float]) -> bool:
    raise ValueError(f"points {left} and {right} are not in ascending order")


def framework_growth(run: LeakRun) -> Slope:
    """Bytes that a checkpoint costs, whatever it loads."""
    return checkpoint_growth(run.framework)


def checkpoint_growth(series: Series | None) -> Slope:
    """Bytes that a checkpoint of a series adds."""
    if series is None:
        return NO_GROWTH
    return theil_sen([(s.checkpoints, _memory(series)(s)) for s in series.samples])


def noise_bytes(run: LeakRun) -> float:
    """Noise of the run: what the control seems to gain or lose in a batch of loads, in bytes."""
    if run.control is None:
        return 0.0
    # as it was seen: the framework's share is not noise of a batch
    slope = _per_load(run.control, _memory(run.control))
    return max(abs(slope.low), abs(slope.high)) * _batch_loads(run.control)


def growth(run: LeakRun, series: Series) -> Growth:
    """What a section adds for each load."""
    return Growth(
        memory=_own_memory(run, series),
        outside=_per_load(series, lambda sample: sample.outside_bytes) if series.exact else NO_GROWTH,
        private=_per_load(series, lambda sample: sample.private_bytes),
        descriptors=_per_load(series, lambda sample: sample.descriptors),
        threads=_per_load(series, lambda sample: sample.threads),
        state_bytes=_state_growth(series.state_bytes),
        floor_bytes=max(MIN_LEAK_BYTES, noise_bytes(run) / _batch_loads(series)),
        loads=series.loads,
    )


class Suspects:
    """What has to be measured again: see :class:`harness.experiments.leak.Suspects`."""

    def back_to_back(self, run: LeakRun) -> frozenset[str]:
        """Sections that grow back to back."""
        return frozenset(series.label for series in run.sections if growth(run, series).leaks)

    def once(self, run: LeakRun) -> frozenset[str]:
        """Sections that grow with one load in each checkpoint."""
        return frozenset(series.label for series in run.once if growth(run, series).leaks)

    def whole(self, run: LeakRun) -> bool:
        """The whole state grows, by more than the sections that were loaded once in each checkpoint."""
        left = whole_growth(run)
        for series in run.once if left is not None else ():
            assert left is not None
            left = left.less(growth(run, series).memory)
        return left is not None and left.low > max(MIN_LEAK_BYTES, noise_bytes(run) / _ONCE_BATCH)


def whole_growth(run: LeakRun) -> Slope | None:
    """Bytes that a checkpoint with the whole state costs, less what one without anything under test does.

    Where a build resets the machine the framework's own series is the whole state; the reset's own share is taken off
    where it was measured.
    """
    if run.whole is not None:
        return _own_memory(run, run.whole)
    if run.framework is None or run.framework.repeat or not run.resets:
        return None
    return framework_growth(run).less(checkpoint_growth(run.plain))


def judge_leaks(result: LeakResult) -> dict[str, Opinion]:
    """A judgement for every section that was loaded; none for those that were not come to.

    A session that broke before any section was loaded alone is in ``result.broken`` and says nothing of a section.
    """
    labels = dict.fromkeys(s.label for run in result.runs for s in (*run.sections, *run.once))
    judged = {label: _judge(_Looks.of(result, label)) for label in labels}
    rest = _unexplained(result)
    if rest is not None:
        judged[FRAMEWORK] = rest
    for run in result.runs:
        for broken in run.breaks:
            if broken.label == FRAMEWORK:
                continue
            found = load.judge(broken.evidence)
            causes = () if found.cause is None else (located(found.cause, during=During.LEAKS),)
            judged[broken.label] = Opinion(verdict=found.verdict, causes=causes, log=found.log)
    return judged


def run_details(run: LeakRun) -> dict[str, Any]:
    """What holds for a whole run: the noise floor, the framework's own growth, what was loaded."""
    control, whole = run.control, whole_growth(run)
    return {
        "framework_bytes_per_checkpoint": framework_growth(run).as_json(),
        "whole_state_bytes_per_checkpoint": whole.as_json() if whole else None,
        "control": control.label if control else None,
        "control_bytes_per_load": _own_memory(run, control).as_json() if control else None,
        "noise_floor_bytes_per_load": round(_floor(run), 4),
        "loads": run.loads_acked,
        "seconds": round(run.seconds, 3),
    }


def _floor(run: LeakRun) -> float:
    """Noise floor of a run: half the interval that nine in ten of its sections stay within."""
    widths = sorted((g.memory.high - g.memory.low) / 2 for g in (growth(run, series) for series in run.sections))
    return widths[(len(widths) * 9 - 1) // 10] if widths else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """A series with the run that it is of."""

    run: LeakRun
    series: Series
    growth: Growth


@dataclass(frozen=True, slots=True, kw_only=True)
class _Looks:
    """All that was measured of one section, in the order of the processes."""

    together: tuple[_Look, ...]
    once: tuple[_Look, ...]

    @classmethod
    def of(cls, result: LeakResult, label: str) -> _Looks:
        def found(ways: Callable[[LeakRun], tuple[Series, ...]]) -> tuple[_Look, ...]:
            return tuple(
                _Look(run=run, series=series, growth=growth(run, series))
                for run in result.runs
                for series in ways(run)
                if series.label == label
            )

        return cls(together=found(lambda run: run.sections), once=found(lambda run: run.once))


def _common(looks: Sequence[_Look]) -> tuple[str, ...]:
    """What grew in two processes, and in all that looked, and for sure in the last, whose figure is told."""
    if not looks[1:]:
        return ()
    grown = [name for name in looks[0].growth.reasons if all(name in look.growth.reasons for look in looks)]
    return tuple(name for name in grown if _slope_of(Resource(name), looks[-1].growth).is_sure)


def _judge(looks: _Looks) -> Opinion:
    of_colo, of_buffers = _common(looks.once), _common(looks.together)
    chosen, others = (looks.once, looks.together) if of_colo else (looks.together or looks.once, looks.once)
    best = chosen[-1]
    details = _details(best)
    for name, each in (("one_per_checkpoint", looks.once), ("back_to_back", looks.together)):
        if each:
            details[name] = {"memory_bytes_per_load": each[-1].growth.memory.as_json(), "loads": each[-1].growth.loads}
    details["confirmed"] = bool(of_colo or of_buffers)
    if of_colo or of_buffers:
        way = LoadedBy.CHECKPOINT if of_colo else LoadedBy.BACK_TO_BACK
        other = others[-1] if others else None
        causes = tuple(_leaked(Resource(name), best, way, other) for name in of_colo or of_buffers)
        return Opinion(verdict=Verdict.LEAK, causes=causes, details=details)
    details["unconfirmed"] = list(dict.fromkeys(name for look in chosen for name in look.growth.reasons))
    return Opinion(verdict=Verdict.OK, details=details)


def _unexplained(result: LeakResult) -> Opinion | None:
    """The whole state grows in two processes, and no section that is loaded alone does."""
    if result.second is None or not all(map(Suspects().whole, (result.first, result.second))):
        return None
    found, series = whole_growth(result.second), result.second.whole or result.second.framework
    assert found is not None  # it was compared
    assert series is not None
    if not found.is_sure:
        return None
    loads = series.samples[-1].checkpoints
    leak = Leaked(
        section=FRAMEWORK,
        resource=Resource.MEMORY,
        per_load=found.estimate,
        low=found.low,
        high=found.high,
        unit="bytes",
        loads=loads,
        chunks=_chunks(series, loads),
    )
    return Opinion(verdict=Verdict.LEAK, causes=(leak,), details={"memory_bytes_per_load": found.as_json()})


def _leaked(resource: Resource, best: _Look, way: LoadedBy, other: _Look | None) -> Leaked:
    slope = _slope_of(resource, best.growth)
    beside = None if other is None else _slope_of(resource, other.growth)
    units = {Resource.DESCRIPTORS: "descriptors", Resource.THREADS: "threads"}
    return Leaked(
        section=best.series.label,
        resource=resource,
        per_load=slope.estimate,
        low=slope.low,
        high=slope.high,
        unit=units.get(resource, "bytes"),
        loads=best.growth.loads,
        way=way,
        other=None
        if beside is None or other is None
        else Figure(per_load=beside.estimate, low=beside.low, high=beside.high, loads=other.growth.loads),
        chunks=_chunks(best.series, best.series.loads) if resource is Resource.MEMORY else (),
    )


def _slope_of(resource: Resource, grown: Growth) -> Slope:
    each = grown.state_bytes / max(1, grown.loads)
    return {
        Resource.MEMORY: grown.memory,
        Resource.PAGES: grown.outside,
        Resource.DESCRIPTORS: grown.descriptors,
        Resource.THREADS: grown.threads,
        Resource.STATE: Slope(estimate=each, low=each, high=each),
    }[resource]


def _chunks(series: Series, loads: int) -> tuple[tuple[int, float], ...]:
    return tuple((size, number / loads) for size, number in series.chunks[:3]) if loads else ()


def _details(look: _Look) -> dict[str, Any]:
    run, series, found = look.run, look.series, look.growth
    return {
        "memory_bytes_per_load": found.memory.as_json(),
        "outside_bytes_per_load": found.outside.as_json(),
        "private_bytes_per_load": found.private.as_json(),
        "descriptors_per_load": found.descriptors.as_json(),
        "threads_per_load": found.threads.as_json(),
        "state_bytes": list(series.state_bytes),
        "floor_bytes_per_load": round(found.floor_bytes, 4),
        "loads": found.loads,
        "loads_per_checkpoint": series.repeat,
        "measured": "bytes" if series.exact else "pages",
        "chunks": [{"bytes": size, "per_load": round(n / max(1, series.loads), 4)} for size, n in series.chunks],
        "run": run_details(run),
    }


def _memory(series: Series) -> Callable[[Sample], float]:
    """Memory of a sample: by the byte where all samples have it, else by the page."""
    if series.exact:
        return lambda sample: sample.heap_bytes or 0
    return lambda sample: sample.private_bytes


def _own_memory(run: LeakRun, series: Series) -> Slope:
    # a checkpoint's own growth is shared by the loads that it holds
    base = run.plain if series.once and run.resets else run.framework
    return _per_load(series, _memory(series)).less(checkpoint_growth(base).over(series.repeat))


def _per_load(series: Series, value: Callable[[Sample], float]) -> Slope:
    return theil_sen([(sample.loads, value(sample)) for sample in series.samples])


def _batch_loads(series: Series) -> float:
    return series.loads / (len(series.samples) - 1)


def _state_growth(sizes: tuple[int, ...]) -> int:
    grows = len(sizes) > 2 and all(after > before for before, after in pairwise(sizes))
    return sizes[-1] - sizes[0] if grows else 0
