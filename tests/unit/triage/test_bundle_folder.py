# SPDX-License-Identifier: GPL-2.0-or-later
"""What is written into a bundle, and how it is made small; bisecting answers."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_cells import made_cell

from harness.arch import X86_64
from harness.commands.bundle import one_of_each
from harness.errors import HarnessError, UsageError
from harness.qemu.cmdline import Option
from harness.report.bisect import change_text, check_ends
from harness.report.bundle import describe, shell_line, title
from harness.results.frames import Frame
from harness.results.outcome import ControlName, ControlResult, Outcome
from harness.results.verdict import Verdict
from harness.stream.vmdesc import VmDesc
from harness.triage.allocations import Allocations, AllocationsHow, CallSite
from harness.triage.backtrace import Backtrace, StackHow
from harness.triage.bisect import Build, Found, Tried, builds, git_lines, judge
from harness.triage.bundle import (
    BundleMaterial,
    ScriptAnswer,
    _allocations,
    candidates,
    kept_case,
    lean,
    subsections,
    write_bundle,
)
from harness.triage.case import Case, CaseCheckpoint, Expect, LeakFigures, NeededField, Rate, Spent

HEAD = b"QEVM\0\0\0\x03\x07\0\0\0\x05toy-1"
VMDESC = json.dumps(
    {
        "page_size": 4096,
        "devices": [
            {
                "name": name,
                "instance_id": 0,
                "vmsd_name": name,
                "version": 1,
                "fields": [{"name": "data", "type": "buffer", "size": 3}],
                "subsections": [
                    {
                        "vmsd_name": "toy/new",
                        "version": 1,
                        "fields": [{"name": "more", "type": "uint32", "size": 4}],
                    }
                ]
                if name == "toy"
                else [],
            }
            for name in ("cpu", "toy", "other")
        ],
    }
).encode()
SUBSECTION = b"\x05\x07toy/new\0\0\0\x01\x01\x02\x03\x04"

STACK = Backtrace(frames=(Frame(number=0, function="toy_load"),), how=StackHow.STOPPED, signal="SIGABRT")
FRESH = ControlResult(name=ControlName.FRESH, verdict=Verdict.OK, asked=3, passed=3, decided=True)
CONTROLLED = Outcome(verdict=Verdict.CRASH, controls=(FRESH,))


def section(idstr: str, body: bytes, number: int) -> bytes:
    """A FULL section, instance 0, version 1, with its footer."""
    mark, name = struct.pack(">I", number), idstr.encode()
    return b"\x04" + mark + bytes([len(name)]) + name + b"\0\0\0\0\0\0\0\x01" + body + b"\x7e" + mark


CPU, TOY, OTHER = (
    section("cpu", b"cpu", 1),
    section("toy", b"toy" + SUBSECTION, 2),
    section("other", b"oth", 3),
)
BODY = CPU + TOY + OTHER + b"\0\x06" + struct.pack(">I", len(VMDESC)) + VMDESC


def case(**changed: Any) -> Case:
    """One load of a toy that crashes."""
    made = Case(
        cell="9.8.7-1a2b3c4d/toy-1/toy/bound/same",
        verdict="crash",
        failure_class="not-reentrant",
        sentence="one load of section toy in phase bound; START is needed",
        kind="load",
        signature={"name": "crash:toy_load:!boom:toy:toy"},
        expect=Expect(verdict="crash", exit="SIGABRT", function="toy_load", assertion="!boom"),
        qemu={"version": "9.8.7", "build": "toys", "path": "/usr/bin/qemu-toy", "sha256": "00"},
        machine="toy-1",
        family="toy",
        accel="tcg",
        options=(
            Option(name="m", first="16"),
            Option(name="kernel", first="/home/me/vmlinuz"),
            Option(name="device", first="brick", props={"drive": "d0", "serial": "a,b"}),
            Option(name="blockdev", first="file", props={"node-name": "d0", "filename": "{workdir}/disk.img"}),
        ),
        scratch={"disk.img": 4096},
        guest_mode="parked",
        run_s=0.0,
        dialect_resets=False,
        head=HEAD,
        body=BODY,
        checkpoints=(CaseCheckpoint(devices=TOY),),
        loads=1,
        back_to_back=False,
        sections=("toy",),
        fields=(),
        ram_pages=5,
        rate=Rate(failed=1, tried=1),
        spent=Spent(),
    )
    return replace(made, **changed)


def answer(code: int, line: str = "") -> ScriptAnswer:
    """Of the script."""
    return ScriptAnswer(qemu="/usr/bin/qemu-toy", code=code, line=line or f"answer {code}")


def test_the_barest_case_that_still_fails_is_taken() -> None:
    tried: list[Case] = []

    def needs_its_devices(candidate: Case) -> bool:
        tried.append(candidate)
        return any(option.name == "device" for option in candidate.options)

    found = lean(case(), needs_its_devices)
    assert found is tried[-1]
    assert [option.name for option in tried[0].options] == ["m"]
    assert tried[0].scratch == {}
    assert [option.name for option in found.options] == ["m", "device", "blockdev"]
    assert found.scratch == {"disk.img": 4096}
    assert found.body == CPU + TOY + b"\0\x06\0\0\0\x02{}"
    assert found.ram_pages == 0


def test_a_case_that_needs_everything_stays_as_it_is() -> None:
    whole = case()
    assert lean(whole, lambda _: False) is whole


def test_a_guest_that_runs_keeps_its_machine() -> None:
    assert list(candidates(case(guest_mode="running"))) == []


def test_subsections_are_found_in_every_file_by_their_headers() -> None:
    vmdesc = VmDesc.from_json(VMDESC)
    # the checkpoint's section is shorter than it was recorded, and stands there twice
    short = section("toy", b"t" + SUBSECTION, 2)
    found = subsections(case(checkpoints=(CaseCheckpoint(devices=short + short),)), vmdesc)
    assert [(entry["file"], entry["section"], entry["name"], entry["size"]) for entry in found] == [
        ("body.bin", "toy", "toy/new", len(SUBSECTION)),
        ("c1.bin", "toy", "toy/new", len(SUBSECTION)),
        ("c1.bin", "toy", "toy/new", len(SUBSECTION)),
    ]
    assert [entry["offset"] for entry in found] == [
        BODY.index(SUBSECTION),
        short.index(SUBSECTION),
        len(short) + short.index(SUBSECTION),
    ]


def write(folder: Path, made: Case | None = None, **more: Any) -> Path:
    """A bundle whose script is not run."""
    material = BundleMaterial(case=made or case(), log="qemu-toy: boom", **more)
    return write_bundle(
        material, folder, lambda _, document: describe(material, document, answer(0, "reproduced: x"), ())
    )


def test_a_bundle_holds_all_that_is_told(tmp_path: Path) -> None:
    folder = write(tmp_path / "out" / "b", outcome=CONTROLLED, backtrace=STACK)
    names = {file.name for file in folder.iterdir()}
    assert names == {
        *("README.md", "reproduce.py", "case.json", "head.bin", "body.bin", "c1.bin"),
        *("qemu-command.txt", "issue.md", "log.txt", "backtrace.txt"),
    }
    assert (folder / "reproduce.py").stat().st_mode & 0o111
    readme = (folder / "README.md").read_text()
    for name in names - {"README.md"}:
        assert f"    {name} " in readme
    assert "One load of section toy in phase bound; START is needed." in readme
    assert "reproduced: x" in readme
    assert list((tmp_path / "out").iterdir()) == [folder]


def test_the_issue_has_the_headings_of_the_template_in_order(tmp_path: Path) -> None:
    text = (write(tmp_path / "b", outcome=CONTROLLED, backtrace=STACK) / "issue.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## Host environment",
        "## Emulated/Virtualized environment",
        "## Description of problem",
        "## Steps to reproduce",
        "## Additional information",
    ]
    for told in (
        "9.8.7 (toys)",
        "-machine toy-1",
        "fresh: ok in 3 of 3 processes",
        "#0 toy_load",
        "qemu-toy: boom",
        "./reproduce.py",
    ):
        assert told in text
    assert text.rstrip().endswith('/label ~"kind::Bug"')


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = write(tmp_path / "b")
    before = (folder / "README.md").read_bytes()
    with pytest.raises(UsageError, match="does not overwrite"):
        write(folder)
    assert (folder / "README.md").read_bytes() == before
    (tmp_path / "empty").mkdir()
    assert (write(tmp_path / "empty") / "case.json").is_file()


def test_a_bundle_that_could_not_be_described_is_not_there(tmp_path: Path) -> None:
    def fail(*_: object) -> dict[str, str]:
        raise HarnessError("no answer")

    with pytest.raises(HarnessError):
        write_bundle(BundleMaterial(case=case()), tmp_path / "b", fail)
    assert list(tmp_path.iterdir()) == []


def test_what_is_large_is_packed_and_named_so(tmp_path: Path) -> None:
    ram = b"\0" * 1_000_000
    made = case(body=ram + BODY, checkpoints=(CaseCheckpoint(devices=TOY, ram=ram),))
    marked = ({"file": "body.bin", "section": "toy", "name": "toy/new", "offset": 1, "size": 2},)
    folder = write(tmp_path / "b", made, subsections=marked)
    document = json.loads((folder / "case.json").read_text())
    assert document["incoming"] == {"head": "head.bin", "body": "body.bin.gz"}
    assert document["checkpoints"] == [{"devices": "c1.bin", "ram": "c1.ram.gz", "times": 1}]
    assert document["subsections"][0]["file"] == "body.bin.gz"
    assert gzip.decompress((folder / "body.bin.gz").read_bytes()) == ram + BODY
    assert not (folder / "body.bin").exists()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 150_000


def test_the_command_line_doubles_commas_where_qemu_wants_it() -> None:
    line = shell_line(case().to_json())
    assert "-device brick,drive=d0,serial=a,,b" in line
    assert "-blockdev file,node-name=d0,filename=SCRATCH/disk.img" in line
    assert "-kernel /home/me/vmlinuz" in line


def test_the_title_names_what_fails() -> None:
    assert title(case().to_json()) == "toy: COLO secondary crashes loading toy (toy_load)"


def test_a_minimised_case_is_found_by_the_cell_that_it_names(tmp_path: Path) -> None:
    cell: Any = type("Cell", (), {"id": case().cell})()
    assert kept_case(tmp_path, cell) is None
    case(cell="another").save(tmp_path / "cases" / "a")
    (tmp_path / "cases" / "damaged").mkdir()
    (tmp_path / "cases" / "damaged" / "case.json").write_text("{")
    assert kept_case(tmp_path, cell) is None
    case().save(tmp_path / "cases" / "z")
    assert kept_case(tmp_path, cell) == tmp_path / "cases" / "z"


def tried(codes: Sequence[int], given: tuple[str, str]) -> list[Tried]:
    """Answers of versions 1.0.0, 2.0.0, ...; the ends are given."""
    ends = {0: given[0], len(codes) - 1: given[1]}
    return [
        Tried(
            build=Build(name=f"q{n}", path=f"/q{n}", version=f"{n + 1}.0.0", given=ends.get(n, "")), answer=answer(code)
        )
        for n, code in enumerate(codes)
    ]


def test_the_version_that_broke_it_is_named() -> None:
    report = judge(tried([1, 1, 125, 0, 0], ("good", "bad")))
    assert report.decided
    (change,) = report.changes
    assert (
        change_text(change)
        == "last good is 2.0.0 (q1), first bad is 4.0.0 (q3); could not be tried in between: 3.0.0 (q2)"
    )
    start, run = git_lines(change, Path("/b"), X86_64)[1:]
    assert start == "git bisect start v4.0.0 v2.0.0"
    assert "/b/reproduce.py --invert build/qemu-system-x86_64" in run


def test_the_version_that_mended_it_is_named() -> None:
    (change,) = judge(tried([0, 0, 1], ("bad", "good"))).changes
    assert change_text(change) == "last bad is 2.0.0 (q1), first good is 3.0.0 (q2)"
    start, run = git_lines(change, Path("/b"), X86_64)[1:]
    assert start == "git bisect start --term-old=fails --term-new=passes v3.0.0 v2.0.0"
    assert "--invert" not in run


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ([0, 0, 0], "1.0.0 (q0) was given as good and is bad"),
        ([1, 0, 1], "it changes 2 times"),
        ([125, 0, 0], "1.0.0 (q0) was given as good and could not be tried"),
    ],
)
def test_answers_that_do_not_fit_are_told(codes: list[int], told: str) -> None:
    report = judge(tried(codes, ("good", "bad")))
    assert not report.decided
    with pytest.raises(HarnessError, match="no version can be named") as caught:
        check_ends(report)
    assert told in str(caught.value)


def test_ends_that_were_exchanged_are_told() -> None:
    with pytest.raises(HarnessError, match="exchange --good and --bad"):
        check_ends(judge(tried([0, 0, 1], ("good", "bad"))))
    with pytest.raises(HarnessError) as caught:
        check_ends(judge(tried([0, 0, 0], ("good", "bad"))))
    assert "exchange" not in str(caught.value)


def texts(folder: Path, *, log: str = "", line: str = "", **changed: Any) -> dict[str, str]:
    """All files of a bundle."""
    material = BundleMaterial(case=case(**changed), log=log)
    write_bundle(material, folder, lambda _, document: describe(material, document, answer(0, line), ()))
    return {file.name: file.read_text() for file in folder.iterdir() if file.suffix != ".bin"}


def test_nothing_of_this_host_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of the user stand in QEMU's messages, in stacks, and in what a QEMU is known by."""
    monkeypatch.setenv("HOME", "/home/alice")
    path = "/home/alice/qemu/build/qemu"
    files = texts(
        tmp_path / "bundle",
        log=f"{path}: ../hw/toy.c:1: boom",
        line=f"reproduced: {path}",
        qemu={"version": "9.8.7", "build": "", "path": path, "sha256": "00"},
        recorded={"version": "9.8.6", "build": "", "path": path, "sha256": "01"},
        options=(Option(name="m", first="16"),),
    )
    assert "~/qemu/build/qemu: ../hw/toy.c:1: boom" in files["log.txt"]
    assert not [name for name, text in files.items() if "alice" in text or '"path": "/' in text]


