# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers, times, sizes and long lines as people read them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

#: The space between a number and its unit.
_OF_UNIT = re.compile(r"(?<=\d) (?=(?:s|ms|min|h|B|KiB|MiB|GiB)\b)|(?<=\bmin) (?=\d\d s\b)|(?<=\bh) (?=\d\d min\b)")
_UNBROKEN = "\N{NO-BREAK SPACE}"


def number(value: float) -> str:
    """A count or rate as people read it: ``12,345``; below 10 with one decimal unless it is whole."""
    if value < 10 and value != int(value):
        return f"{value:.1f}"
    return f"{round(value):,}"


def plural(count: int, noun: str) -> str:
    """A count with its noun: ``1 cell``, ``1,400 loads``, ``2 processes``."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{number(count)} {noun}{ending}"


def were(count: int, noun: str) -> str:
    """A count with its noun and verb: ``1 cell was``, ``12 cells were``."""
    return f"{plural(count, noun)} {'was' if count == 1 else 'were'}"


def first_of(names: Sequence[str], most: int) -> str:
    """The first of several names, and how many more there are: ``a, b and 3 more``."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def wrapped(text: str, width: int, first: str, rest: str) -> list[str]:
    """A text in lines of a width, which is 40 at the least; a word is never cut, and a number stays with its unit.

    :param first: that begins the first line; ``rest`` begins the others
    """
    lines = textwrap.wrap(
        _OF_UNIT.sub(_UNBROKEN, text),
        max(width, 40),
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return [line.replace(_UNBROKEN, " ") for line in lines]


def columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of equally many words with each column as wide as its longest word; one that is empty is left out."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True) if width).rstrip()
        for line in lines
    ]


def duration(seconds: float) -> str:
    """``4.2 s``, ``1 min 05 s`` or ``2 h 03 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(size_bytes: float) -> str:
    """``512 MiB``, ``15.6 GiB``."""
    if size_bytes >= 1 << 30:
        return f"{size_bytes / (1 << 30):.1f} GiB"
    return f"{size_bytes / (1 << 20):.0f} MiB"
