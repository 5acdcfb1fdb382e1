# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload ab``: two builds cell by cell on the same recordings."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.markup import escape

from harness.commands.execute import begin, shown_run
from harness.commands.matrix import asked_of
from harness.commands.output import err, print_json
from harness.commands.resolve import host_binaries
from harness.errors import NothingToRun, UsageError
from harness.files import write_together
from harness.qemu.binary import QemuBinary
from harness.qualify.pairs import shared_machine
from harness.report.ab import JSON_NAME, TEXT_NAME, ab_text
from harness.report.writer import write_reports
from harness.results.ab import compare_builds
from harness.results.events import EventLog
from harness.results.folder import held_against
from harness.work.asked import Subject, labelled


def ab(given: dict[str, Any]) -> int:
    """Record with A, load with both, say what differs; returns the exit code."""
    paths = [given.pop("qemu_a"), given.pop("qemu_b")]
    a, b = host_binaries(paths, set())
    if a.sha256 == b.sha256:
        raise UsageError(f"{a.path} and {b.path} are the same program: expected two builds")
    machines = _machines(a, b, given["machines"])
    asked = asked_of({**given, "qemus": paths, "machines": machines})
    a, b = asked.options.binaries
    subjects = [Subject(recorder=a, loader=loader, machine=machine) for machine in machines for loader in (a, b)]
    out = given["out"]
    started = begin(asked.accel, known=asked.issues)
    with EventLog(out) as log, shown_run(asked.options, started, log, guest=asked.guest) as run:
        doc = run.execute(subjects)
    held = held_against(doc, started).doc
    write_reports(held, out)
    found = compare_builds(held, *labelled((a, b)))
    text = ab_text(found, str(out))
    write_together(
        out, {TEXT_NAME: text.encode("utf-8", "replace"), JSON_NAME: json.dumps(found.to_json(), indent=1).encode()}
    )
    if given["as_json"]:
        print_json(found.to_json())
    (sys.stderr if given["as_json"] else sys.stdout).write(text)
    err.print(f"reports: {escape(str(out / TEXT_NAME))}, {JSON_NAME}, matrix.html and the others", soft_wrap=True)
    return found.exit_code


def _machines(a: QemuBinary, b: QemuBinary, wanted: list[str]) -> list[str]:
    """The machine types that both have: of a family the newest."""
    both = {each: shared_machine(a, b, each) for each in wanted}
    for each in (each for each, name in both.items() if name is None):
        err.print(escape(f"{each} is left out: QEMU {a.version} and {b.version} do not both have it"), soft_wrap=True)
    machines = list(dict.fromkeys(name for name in both.values() if name is not None))
    if not machines:
        raise NothingToRun("nothing to compare: the two builds have no machine type in common")
    return machines