def test_the_words_of_a_log_are_not_markup(tmp_path: Path) -> None:
    said = "x\n```\n/close\n````\n<script>"
    files = texts(tmp_path / "bundle", log=said, sentence="it says <b> and `this`")
    assert f"`````\n{said}\n`````" in files["issue.md"]
    assert "It says \\<b> and \\`this\\`." in files["README.md"]


def test_a_title_cannot_end_the_comment_that_it_stands_in(tmp_path: Path) -> None:
    expect = Expect(verdict="crash", exit=None, function=None, assertion="n-->0")
    head = texts(tmp_path / "bundle", expect=expect)["issue.md"].splitlines()[0]
    assert head.count("-->") == 1
    assert head.endswith(" -->")


def test_a_migration_says_from_where_to_where(tmp_path: Path) -> None:
    files = texts(
        tmp_path / "bundle",
        verdict="reject",
        expect=Expect(verdict="reject", reason="VQ 0 vring.num 1024 exceeds allocated max 256"),
        recorded={"version": "9.8.6", "build": "older toys", "path": "/q", "sha256": "01"},
        checkpoints=(),
        loads=0,
    )
    wanted = "toy-1: migration from QEMU 9.8.6 to 9.8.7 is refused, toy (VQ 0 vring.num 1024 exceeds allocated max 256)"
    assert wanted in files["issue.md"].splitlines()[0]
    assert "guest of QEMU 9.8.6 (older toys)" in files["issue.md"]
    assert "before any checkpoint" in files["issue.md"]
    assert "then a COLO checkpoint" not in files["issue.md"]
    assert "what a checkpoint loads" not in files["README.md"]


