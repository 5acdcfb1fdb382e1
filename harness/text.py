# SPDX-License-Identifier: GPL-2.0-or-later
"""Text of logs and foreign files made safe to show: legal in XML 1.0, no terminal control, no hidden order."""

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
