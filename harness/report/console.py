# SPDX-License-Identifier: GPL-2.0-or-later
"""The console that everything is printed on: what it is given never steers a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from harness.text import printable


class SafeConsole(Console):
    """Names and texts of foreign files (sections, logs, paths) may hold escape sequences: they are spelled out.

    Colours and cursor movements are rich's own and pass. Nothing is guessed to be a number or a path.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(highlight=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text), style, control)
