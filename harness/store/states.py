# SPDX-License-Identifier: GPL-2.0-or-later
"""What a cell is between two runs, and what a signature is: facts held against the rules of ``rules.yaml``. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from functools import cache, cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from harness.yamlfile import load_model

SHIPPED = Path(__file__).with_name("rules.yaml")
#: Of a normal distribution, what a 99 % interval leaves out.
_Z = 2.5758


class CellState(StrEnum):
    """What a finding in a cell, or the cell, is in the later of two runs."""

    NEW = "new"
    BACK = "back"
    FIXED = "fixed"
    UNSEEN = "unseen"
    STILL = "still"
    FLAKY = "flaky"
    UNKNOWN = "unknown"
    NOT_RUN = "not-run"
    PASSED = "passed"


class SignatureState(StrEnum):
    """What a signature is on one QEMU. Members stand worst first."""

    BACK = "back"
    OPEN = "open"
    KNOWN = "known"
    FIXED_IN = "fixed-in"


class Look(StrEnum):
    """What a run says of a finding in a cell."""

    FAILS = "fails"
    OTHER = "other"
    OK = "ok"
    UNSUPPORTED = "unsupported"
    UNDECIDED = "undecided"
    UNJUDGED = "unjudged"
    ABSENT = "absent"
    NEVER = "never"


#: What says nothing of a device.
SILENT = frozenset({Look.UNDECIDED, Look.UNJUDGED, Look.ABSENT})


class SeenBefore(StrEnum):
    """Where a finding was seen before."""

    HERE = "here"
    ELSEWHERE = "elsewhere"
    NEVER = "never"


class Reproduced(StrEnum):
    """What the reproducer of a finding says of a build."""

    STILL = "still"  # the finding is there
    GONE = "gone"  # it ran to its end without the finding
    UNDECIDED = "undecided"
    NONE = "none"  # nobody asked


class ExcuseKind(StrEnum):
    """Why a finding does not count."""

    KNOWN = "known"  # it is a known issue, until a day
    QUARANTINED = "quarantined"  # its cell is in quarantine
    ONCE = "once"  # it came once, and not when it was tried again


@dataclass(frozen=True, slots=True, kw_only=True)
class Excuse:
    """A finding that does not count in a run.

    :param line: of its cell; empty for any
    :param signature: its name
    :param link: where somebody wrote of it; empty where nobody did
    :param until: the last day; None where none is set
    """

    kind: ExcuseKind
    line: str
    signature: str
    link: str = ""
    until: date | None = None

    def has(self, line: str, signature: str) -> bool:
        """Whether a finding in a cell is meant."""
        return self.signature == signature and self.line in ("", line)


def excuse_of(excuses: Iterable[Excuse], line: str, signature: str, known: str) -> Excuse | None:
    """What excuses a finding in a cell; what keeps it from counting at all comes before a known issue with a last day.

    :param known: link of the known issue that it is
    """
    mine = [each for each in excuses if each.has(line, signature)]
    mine = [each for each in mine if each.kind is not ExcuseKind.KNOWN or (each.until and each.link == known)]
    return max(mine, key=lambda each: each.kind is not ExcuseKind.KNOWN, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class CellFacts:
    """What is known of a finding in a cell; see ``rules.yaml``. ``now`` is ``is`` there, which Python has taken."""

    now: Look
    was: Look
    seen: SeenBefore = SeenBefore.NEVER
    known: bool = False
    flaky: bool = False
    reproducer: Reproduced = Reproduced.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureFacts:
    """What is known of a signature on one QEMU; see ``rules.yaml``."""

    reproducer: Reproduced = Reproduced.NONE
    seen_since: bool = False
    known: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FailRate:
    """How often a cell failed by one finding, of the last times it was judged.

    :param changes: from failed to passed or back, through time
    :param low: with ``high``, the 99 % interval of the share (Wilson)
    """

    failed: int
    judged: int
    changes: int
    low: float
    high: float

    @property
    def share(self) -> float:
        return self.failed / self.judged if self.judged else 0.0


def fail_rate(failed: Sequence[bool]) -> FailRate:
    """The rate of some outcomes, in the order of time."""
    count, of = sum(failed), len(failed)
    low, high = wilson(count, of)
    changes = sum(before is not after for before, after in pairwise(failed))
    return FailRate(failed=count, judged=of, changes=changes, low=low, high=high)


def wilson(count: int, of: int) -> tuple[float, float]:
    """The 99 % interval of a share; of nothing it is all that is possible."""
    if not of:
        return 0.0, 1.0
    share, square = count / of, _Z * _Z / of
    middle = share + square / 2
    spread = _Z * math.sqrt(share * (1 - share) / of + square / (4 * of))
    low, high = (middle - spread) / (1 + square), (middle + spread) / (1 + square)
    return (low if count else 0.0), (high if count < of else 1.0)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class _When(_Section):
    """Conditions of a rule, one value or several; what is not named may be anything."""

    @cached_property
    def named(self) -> tuple[tuple[str, tuple[object, ...]], ...]:
        """Names of facts, each with the values that it may have."""
        several = ((name, value if isinstance(value, tuple) else (value,)) for name, value in self)
        return tuple((name, values) for name, values in several if values not in ((), (None,)))


class CellWhen(_When):
    """Conditions of a rule for cells."""

    now: Annotated[Look | tuple[Look, ...], Field(alias="is")] = ()
    was: Look | tuple[Look, ...] = ()
    seen: SeenBefore | tuple[SeenBefore, ...] = ()
    known: bool | None = None
    flaky: bool | None = None
    reproducer: Reproduced | tuple[Reproduced, ...] = ()


class SignatureWhen(_When):
    """Conditions of a rule for signatures."""

    reproducer: Reproduced | tuple[Reproduced, ...] = ()
    seen_since: bool | None = None
    known: bool | None = None


class CellRule(_Section):
    state: CellState
    when: CellWhen


class SignatureRule(_Section):
    state: SignatureState
    when: SignatureWhen


class FlakyRule(_Section):
    """When a finding is flaky: by its kind, and by the last outcomes of its cell."""

    kinds: tuple[str, ...]
    last: Annotated[int, Field(ge=2)]
    least_judged: Annotated[int, Field(ge=2)]
    least_share: Annotated[float, Field(ge=0, le=1)]
    most_share: Annotated[float, Field(ge=0, le=1)]
    least_changes: Annotated[int, Field(ge=1)]

    def fits(self, kind: str, rate: FailRate) -> bool:
        """Whether a finding of a kind is flaky at a rate."""
        return (
            kind in self.kinds
            and rate.judged >= self.least_judged
            and rate.changes >= self.least_changes
            and self.least_share <= rate.share <= self.most_share
        )


class HistoryRules(_Section):
    """All of a file of rules."""

    flaky: FlakyRule
    cell: tuple[CellRule, ...]
    signature: tuple[SignatureRule, ...]

    @field_validator("cell", "signature")
    @classmethod
    def _last(cls, rules: tuple[CellRule | SignatureRule, ...]) -> tuple[CellRule | SignatureRule, ...]:
        if not rules or rules[-1].when.named:
            raise ValueError("the last rule has to be without conditions, so that one always holds")
        return rules

    def cell_state(self, facts: CellFacts) -> CellState:
        """What a finding in a cell is."""
        return next(rule.state for rule in self.cell if _holds(rule.when, facts))

    def signature_state(self, facts: SignatureFacts) -> SignatureState:
        """What a signature is on one QEMU."""
        return next(rule.state for rule in self.signature if _holds(rule.when, facts))


def _holds(when: CellWhen | SignatureWhen, facts: CellFacts | SignatureFacts) -> bool:
    return all(getattr(facts, name) in wanted for name, wanted in when.named)


def read_rules(path: Path | None = None) -> HistoryRules:
    """The rules of a file, by default the shipped ones.

    :raises ConfigError: it cannot be read, or has a mistake; names file, line and column
    """
    return _shipped() if path is None else load_model(path, HistoryRules)


@cache
def _shipped() -> HistoryRules:
    return load_model(SHIPPED, HistoryRules)
