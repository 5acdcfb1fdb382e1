# SPDX-License-Identifier: GPL-2.0-or-later
"""What a cell comes to: verdict, class, causes, and how sure that is; all of it data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter

from harness.devices.phases import Missed, Unreached
from harness.qemu.disturbance import Hindered
from harness.results.cause import Cause, Undecided, Why, exit_of, load_of, phase_of
from harness.results.verdict import FailureClass, Verdict

T = TypeVar("T")


class Moment(StrEnum):
    """When a break happened that messages place between VMSTATE_RECEIVED and VMSTATE_LOADED."""

    LOAD = "load"
    RESUME = "resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """How often it came back.

    :param seen: of ``of`` sessions
    :param verdict: what it came to when it failed
    :param others: what the other sessions came to
    """

    seen: int
    of: int
    verdict: Verdict
    others: tuple[Verdict, ...] = ()


class ControlName(StrEnum):
    """The controls, in the order in which they are told."""

    FRESH = "fresh"
    LOADVM = "loadvm"
    PAIR = "pair"
    SAME = "same"
    BACK_TO_BACK = "back-to-back"


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlResult:
    """What one control gave.

    :param asked: loads, or processes for ``fresh``, of which ``passed`` passed
    :param brought_in: False when not even the first state could be brought in
    :param decided: it came to something
    :param alike: it broke with the same message as the finding
    """

    name: ControlName
    verdict: Verdict
    asked: int
    passed: int
    decided: bool
    brought_in: bool = True
    moment: Moment | None = None
    alike: bool = False
    cause: Cause | None = None


class IsolationWay(StrEnum):
    """How sections were found to be to blame."""

    ALONE = "alone"
    SMALLEST_SET = "smallest-set"
    WITHOUT = "without"


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """How the blamed sections were found: by loading them into a parked guest, or by leaving their device out.

    :param loads: of the sections, in a new process, until it broke or at most
    :param together: they stood twice in one buffer
    :param of: sections that were searched; devices, where one was left out
    """

    way: IsolationWay
    loads: int = 1
    together: bool = False
    of: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a cell comes to.

    :param causes: of the verdict, the first first; empty when all is well
    :param sections: to blame, as ``idstr`` with bus path
    :param repeats: None where it was not repeated
    :param log: what QEMU printed, its end
    :param controls: what the controls of the finding gave; empty where none was run
    :param moment: when the load that broke did, where it was looked for
    :param isolation: how the sections were found; None where QEMU names them, or nobody looked
    :param hindered: what the host did to the tries before this one, which are worth nothing
    """

    verdict: Verdict
    failure_class: Annotated[FailureClass | None, Field(alias="class")] = None
    causes: tuple[Cause, ...] = ()
    sections: tuple[str, ...] = ()
    repeats: Repeats | None = None
    log: str = ""
    loads_asked: int = 0
    loads_acked: int = 0
    checkpoints_acked: int = 0
    controls: tuple[ControlResult, ...] = ()
    moment: Moment | None = None
    isolation: Isolation | None = None
    hindered: tuple[Hindered, ...] = ()

    @property
    def came_to(self) -> Verdict:
        """The verdict; of a flaky one what it came to when it failed."""
        return self.repeats.verdict if self.verdict is Verdict.FLAKY and self.repeats else self.verdict

    @property
    def hidden_by(self) -> frozenset[str]:
        """Sections that were left out, where that is why nothing was decided."""
        reasons = [cause for cause in self.causes if isinstance(cause, Undecided) and cause.why is Why.LEFT_OUT]
        return frozenset().union(*(reason.sections for reason in reasons))

    @property
    def passed_over(self) -> bool:
        """There was nothing to judge: the device has nothing to do in these phases."""
        return bool(self.causes) and all(
            isinstance(cause, Unreached) and cause.how is not Missed.FAILED for cause in self.causes
        )

    @property
    def phase(self) -> str | None:
        """Where it failed, as far as a cause says so."""
        return _first(phase_of(cause) for cause in self.causes)

    @property
    def load(self) -> int | None:
        """The load that did it, 1 is the first; 0 is the incoming stream."""
        return _first(load_of(cause) for cause in self.causes)

    @property
    def exit(self) -> str | None:
        """How QEMU ended, where it did."""
        return _first(exit_of(cause) for cause in self.causes)


def plain_causes(outcome: Outcome) -> list[dict[str, Any]]:
    """The causes as plain JSON types."""
    found: list[dict[str, Any]] = TypeAdapter(tuple[Cause, ...]).dump_python(outcome.causes, mode="json")
    return found


def _first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)
