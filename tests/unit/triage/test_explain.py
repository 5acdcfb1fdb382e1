# SPDX-License-Identifier: GPL-2.0-or-later
"""What is told of a cell, from documents made by hand; no QEMU."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner
from made_cells import ended, made_cell
from rich.console import Console

from harness.colo.messages import Step
from harness.colo.primary import ENABLE_COLO
from harness.commands.declared import explain as explain_command
from harness.devices.device import Device
from harness.engines.probe import ColoAbility
from harness.errors import MissingError, PostloadError, UsageError
from harness.packs.manifest import DeviceModel
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.report.explain import (
    command_lines,
    elsewhere_lines,
    explain_json,
    figures_of,
    issue_note,
    print_page,
    same_lines,
    section_note,
    unseen_lines,
)
from harness.results.cause import (
    Assertion,
    Broke,
    Cause,
    Drifted,
    DriftedField,
    Ended,
    Leaked,
    Resource,
    SanitizerReport,
    Undecided,
    Why,
)
from harness.results.document import Cell, MatrixDoc, Qemu
from harness.results.frames import Frame
from harness.results.known import Issue
from harness.results.outcome import ControlName, ControlResult, Isolation, IsolationWay, Repeats
from harness.results.verdict import FailureClass, Verdict
from harness.stream.model import Section
from harness.stream.vmdesc import VmDesc
from harness.stream.wire import SectionType
from harness.triage.allocations import Allocations, AllocationsHow, CallSite
from harness.triage.backtrace import Backtrace, StackHow
from harness.triage.explain import LINK_PLACE, ExplainMaterial, Explanation, explain
from harness.triage.stack import binary_of, failing_session, has_stack, keep_stack, kept_stack, phase_before, told_stack

OLD = Qemu(version="7.2.22", build="Debian 1:7.2", path="/nowhere/q7", sha256="12" * 32)
NEW = Qemu(version="11.1.3", build="", path="/nowhere/q11", sha256="ab" * 32)
LPC = "0000:00:1f.0/ICH9LPC"
PLATFORM = Device(name="platform", about="every section that no other device owns", rest=True)
NAME = "crash:memory_region_add_subregion_common:!subregion->container:ICH9LPC:q35"
LINE = "../../softmmu/memory.c:2610: memory_region_add_subregion_common: Assertion `!subregion->container' failed."
FRESH = ControlResult(name=ControlName.FRESH, verdict=Verdict.OK, asked=3, passed=3, decided=True)
NO_SOCKET = Undecided(why=Why.ERROR, said="no socket")
LEAK = Leaked(section="timer", resource=Resource.MEMORY, per_load=33.46, low=31, high=35.1, unit="bytes", loads=100)
ASAN = """==7==ERROR: AddressSanitizer: heap-use-after-free on address 0x606000 at pc 0x55 bp 0x7f sp 0x7f
READ of size 8 at 0x606000 thread T0
    #0 0x55d0 in ich9_lpc_post_load ../hw/isa/lpc_ich9.c:500
    #1 0x55d1 in vmstate_load_state ../migration/vmstate.c:161
