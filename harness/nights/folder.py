# SPDX-License-Identifier: GPL-2.0-or-later
"""The folders of nights: one each, below that of the configuration. One without :data:`NIGHT` was cut off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from harness.errors import HostError, UsageError
from harness.results.events import EVENTS_NAME, Event, Started, is_being_written, read_events

#: Written when a night is over, whatever it came to.
NIGHT = "night.json"
#: The same for people.
NIGHT_TEXT = "night.txt"
BUNDLES = "bundles"
#: What was cut off earlier is left as it is.
OLDEST = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOff:
    """A night that did not come to its end.

    :param events: all that it told, the start first
    """

    folder: Path
    started: Started
    events: Sequence[Event]


def cut_off(out: Path, night: str, now: datetime | None = None) -> CutOff | None:
    """The newest night, when it was cut off and was asked for the same as this one; None when there is none.

    :param night: names what this one is asked for; see :attr:`harness.results.events.Started.night`
    :raises HostError: it still goes on
    """
    found = [path for path in out.glob(f"*/{EVENTS_NAME}") if not (path.parent / NIGHT).exists()]
    for path in sorted(found, reverse=True):
        events = _events(path)
        started = events[0] if events else None
        if not isinstance(started, Started) or started.night != night:
            continue
        if is_being_written(path):
            raise HostError(f"{path.parent}: this night still goes on")
        if datetime.fromisoformat(started.started) < (now or datetime.now(UTC)) - OLDEST:
            return None
        return CutOff(folder=path.parent, started=started, events=events)
    return None


def _events(path: Path) -> Sequence[Event]:
    try:
        return list(read_events(path))
    except UsageError:
        return ()  # damaged by a power cut: the night begins anew


def last_once(out: Path, folder: Path) -> set[tuple[str, str]]:
    """Line and signature of what did not come again in the night before.

    :param folder: of tonight
    """
    for path in sorted(out.glob(f"*/{NIGHT}"), reverse=True):
        if path.parent.name < folder.name:
            return _once(path)
    return set()


def _once(path: Path) -> set[tuple[str, str]]:
    try:
        return {(each["line"], each["signature"]) for each in json.loads(path.read_bytes())["once"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
