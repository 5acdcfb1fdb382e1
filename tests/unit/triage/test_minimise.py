# SPDX-License-Identifier: GPL-2.0-or-later
"""The reducer on made-up failures: steady, flaky on purpose, and interrupted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.triage.guess import Guess, Trying
from harness.triage.journal import FileJournal
from harness.triage.minimise import Attempt, NotReproduced, Progress, Search, Shows, fewest, misses_needed, needed

Items = frozenset[int]
ONE = Guess(what=Trying.SECTIONS, count=1)


def search_of(attempt: Callable[[Items], Attempt], **more: object) -> Search[Items]:
    return Search(attempt=attempt, key=lambda c: ",".join(map(str, sorted(c))), **more)  # type: ignore[arg-type]


def reduce_all(search: Search[Items], start: Items) -> Items:
    search.confirm(start)
    search.stage = "items"
    needed(sorted(start), lambda kept: search.improve(frozenset(kept), Guess(what=Trying.SECTIONS, count=len(kept))))
    search.check()
    return search.best


def needs(*wanted: int) -> Callable[[Items], Attempt]:
    return lambda items: Attempt(hit=set(wanted) <= items, loads=len(items), seconds=0.5)


def test_a_steady_failure_takes_one_try_each() -> None:
    told: list[Progress] = []
    search = search_of(needs(3, 17), on_try=told.append)
    assert reduce_all(search, frozenset(range(32))) == {3, 17}
    assert search.steady
    assert search.patience == 1
    tried = [t for t in told if t.stage == "items" and t.what != Guess(what=Trying.AGAIN)]
    assert search.sessions == len(told)
    assert len(tried) < 60
    assert search.seconds == pytest.approx(0.5 * len(told))
    assert search.measure() == (3, 3)


def test_a_flaky_failure_is_not_lost() -> None:
    """It hits in 40 % of the tries, and what is left must hit as often, whatever the dice say."""
    for seed in range(40):
        dice = random.Random(seed)

        def attempt(items: Items, dice: random.Random = dice) -> Attempt:
            return Attempt(hit={3, 17} <= items and dice.random() < 0.4)

        search = search_of(attempt)
        best = reduce_all(search, frozenset(range(24)))
        assert best >= {3, 17}, f"seed {seed}: lost"
        failed, tried = search.measure()
        assert failed > 0
        assert tried >= 10 or failed == tried


def test_most_flaky_searches_end_at_the_smallest() -> None:
    smallest = 0
    for seed in range(40):
        dice = random.Random(seed)

        def attempt(items: Items, dice: random.Random = dice) -> Attempt:
            return Attempt(hit={3, 17} <= items and dice.random() < 0.4)

        smallest += len(reduce_all(search_of(attempt), frozenset(range(24)))) <= 3
    assert smallest >= 34


def test_a_lucky_hit_does_not_replace_what_fails_often() -> None:
    """Without 3 it fails once in a hundred tries: such a hit is not taken for the failure."""
    lost = 0
    for seed in range(60):
        dice = random.Random(seed)

        def attempt(items: Items, dice: random.Random = dice) -> Attempt:
            return Attempt(hit=dice.random() < (0.4 if 3 in items else 0.01))

        lost += 3 not in reduce_all(search_of(attempt), frozenset(range(8)))
    assert lost <= 2


def test_what_turns_flaky_on_the_way_is_noticed() -> None:
    """Whole it always fails; less of it fails every second time, which the check at the end of a stage finds."""
    count = 0

    def attempt(items: Items) -> Attempt:
        nonlocal count
        if len(items) == 8:
            return Attempt(hit=True)
        count += 1
        return Attempt(hit=5 in items and count % 2 == 1)

    search = search_of(attempt)
    best = reduce_all(search, frozenset(range(8)))
    assert 5 in best
    failed, tried = search.measure()
    assert failed > 0
    assert not search.steady or failed == tried


def test_what_fails_only_once_is_given_up_for_what_was_checked() -> None:
    """A candidate that hits by accident, and then never again."""
    seen: set[Items] = set()

    def attempt(items: Items) -> Attempt:
        if len(items) == 8:
            return Attempt(hit=True)
        first = items not in seen
        seen.add(items)
        return Attempt(hit=first and 5 in items)

    search = search_of(attempt)
    assert reduce_all(search, frozenset(range(8))) == frozenset(range(8))


def test_what_does_not_fail_is_said_with_its_numbers() -> None:
    with pytest.raises(NotReproduced, match="does not reproduce: 0 of 10") as caught:
        search_of(lambda _: Attempt(hit=False)).confirm(frozenset({1}))
    assert (caught.value.failed, caught.value.tried) == (0, 10)


def test_nothing_is_tried_twice() -> None:
    tried: list[Items] = []

    def attempt(items: Items) -> Attempt:
        tried.append(items)
        return Attempt(hit=False) if len(items) < 3 else Attempt(hit=True)

    search = search_of(attempt)
    search.confirm(frozenset({1, 2, 3}))
    for _ in range(3):
        assert not search.improve(frozenset({1}), ONE)
    assert tried.count(frozenset({1})) == 1


SUBJECT = {"cell": "x", "qemu": "00"}


@pytest.mark.parametrize("rate", [1.0, 0.4])
@pytest.mark.parametrize("stop_after", [1, 3, 7, 15])
def test_an_interrupted_search_goes_on(tmp_path: Path, rate: float, stop_after: int) -> None:
    """The same result with the same tries, whenever it was interrupted, and nothing is tried twice."""

    def attempt_of(dice: random.Random) -> Callable[[Items], Attempt]:
        return lambda items: Attempt(hit={3, 17} <= items and dice.random() < rate, loads=2, seconds=0.25)

    undisturbed = search_of(attempt_of(random.Random(1)))
    wanted = reduce_all(undisturbed, frozenset(range(24)))

    dice, left = random.Random(1), stop_after
    real = attempt_of(dice)

    def attempt(items: Items) -> Attempt:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return real(items)

    path = tmp_path / "journal.jsonl"
    interruptions = 0
    while True:
        with FileJournal(path, SUBJECT) as journal:
            search = search_of(attempt, journal=journal)
            assert journal.resumed == interruptions * stop_after
            try:
                best = reduce_all(search, frozenset(range(24)))
                break
            except KeyboardInterrupt:
                interruptions += 1
                left = stop_after
    assert interruptions > 0
    assert best == wanted
    assert (search.sessions, search.loads) == (undisturbed.sessions, undisturbed.loads)
    assert search.seconds == pytest.approx(undisturbed.seconds)


def test_a_cut_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = (
        json.dumps(SUBJECT) + '\n{"key": "1", "what": "a", "hit": true, "loads": 4, "sessions": 1, "seconds": 2.0}\n'
    )
    path.write_text(whole + '{"key": "2", "wh')
    with FileJournal(path, SUBJECT) as journal:
        assert journal.resumed == 1
        assert journal.recall("1") == Attempt(hit=True, loads=4, seconds=2.0)
        assert journal.recall("1") is None
        assert journal.recall("2") is None
        journal.note("3", Attempt(hit=False), "b")
    lines = path.read_text().splitlines()
    assert path.read_text().startswith(whole)
    assert len(lines) == 3
    assert json.loads(lines[2])["key"] == "3"


def test_a_journal_of_something_else_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with FileJournal(path, SUBJECT) as journal:
        journal.note("1", Attempt(hit=True), "a")
    with FileJournal(path, {**SUBJECT, "qemu": "ff"}) as journal:
        assert journal.resumed == 0
        assert journal.recall("1") is None
    path.write_text("rubbish\n")
    with FileJournal(path, SUBJECT) as journal:
        assert journal.resumed == 0
        journal.close(done=True)
    assert not path.exists()


@pytest.mark.parametrize(
    ("rate", "wanted"), [(1.0, 1), (0.95, 1), (0.5, 5), (0.4, 6), (0.1, 29), (0.001, 60), (0.0, 60)]
)
def test_misses_needed(rate: float, wanted: int) -> None:
    assert misses_needed(rate) == wanted


@given(st.sets(st.integers(0, 30), max_size=6))
@settings(max_examples=60, deadline=None)
def test_needed_is_a_set_from_which_nothing_can_go(wanted: set[int]) -> None:
    assert set(needed(range(31), lambda kept: wanted <= set(kept))) == wanted


def test_needed_keeps_the_order_and_tries_nothing_first() -> None:
    seen: list[tuple[int, ...]] = []

    def test(kept: tuple[int, ...]) -> bool:
        seen.append(kept)
        return {9, 4} <= set(kept)

    assert needed([9, 1, 4, 7], test) == (9, 4)
    assert seen[0] == ()
    assert (9, 1, 4, 7) not in seen


@given(st.integers(1, 300), st.integers(1, 300))
def test_fewest(most: int, wanted: int) -> None:
    most, wanted = max(most, wanted), min(most, wanted)
    tried: list[int] = []

    def test(number: int) -> bool:
        tried.append(number)
        return number >= wanted

    assert fewest(most, test) == wanted
    assert most not in tried or most == wanted
    assert len(tried) <= 2 * most.bit_length() + 1


def test_a_try_that_ends_in_another_way_says_nothing() -> None:
    """3 and 17 are needed; without 5 it is refused, so nobody knows whether 5 is."""
    search = search_of(lambda items: Attempt(hit={3, 5, 17} <= items, tested=5 in items))
    assert reduce_all(search, frozenset(range(32))) == {3, 5, 17}
    assert search.shows(frozenset({5, 17}), ONE) is Shows.NO
    assert search.shows(frozenset({3, 17}), ONE) is Shows.UNTESTED
    assert not search.fails(frozenset({3, 17}), ONE)


def test_the_rate_counts_no_try_that_ended_in_another_way() -> None:
    count = 0

    def attempt(_: Items) -> Attempt:
        nonlocal count
        count += 1
        return Attempt(hit=count != 4, tested=count != 4)

    search = search_of(attempt)
    search.confirm(frozenset({1}))
    # the fourth of ten says nothing, the others failed
    assert search.measure() == (9, 9)
