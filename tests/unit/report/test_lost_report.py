# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that was lost while it was recorded is in every report that a person reads, and in the JSON."""

from __future__ import annotations

import io
import json

from made_cells import QEMU, made_cell
from rich.console import Console

from harness.report.html import render_html
from harness.report.lost import lost_text
from harness.report.markdown import render_markdown
from harness.report.progress import LiveProgress
from harness.report.terminal import print_matrix
from harness.results.document import LostGuest, MachineResult, MatrixDoc
from harness.results.events import GuestLost, encode

LOST = LostGuest(
    machine="pc-i440fx-7.2", recorder="7.2.22", devices=("qxl", "VGA"), phase="unbound", by="qxl", alone=True,
    said="phase unbound: the guest's console is gone",
)  # fmt: skip
WHAT = "pc-i440fx-7.2 on 7.2.22: a guest of 2 devices was lost on its way to phase unbound."


def test_who_did_it_is_said_or_that_nobody_was_found() -> None:
    assert lost_text(LOST) == (
        f"{WHAT} qxl did it: it is recorded alone, as far as it goes, and the others without it. "
        "Seen: phase unbound: the guest's console is gone"
    )
    nobody = LostGuest(machine="m", recorder="q", devices=("a", "b"), said="gone")
    assert "was lost. No device was found that did it" in lost_text(nobody)


def test_every_report_has_it() -> None:
    doc = MatrixDoc(
        command=("postload",), started="2026-11-27T00:00:00+00:00", seconds=1.0, complete=True, host={},
        machines=(MachineResult(machine="pc-i440fx-7.2", qemu=QEMU),), cells=(made_cell(),), lost=(LOST,),
    )  # fmt: skip
    out = io.StringIO()
    print_matrix(doc, Console(file=out, width=100))
    assert WHAT in " ".join(out.getvalue().split())
    assert WHAT.replace("_", "\\_") in render_markdown(doc).replace("`", "")
    assert WHAT in render_html(doc)
    again = MatrixDoc.from_json(json.loads(json.dumps(doc.to_json())))
    assert again.lost == (LOST,)
    assert json.loads(encode(GuestLost(guest=LOST)))["guest"]["by"] == "qxl"


def test_it_is_told_while_the_run_goes_on() -> None:
    out = io.StringIO()
    progress = LiveProgress(total_cells=0, console=Console(file=out, width=200))
    progress.take(GuestLost(guest=LOST))
    assert WHAT in " ".join(out.getvalue().split())
