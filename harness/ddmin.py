# SPDX-License-Identifier: GPL-2.0-or-later
"""Zeller's delta debugging, for sections, fields, pages and steps alike; and a search by halves. Pure.

It knows nothing of what is tried: flaky failures, budgets and what was tried before are the business of ``test``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
V = TypeVar("V")


def ddmin(items: Sequence[T], test: Callable[[tuple[T, ...]], V | None], whole: V) -> tuple[tuple[T, ...], V]:
    """Items from which none can be left out, and what ``test`` said of them; the empty set is not tried.

    :param items: all of which are known to fail
    :param test: what some of them, in the same order, come to when they fail as well, else None
    :param whole: what all items come to
    """
    left, said, parts = tuple(items), whole, 2
    while len(left) > 1:
        size = -(-len(left) // parts)
        for candidate in _smaller(left, size):
            found = test(candidate)
            if found is not None:
                parts = 2 if len(candidate) <= size else max(parts - 1, 2)
                left, said = candidate, found
                break
        else:
            if parts >= len(left):
                break
            parts = min(2 * parts, len(left))
    return left, said


def _smaller(items: tuple[T, ...], size: int) -> list[tuple[T, ...]]:
    """Each chunk alone, then all but each chunk; with two chunks these are the same."""
    starts = range(0, len(items), size)
    chunks = [items[start : start + size] for start in starts]
    return chunks if len(chunks) <= 2 else chunks + [items[:start] + items[start + size :] for start in starts]


def the_one(items: Sequence[T], breaks_without: Callable[[Sequence[T]], bool]) -> T | None:
    """The item without which it does not break any more; None where it breaks without all of them.

    :param items: with all of which it is known to break
    :param breaks_without: whether it breaks when these are left out
    """
    left = list(items)
    if not left or breaks_without(left):
        return None
    while left[1:]:
        half = left[: len(left) // 2]
        left = left[len(half) :] if breaks_without(half) else half
    return left[0]