def binary(version: str, path: str = "", target: str = "x86_64") -> Any:
    """As far as it is looked at."""
    looked_at = {"version": version, "path": path or f"/q{version}", "sha256": path or version, "target": target}
    return type("Binary", (), looked_at)()


def test_builds_stand_in_version_order_each_once_between_the_ends() -> None:
    found = builds(
        ("old", binary("9.2.0")),
        ("new", binary("10.0.2")),
        [("own", binary("10.0.2", "/own")), ("far", binary("11.0.0")), ("old-again", binary("9.2.0"))],
        [
            ("9.10", binary("9.10.0")),
            ("9.10-aarch64", binary("9.10.0", "/arm", "aarch64")),
            ("8", binary("8.0.0")),
            ("own-again", binary("10.0.2", "/own")),
        ],
    )
    assert [build.name for build in found] == ["old", "9.10", "own", "new", "far"]
    assert [build.given for build in found] == ["good", "", "", "bad", ""]
    with pytest.raises(UsageError, match="the same QEMU"):
        builds(("a", binary("9.2.0")), ("b", binary("9.2.0")), [], [])


def test_what_could_not_be_tried_says_nothing() -> None:
    assert tried([125], ("", ""))[0].outcome is Found.SKIPPED


def documents(made: BundleMaterial, folder: Path) -> dict[str, str]:
    """The texts of a bundle."""
    texts: dict[str, str] = {}

    def describe_it(_: Path, document: dict[str, Any]) -> dict[str, str]:
        texts.update(describe(made, document, answer(0), ()))
        return texts

    write_bundle(made, folder, describe_it)
    return texts


