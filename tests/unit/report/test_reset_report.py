# SPDX-License-Identifier: GPL-2.0-or-later
"""The reset table in the reports: who needs the reset stands first, and what it costs is a sentence of each guest."""

from __future__ import annotations

import io
import json
from dataclasses import replace

from made_cells import QEMU, made_cell
from rich.console import Console

from harness.report.html import render_html
from harness.report.markdown import render_markdown
from harness.report.reset import reset_tables
from harness.report.terminal import print_matrix
from harness.results.document import DeviceReset, GuestReset, MachineResult, MatrixDoc, Milliseconds, ResetNeed
from harness.results.verdict import FailureClass, Verdict


def span(low: float, high: float) -> Milliseconds:
    return Milliseconds(low=low, median=(low + high) / 2, high=high)


COST = GuestReset(phase="bound", samples=40, reset=span(7.54, 7.97), load=span(-0.01, 1.75), added=span(15, 16.02))


def device(
    name: str, need: ResetNeed = ResetNeed.NO, without: Verdict | None = Verdict.OK, **more: object
) -> DeviceReset:
    like = DeviceReset(
        row=f"7.2.22/pc-q35-7.2/{name}", machine="pc-q35-7.2", device=name, resets=False, need=need, without=without,
        behind=Verdict.OK, guest=COST,
    )  # fmt: skip
    return replace(like, **more)  # type: ignore[arg-type]


FEW = (
    device("virtio-blk", part=span(-0.01, 0.48)),
    device("ahci", part=span(0.2, 1.25), leaks=True),
    device(
        "platform", ResetNeed.YES, Verdict.CRASH, failure_class=FailureClass.NOT_REENTRANT,
        sections=("0000:00:1f.0/ICH9LPC",),
    ),
)  # fmt: skip


def doc_of(resets: tuple[DeviceReset, ...]) -> MatrixDoc:
    machine = MachineResult(machine="pc-q35-7.2", alias="q35", qemu=QEMU, resets_before_load=False)
    return MatrixDoc(
        command=("postload", "matrix"), started="2026-01-05T09:30:12Z", seconds=1, complete=True, host={},
        machines=(machine,), cells=(made_cell("pc-q35-7.2/ahci/bound/reset"),), resets=resets,
    )  # fmt: skip


def printed(doc: MatrixDoc) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_matrix(doc, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_who_needs_the_reset_stands_first() -> None:
    (table,) = reset_tables(doc_of(FEW))
    assert [line.words for line in table.lines] == [
        ("platform", "crash (not-reentrant) 0000:00:1f.0/ICH9LPC", "ok", "yes", ""),
        ("virtio-blk", "ok", "ok", "no", "up to 0.48"),
        ("ahci", "ok; leaks", "ok", "no", "0.20 to 1.2"),
    ]
    assert table.about == "this QEMU does not reset the machine before a COLO load"
    assert table.costs == (
        "guest with virtio-blk, ahci, platform, phase bound: a reset takes 7.5 to 8.0 ms; it makes a checkpoint "
        "15.0 to 16.0 ms longer, which takes 0.00 to 1.8 ms without it",
    )


def test_every_report_has_the_table_when_there_is_one() -> None:
    doc = doc_of(FEW)
    assert "platform    crash (not-reentrant) 0000:00:1f.0/ICH9LPC  ok              yes" in printed(doc)
    assert "| platform | crash (not-reentrant) 0000:00:1f.0/ICH9LPC | ok | yes |  |" in render_markdown(doc)
    assert '<h2 id="resets">' in render_html(doc)
    assert "0.20 to 1.2" in render_html(doc)
    none = doc_of(())
    assert "needs it" not in printed(none) + render_markdown(none) + render_html(none)


def test_of_many_devices_a_text_has_those_that_need_it() -> None:
    doc = doc_of((*(device(f"device-{number}") for number in range(60)), FEW[2]))
    (table,) = reset_tables(doc)
    assert [line.words[0] for line in table.told] == ["platform"]
    assert "60 more devices were loaded without a reset, and none of them needs it" in printed(doc)
    assert "device-59" in render_html(doc)


def test_the_document_reads_back() -> None:
    doc = doc_of(FEW)
    again = MatrixDoc.from_json(json.loads(json.dumps(doc.to_json())))
    assert again.resets == FEW
