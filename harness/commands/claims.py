# SPDX-License-Identifier: GPL-2.0-or-later
"""``postload claims``."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.markup import escape

from harness.arch import architecture_named
from harness.arch.accel import choose_accel
from harness.commands.output import err
from harness.commands.resolve import binaries_of, check_machines, guest_maker, run_scope
from harness.devices.device import select_devices
from harness.errors import UsageError
from harness.report.claims import question_text
from harness.report.console import SafeConsole
from harness.report.studies import claims_json, print_claims, write_claims
from harness.report.writer import write_reports
from harness.results.document import MatrixDoc
from harness.studies.run import QUESTIONS, Asked, answer_all, exit_status


def claims(given: dict[str, Any]) -> int:
    """Answer questions about COLO with numbers from this QEMU: asserts, half checkpoints, framing, frequency."""
    machines = given["machines"]
    binaries, profiles = binaries_of([given["qemu"]] if given["qemu"] else [], given["profiles"], machines=machines)
    if len(binaries) > 1:
        raise UsageError(f"--machine {','.join(machines)}: expected machines of one QEMU, since each answer is of one")
    check_machines(binaries, machines)
    both = [name for name in architecture_named(binaries[0].target).probe_machines if binaries[0].machine(name)]
    asked = Asked(
        binary=binaries[0],
        machines=machines or both,
        others=machines or both[:1],
        questions=given["questions"] or tuple(QUESTIONS),
        accel=choose_accel(binaries[0], given["accel"]).name,
        devices=select_devices(profiles, []),
        guest=guest_maker(given["guest"], machines or both),
        workers=given["jobs"],
        scope=run_scope(),
        command=["postload", *sys.argv[1:]],
        begin=lambda number: err.print(f"question {number}: {question_text(number)}", soft_wrap=True),
        stage=lambda text: err.print(escape(text), soft_wrap=True),
    )
    doc = answer_all(asked)
    paths = write_claims(doc, given["out"])
    _renew_page(given["out"])
    if given["as_json"]:
        sys.stdout.write(claims_json(doc))
    print_claims(doc, err if given["as_json"] else SafeConsole())
    err.print(f"reports: {escape(', '.join(map(str, paths)))}", soft_wrap=True)
    return exit_status(doc)


def _renew_page(out: Path) -> None:
    """A matrix that lies in the same folder gets the answers into its page."""
    with suppress(OSError, ValueError, UsageError):
        write_reports(MatrixDoc.from_json(json.loads((out / "matrix.json").read_text())), out)
