# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload inspect`` and ``doctor``."""

from __future__ import annotations

from pathlib import Path

import click
from rich.markup import escape
from rich.table import Table

from harness.commands.doctor import check_host
from harness.commands.options import emit, json_option, print_json
from harness.report import inspection
from harness.report.console import SafeConsole


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--section", metavar="IDSTR", help="Only sections whose idstr holds this text.")
@click.option("--phase", help="Of a state pack: the phase to show.")
@json_option
def inspect(path: Path, section: str | None, phase: str | None, as_json: bool) -> int:
    """Show what a state pack or a migration stream holds, down to the field."""
    emit(inspection.inspect_path(path, section=section, phase=phase), as_json)
    return 0


@click.command()
@click.option("--qemu", metavar="PATH", help="QEMU to look at.")
@json_option
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
