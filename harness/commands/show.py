# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload inspect`` and ``doctor``."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from harness.commands.doctor import check_host
from harness.commands.output import print_json
from harness.commands.resolve import emit
from harness.report import inspection
from harness.report.console import SafeConsole


def inspect(
    path: Path, section: str | None, phase: str | None, like: Path | None, snapshot: str | None, as_json: bool
) -> int:
    """Show what a state pack or a migration stream holds, down to the field."""
    emit(inspection.inspect_path(path, section=section, phase=phase, like=like, snapshot=snapshot), as_json)
    return 0


def doctor(qemu: str | None, as_json: bool) -> int:
    """Say what this host has and lacks, and what to install."""
    checks = check_host(qemu)
    missing = any(check.needed and not check.ok for check in checks)
    if as_json:
        rows = [{k: getattr(c, k) for k in ("name", "ok", "needed", "found", "remedy")} for c in checks]
        print_json({"schema": "postload.doctor/1", "ready": not missing, "checks": rows})
        return 3 if missing else 0
    table = Table(show_header=False, box=None, pad_edge=False)
    for check in checks:
        word = "ok" if check.ok else ("missing" if check.needed else "without")
        table.add_row(word, check.name, escape(check.found) + (f"\n-> {escape(check.remedy)}" if check.remedy else ""))
    SafeConsole().print(table)
    return 3 if missing else 0
