# SPDX-License-Identifier: GPL-2.0-or-later
"""The documents that the commands over a history print with ``--json``; their JSON Schemas come from these models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from harness.store.read import OutcomeRow, RunRow, SignatureRow


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
        found: dict[str, Any] = TypeAdapter(HistoryDoc).dump_python(self, mode="json")
        return found


def history_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``postload history --json``."""
    return schema_of(HistoryDoc)


def schema_of(model: Any) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a document."""
    schema = TypeAdapter(model).json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
