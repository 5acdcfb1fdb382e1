# SPDX-License-Identifier: GPL-2.0-or-later
"""Speeds through the nights: what is held against what, where they change, and how often chance looks like a change."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import sqlalchemy as sa
from made_runs import events, judged, started, write_run

from harness.results.document import Qemu
from harness.results.verdict import Verdict
from harness.store import tables as t
from harness.store.engine import writing
from harness.store.nights import read_nights
from harness.store.read import History
from harness.store.speeds import ONE_IN, Curve, changes, curves, distances, threshold
from harness.store.write import RateKind

NEWER = Qemu(version="10.0.13", build="", path="/n", sha256="34" * 32, label="10.0.13")


def noise(chance: random.Random, nights: int, spread: float) -> list[float]:
    return [chance.lognormvariate(0, spread) for _ in range(nights)]


@pytest.mark.parametrize(("nights", "seed"), [(16, 1), (30, 2), (50, 3)])
def test_chance_alone_changes_no_more_speeds_than_is_stated(nights: int, seed: int) -> None:
    series = 20_000
    chance = random.Random(seed)
    alarms = sum(bool(changes(noise(chance, nights, 0.5))) for _ in range(series))
    # within four standard deviations of what is stated, and not so few that nothing would ever be found
    assert 0.2 * series / ONE_IN < alarms < series / ONE_IN + 4 * (series / ONE_IN) ** 0.5


def test_how_the_nights_are_spread_does_not_matter() -> None:
    chance = random.Random(5)
    heavy = sum(bool(changes([1 / (1e-3 + chance.random()) for _ in range(30)])) for _ in range(10_000))
    assert heavy < 10_000 / ONE_IN + 4 * (10_000 / ONE_IN) ** 0.5


@pytest.mark.parametrize("by", [0.6, 1.7])
def test_a_change_is_found_where_it_is(by: float) -> None:
    chance = random.Random(7)
    ratios = [value * (by if night >= 21 else 1) for night, value in enumerate(noise(chance, 30, 0.05))]
    (found,) = changes(ratios)
    assert found.night == 21
    assert found.by == pytest.approx(by - 1, abs=0.1)


def test_two_changes_are_two() -> None:
    chance = random.Random(11)
    levels = [1.0] * 20 + [0.5] * 20 + [0.25] * 20
    found = changes([level * value for level, value in zip(levels, noise(chance, 60, 0.05), strict=True)])
    assert [change.night for change in found] == [20, 40]
    assert [change.by for change in found] == pytest.approx([-0.5, -0.5], abs=0.05)


def test_what_is_sure_and_small_is_not_told() -> None:
    assert changes([1.0 + night / 1e6 for night in range(15)] + [1.05 + night / 1e6 for night in range(15)]) == []


def test_the_last_six_of_thirty_nights_are_enough() -> None:
    ratios = [1.0 + night / 1e3 for night in range(30)]
    assert changes(ratios[:24] + [0.5 + night / 1e3 for night in range(6)])[0].night == 24
    assert changes(ratios[:25] + [0.5 + night / 1e3 for night in range(5)]) == []


@pytest.mark.parametrize("ratios", [[], [1.0], [1.0] * 13, [1.0] * 30, [1.0, 2.0] * 6])
def test_few_nights_and_equal_ones_tell_nothing(ratios: list[float]) -> None:
    assert changes(ratios) == []


def test_the_distance_is_that_of_mann_and_whitney() -> None:
    # by hand: of 6 nights the first 3 have ranks 1, 2, 3: their sum is 6 where chance gives 10.5; variance 3*3*7/12
    assert distances([1, 2, 3, 4, 5, 6]) == [pytest.approx((6 - 10.5) / 5.25**0.5)]


def test_more_nights_want_a_greater_distance_and_too_many_are_not_judged() -> None:
    assert threshold(11) == threshold(201) == float("inf")
    assert all(fewer - 0.03 < more for fewer, more in pairwise(map(threshold, range(13, 200))))


def test_a_device_is_held_against_its_machine_in_the_same_phase(engine: sa.Engine, history: History) -> None:
    cells = [
        judged("pc-q35-7.2/ahci/bound/back-to-back", loads_per_second=1000.0),
        judged("pc-q35-7.2/ahci/busy/back-to-back", loads_per_second=300.0),
        judged("pc-q35-7.2/platform/bound/same", loads_per_second=100.0),
        judged("pc-q35-7.2/platform/busy/same", loads_per_second=10.0),
        judged("pc-q35-7.2/platform/busy/alternate", loads_per_second=7.0),
        judged("pc-q35-7.2/nvme/busy/back-to-back", Verdict.CRASH, loads_per_second=9.0),
    ]
    write_run(engine, started(), events(cells))
    machine, device = found_in(history)
    assert (device.subject, device.device) == ("7.2/pc-q35-7.2/ahci", "ahci")
    assert (device.points[0].value, device.points[0].ratio) == (650.0, 20.0)  # medians of 1000, 300 and of 10, 30
    assert (machine.subject, machine.device) == ("7.2/pc-q35-7.2", "")
    assert (machine.points[0].value, machine.points[0].ratio) == (55.0, None)  # no other QEMU


def test_a_machine_is_held_against_the_other_qemus_of_its_family(engine: sa.Engine, history: History) -> None:
    cells = [
        judged("pc-q35-7.2/ahci/bound/same", loads_per_second=100.0),
        judged("pc-q35-10.0/ahci/bound/same", loads_per_second=50.0, load_qemu=NEWER, record_qemu=NEWER),
        judged("pc-i440fx-10.0/ahci/bound/same", loads_per_second=1.0, load_qemu=NEWER, record_qemu=NEWER),
    ]
    write_run(engine, started(), events(cells))
    ratios = {curve.subject: curve.points[0].ratio for curve in found_in(history)}
    assert ratios == {"7.2/pc-q35-7.2": 2.0, "10.0/pc-q35-10.0": 0.5, "10.0/pc-i440fx-10.0": None}


def test_other_rates_have_their_own_control_and_nights_keep_their_places(engine: sa.Engine, history: History) -> None:
    for night in range(3):
        write_run(engine, started(night), events([judged()]))
    rates = [
        {"run_id": run, "kind": "boot-seconds", "subject": "7.2/virt", "value": 6.0, "control": 3.0, "samples": 1}
        for run in (1, 3)
    ]
    with writing(engine) as connection:
        connection.execute(t.rates.insert(), rates)
    (boot,) = found_in(history)
    assert (boot.kind, boot.subject) == (RateKind.BOOT, "7.2/virt")
    assert [(point.night, point.ratio) for point in boot.points] == [(0, 2.0), (2, 2.0)]


def found_in(history: History) -> list[Curve]:
    return curves(read_nights(history, last=30), history)
