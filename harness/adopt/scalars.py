# SPDX-License-Identifier: GPL-2.0-or-later
"""Values of options as QEMU reads them: numbers, sizes, booleans, PCI addresses, words.

Each function gives None for what is none of its kind, and never raises: whoever asks knows what to say then.
"""

from __future__ import annotations

import re

from harness.adopt.configuration import Value
from harness.guests.plan import WORD

_SIZE = re.compile(r"(0x[0-9a-fA-F]+|[0-9]+(?:\.[0-9]+)?)([bBkKmMgGtTpP]?)")
_UNITS = {"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}
_ON, _OFF = ("on", "yes", "true", "y"), ("off", "no", "false", "n")
_SLOT = re.compile(r"(?:0x)?([0-9a-fA-F]{1,2})(?:\.(?:0x)?([0-7]))?")
_WORD = re.compile(WORD)


def as_size(value: Value, unit: str = "") -> int | None:
    """Bytes of ``4G``, ``4194304k`` or ``4096``.

    :param unit: of a number without one
    """
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value << _UNITS[unit]
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    if match[1].startswith("0x"):
        return int(match[1], 16) << _UNITS[unit]
    return (
        int(float(match[1]) * (1 << _UNITS[match[2].lower() or unit]))
        if "." in match[1]
        else (int(match[1]) << _UNITS[match[2].lower() or unit])
    )


def as_number(value: Value) -> int | None:
    """A number: decimal, hexadecimal, or with the suffix of a size."""
    if isinstance(value, str) and re.fullmatch(r"-[0-9]{1,18}", value):
        return int(value)
    return as_size(value)


def as_boolean(value: Value) -> bool | None:
    """A boolean, in any of QEMU's spellings."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in (*_ON, *_OFF):
        return value.lower() in _ON
    return None


def as_word(value: Value) -> str | None:
    """A text that says no more than itself: no path, no option."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else None


def as_slot(value: Value) -> str | None:
    """``02.0`` for ``0x2``, ``2.0`` or, as JSON may have it, device and function in one number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value >> 3:02x}.{value & 7}" if 0 <= value < 256 else None
    match = _SLOT.fullmatch(value) if isinstance(value, str) else None
    return f"{int(match[1], 16):02x}.{match[2] or 0}" if match and int(match[1], 16) < 32 else None


def as_text(value: Value) -> str:
    """A text, empty where it is none."""
    return value if isinstance(value, str) else ""
