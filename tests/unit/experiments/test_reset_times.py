# SPDX-License-Identifier: GPL-2.0-or-later
"""The interval of a median, and the clocks that a reset is measured by."""

from __future__ import annotations

import math
import os
import random
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.experiments.reset import SAMPLES, main_thread_ms, process_ms, span_of


def test_the_interval_lies_around_the_median() -> None:
    span = span_of(range(1, SAMPLES + 1))
    assert (span.low, span.median, span.high) == (12, 20.5, 29)


def test_as_few_are_left_out_as_the_confidence_asks_for() -> None:
    left_out = 11  # of 40, at each end: 12 would leave more than 1 % outside
    outside = [2 * sum(math.comb(SAMPLES, n) for n in range(most + 1)) / 2**SAMPLES for most in (10, 11)]
    assert outside[0] < 0.01
    assert outside[1] > 0.006
    assert span_of(range(SAMPLES)).low == left_out


def test_a_few_values_have_an_interval_that_holds_them_all() -> None:
    span = span_of([3.0, 1.0, 2.0])
    assert (span.low, span.median, span.high) == (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="no values"):
        span_of([])


def test_the_interval_holds_the_true_median() -> None:
    chance = random.Random(7)
    spans = [span_of(chance.expovariate(1.0) for _ in range(SAMPLES)) for _ in range(400)]
    held = sum(span.low <= math.log(2) <= span.high for span in spans)
    assert held >= 390


def test_the_clocks_count_work_and_not_time() -> None:
    me = cast(Any, SimpleNamespace(process=SimpleNamespace(pid=os.getpid())))
    before = process_ms(me), main_thread_ms(me)
    time.sleep(0.05)
    idle = process_ms(me), main_thread_ms(me)
    assert idle[0] - before[0] < 25
    until = time.thread_time() + 0.05
    while time.thread_time() < until:
        pass
    assert process_ms(me) - idle[0] > 40
    assert main_thread_ms(me) - idle[1] > 20