def test_a_bundle_of_a_leak_lists_its_control_and_what_stays_allocated(tmp_path: Path) -> None:
    figures = LeakFigures(
        bytes_per_load=632.02,
        low=631.5,
        high=632.5,
        floor_bytes=16,
        loads=840,
        loads_per_checkpoint=1,
        chunks=((144, 3.0),),
    )
    leak = case(kind="leak", verdict="leak", leak=figures, control=CPU, options=(), machine="pc-q35-7.2")
    unknown = Allocations(how=AllocationsHow.NO_GDB)
    texts = documents(BundleMaterial(case=leak, allocations=unknown), tmp_path / "b")
    assert (tmp_path / "b" / "control.bin").read_bytes() == CPU
    assert "    control.bin       what a checkpoint loads without the section" in texts["README.md"]
    assert "632.0 [631.5, 632.5] bytes of heap behind (one load a checkpoint, 840 loads)" in texts["issue.md"]
    assert "3.00 of 144 bytes" in texts["issue.md"]
    assert "Call sites are not known: gdb is not installed (Debian package gdb)." in texts["issue.md"]
    assert "allocations.txt" not in texts
    assert "control.bin" not in documents(BundleMaterial(case=case(options=())), tmp_path / "c")["README.md"]


def test_a_bundle_of_a_leak_says_who_allocates_what_stays(tmp_path: Path) -> None:
    frames = (
        Frame(number=2, function="", module="/usr/bin/qemu-system-x86_64", offset="0x5a11ec"),
        Frame(number=3, function="vmstate_load_state"),
        Frame(number=4, function="colo_process_incoming_thread"),
    )
    site = CallSite(section="toy", size_bytes=144, per_load=3.0, frames=frames, short="? < vmstate_load_state")
    found = Allocations(how=AllocationsHow.SEEN, sites=(site,), loads=8, freed_per_load=19.25)
    figures = LeakFigures(bytes_per_load=432, low=431, high=433, floor_bytes=16, loads=840, loads_per_checkpoint=1)
    leak = case(kind="leak", verdict="leak", leak=figures, control=CPU, options=(), machine="pc-q35-7.2")
    texts = documents(BundleMaterial(case=leak, allocations=found), tmp_path / "b")
    wanted = (
        "3.00 of 144 bytes\n#2 ?? (qemu-system-x86_64+0x5a11ec)\n#3 vmstate_load_state\n```\n\n"
        "`??` are functions that QEMU does not export"
    )
    assert wanted in texts["issue.md"]
    assert "8 loads under gdb; exported names only" in texts["issue.md"]
    assert "19.25 further calls a load" in texts["issue.md"]
    assert "#4 colo_process_incoming_thread" in texts["allocations.txt"]
    assert "    allocations.txt   the stacks of what stays allocated" in texts["README.md"]


