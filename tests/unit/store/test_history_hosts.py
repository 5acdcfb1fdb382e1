# SPDX-License-Identifier: GPL-2.0-or-later
"""Cells of one run that several hosts judged."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa
from made_runs import crashed, events, judged, started, write_run

from harness.results.verdict import Verdict
from harness.store.read import History
from harness.store.write import RunWriter


def test_a_cell_that_another_host_judged_is_that_hosts_and_not_open_here(engine: sa.Engine, history: History) -> None:
    there = replace(crashed("pc-q35-7.2/ahci/busy/same"), host="beta")
    here = replace(judged(), host="alpha")
    write_run(engine, started(), events([there, here], planned=["7.2.22/pc-q35-7.2/ahci/kernel/same"]))
    (run,) = history.runs()
    assert (run.host, run.planned, run.judged, run.findings) == ("alpha", 3, 2, 1)
    found = {(row.cell.split("/", 2)[2], row.verdict, row.host) for row in history.cells(run)}
    assert found == {
        ("ahci/bound/same", Verdict.OK, "alpha"),
        ("ahci/busy/same", Verdict.CRASH, "beta"),
        ("ahci/kernel/same", None, "alpha"),
    }
    assert history.log(run, there.id) == there


def test_of_a_cell_that_several_hosts_judged_by_chance_the_worst_is_kept(engine: sa.Engine, history: History) -> None:
    """The platform is judged in each guest of a machine, and any host may have one."""
    for number, hosts in enumerate((("alpha", "beta"), ("beta", "alpha"), ("beta", "gamma"), ("alpha", "alpha"))):
        first, second = (replace(cell, host=host) for cell, host in zip((judged(), crashed()), hosts, strict=True))
        for order in ((first, second), (second, first)):
            told = events(order)
            name = f"{number}-{order[0].host}-{order[0].verdict}"
            writer = RunWriter(engine)
            writer.begin(started(run=name))
            for event in told:
                writer.write([event])
            write_run(engine, started(run=f"at once {name}"), told)
            for run in (name, f"at once {name}"):
                rows = [(row.verdict, row.host) for row in history.cells(history.run(run))]
                assert rows == [(Verdict.CRASH, hosts[1])], run


def test_a_run_that_asked_each_host_keeps_what_each_of_them_said(engine: sa.Engine, history: History) -> None:
    cells = [replace(crashed(), host="beta"), replace(judged(), host="alpha"), replace(judged(), host="gamma")]
    write_run(engine, started(hosts=("alpha", "beta", "gamma")), events(cells))
    rows = {(row.host, row.verdict) for row in history.cells(history.run("last"))}
    assert rows == {("alpha", Verdict.OK), ("beta", Verdict.CRASH), ("gamma", Verdict.OK)}
