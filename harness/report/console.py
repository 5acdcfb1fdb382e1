# SPDX-License-Identifier: GPL-2.0-or-later
"""The console that everything is printed on: what it is given never steers a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from harness.report.text import wrapped
from harness.text import one_line, printable


class SafeConsole(Console):
    """Names and texts of foreign files (sections, logs, paths) may hold escape sequences: they are spelled out.

    Colours and cursor movements are rich's own and pass. Nothing is guessed to be a number or a path.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)


def print_wrapped(console: Console, text: str, *, style: str = "", indent: int = 0, hang: int = 0) -> None:
    """A text in the console's width: logs hold what looks like rich's markup, and words are for copying.

    :param indent: spaces in front of the first line; ``hang`` so many more in front of the others
    """
    for line in wrapped(one_line(text), console.width - 1, " " * indent, " " * (indent + hang)):
        console.print(Text(line, style=style), soft_wrap=True)
