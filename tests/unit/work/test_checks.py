# SPDX-License-Identifier: GPL-2.0-or-later
"""The cells that an experiment comes to, one for each row."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.engines.secondary import Secondary
from harness.experiments.leak import LeakResult, LeakRun, Sample, Series
from harness.lanes import checks
from harness.lanes.checks import drift_check, leak_check, perform
from harness.lanes.judge import Bench
from harness.oracles.oracle import Opinion
from harness.results.cause import Undecided, Why
from harness.results.verdict import Verdict
from harness.state.transforms import GuestMode, label_of


def series(label: str, loads: int, checkpoints: int, *, once: bool = False) -> Series:
    samples = tuple(
        Sample(
            loads=loads * part // 10, checkpoints=checkpoints * part // 10, private_bytes=0, heap_bytes=0,
            outside_bytes=0, descriptors=9, threads=3,
        )
        for part in range(11)
    )  # fmt: skip
    return Series(label=label, repeat=40, samples=samples, state_bytes=(), once=once)


def test_a_row_counts_the_loads_and_the_checkpoints_of_its_own_sections(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [label_of(section) for section in bench.buffers.pack.recordings["bound"].sections]
    own = [label for label in labels if label in bench.buffers.pack.sections_of("ahci")]
    first = LeakRun(framework=None, control=None, sections=tuple(series(label, 400, 10) for label in labels))
    second = LeakRun(framework=None, control=None, sections=tuple(series(label, 1200, 30) for label in own))

    def find(*_: Any, **__: Any) -> LeakResult:
        return LeakResult(first=first, second=second)

    monkeypatch.setattr(checks, "find_leaks", find)
    monkeypatch.setattr(checks, "judge_leaks", lambda _: dict.fromkeys(labels, Opinion(verdict=Verdict.OK)))
    ahci, platform = perform(leak_check("bound", ("ahci", "platform")), bench)
    assert own
    assert (ahci.loads_asked, ahci.loads_acked) == (1600 * len(own), 1600 * len(own))
    assert ahci.outcome.checkpoints_acked == 40 * len(own)
    rest = len(bench.buffers.pack.sections_of("platform"))
    assert (platform.loads_acked, platform.outcome.checkpoints_acked) == (400 * rest, 10 * rest)


def test_what_qemu_refuses_is_not_in_the_incoming_stream_of_an_experiment(bench: Bench) -> None:
    """Else one device whose state kills QEMU there keeps all others from being looked at."""
    (own,) = bench.buffers.pack.sections_of("ahci")
    bench.refused = frozenset({own})
    setting = checks.setting_of(bench, "bound", frozenset())
    brought: list[bytes] = []
    secondary = SimpleNamespace(start=lambda _, body: brought.append(b"".join(map(bytes, body))))
    setting.begin(cast(Secondary, secondary), GuestMode.PARKED)
    checks.setting_of(replace(bench, refused=frozenset()), "bound", frozenset()).begin(
        cast(Secondary, secondary), GuestMode.PARKED
    )
    (section,) = (s for s in bench.buffers.pack.recordings["bound"].sections if label_of(s) == own)
    assert [section.encode() in each for each in brought] == [False, True]


@pytest.mark.parametrize(("left_out", "verdict", "rest"), [(False, Verdict.DRIFT, 0), (True, Verdict.HARNESS_ERROR, 1)])
def test_a_device_that_was_not_loaded_has_no_drift(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, left_out: bool, verdict: Verdict, rest: int
) -> None:
    """It shows what a machine does that was just reset."""
    own = frozenset(bench.buffers.pack.sections_of("ahci"))
    run = SimpleNamespace(loads_asked=50, loads_acked=50)
    monkeypatch.setattr(checks, "excluded_in", lambda *_: own if left_out else frozenset())
    monkeypatch.setattr(checks, "DriftExperiment", SimpleNamespace(of=lambda _: SimpleNamespace(run=lambda: run)))
    monkeypatch.setattr(checks, "judge_drift", lambda *_: {})
    monkeypatch.setattr(checks, "judge_outside", lambda *_: {"ahci": Opinion(verdict=Verdict.DRIFT)})
    (cell,) = perform(drift_check("bound", ("ahci",)), bench)
    assert (cell.outcome.verdict, cell.key.rest) == (verdict, rest)
    if left_out:
        assert cell.outcome.causes == (Undecided(why=Why.LEFT_OUT, sections=tuple(sorted(own))),)


def test_a_row_of_which_an_experiment_says_nothing_has_a_reason(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = LeakRun(framework=None, control=None, sections=())
    monkeypatch.setattr(checks, "find_leaks", lambda *_, **__: LeakResult(first=empty, second=None))
    (cell,) = perform(leak_check("bound", ("ahci",)), bench)
    assert cell.outcome.verdict is Verdict.HARNESS_ERROR
    assert cell.outcome.causes == (Undecided(why=Why.NOT_JUDGED),)