def test_a_leak_from_elsewhere_is_not_looked_at_under_gdb(tmp_path: Path) -> None:
    cell, leak = made_cell("pc-q35-7.2/ahci/bound/leak", Verdict.LEAK), case(kind="leak", verdict="leak")
    for foreign, how in ((True, AllocationsHow.FOREIGN), (False, AllocationsHow.NO_PACK)):
        assert _allocations(tmp_path, cell, leak, None, "/q", foreign=foreign) == Allocations(how=how)
    assert _allocations(tmp_path, cell, case(), None, "/q", foreign=False) is None


def test_a_leak_of_loads_in_one_buffer_is_not_reported_as_one_of_colo(tmp_path: Path) -> None:
    figures = LeakFigures(
        bytes_per_load=624.4, low=624, high=625, floor_bytes=16, loads=3600, loads_per_checkpoint=120, chunks=()
    )
    leak = case(kind="leak", verdict="leak", leak=figures, control=b"", options=())
    texts = documents(BundleMaterial(case=leak), tmp_path / "together")
    assert texts["README.md"].startswith("# toy: toy leaks memory when it is loaded again without a reset")
    assert "COLO does not lose this memory" in texts["issue.md"]
    once = replace(leak, leak=replace(figures, loads_per_checkpoint=1))
    texts = documents(BundleMaterial(case=once), tmp_path / "once")
    assert texts["README.md"].startswith("# toy: COLO secondary leaks memory loading toy")
    assert "COLO does not lose this memory" not in texts["issue.md"]


