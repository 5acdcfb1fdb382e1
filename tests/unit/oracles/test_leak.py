# SPDX-License-Identifier: GPL-2.0-or-later
"""Slopes, floors and verdicts of the leak oracle, on hand-made numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from made_cells import symptom, words

from harness.colo.messages import Step
from harness.engines.evidence import Break, Evidence
from harness.experiments.leak import (
    BrokenSection,
    LeakBudget,
    LeakResult,
    LeakRun,
    Sample,
    Series,
    _Meter,
    _most_checkpoints,
)
from harness.oracles.leak import (
    MIN_LEAK_BYTES,
    Suspects,
    framework_growth,
    growth,
    judge_leaks,
    run_details,
    theil_sen,
    whole_growth,
)
from harness.qemu.process import Exit
from harness.results.cause import Figure, Leaked, LoadedBy
from harness.results.verdict import Verdict

Track = Callable[[int], float]
BASE = 11_000_000
SUSPECTS = Suspects()
REPEAT = 40


def flat(_: int) -> float:
    return 0.0


def jitter(number: int) -> float:
    return (0, 16, 0, -16, 16, 0, 16, -16)[number % 8]


def series(
    label: str,
    heap: Track = flat,
    *,
    batch: int = 400,
    repeat: int = REPEAT,
    exact: bool = True,
    outside: Track = flat,
    private: Track = flat,
    descriptors: Track = flat,
    threads: Track = flat,
    state: tuple[int, ...] = (109_780, 109_780, 109_780),
    chunks: tuple[tuple[int, int], ...] = (),
) -> Series:
    """Eight looks; the tracks are given the number of the look."""
    checkpoints = batch // repeat if repeat else 80
    return Series(
        label=label,
        repeat=repeat,
        samples=tuple(
            Sample(
                loads=number * batch if repeat else 0,
                checkpoints=number * checkpoints,
                private_bytes=3 * BASE + int(private(number)),
                heap_bytes=BASE + int(heap(number)) if exact else None,
                outside_bytes=BASE + int(outside(number)),
                descriptors=21 + int(descriptors(number)),
                threads=5 + int(threads(number)),
            )
            for number in range(8)
        ),
        state_bytes=state,
        chunks=chunks,
    )


def run_of(*sections: Series, framework: Track = flat, control: Track = flat) -> LeakRun:
    return LeakRun(
        framework=series("", framework, repeat=0, private=framework),
        control=series("port92", control, private=control),
        sections=sections,
    )


def once(label: str, bytes_per_load: float) -> Series:
    """A section that is loaded once in each of 40 checkpoints between two looks."""
    return replace(series(label, lambda n: n * 40 * bytes_per_load, batch=40, repeat=1), once=True)


def leaking(label: str = "dev", bytes_per_load: int = 96, **more: object) -> Series:
    return series(label, lambda n: n * 400 * bytes_per_load + jitter(n), chunks=((bytes_per_load, 2800),))


# --- The slope ---------------------------------------------------------------------------------------------


def test_a_straight_line_has_its_slope_and_no_uncertainty() -> None:
    slope = theil_sen([(x, 3 * x + 7) for x in range(8)])
    assert (slope.estimate, slope.low, slope.high) == (3, 3, 3)


def test_one_outlier_does_not_move_the_slope() -> None:
    points = [(float(x), 5.0 * x) for x in range(9)]
    points[8] = (8.0, 1_000_000.0)
    slope = theil_sen(points)
    assert slope.estimate == 5
    assert slope.low == 5


def test_the_interval_is_that_of_sen() -> None:
    # 8 points have 28 slopes; at 99 % C is 20.8, so 3.6 slopes are left out at either end, rounded outwards
    points = [(float(x), float(x * x)) for x in range(8)]
    slopes = sorted(float(a + b) for a in range(8) for b in range(a + 1, 8))
    slope = theil_sen(points)
    assert (slope.low, slope.high) == (slopes[2], slopes[25])
    assert slope.estimate == 7


def test_noise_around_nothing_has_nothing_in_its_interval() -> None:
    slope = theil_sen([(x * 400.0, jitter(x)) for x in range(8)])
    assert slope.low <= 0 <= slope.high


def test_two_points_have_no_slope() -> None:
    with pytest.raises(ValueError, match="2 points"):
        theil_sen([(0, 0), (1, 1)])


def test_loads_that_do_not_rise_have_no_slope() -> None:
    with pytest.raises(ValueError, match="ascending"):
        theil_sen([(0, 0), (1, 1), (1, 2)])


# --- Growth ------------------------------------------------------------------------------------------------


def test_bytes_for_each_load() -> None:
    dev = leaking()
    found = growth(run_of(dev), dev)
    assert found.memory.low < 96 < found.memory.high
    assert found.memory.estimate == pytest.approx(96, abs=0.1)
    assert found.reasons == ("memory",)
    assert found.loads == 2800


def test_the_frameworks_growth_is_not_blamed_on_a_section() -> None:
    def framework(number: int) -> float:
        return number * 80 * 4000

    # 4,000 bytes a checkpoint are 100 a load
    dev = series("dev", lambda n: n * 10 * 4000)
    run = run_of(dev, framework=framework)
    assert framework_growth(run).estimate == 4000
    assert growth(run, dev).memory.estimate == 0
    assert SUSPECTS.back_to_back(run) == frozenset()
    assert SUSPECTS.back_to_back(run_of(dev)) == {"dev"}


def test_an_uncertain_framework_makes_sections_uncertain() -> None:
    def framework(number: int) -> float:
        return 0 if number < 4 else 80 * 40_000.0

    dev = leaking()
    run = run_of(dev, framework=framework)
    assert growth(run, dev).memory.low < 0
    assert SUSPECTS.back_to_back(run) == frozenset()


def test_what_the_control_gains_is_noise() -> None:
    dev = leaking(bytes_per_load=96)
    # 1 MB a batch of the control would be 2,500 bytes a load of the section
    run = run_of(dev, control=lambda n: n * 1_000_000)
    assert growth(run, dev).floor_bytes == pytest.approx(2500)
    assert SUSPECTS.back_to_back(run) == frozenset()


def test_less_than_the_smallest_leak_is_none() -> None:
    dev = series("dev", lambda n: n * 400 * (MIN_LEAK_BYTES - 1))
    assert SUSPECTS.back_to_back(run_of(dev)) == frozenset()


def test_without_the_heap_all_private_memory_counts() -> None:
    dev = series("dev", exact=False, private=lambda n: n * 400 * 100)
    found = growth(run_of(dev), dev)
    assert found.memory.estimate == pytest.approx(100)
    assert found.reasons == ("memory",)


def test_pages_of_free_heap_are_no_leak() -> None:
    dev = series("dev", private=lambda n: n * 400 * 4096)
    assert SUSPECTS.back_to_back(run_of(dev)) == frozenset()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"outside": lambda n: n * 400 * 4096}, "pages"),
        ({"descriptors": lambda n: n * 400}, "descriptors"),
        ({"threads": lambda n: n * 4}, "threads"),
        ({"state": (100, 200, 300)}, "state"),
    ],
)
def test_what_else_can_leak(more: dict[str, object], reason: str) -> None:
    dev = series("dev", **more)  # type: ignore[arg-type]
    assert growth(run_of(dev), dev).reasons == (reason,)


@pytest.mark.parametrize(
    "more",
    [
        {"threads": lambda n: n % 2},
        {"descriptors": lambda n: 3 if n > 2 else 0},
        {"state": (100, 300, 200)},
        {"state": (100, 100, 200)},
        {"outside": lambda n: 8192 if n > 5 else 0},
    ],
)
def test_what_comes_and_goes_is_no_leak(more: dict[str, object]) -> None:
    dev = series("dev", jitter, **more)  # type: ignore[arg-type]
    assert SUSPECTS.back_to_back(run_of(dev)) == frozenset()


# --- One load a checkpoint ---------------------------------------------------------------------------------


def test_with_one_load_a_checkpoint_a_load_bears_the_checkpoints_own_growth_alone() -> None:
    dev = once("dev", 5000)
    # the framework's batches are of 80 checkpoints
    run = replace(run_of(framework=lambda n: n * 80 * 4000), once=(dev,))
    assert growth(run, dev).memory.estimate == 1000
    assert growth(run, dev).loads == 280


def test_where_a_build_resets_it_is_compared_with_the_cpus_sections_alone() -> None:
    dev = once("dev", 5000)
    plain = replace(series("", lambda n: n * 80 * 4900, repeat=0), once=True)
    run = replace(run_of(framework=lambda n: n * 80 * 9000), once=(dev,), plain=plain, resets=True)
    assert growth(run, dev).memory.estimate == 100
    assert whole_growth(run) is not None
    assert whole_growth(run).estimate == 4100  # type: ignore[union-attr]


def test_the_whole_state_is_a_suspect_when_it_grows_by_more_than_its_sections() -> None:
    run = replace(run_of(), whole=once("", 500))
    assert SUSPECTS.whole(run)
    assert not SUSPECTS.whole(replace(run, once=(once("dev", 490),)))
    assert SUSPECTS.whole(replace(run, once=(once("dev", 400),)))
    assert not SUSPECTS.whole(run_of())


# --- Verdicts ----------------------------------------------------------------------------------------------


def looked_both_ways(once_bytes: float, *, third: bool) -> LeakResult:
    """A section that leaks 96 bytes back to back in two processes, and so much with one load a checkpoint."""
    alone = replace(run_of(), once=(once("dev", once_bytes),))
    second = replace(run_of(leaking()), once=alone.once)
    return LeakResult(first=run_of(leaking(), series("other")), second=second, third=alone if third else None)


def leak_of(result: LeakResult, label: str = "dev") -> Leaked:
    (cause,) = judge_leaks(result)[label].causes
    assert isinstance(cause, Leaked)
    return cause


def test_a_leak_is_one_that_two_processes_show() -> None:
    judged = judge_leaks(looked_both_ways(90, third=True))
    assert judged["dev"].verdict is Verdict.LEAK
    assert judged["other"].verdict is Verdict.OK
    assert judged["dev"].details["confirmed"] is True
    assert json.loads(json.dumps(judged["dev"].details)) == judged["dev"].details


def test_the_figure_is_that_of_one_load_a_checkpoint() -> None:
    leak = leak_of(looked_both_ways(90, third=True))
    assert (leak.way, leak.per_load, leak.loads, leak.is_colos) == (LoadedBy.CHECKPOINT, 90, 280, True)
    assert leak.other is not None
    assert leak.other.per_load == pytest.approx(96, abs=0.1)
    assert leak.other.loads == 2800


def test_a_leak_that_only_loads_in_one_buffer_show_is_not_colos() -> None:
    leak = leak_of(looked_both_ways(2, third=False))
    assert (leak.way, leak.is_colos) == (LoadedBy.BACK_TO_BACK, False)
    assert leak.per_load == pytest.approx(96, abs=0.1)
    assert leak.chunks == ((96, 1.0),)
    assert leak.other == Figure(per_load=2, low=2, high=2, loads=280)
    text = words(judge_leaks(looked_both_ways(2, third=False))["dev"])
    assert "with one load a checkpoint 2.00: no leak of COLO" in text


def test_what_only_one_process_shows_with_one_load_a_checkpoint_is_not_colos() -> None:
    shown = looked_both_ways(90, third=True)
    result = replace(shown, third=replace(run_of(), once=(once("dev", 2),)))
    assert leak_of(result).way is LoadedBy.BACK_TO_BACK


def test_where_one_load_a_checkpoint_was_not_measured_the_leak_may_be_colos() -> None:
    leak = leak_of(LeakResult(first=run_of(leaking()), second=run_of(leaking())))
    assert (leak.way, leak.other, leak.is_colos) == (LoadedBy.BACK_TO_BACK, None, True)


def test_what_no_section_alone_loses_is_the_whole_states() -> None:
    run = replace(run_of(series("dev")), whole=once("", 500))
    leak = leak_of(LeakResult(first=run, second=run), "")
    assert (leak.section, leak.per_load, leak.loads) == ("", 500, 280)
    second = replace(run_of(), whole=once("", 500), once=(once("dev", 500),))
    result = LeakResult(first=run, second=second, third=replace(run_of(), once=second.once))
    assert set(judge_leaks(result)) == {"dev"}
    assert leak_of(result).other is not None


@pytest.mark.parametrize("second", [None, run_of(series("dev"))])
def test_what_a_second_process_does_not_show_is_ok_and_said(second: LeakRun | None) -> None:
    (judgement,) = judge_leaks(LeakResult(first=run_of(leaking()), second=second)).values()
    assert judgement.verdict is Verdict.OK
    assert judgement.details["unconfirmed"] == ["memory"]
    assert judgement.details["confirmed"] is False


def test_two_processes_have_to_show_the_same() -> None:
    second = run_of(series("dev", descriptors=lambda n: n * 400))
    (judgement,) = judge_leaks(LeakResult(first=run_of(leaking()), second=second)).values()
    assert judgement.verdict is Verdict.OK


def uneven(number: int) -> float:
    """Pages outside of the heap that come in a few steps, as a pool of threads takes them: seen of ahci on 10.0."""
    return (0, 40, 80, 120, 220_000, 220_040, 880_000, 3_300_000)[number] * 400.0


def test_growth_that_may_be_a_thousandth_of_its_figure_is_not_confirmed() -> None:
    dev = series("dev", outside=uneven)
    grown = growth(run_of(dev), dev)
    assert grown.reasons == ("pages",)
    assert 0 < grown.outside.low < grown.outside.estimate / 1000
    steady = series("dev", outside=lambda n: n * 400 * 4096 + jitter(n) * 4096)
    for outside, verdict in ((dev, Verdict.OK), (steady, Verdict.LEAK)):
        (judgement,) = judge_leaks(LeakResult(first=run_of(outside), second=run_of(outside))).values()
        assert judgement.verdict is verdict
    (judgement,) = judge_leaks(LeakResult(first=run_of(steady), second=run_of(dev))).values()
    assert judgement.details["unconfirmed"] == ["pages"]
    whole = replace(run_of(), whole=replace(once("", 500), samples=_uneven_samples()))
    assert SUSPECTS.whole(whole)
    assert judge_leaks(LeakResult(first=whole, second=whole)) == {}


def _uneven_samples() -> tuple[Sample, ...]:
    samples = once("", 500).samples
    heap = [BASE + int(uneven(number)) for number in range(8)]
    return tuple(replace(sample, heap_bytes=size) for sample, size in zip(samples, heap, strict=True))


def test_a_section_that_breaks_the_secondary_is_judged_as_any_load() -> None:
    evidence = Evidence(
        loads_asked=41,
        loads_acked=40,
        checkpoints_acked=1,
        broken=Break(step=Step.LOAD, kind="closed", symptom=symptom("closed"), load=41, phase="bound"),
        exit=Exit(status=-6, signal="SIGABRT"),
        log="qemu: ../x.c:1: f: Assertion `a' failed.",
    )
    first = LeakRun(framework=None, control=None, sections=(), breaks=(BrokenSection(label="dev", evidence=evidence),))
    result = LeakResult(first=first, second=None)
    assert judge_leaks(result)["dev"].verdict is Verdict.CRASH
    assert result.broken is evidence.broken


def test_a_run_without_sections_can_be_told() -> None:
    details = run_details(LeakRun(framework=None, control=None, sections=()))
    assert details["control"] is None
    assert details["noise_floor_bytes_per_load"] == 0


# --- How much is loaded ------------------------------------------------------------------------------------


def test_a_budget_times_two() -> None:
    budget = LeakBudget(section_s=0.5, min_loads=100, max_loads=200).times(2)
    assert (budget.section_s, budget.min_loads, budget.max_loads) == (1.0, 200, 400)


@pytest.mark.parametrize(
    ("memory_bytes", "growth_bytes"),
    [
        # a buffer that grows once, in the first look, is no leak
        ([0, 4_000_000, 4_000_000], 0),
        ([0, 4_000_000, 4_100_000], 50_000),
        ([0, 2_000_000, 4_000_000, 6_000_000, 7_800_000], 900_000),
    ],
)
def test_only_what_each_look_shows_is_much(
    memory_bytes: list[int], growth_bytes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter(memory_bytes)
    monkeypatch.setattr(_Meter, "_private_bytes", lambda *_: next(looks))
    seconds = iter((0.3, 0.1, 0.2, 0.4))
    batch = cast(Any, SimpleNamespace(pilot=lambda: next(seconds)))
    found = object.__new__(_Meter)._lasting_growth(cast(Any, None), batch)
    assert found == (0.1, growth_bytes)
    assert next(looks, None) is None


def test_what_leaves_much_behind_is_loaded_less_often() -> None:
    assert _most_checkpoints(50_000, 8) > 10_000
    # 64 MiB in 8 batches are 8 MiB in each
    assert _most_checkpoints(1 << 20, 8) == 8
    assert _most_checkpoints(1 << 30, 8) == 2
