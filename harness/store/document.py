# SPDX-License-Identifier: GPL-2.0-or-later
"""The documents that the commands over a history print with ``--json``; their JSON Schemas come from these models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.results.document import plain_json, schema_of
from harness.results.verdict import Verdict
from harness.store.read import OutcomeRow, RunRow, SignatureRow
from harness.store.states import CellState, Excuse, FailRate, Look
from harness.store.write import RunState


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryDoc:
    """What a history knows of what was asked.

    :param asked: a cell's line, a signature or a device; empty for the runs themselves
    :param runs: that were looked at, the newest first
    :param outcomes: of a cell or a signature, the newest first; of a device those of the newest run that has it
    :param signatures: of what was asked, the one seen last first
    """

    schema: Literal["postload.history/1"] = "postload.history/1"
    asked: str
    runs: tuple[RunRow, ...]
    outcomes: tuple[OutcomeRow, ...] = ()
    signatures: tuple[SignatureRow, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return plain_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedCell:
    """What became of a finding in a cell, or of a cell that says nothing now.

    :param cell: key as text; of the later run where that has the cell
    :param line: key without the last number of its QEMUs and without ``+rest``
    :param signature: of the finding, empty where there is none
    :param was: the verdict in the earlier run, or in the last one before it that judged the cell; None where none did
    :param now: the verdict in the later run; None where it was not judged there
    :param look: what the later run says of the finding; of a cell that did not run: unjudged, undecided or absent
    :param known: link of the known issue that it is
    :param excuse: why it does not count, or until when it is known; None where nothing is kept of that
    :param rate: how often the cell failed so lately, of kinds of findings that can be flaky
    """

    state: CellState
    cell: str
    line: str
    signature: str
    was: Verdict | None
    now: Annotated[Verdict | None, Field(alias="is")]
    look: Look
    known: str = ""
    excuse: Excuse | None = None
    rate: FailRate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareDoc:
    """Two runs, held against each other.

    :param not_run: cells that the later run says nothing of: planned and not judged, undecided, or judged by the
        earlier run alone
    :param excused: findings that stand in none of the other lists, since the later run is a night that did not count
        them
    """

    schema: Literal["postload.compare/1"] = "postload.compare/1"
    before: RunRow
    after: RunRow
    new: tuple[ChangedCell, ...] = ()
    back: tuple[ChangedCell, ...] = ()
    fixed: tuple[ChangedCell, ...] = ()
    unseen: tuple[ChangedCell, ...] = ()
    still: tuple[ChangedCell, ...] = ()
    flaky: tuple[ChangedCell, ...] = ()
    not_run: tuple[ChangedCell, ...] = ()
    excused: tuple[ChangedCell, ...] = ()

    @property
    def missing(self) -> tuple[ChangedCell, ...]:
        """Planned cells that were not judged, or came to nothing."""
        return tuple(change for change in self.not_run if change.look is not Look.ABSENT)

    @property
    def exit_code(self) -> int:
        """1 when something is new or back, else 3 when not all was judged that was planned, or nothing was, else 0."""
        if self.new or self.back:
            return 1
        whole = self.after.state is RunState.ENDED and self.after.judged > 0
        return 0 if whole and not self.missing else 3

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return plain_json(self)


def compare_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``postload compare --json``."""
    return schema_of(CompareDoc)


def history_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``postload history --json``."""
    return schema_of(HistoryDoc)
