# SPDX-License-Identifier: GPL-2.0-or-later
"""The JSON Schemas that are shipped, made from the models: ``python -m harness.report.schemas`` writes them anew."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.nights.document import night_schema
from harness.qualify.fleet import fleet_schema
from harness.qualify.model import qualify_schema
from harness.report.catalogue import devices_schema
from harness.report.work import work_schema
from harness.results.ab import ab_schema
from harness.results.document import matrix_schema
from harness.store.document import compare_schema, history_schema
from harness.studies.model import claims_schema

FOLDER = Path(__file__).with_name("schema")
SCHEMAS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "matrix-2.schema.json": matrix_schema,
    "qualify-1.schema.json": qualify_schema,
    "fleet-1.schema.json": fleet_schema,
    "claims-1.schema.json": claims_schema,
    "devices-1.schema.json": devices_schema,
    "ab-1.schema.json": ab_schema,
    "history-1.schema.json": history_schema,
    "compare-1.schema.json": compare_schema,
    "night-1.schema.json": night_schema,
    "work-1.schema.json": work_schema,
}


def shipped(name: str) -> dict[str, Any]:
    """A schema as it is shipped."""
    found: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return found


def write_schemas(folder: Path = FOLDER) -> None:
    """Write all of them into a folder."""
    for name, make in SCHEMAS.items():
        (folder / name).write_text(json.dumps(make(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_schemas()
