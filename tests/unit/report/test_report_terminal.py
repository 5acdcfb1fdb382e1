# SPDX-License-Identifier: GPL-2.0-or-later
"""The table in the terminal and the progress display, on consoles in memory and a clock set by hand."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from made_cells import changed, ended
from rich.console import Console

from harness.report.terminal import LiveProgress, print_matrix
from harness.results.cause import Undecided, Why
from harness.results.document import Cell, MatrixDoc, Qemu
from harness.results.verdict import Verdict

ASSERTION = "../../softmmu/memory.c:2545: memory_region_add_subregion_common: Assertion '!subregion->container' failed."


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def plain_console(width: int = 100) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=False)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def printed(doc: MatrixDoc, width: int = 100) -> str:
    console = plain_console(width)
    print_matrix(doc, console)
    return written(console)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_table_fits(doc: MatrixDoc, width: int) -> None:
    text = printed(doc, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [80, 100])
def test_table_fits_with_the_longest_words(doc: MatrixDoc, width: int) -> None:
    long = (Verdict.HARNESS_ERROR, Verdict.GUEST_FAULT, Verdict.UNSUPPORTED)
    cells = tuple(changed(cell, verdict=long[i % 3]) for i, cell in enumerate(doc.cells))
    lines = printed(replace(doc, cells=cells), width).splitlines()
    assert max(map(len, lines)) <= width


def test_rows_show_device_schedule_and_loads(doc: MatrixDoc) -> None:
    lines = [line.split() for line in printed(doc).splitlines()]
    assert ["ahci", "same", "ok", "ok", "ok", "ok", "ok", "ok", "600", "612"] in lines
    assert ["alternate", "ok", "over", "6", "phases", "60", "95"] in lines
    assert ["platform", "same", "crash", "crash", "crash", "crash", "crash", "crash", "0/600", "0"] in lines
    assert ["platform", "without", "0000:00:1f.0/ICH9LPC"] in lines


def test_answers_stand_last_and_findings_once(doc: MatrixDoc) -> None:
    text = " ".join(printed(doc).split())
    assert text.endswith("not safe for COLO, because 0000:00:1f.0/ICH9LPC: crash (see the findings).")
    assert text.count(ASSERTION) == 1
    assert text.count("first seen: firmware, load 1 (SIGABRT)") == 1
    assert "same (all phases), alternate, walk, back-to-back (all phases)" in text


def test_pairs_and_partial_runs_are_named(doc: MatrixDoc, newer_qemu: Qemu) -> None:
    text = printed(replace(doc, complete=False, cells=(changed(doc.cells[0], load_qemu=newer_qemu),)))
    assert "recorded -> loaded: 7.2.22 -> 10.0.13" in text
    assert "stopped early" in text


def test_colours_on_a_terminal_only(doc: MatrixDoc) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    print_matrix(doc, console)
    assert "\x1b[1;31mcrash" in written(console)


def test_hostile_text_reaches_no_terminal(one_cell: Callable[..., Cell], with_cells: Callable[..., MatrixDoc]) -> None:
    causes = (ended("[bold]x[/] \x1b]0;title\x07"),)
    text = printed(with_cells(one_cell(verdict=Verdict.CRASH, causes=causes, log="a\x1b[2Jb\nmore\n[/red]\n")))
    assert "\x1b" not in text
    assert "[bold]x[/] \\x1b]0;title\\x07" in text
    assert "[/red]" in text


def test_plain_progress(one_cell: Callable[..., Cell]) -> None:
    clock, console = Clock(), plain_console(300)
    causes = (ended("Assertion failed"),)
    bad = one_cell(verdict=Verdict.CRASH, causes=causes, blamed=("dev/x",), loads_acked=7)
    good = one_cell(device="virtio-blk")
    with LiveProgress(total_cells=3, console=console, clock=clock) as progress:
        progress.stage("recording q35: busy")
        progress.start_cell(good.id)
        progress.start_cell(bad.id)
        progress.loads(good.id, 40)
        progress.loads(good.id, 50)
        progress.loads("unknown", 1000)
        progress.end_cell(bad)
        clock.now_s += 9.9
        progress.tick()
        assert "57 loads" not in written(console)
        clock.now_s += 0.1
        progress.tick()
        progress.tick()
        progress.end_cell(good)
        progress.message("bye [/]")
    lines = written(console).splitlines()
    assert lines[:3] == [
        "3 cells to judge",
        "recording q35: busy",
        f"crash {bad.id}  dev/x: load 1: SIGABRT: Assertion failed",
    ]
    assert len(lines) == 5
    assert lines[3].startswith("1/3 cells (1 crash); 57 loads, ")
    assert lines[3].endswith("0:10, about 0:20 left; now " + good.id)
    assert lines[4] == "bye [/]"


def test_a_few_cells_of_many_do_not_tell_how_long_the_others_take(one_cell: Callable[..., Cell]) -> None:
    clock, console = Clock(), plain_console(300)
    with LiveProgress(total_cells=40, console=console, clock=clock) as progress:
        for _ in range(2):
            progress.start_cell(one_cell().id)
            progress.end_cell(one_cell())
            clock.now_s += 10.0
            progress.tick()
    lines = [line.rpartition("; ")[2] for line in written(console).splitlines()[1:]]
    assert lines == ["0:10", "0:20, about 6:20 left"]


def test_a_recording_that_is_made_for_itself_counts_no_cells() -> None:
    console, clock = plain_console(100), Clock()
    with LiveProgress(total_cells=0, console=console, clock=clock) as progress:
        progress.stage("recording pc: kernel")
        clock.now_s += 100.0
        progress.tick()
    assert written(console).splitlines() == ["recording pc: kernel", "1:40; now recording pc: kernel"]


def test_why_a_device_was_not_judged_is_told_once_when_piped(one_cell: Callable[..., Cell]) -> None:
    console = plain_console(300)
    with LiveProgress(total_cells=3, console=console, clock=Clock()) as progress:
        for said, phases in (("no driver", ("kernel",)), ("no driver", ("bound",)), ("another", ("busy",))):
            causes = (Undecided(why=Why.ERROR, said=said),)
            cell = one_cell(verdict=Verdict.HARNESS_ERROR, causes=causes)
            progress.end_cell(replace(cell, key=replace(cell.key, phases=phases)))
    lines = [line for line in written(console).splitlines() if line.startswith("harness-error")]
    assert [line.split("  ")[1] for line in lines] == ["no driver", "another"]


def test_each_bad_cell_is_a_line_when_piped_and_each_finding_on_a_terminal(
    one_cell: Callable[..., Cell],
) -> None:
    for terminal, count in ((False, 3), (True, 1)):
        console = Console(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)
        with LiveProgress(total_cells=3, console=console, clock=Clock()) as progress:
            for number in range(3):
                causes = (ended("died", load=number),)
                progress.end_cell(
                    one_cell(device=f"d{number}", verdict=Verdict.CRASH, causes=causes, blamed=("dev/x",))
                )
        assert written(console).count("SIGABRT: died") == count


def test_live_display_shows_what_runs(one_cell: Callable[..., Cell]) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    clock = Clock()
    with LiveProgress(total_cells=12, console=console, clock=clock) as progress:
        cells = [one_cell(device=f"d{number}") for number in range(6)]
        for cell in cells:
            progress.start_cell(cell.id)
        progress.end_cell(cells[0])
        progress.loads(cells[1].id, 40)
        clock.now_s += 2
    text = written(console)
    assert "1/12 cells  1 ok   140 loads" in text
    assert f"{cells[1].id}  40 loads" in text
    assert "and 1 more" in text


def test_threads_lose_nothing(one_cell: Callable[..., Cell]) -> None:
    console = plain_console(300)
    clock = Clock()
    progress = LiveProgress(total_cells=1, console=console, clock=clock, interval_s=0)

    def work(name: str) -> None:
        for number in range(50):
            cell = one_cell(device=f"{name}-{number}", loads_acked=10)
            progress.start_cell(cell.id)
            progress.loads(cell.id, 5)
            progress.end_cell(cell)

    threads = [threading.Thread(target=work, args=(f"t{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    progress.tick()
    assert written(console).startswith("200/200 cells (200 ok); 2,000 loads")
