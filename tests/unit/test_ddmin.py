# SPDX-License-Identifier: GPL-2.0-or-later
"""Delta debugging: what is left breaks it, and nothing of it can be left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ddmin import ddmin, the_one
from harness.oracles.load import Judgement
from harness.results.verdict import Verdict

WHOLE = Judgement(verdict=Verdict.CRASH, log="whole")


class Bug:
    """Breaks by a predicate, counts how often it was asked, and says of which set it spoke."""

    def __init__(self, breaks: Callable[[frozenset[str]], bool]) -> None:
        self._breaks = breaks
        self.asked = 0

    def __call__(self, labels: Sequence[str]) -> Judgement | None:
        self.asked += 1
        assert labels, "an empty set is nothing to load"
        assert len(set(labels)) == len(labels)
        return Judgement(verdict=Verdict.CRASH, log=",".join(labels)) if self._breaks(frozenset(labels)) else None


def names(count: int) -> list[str]:
    return [f"s{number}" for number in range(count)]


@given(st.integers(1, 24), st.data())
def test_the_culprits_alone_are_left_in_stream_order(count: int, data: st.DataObject) -> None:
    items = names(count)
    culprits = data.draw(st.sets(st.sampled_from(items), min_size=1, max_size=5))
    bug = Bug(lambda labels: culprits <= labels)
    left, judgement = ddmin(items, bug, WHOLE)
    assert left == tuple(item for item in items if item in culprits)
    # the judgement is of the set that is left, not of a larger one
    assert judgement.log == ("whole" if left == tuple(items) else ",".join(left))


@given(st.integers(1, 10), st.randoms(use_true_random=False))
def test_whatever_breaks_it_no_single_section_can_be_left_out(count: int, random: Random) -> None:
    items = names(count)
    answers: dict[frozenset[str], bool] = {frozenset(items): True}

    def breaks(labels: frozenset[str]) -> bool:
        return answers.setdefault(labels, random.random() < 0.3)

    left, _ = ddmin(items, Bug(breaks), WHOLE)
    assert answers[frozenset(left)]
    for item in left:
        rest = frozenset(left) - {item}
        assert not rest or not answers.get(rest, False)
        assert not rest or len(left) == 1 or rest in answers, "left out without having been tried"


def test_one_section_is_not_tried_at_all() -> None:
    bug = Bug(lambda _: True)
    assert ddmin(["a"], bug, WHOLE) == (("a",), WHOLE)
    assert bug.asked == 0


@pytest.mark.parametrize("at", [0, 17, 39])
def test_one_culprit_of_many_is_found_by_halving(at: int) -> None:
    bug = Bug(lambda labels: f"s{at}" in labels)
    left, _ = ddmin(names(40), bug, WHOLE)
    assert left == (f"s{at}",)
    assert bug.asked <= 12


def test_when_all_are_needed_all_stay() -> None:
    items = names(7)
    assert ddmin(items, Bug(lambda labels: len(labels) == 7), WHOLE) == (tuple(items), WHOLE)


@pytest.mark.parametrize("culprit", range(7))
def test_the_one_without_which_it_does_not_break_is_found_by_halves(culprit: int) -> None:
    tried: list[tuple[int, ...]] = []

    def breaks_without(items: Sequence[int]) -> bool:
        tried.append(tuple(items))
        return culprit not in items

    assert the_one(range(7), breaks_without) == culprit
    assert len(tried) <= 4


def test_what_breaks_without_all_of_them_is_none_of_theirs() -> None:
    assert the_one([1, 2, 3], lambda _: True) is None
    assert the_one([], lambda _: False) is None
