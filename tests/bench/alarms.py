# SPDX-License-Identifier: GPL-2.0-or-later
"""How far nights that differ by chance alone are from even: the table of ``harness/store/speeds.py``.

``python tests/bench/alarms.py [--series N]`` prints it. The nights of a series are put into a random order N times for
each length; it does not matter how they are spread, for only ranks count.
"""

from __future__ import annotations

import argparse
import math
import random

from harness.store.speeds import LEAST_NIGHTS, ONE_IN, distances

LENGTHS = (*range(12, 31), 40, 60, 90, 120, 200)


def threshold(nights: int, series: int, chance: random.Random) -> float:
    """The largest distance that one series in :data:`ONE_IN` has."""
    ranks = [float(rank) for rank in range(1, nights + 1)]
    farthest = []
    for _ in range(series):
        chance.shuffle(ranks)
        farthest.append(max(abs(each) for each in distances(ranks)))
    farthest.sort()
    return (math.floor(100 * farthest[-(series // ONE_IN)]) + 1) / 100  # a little farther, so that no more are


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=int, default=200_000)
    given = parser.parse_args()
    for nights in LENGTHS:
        print(f"    {nights}: {threshold(nights, given.series, random.Random(nights)):.2f},", flush=True)


if __name__ == "__main__":
    assert LEAST_NIGHTS == 3
    main()
