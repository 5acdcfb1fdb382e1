# SPDX-License-Identifier: GPL-2.0-or-later
"""The events of a run: written line by line, folded to its document, killed and damaged in every way."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from made_cells import ended, made_cell

from harness.errors import HostError, UsageError
from harness.results.document import Cell, Colo, MachineResult, Qemu
from harness.results.events import (
    EVENTS_NAME,
    Answered,
    CellsPlanned,
    Event,
    EventLog,
    Fold,
    Judged,
    MachineSeen,
    Place,
    RunEnded,
    Said,
    Started,
    cut_bytes,
    fold_file,
    is_being_written,
    read_events,
)
from harness.results.verdict import FailureClass, Verdict

QEMU = Qemu(version="7.2.22", build="Debian", path="/usr/bin/q", sha256="ab" * 32)
STARTED = Started(command=("postload", "matrix"), host={"cores": 2}, started="2026-01-05T09:30:12+00:00")
MACHINE = MachineResult(machine="pc-q35-7.2", qemu=QEMU, alias="q35")


def cell(name: str, _: str = "", verdict: Verdict = Verdict.OK) -> Cell:
    """A cell of a device and a phase, ``+rest`` behind them for the second look."""
    device, _, phase = name.rpartition("/")
    given = {"phases": (phase.removesuffix("+rest"),), "rest": int(phase.endswith("+rest")), "record_qemu": QEMU}
    given |= {"load_qemu": QEMU, "sections": ("i8259",), "details": {"kilobytes": [1, 2.5]}}
    if verdict is Verdict.CRASH:
        given |= {"failure_class": FailureClass.FAILS, "causes": (ended("it died"),), "blamed": ("i8259",)}
        given |= {"log": "a\nb\udcff\n"}
    return made_cell(f"pc-q35-7.2/{device or 'x'}/bound/same", verdict, **given)


def place(found: Cell) -> str:
    device = "" if found.device == "x" else f"{found.device}/"
    return f"{device}{found.key.where}{'+rest' if found.is_rest else ''}"


def whole_run() -> list[Event]:
    return [
        STARTED,
        MachineSeen(at_s=0.1, machine=MACHINE),
        CellsPlanned(at_s=0.2, row="q35/ahci", cells=("ahci/1", "ahci/2")),
        CellsPlanned(at_s=0.2, row="q35/platform", cells=("platform/1",)),
        MachineSeen(at_s=0.3, machine=replace(MACHINE, dialect="enable-colo")),
        CellsPlanned(at_s=0.4, row="q35/ahci", place=Place.BEHIND, cells=("ahci/drift",)),
        CellsPlanned(at_s=0.4, row="q35/ahci", place=Place.BEFORE, cells=("ahci/plain", "ahci/postcopy")),
        Said(at_s=0.5, text="something"),
        Judged(at_s=1.0, planned="platform/1", cell=cell("platform/1", verdict=Verdict.CRASH)),
        Judged(at_s=1.5, planned="platform/1", cell=cell("platform/1+rest")),
        Judged(at_s=2.0, planned="ahci/drift", cell=cell("ahci/drift", "ahci")),
        Judged(at_s=3.0, planned="ahci/2", cell=cell("ahci/2", "ahci")),
        Judged(at_s=4.0, planned="ahci/1", cell=cell("ahci/1", "ahci")),
        Judged(at_s=5.0, planned="ahci/plain", cell=cell("ahci/plain", "ahci")),
        RunEnded(at_s=6.25, complete=True),
    ]  # fmt: skip


def written(folder: Path, events: list[Event]) -> Path:
    with EventLog(folder) as log:
        for event in events:
            log.write(event)
    return folder / EVENTS_NAME


def test_a_line_is_what_is_documented(tmp_path: Path) -> None:
    lines = written(tmp_path, whole_run()).read_text().splitlines()
    assert json.loads(lines[0]) == {
        "event": "started", "at_s": 0.0, "schema": "postload.events/1", "command": ["postload", "matrix"],
        "host": {"cores": 2}, "started": "2026-01-05T09:30:12+00:00",
        "program": json.loads(lines[0])["program"], "known": None, "qualify": None,
        "run": "", "shard": None, "night": "", "hosts": [],
    }  # fmt: skip
    assert json.loads(lines[5]) == {
        "event": "planned", "at_s": 0.4, "row": "q35/ahci", "place": "behind", "cells": ["ahci/drift"],
    }  # fmt: skip
    judged = json.loads(lines[8])
    assert (judged["event"], judged["planned"]) == ("judged", "platform/1")
    outcome = judged["cell"]["outcome"]
    assert (outcome["verdict"], outcome["class"], outcome["log"]) == ("crash", "fails", "a\nb?\n")
    assert json.loads(lines[14]) == {"event": "ended", "at_s": 6.25, "complete": True}


def test_the_document_has_the_order_of_the_plan(tmp_path: Path) -> None:
    doc = fold_file(written(tmp_path, whole_run())).document()
    assert [place(cell) for cell in doc.cells] == [
        "ahci/plain", "ahci/1", "ahci/2", "ahci/drift", "platform/1", "platform/1+rest",
    ]  # fmt: skip
    assert (doc.command, doc.host, doc.seconds, doc.complete) == (("postload", "matrix"), {"cores": 2}, 6.25, True)
    (machine,) = doc.machines
    assert (machine.dialect, machine.colo) == ("enable-colo", Colo.UNSAFE)
    (reason,) = machine.because
    assert (reason.sections, reason.verdict, reason.causes) == (("i8259",), Verdict.CRASH, (ended("it died"),))


def test_a_cell_that_two_guests_tell_of_is_there_once_and_is_the_worst(tmp_path: Path) -> None:
    crash, fine = cell("platform/1", verdict=Verdict.CRASH), cell("platform/1")
    elsewhere = replace(crash, outcome=replace(crash.outcome, failure_class=None))
    for told in ([fine, elsewhere, crash], [crash, fine, elsewhere], [elsewhere, crash, fine]):
        events: list[Event] = [STARTED, *(Judged(at_s=1.0, planned="platform/1", cell=each) for each in told)]
        folder = tmp_path / str(told.index(fine))
        assert fold_file(written(folder, events)).document().cells == (
            replace(crash, outcome=replace(crash.outcome, log="a\nb?\n")),
        )


def test_events_that_were_read_are_those_that_were_written(tmp_path: Path) -> None:
    events = whole_run()
    read = list(read_events(written(tmp_path, events)))
    # of a log, bytes that are no UTF-8 are lost
    assert [type(event) for event in read] == [type(event) for event in events]
    assert [a for a, b in zip(read, events, strict=True) if a != b] == [read[8]]
    assert "b?" in getattr(read[8], "cell").outcome.log  # noqa: B009 - a union of events


def test_without_its_end_a_run_is_not_complete(tmp_path: Path) -> None:
    for count in range(1, 15):
        doc = fold_file(written(tmp_path, whole_run()[:count])).document()
        assert not doc.complete
        assert len(doc.cells) == max(0, count - 8)
    stopped = fold_file(written(tmp_path, [*whole_run()[:-1], RunEnded(complete=False)])).document()
    assert not stopped.complete


@pytest.mark.parametrize("complete", [True, False])
def test_an_answer_that_was_stopped_makes_the_run_partial(tmp_path: Path, complete: bool) -> None:
    fold = fold_file(written(tmp_path, [*whole_run(), Answered(qualify={"complete": complete, "answer": "go"})]))
    assert fold.answer == {"complete": complete, "answer": "go"}
    assert fold.complete is complete


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_last_line_that_was_being_written_is_left_out(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path, whole_run())
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    fold = fold_file(path)
    assert not fold.complete
    assert len(fold.document().cells) == 6
    assert cut_bytes(path) == len(data.splitlines(keepends=True)[-1]) - cut
    path.write_bytes(data)
    assert cut_bytes(path) == 0


@pytest.mark.parametrize(
    ("number", "line", "said"),
    [
        (9, b'{"event": "judged", "at_s": 1.0, "planned": "x", "ce\n', "JSON"),
        (3, b"\0\0\0\0\n", "JSON"),
        (9, b'{"event": "judged", "at_s": 1.0, "planned": "x", "cell": {"id": "x"}}\n', "cell"),
        (4, b'{"event": "danced", "at_s": 1.0}\n', "danced"),
        (15, b'{"event": "ended", "complete": "yes"}\n', "complete"),
        (1, b'{"event": "ended", "complete": true}\n', "started"),
        (2, None, "started"),
        (1, b'{"schema": "postload.matrix/2", "cells": []}\n', "postload.events/1"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, number: int, line: bytes | None, said: str) -> None:
    path = written(tmp_path, whole_run())
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = lines[0] if line is None else line
    path.write_bytes(b"".join(lines))
    with pytest.raises(UsageError, match=rf"cells\.jsonl:{number}: .*{said}") as caught:
        fold_file(path)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("data", [b"", b'{"event": "started", "schema"'])
def test_a_file_without_a_run_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / EVENTS_NAME).write_bytes(data)
    with pytest.raises(UsageError, match=r"cells\.jsonl: no run"):
        fold_file(tmp_path / EVENTS_NAME)
    with pytest.raises(UsageError, match="elsewhere"):
        fold_file(tmp_path / "elsewhere" / EVENTS_NAME)


def test_a_full_disk_takes_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = whole_run()
    real = os.write
    room = [True]

    def nearly_full(fd: int, data: bytes) -> int:
        if room[0]:
            return real(fd, data)
        if len(data) > 20:
            return real(fd, data[: len(data) - 20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", nearly_full)
    with EventLog(tmp_path) as log:
        for event in events[:9]:
            log.write(event)
        before = log.path.read_bytes()
        room[0] = False
        with pytest.raises(HostError, match="no space left"):
            log.write(events[9])
        assert log.path.read_bytes() == before
        # there is room again, for the end at least
        room[0] = True
        log.write(RunEnded(complete=False))
        assert log.size_bytes == log.path.stat().st_size
    assert [place(found) for found in fold_file(log.path).document().cells] == ["platform/1"]


def test_a_run_that_does_not_begin_leaves_the_events_of_the_one_before(tmp_path: Path) -> None:
    path = written(tmp_path, whole_run())
    before = path.read_bytes()
    with EventLog(tmp_path):
        pass
    assert path.read_bytes() == before
    with EventLog(tmp_path) as log:
        log.write(STARTED)
        assert len(path.read_bytes().splitlines()) == 1


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log, EventLog(tmp_path) as other:
        log.write(STARTED)
        assert is_being_written(log.path)
        with pytest.raises(HostError, match="another run is writing there"):
            other.write(STARTED)
        log.write(RunEnded(complete=True))
    assert not is_being_written(log.path)
    assert fold_file(log.path).complete


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, "tests/unit/made")
from tests.unit.results.test_events import STARTED, cell
from harness.results.events import EventLog, Judged
with EventLog(Path(sys.argv[1])) as log:
    log.write(STARTED)
    for number in range(10**9):
        log.write(Judged(planned=str(number), cell=cell(str(number))))
"""


@pytest.mark.parametrize("cells", [1, 50, 400])
def test_a_run_that_is_killed_keeps_what_it_wrote(tmp_path: Path, cells: int) -> None:
    path = tmp_path / EVENTS_NAME
    root = Path(__file__).parents[3]
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=root)
    try:
        deadline_s = time.monotonic() + 60
        while not (path.exists() and path.read_bytes().count(b"\n") > cells):
            assert process.poll() is None
            assert time.monotonic() < deadline_s
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
    assert not is_being_written(path)
    doc = fold_file(path).document()
    assert not doc.complete
    assert len(doc.cells) >= cells
    assert [place(found) for found in doc.cells] == [str(number) for number in range(len(doc.cells))]


def test_a_fold_can_go_on(tmp_path: Path) -> None:
    """The document of a run at work and that of its file are one, at every moment."""
    fold = Fold(STARTED)
    events = [event for event in whole_run() if getattr(event, "cell", cell("x")).verdict is Verdict.OK]
    for count, event in enumerate(events, 1):
        fold.add(event)
        assert fold.document() == fold_file(written(tmp_path, events[:count])).document()
