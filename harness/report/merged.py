# SPDX-License-Identifier: GPL-2.0-or-later
"""What is missing of a run whose shards were put together, and what a shard by itself says of that."""

from __future__ import annotations

from collections.abc import Iterator

from harness.report.text import first_of, plural
from harness.results.events import ShardOf
from harness.results.merged import Merged

_MOST_SHOWN = 5


def merged_text(merged: Merged) -> Iterator[str]:
    """A line for each thing that is missing."""
    for number in merged.absent:
        yield f"postload: shard {number}/{merged.of} is missing"
    for folder in merged.cut:
        yield f"postload: the shard in {folder} did not come to its end"
    if merged.missing:
        names = first_of(merged.missing, _MOST_SHOWN)
        yield f"postload: {plural(len(merged.missing), 'cell')} planned and not judged: {names}"


def shard_text(shard: ShardOf, *, empty: bool) -> str:
    """What a shard has of its run."""
    if empty:
        return f"shard {shard.number}/{shard.of} has no cells: there are more shards than work"
    return f"shard {shard.number}/{shard.of}: postload merge makes one run of all {shard.of}"
