# SPDX-License-Identifier: GPL-2.0-or-later
"""Text of consoles and logs made safe to show: legal in XML 1.0, no terminal control, no hidden order."""

from __future__ import annotations

import re

# Bidirectional and line-breaking controls are legal XML, but make a log read as something that it is not.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def printable(text: str) -> str:
    """Line ends become newlines, tabs stay, any other control character is spelled out (``\\x1b``)."""
    return _UNSAFE.sub(_escape, text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """As :func:`printable`, with runs of white space as single spaces."""
    return printable(" ".join(text.split()))


def number(value: float) -> str:
    """A count or rate as people read it: ``12,345``; below 10 with one decimal unless it is whole."""
    if value < 10 and value != int(value):
        return f"{value:.1f}"
    return f"{round(value):,}"


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
