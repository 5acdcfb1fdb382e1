# SPDX-License-Identifier: GPL-2.0-or-later
"""Where something of somebody's text stands, for the errors that speak of it."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import UsageError
from harness.text import one_line

_LONGEST = 80


@dataclass(frozen=True, slots=True)
class TextPlace:
    """A line of a text.

    :param source: file or process
    :param line: counted from 1
    """

    source: str
    line: int = 1

    def error(self, message: str) -> UsageError:
        """The error that names the place; what it quotes of the text is made safe by :func:`quoted`."""
        return UsageError(f"{one_line(self.source)}:{self.line}: {message}")


def quoted(text: str) -> str:
    """A piece of foreign text in quotes, on one line, cut where it is long."""
    plain = one_line(text)
    return repr(plain if len(plain) <= _LONGEST else f"{plain[:_LONGEST]}...")
