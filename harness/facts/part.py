# SPDX-License-Identifier: GPL-2.0-or-later
"""How a part of the facts says what it could not learn: a value that is missing always says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from harness.errors import DeadlineError, PostloadError
from harness.facts.model import NotKnown, WhyNotKnown

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Part:
    """Facts of one subject.

    :param values: JSON; None stands for what could not be had
    :param unknown: dotted name of what could not be had, to why
    """

    values: dict[str, Any] = field(default_factory=dict)
    unknown: dict[str, NotKnown] = field(default_factory=dict)

    def put(self, name: str, ask: Callable[[], Any]) -> None:
        """Ask for one value; that it cannot be had is a fact as well."""
        try:
            self.values[name] = ask()
        except (OSError, PostloadError, LookupError, ValueError) as error:
            self.miss(name, not_known(error))

    def miss(self, name: str, why: NotKnown) -> None:
        """One value that cannot be had."""
        self.values[name] = None
        self.unknown[name] = why


class NotSaid(LookupError):
    """A file does not say what was looked for.

    :param path: of the file
    """


def not_known(error: Exception) -> NotKnown:
    """What an error keeps from being known."""
    if isinstance(error, NotSaid):
        return {"why": WhyNotKnown.NOT_SAID, "said": str(error)}
    if isinstance(error, OSError) and error.strerror:
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        said = str(error).strip("'\"") or type(error).__name__
    return {"why": WhyNotKnown.ERROR, "said": said}


def read_text(path: Path) -> str:
    """A small file of ``/proc`` or ``/sys``, stripped.

    :raises OSError: it is not there, or not for this user
    """
    return path.read_text(errors="replace").strip()


def within(timeout_s: float, what: str, work: Callable[[], T]) -> T:
    """Run something that may never come back, in a thread that nobody waits for at the end.

    :raises DeadlineError: it did not come back
    """
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)

    thread = Thread(target=run, name=what, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not results:
        raise DeadlineError(f"{what}: no answer within {timeout_s:g} s")
    return results[0]