def test_an_issue_explains_its_controls_and_counts_bytes_from_the_start_of_a_field(tmp_path: Path) -> None:
    rcba = NeededField(
        section="toy",
        path="d.config[0]",
        offset=0xF4,
        field_offset=4,
        bit=0,
        value=1,
        healthy=0,
        register="RCBA enabled",
    )
    text = documents(BundleMaterial(case=case(options=(), fields=(rcba,)), outcome=CONTROLLED), tmp_path / "b")[
        "issue.md"
    ]
    assert "| toy | d.config[0] | 0xf0 | 0 | 1 | 0 | RCBA enabled |" in text
    assert "- *fresh*: an ordinary incoming migration of the same state into a new process" in text
    assert "*loadvm*" not in text


def test_an_issue_says_where_the_names_of_unknown_functions_are(tmp_path: Path) -> None:
    debian = {"version": "7.2.22", "build": "Debian 1:7.2", "path": "/q", "sha256": "00"}
    named = Frame(number=0, function="abort", module="/lib/libc.so.6")
    stack = Backtrace(frames=(named, Frame(number=1, function="")), how=StackHow.STOPPED)
    of_debian = case(options=(), machine="pc-q35-7.2", qemu=debian)
    made = BundleMaterial(case=of_debian, backtrace=stack)
    assert "qemu-system-x86-dbgsym" in documents(made, tmp_path / "a")["issue.md"]
    assert (
        "dbgsym" not in documents(replace(made, backtrace=replace(stack, frames=(named,))), tmp_path / "b")["issue.md"]
    )
    own = replace(made, case=case(options=(), machine="pc-q35-7.2", qemu={**debian, "build": ""}))
    assert "--enable-debug" in documents(own, tmp_path / "c")["issue.md"]


def test_the_firmwares_port_has_a_far_end_only_where_there_is_one(tmp_path: Path) -> None:
    port = Option(name="device", first="isa-debugcon", props={"chardev": "firmware", "iobase": 1026})
    for name, options, there in (("a", (), False), ("b", (port,), True)):
        text = documents(BundleMaterial(case=case(options=options)), tmp_path / name)["qemu-command.txt"]
        assert ("null,id=firmware" in text) is there


def test_of_each_signature_one_cell_is_taken_that_can_be_made_small() -> None:
    drift = made_cell("pc-q35-7.2/ahci/bound/drift", Verdict.DRIFT, signature="d")
    crash = made_cell("pc-q35-7.2/ahci/bound/same", Verdict.CRASH, signature="c", loads_acked=5)
    sooner = made_cell("pc-q35-7.2/ahci/busy/same", Verdict.CRASH, signature="c", loads_acked=0)
    early = made_cell("pc-q35-7.2/ahci/all/early", Verdict.CRASH, signature="c")
    found = one_of_each([drift, early, crash, sooner, made_cell("pc-q35-7.2/ahci/kernel/same")])
    assert found == {"d": drift, "c": sooner}