SUMMARY: AddressSanitizer: heap-use-after-free
"""


def crashed(phase: str = "bound", qemu: Qemu = OLD, **changes: Any) -> Cell:
    given: dict[str, Any] = {
        "record_qemu": qemu,
        "load_qemu": qemu,
        "sections": (LPC, "timer"),
        "loads_asked": 100,
        "verdict": Verdict.CRASH,
        "causes": (died(phase=phase),),
        "blamed": (LPC,),
        "log": f"qemu-system-x86_64: {LINE}",
        "isolation": Isolation(way=IsolationWay.ALONE),
    }
    place = f"pc-q35-{qemu.version[:4].rstrip('.')}/platform/{phase}/same"
    return made_cell(place, **{**given, **changes})


def died(**more: Any) -> Cause:
    function = "memory_region_add_subregion_common"
    failed = Assertion(function=function, expression="!subregion->container")
    return ended(**{"line": LINE, "assertion": failed, **more})


def passed(phase: str = "bound", qemu: Qemu = OLD, **changes: Any) -> Cell:
    given: dict[str, Any] = {"verdict": Verdict.OK, "causes": (), "blamed": (), "log": "", "isolation": None}
    return crashed(phase, qemu, **{**given, "loads_acked": 100, **changes})


def document(*cells: Cell) -> MatrixDoc:
    return MatrixDoc(
        command=("postload", "matrix"),
        started="2026-01-05T09:30:12Z",
        seconds=1,
        complete=True,
        host={},
        machines=(),
        cells=cells,
    )


def pack() -> Any:
    """What explain looks at of a state pack: one section of 3 bytes with a subsection, and its owner."""
    uint8 = {"name": "f", "type": "uint8", "size": 1}
    described = {
        "name": "0000:00:1f.0/ICH9LPC",
        "instance_id": 0,
        "vmsd_name": "ICH9LPC",
        "version": 1,
        "fields": [uint8, {**uint8, "name": "g"}],
        "subsections": [{"vmsd_name": "ICH9LPC/rst_cnt", "version": 1, "fields": [uint8]}],
    }
    section = Section(
        type=SectionType.FULL,
        section_id=5,
        idstr=LPC,
        instance_id=0,
        version_id=1,
        offset=0,
        header_size=0,
        payload=b"abc",
        footer=True,
        desc=VmDesc.from_json(json.dumps({"devices": [described]}).encode()).devices[0],
    )
    return SimpleNamespace(
        phases=["bound"],
        recordings={"bound": SimpleNamespace(sections=(section,))},
        manifest=SimpleNamespace(
            owner={LPC: DeviceModel(name="platform", sections=[LPC], recipe=PLATFORM)}.get,
        ),
    )


def told(tmp_path: Path, cell: Cell, *others: Cell, **material: Any) -> Explanation:
    return explain(cell, document(cell, *others), ExplainMaterial(run=tmp_path, **material))


def page(explanation: Explanation, width: int = 80) -> str:
    out = io.StringIO()
    print_page(explanation, Console(file=out, width=width, highlight=False))
    return out.getvalue()


def words(text: str) -> str:
    return " ".join(text.split())


def label_order(text: str) -> list[str]:
    body = text.split("\n\n")[1]
    return [line[:11].strip() for line in body.splitlines() if line[:11].strip()]


def commands(explanation: Explanation) -> list[str]:
    return [step.argv[1] for step in explanation.steps]


def test_a_crash_is_told_in_full(tmp_path: Path) -> None:
    cell = crashed(failure_class=FailureClass.NOT_REENTRANT, controls=(FRESH,))
    text = page(told(tmp_path, cell, crashed("busy"), passed("kernel")), 100)
    flat = words(text)
    assert text.startswith(f"crash  {cell.id}\n  QEMU died")
    assert "not-reentrant: a process takes it once; its second load fails, the incoming stream being the first" in flat
    assert "fresh: ok in 3 of 3 processes" in flat
    assert NAME in text
    assert "phase bound (driver bound, idle), load 1; 0 of 100 loads acknowledged" in flat
    assert "pc-q35-7.2 platform: same (busy)" in flat
    assert "kernel" not in flat.partition("same       ")[2]
    order = ["machine", "class", "controls", "signature", "section", "when", "case", "same"]
    assert label_order(text) == order


@pytest.mark.parametrize("width", [80, 100])
def test_lines_fit_but_for_what_is_copied(tmp_path: Path, width: int) -> None:
    cell = crashed(controls=(FRESH,) * 12)
    stack = Backtrace(frames=(Frame(number=0, function="a" * 30),), how=StackHow.FAILED, said="b " * 90)
    text = page(told(tmp_path, cell, stack=stack), width)
    long = [line for line in text.splitlines() if len(line) > width]
    assert all(NAME in line or str(tmp_path) in line for line in long)


def test_the_log_is_left_out_where_the_finding_has_it_all(tmp_path: Path) -> None:
    assert "log" not in label_order(page(told(tmp_path, crashed())))
    longer = crashed(log=f"first\nsecond\x1b[31m\nqemu-system-x86_64: {LINE}")
    text = page(told(tmp_path, longer))
    assert "log" in label_order(text)
    assert "second\\x1b[31m" in text


def test_the_same_finding_is_told_by_its_name_and_not_by_its_line_number(tmp_path: Path) -> None:
    moved = crashed("busy", NEW, causes=(died(line=LINE.replace("2610", "77")),), log="")
    other = crashed("kernel", causes=(Ended(step=Step.LOAD, load=1, signal="SIGSEGV"),), log="")
    found = told(tmp_path, crashed(), moved, other)
    assert [other.id for other in found.same] == [moved.id]
    assert same_lines(found) == ["pc-q35-11.1 platform: same (busy) on QEMU 11.1.3"]


def test_other_qemus_of_the_run_are_told_and_give_a_bisection(tmp_path: Path) -> None:
    found = told(tmp_path, crashed(), passed("bound", NEW), passed("busy", NEW), pack=pack())
    assert elsewhere_lines(found) == ["11.1.3: ok"]
    bisect = next(step for step in found.steps if step.argv[1] == "bisect")
    assert bisect.argv[-4:] == ("--good", NEW.path, "--bad", OLD.path)
    same = told(tmp_path, crashed(), crashed("bound", NEW), pack=pack())
    assert elsewhere_lines(same) == ["11.1.3: crash, the same"]
    assert "bisect" not in commands(same)


def test_a_section_is_described_as_it_was_recorded(tmp_path: Path) -> None:
    found = told(tmp_path, crashed(), pack=pack())
    assert "ICH9LPC v1, 3 bytes, 2 fields, with ICH9LPC/rst_cnt; of platform: every section" in words(page(found))
    both = crashed(blamed=(LPC, "gone"))
    assert [facts.size_bytes for facts in told(tmp_path, both, pack=pack()).sections] == [3, 0]
    nobody = told(tmp_path, crashed(blamed=()), pack=pack())
    assert section_note(nobody) == "no section is blamed; loaded were 2 sections of platform"


def test_next_is_minimise_then_bundle_then_known(tmp_path: Path) -> None:
    cell = crashed()
    run = tmp_path / "my runs"
    run.mkdir()
    found = explain(cell, document(cell), ExplainMaterial(run=run, pack=pack()))
    assert commands(found) == ["minimise", "bundle", "known"]
    assert found.steps[0].argv == ("postload", "minimise", cell.id, "--run", str(run))
    assert found.steps[-1].argv[-1] == LINK_PLACE


def test_printed_commands_are_what_a_shell_reads_back(tmp_path: Path) -> None:
    argv = ("postload", "bundle", "a/b/c", "--run", "my runs/x", "--out", "y" * 70, "--link", LINK_PLACE)
    lines = command_lines(argv, 60)
    assert len(lines) > 2
    assert all(line.endswith(" \\") for line in lines[:-1])
    assert tuple(shlex.split("\n".join(lines).replace("\\\n", ""))) == argv
    assert command_lines(("a", "b"), 60) == ["a b"]


def test_a_cell_without_its_pack_is_run_again(tmp_path: Path) -> None:
    found = told(tmp_path, crashed(), pack_note="/gone is not a state pack")
    assert found.steps[0].argv[:2] == ("postload", "matrix")
    assert "--schedule same" in " ".join(found.steps[0].argv)
    assert "/gone is not a state pack" in words(page(found))


def test_a_known_issue_is_shown_and_not_added_again(tmp_path: Path) -> None:
    issue = Issue(signature=NAME, affected=("7.2",), link="https://x.org/1", note="see there")
    found = told(tmp_path, crashed(), issues=(issue,))
    assert found.cell.known == "https://x.org/1"
    assert "known" not in commands(found)
    assert "affected: 7.2; see there" in page(found)


def test_an_issue_that_was_fixed_is_news(tmp_path: Path) -> None:
    issue = Issue(signature=NAME, affected=("*",), link="https://x.org/1", fixed_in="7.2.20")
    found = told(tmp_path, crashed(), issues=(issue,))
    assert found.cell.known == ""
    assert "although it is said to be fixed in 7.2.20" in words(page(found))
    unlisted = replace_issue(issue, affected=("8.0",), fixed_in=None)
    assert "not among the versions" in issue_note(told(tmp_path, crashed(), issues=(unlisted,)))
    another = replace_issue(issue, signature="crash:f:x:ICH9LPC:q35")
    assert told(tmp_path, crashed(), issues=(another,)).issue is None


def replace_issue(issue: Issue, **changes: Any) -> Issue:
    return issue.model_copy(update=changes)


def test_an_ok_cell_says_what_was_not_looked_at(tmp_path: Path) -> None:
    cell = passed(excluded=(LPC,))
    found = told(tmp_path, cell, passed(lane="leak"))
    text = page(found)
    flat = words(text)
    assert text.startswith("ok  ")
    assert "100 of 100 loads acknowledged" in flat
    assert f"left out: {LPC}" in flat
    missing = next(note for note in unseen_lines(found) if note.startswith("not in this run for platform"))
    assert "drift" in missing
    assert "leak" not in missing
    assert "controls" in label_order(text)
    assert "case" not in label_order(text)
    assert commands(found) == ["matrix"]
    assert found.told


def test_a_cell_that_was_not_judged_tells_nothing(tmp_path: Path) -> None:
    found = told(tmp_path, crashed(verdict=Verdict.HARNESS_ERROR, causes=(NO_SOCKET,)))
    assert not found.told
    assert "no socket" in page(found)


def test_the_stack_begins_with_the_first_frame_of_qemu(tmp_path: Path) -> None:
    frames = (
        Frame(number=0, function="__GI_raise"),
        Frame(number=1, function="ich9_lpc_post_load", file="../../hw/isa/lpc_ich9.c", line=500),
        Frame(number=2, function="vmstate_load_state"),
        Frame(number=3, function="start_thread"),
    )
    stack = Backtrace(
        frames=frames, short="ich9_lpc_post_load < vmstate_load_state", how=StackHow.STOPPED, signal="SIGABRT"
    )
    text = page(told(tmp_path, crashed(), stack=stack))
    assert "#1 ich9_lpc_post_load (hw/isa/lpc_ich9.c:500)" in text
    assert "raise" not in text.partition("stack")[2]
    assert "start_thread" not in text
    assert "2 frames of libraries" in words(text)


def test_a_leaks_call_sites_are_on_the_page(tmp_path: Path) -> None:
    frames = (
        Frame(number=2, function="timer_new_full", file="../../include/qemu/timer.h", line=520),
        Frame(number=3, function="vmstate_load_state"),
        Frame(number=4, function="start_thread"),
    )
    short = "timer_new_full < vmstate_load_state"
    site = CallSite(section="timer", size_bytes=48, per_load=1.0, frames=frames, short=short)
    seen = Allocations(how=AllocationsHow.SEEN, sites=(site,), loads=8)
    text = page(told(tmp_path, crashed(), allocations=seen))
    assert "1.00 of 48 bytes: timer_new_full < vmstate_load_state" in text
    assert "#2 timer_new_full (include/qemu/timer.h:520)" in text
    assert "start_thread" not in text
    assert "8 loads under gdb; debug symbols" in words(text)
    assert "-dbgsym" not in words(text)
    unnamed = replace(seen, sites=(replace(site, frames=(Frame(number=2, function=""), *frames)),))
    assert "package qemu-system-x86-dbgsym" in words(page(told(tmp_path, crashed(), allocations=unnamed)))
    for how in AllocationsHow:
        none = Allocations(how=how, said="ptrace: no")
        said = words(page(told(tmp_path, crashed(), allocations=none)))
        assert ("call sites are not known: " in said) is (how is not AllocationsHow.SEEN)


def test_a_report_in_the_log_gives_the_stack(tmp_path: Path) -> None:
    report = SanitizerReport(tool="AddressSanitizer", complaint="heap-use-after-free")
    cell = crashed(causes=(Ended(step=Step.LOAD, load=1, status=1, sanitizer=report, line="ERROR"),), log=ASAN)
    stack = told_stack(cell)
    assert stack is not None
    assert stack.short == "ich9_lpc_post_load < vmstate_load_state"
    assert told_stack(crashed()) is None
    assert "AddressSanitizer: heap-use-after-free, read of 8 bytes" in words(page(told(tmp_path, cell)))


def test_only_crashes_and_hangs_have_a_stack() -> None:
    late = Broke(step=Step.LOAD, load=3, how="late")
    assert has_stack(crashed())
    assert not has_stack(passed())
    assert has_stack(crashed(verdict=Verdict.HANG, causes=(late,)))
    assert not has_stack(crashed(verdict=Verdict.LEAK, causes=(LEAK,), lane="leak"))
    seldom = Repeats(seen=1, of=3, verdict=Verdict.HANG, others=(Verdict.OK,))
    assert has_stack(crashed(verdict=Verdict.FLAKY, causes=(late,), repeats=seldom))


def test_a_stack_is_kept_for_its_own_finding_and_qemu_only(tmp_path: Path) -> None:
    cell = crashed()
    nothing: frozenset[str] = frozenset()
    binary = QemuBinary(
        path="/q",
        version="7.2.22",
        build="",
        target="x86_64",
        sha256=OLD.sha256,
        machines=(),
        devices=nothing,
        capabilities=nothing,
    )
    assert kept_stack(tmp_path, cell) is None
    frame = Frame(number=0, function="f", file="hw/x.c", line=3)
    stack = Backtrace(frames=(frame,), short="f", how=StackHow.STOPPED, signal="SIGABRT")
    keep_stack(tmp_path, cell, binary, stack)
    assert kept_stack(tmp_path, cell) == stack
    assert kept_stack(tmp_path, cell, OLD.sha256) == stack
    assert kept_stack(tmp_path, cell, NEW.sha256) is None
    assert kept_stack(tmp_path, crashed("busy")) is None
    assert kept_stack(tmp_path, replace(cell, signature="crash:g:-:x:q35")) is None
    (file,) = (tmp_path / "backtraces").iterdir()
    file.write_text("{")
    assert kept_stack(tmp_path, cell) is None


def test_a_qemu_that_is_gone_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(MissingError, match=r"/nowhere/q7 is not there any more; give it by --qemu"):
        binary_of(crashed())
    other = tmp_path / "qemu"
    other.write_text("#!/bin/sh\n")
    with pytest.raises(MissingError, match="is another build now"):
        binary_of(crashed(load_qemu=replace(OLD, path=str(other))))


def test_the_state_before_a_load_is_that_of_the_schedule() -> None:
    walk = crashed(phases=("kernel", "bound"), lane="alternate")
    assert phase_before(crashed(), 1) == "bound"
    assert phase_before(walk, 1) == "kernel"
    assert phase_before(walk, 3) == "bound"
    assert phase_before(crashed(lane="back-to-back"), 40) == "bound"


def test_drifted_fields_are_told_with_their_values() -> None:
    field = DriftedField(field="regs[4]", type="uint8", values=(1, 2, 3), per_load=0.5, creeps=True)
    cause = Drifted(section="timer", fields=(field,), count=3, loads=50)
    cell = crashed(lane="drift", verdict=Verdict.DRIFT, causes=(cause,), details={"hpet": {"changed_by_load": []}})
    assert figures_of(cell) == (
        "timer regs[4]: 1 -> 2 -> 3 (+0.5 each load, always in one direction)",
        "timer: 2 more fields drift",
    )


def test_a_leak_is_told_with_its_interval_and_floor() -> None:
    slope = {"estimate": 33.46, "low": 31.0, "high": 35.1}
    told_of = {
        "memory_bytes_per_load": slope,
        "threads_per_load": {"estimate": 0.0, "low": 0.0, "high": 0.0},
        "descriptors_per_load": {"estimate": 1.0, "low": 0.9, "high": 1.1},
        "floor_bytes_per_load": 16.0,
        "loads": 100,
        "measured": "by the byte",
        "chunks": [{"bytes": 32, "per_load": 0.87}],
        "confirmed": True,
    }
    details = {"run": {}, "timer": told_of}
    lines = figures_of(crashed(lane="leak", verdict=Verdict.LEAK, causes=(LEAK,), blamed=("timer",), details=details))
    assert "33.5 [31.0, 35.1] bytes of memory each load; less than 16.0 would be noise" in lines[0]
    assert "0.87 of 32 bytes" in lines[1]
    assert lines[2:] == ("timer: 1.00 [0.90, 1.10] descriptors each load",)


def test_a_line_of_the_guests_kernel_is_told_with_its_meaning() -> None:
    noted = [
        {"line": "ata1: hard resetting link", "complaint": "ata-link-reset", "fault": True},
        {"line": "of another version", "complaint": "no-such-complaint", "fault": True},
    ]
    cell = crashed(lane="guest", verdict=Verdict.GUEST_FAULT, details={"ahci": {"kernel_log": noted}})
    assert figures_of(cell) == (
        "kernel: ata1: hard resetting link (libata reset the link to get on)",
        "kernel: of another version",
    )


def test_json_has_all_that_the_page_has(tmp_path: Path) -> None:
    stack = Backtrace(frames=(Frame(number=0, function="f"),), short="f", how=StackHow.STOPPED, signal="SIGABRT")
    found = told(tmp_path, crashed(controls=(FRESH,)), crashed("busy"), stack=stack)
    document_ = json.loads(json.dumps(explain_json(found)))
    assert document_["schema"] == "postload.explain/1"
    assert document_["signature"]["name"] == NAME
    assert document_["signature"]["section"] == "ICH9LPC"
    assert document_["stack"]["short"] == "f"
    assert document_["same"] == [crashed("busy").id]
    assert [step["argv"][1] for step in document_["next"]] == commands(found)
    assert document_["known"] is None


@pytest.fixture
def run_dir(tmp_path: Path) -> Callable[..., Path]:
    def write(*cells: Cell) -> Path:
        (tmp_path / "matrix.json").write_text(json.dumps(document(*cells).to_json()))
        return tmp_path

    return write


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(explain_command, [str(each) for each in arguments], standalone_mode=False)


def test_the_command_tells_of_a_cell_whose_pack_is_gone(run_dir: Callable[..., Path]) -> None:
    run = run_dir(crashed(pack="/gone/pack"))
    done = invoke("bound/same", "--run", run)
    assert done.return_value == 0, done.output
    assert "no backtrace: /gone/pack" in words(done.output)


def test_the_command_says_3_when_nothing_was_judged(run_dir: Callable[..., Path]) -> None:
    run = run_dir(crashed(verdict=Verdict.HARNESS_ERROR, causes=(NO_SOCKET,)))
    assert invoke("bound/same", "--run", run / "matrix.json", "--json").return_value == 3


def test_a_cell_that_is_not_there_is_a_mistake_of_the_user(run_dir: Callable[..., Path]) -> None:
    done = invoke("nosuch", "--run", run_dir(crashed()))
    assert isinstance(done.exception, UsageError)
    missing = invoke("bound", "--run", run_dir(crashed()), "--qemu", "/nowhere/at/all")
    assert isinstance(missing.exception, PostloadError)
    assert missing.exception.exit_code == 2
    assert isinstance(invoke().exception, click.UsageError)


def of_all_lanes(*phases: str) -> list[Cell]:
    """Cells of every lane that a matrix has, in some phases."""
    lanes = ("same", "alternate", "walk", "back-to-back", "drift", "leak", "guest")
    cells = [passed(phase) for phase in phases]
    return [replace(cell, key=replace(cell.key, lane=lane)) for cell in cells for lane in lanes]


def test_an_ok_cell_has_a_line_only_for_what_a_matrix_can_look_at(tmp_path: Path) -> None:
    """Migrations are qualify's, and no recipe says that this device can fail: a whole matrix is not repeated."""
    cell, *others = of_all_lanes("firmware", "kernel", "bound", "busy", "unbound", "rebound")
    assert "plain" in " ".join(unseen_lines(told(tmp_path, cell, *others)))
    assert told(tmp_path, cell, *others).steps == ()
    (step,) = told(tmp_path, cell, *others[:7]).steps
    line = f"postload matrix --qemu {OLD.path} --machine pc-q35-7.2 --device platform --out postload-platform"
    assert " ".join(step.argv) == line
    (step,) = told(tmp_path, passed("bound")).steps
    assert "--phase" not in step.argv
    assert "--schedule" not in step.argv


def test_a_parked_cell_is_compared_with_the_parked_cell_of_its_own_device(tmp_path: Path) -> None:
    cell = crashed(guest_mode="parked")
    same, running = passed(qemu=NEW, guest_mode="parked"), passed(qemu=NEW)
    other = replace(same, key=replace(same.key, device="ahci"))
    assert told(tmp_path, cell, running, other, same).elsewhere == (same,)


@pytest.mark.parametrize("together", [False, True])
def test_a_section_that_broke_twice_in_one_buffer_is_repeated_so_under_gdb(
    together: bool, binary: QemuBinary, make_pack: Callable[..., Path]
) -> None:
    cell = crashed(isolation=Isolation(way=IsolationWay.ALONE, together=together))
    ability = ColoAbility(dialect=ENABLE_COLO, resets_before_load=False)
    with StatePack(make_pack()) as pack:
        selection = failing_session(cell, binary, ability, pack).selection
    assert (selection.own, selection.whole, selection.again) == (frozenset({LPC}), False, together)
