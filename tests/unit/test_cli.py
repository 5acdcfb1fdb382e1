# SPDX-License-Identifier: GPL-2.0-or-later
"""The command: exit codes, messages that name what is wrong, and one document on stdout with --json."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from made_cells import made_cell

from harness import cli
from harness.colo.primary import ENABLE_COLO
from harness.commands import matrix as matrix_module
from harness.commands import resolve as resolve_module
from harness.engines.admission import Admission
from harness.engines.probe import ColoAbility
from harness.errors import GuestError, HostError, MissingError, NothingToRun
from harness.lanes import schedules
from harness.qemu.binary import AccelSeen, AccelState, QemuBinary
from harness.qemu.disturbance import Disturbance, Disturbed, Hindered
from harness.report import inspection
from harness.report.text import plural
from harness.results.document import Cell
from harness.results.folder import read_matrix
from harness.results.verdict import Verdict
from harness.state import catalogue as catalogue_module
from harness.work import guests as guests_module
from harness.work import run as run_module

if TYPE_CHECKING:
    from tests.unit.conftest import Handmade

TERM = Hindered(how=Disturbance.ENDED, signal="SIGTERM")
MakePack = Callable[..., Path]
#: Exit code, stdout, stderr.
Said = tuple[int, str, str]
Postload = Callable[..., Said]


@pytest.fixture
def postload(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_cache: Path, tmp_path: Path
) -> Iterator[Postload]:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> Said:
        monkeypatch.setattr("sys.argv", ["postload", *map(str, argv)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch, binary: QemuBinary) -> QemuBinary:
    """A QEMU on paper in place of the host's; nothing is downloaded either."""
    monkeypatch.setattr(resolve_module, "build_guest", lambda _: pytest.fail("a guest is built for nothing"))
    monkeypatch.setattr(resolve_module, "find_binary", lambda _: Path(binary.path))
    monkeypatch.setattr(resolve_module, "probe_binary", lambda *_: binary)
    monkeypatch.setattr(catalogue_module, "types_of", lambda _: {})
    on_paper = AccelState(name="tcg", usable=True, seen=AccelSeen.BOOTED)
    for module in (resolve_module, matrix_module):
        monkeypatch.setattr(module, "choose_accel", lambda *_: on_paper)
    monkeypatch.setattr(run_module, "probe_colo", lambda *_: ColoAbility(dialect=ENABLE_COLO, resets_before_load=False))
    monkeypatch.setattr(run_module, "pack_admission", lambda *_: Admission())
    monkeypatch.setattr(guests_module, "guest_admission", lambda *_: Admission())
    return binary


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch, paper: QemuBinary) -> Callable[[dict[str, Verdict]], None]:
    """Cells come to a verdict by device, without any load."""

    def told(by_device: dict[str, Verdict]) -> None:
        def judge(plan: Any, bench: Any, _: object, __: object) -> Iterator[Cell]:
            verdict = by_device.get(plan.device, Verdict.OK)
            loads = {"loads_asked": plan.loads, "loads_acked": plan.loads}
            cell = made_cell(verdict=verdict, record_qemu=bench.recorder, load_qemu=bench.loader, **loads)
            yield replace(cell, key=plan.key)

        monkeypatch.setattr(schedules, "judge_cell", judge)

    return told


@pytest.mark.parametrize("command", [["matrix"], ["record", "--out", "new"], ["replay", "PACK"]])
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("/bin/true", "is not a QEMU system emulator"),
        ("text", "not executable"),
        ("script", "is not a QEMU system emulator"),
        ("folder", "no such file or program"),
        ("nowhere", "no such file or program"),
    ],
)
def test_what_is_no_qemu_is_named(
    postload: Postload, make_pack: MakePack, tmp_path: Path, command: list[str], given: str, said: str
) -> None:
    (tmp_path / "text").write_text("no program")
    (tmp_path / "script").write_text("no program either")
    (tmp_path / "script").chmod(0o755)
    (tmp_path / "folder").mkdir()
    path = given if given.startswith("/") else str(tmp_path / given)
    words = [str(make_pack()) if word == "PACK" else word for word in command]
    code, out, err = postload(*words, "--qemu", path)
    assert (code, out) == (2, "")
    assert said in err
    assert Path(given).name in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["matrix", "--machine", "q53"], "unknown machine 'q53'"),
        (["matrix", "--device", "ahcy"], "unknown device 'ahcy'"),
        (["matrix", "--phase", "boot"], "unknown phase 'boot'"),
        (["matrix", "--schedule", "sane"], "unknown schedule 'sane'"),
        (["matrix", "--guest-mode", "asleep"], "unknown guest mode 'asleep'"),
        (["matrix", "--profiles", "nowhere"], "nowhere"),
        (["matrix", "--guest", "nosuch"], "nosuch"),
        (["matrix", "--loads", "0"], "--loads"),
        (["matrix", "--jobs", "0"], "--jobs"),
        (["matrix", "--accel", "hvf"], "hvf"),
        (["matrix", "--surprise"], "--surprise"),
        (["record", "--out", "new", "--machine", "q53"], "unknown machine 'q53'"),
        (["record", "--out", "new", "--device", "ahcy"], "unknown device 'ahcy'"),
        (["record", "--out", "new", "--phase", "boot"], "unknown phase 'boot'"),
        (["record", "--out", "new", "--guest", "nosuch"], "nosuch"),
        (["record", "--out", "."], "exists already"),
        (["record"], "--out"),
        (["replay", "PACK", "--device", "nvme"], "device 'nvme' is not in"),
        (["replay", "PACK", "--phase", "boot"], "unknown phase 'boot'"),
        (["replay", "PACK", "--phase", "bound,rebound"], "phase 'rebound' is not in"),
        (["replay", "PACK", "--schedule", "sane"], "unknown schedule 'sane'"),
        (["replay", "nowhere"], "nowhere is not a state pack"),
        (["replay"], "PACK"),
        (["nosuch"], "nosuch"),
        (["inspect", "nowhere"], "nowhere: no such file or folder"),
        (["inspect", "PACK", "--phase", "boot"], "has no phase 'boot'"),
        (["inspect", "PACK", "--section", "nosuch"], "no section 'nosuch'"),
        (["inspect", "."], "is not a state pack"),
    ],
)  # fmt: skip
def test_bad_usage_is_named(
    postload: Postload, paper: QemuBinary, make_pack: MakePack, argv: list[str], named: str
) -> None:
    words = [str(make_pack()) if word == "PACK" else word for word in argv]
    code, out, err = postload(*words)
    assert (code, out) == (2, ""), err
    # click draws long messages over several lines
    assert named in " ".join(err.split())
    assert "Traceback" not in err


@pytest.mark.parametrize("text", [b"", b"QEVM", b"no stream at all", b"QEVM\x00\x00\x00\x02" + bytes(100)])
def test_a_file_that_is_no_stream_is_named(postload: Postload, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "odd.bin").write_bytes(text)
    code, out, err = postload("inspect", tmp_path / "odd.bin")
    assert (code, out) == (2, "")
    assert "odd.bin" in err


@pytest.mark.parametrize("end", [10, 100, -1, -700])
def test_a_stream_that_is_cut_is_named(postload: Postload, tmp_path: Path, handmade: Handmade, end: int) -> None:
    pages, mark = handmade.phases["bound"]
    (tmp_path / "cut.stream").write_bytes(handmade.stream(pages, mark)[:end])
    code, out, err = postload("inspect", tmp_path / "cut.stream")
    assert (code, out) == (2, "")
    assert "cut.stream" in err
    assert "offset" in err


@pytest.mark.parametrize("command", ["inspect", "replay"])
def test_a_pack_that_is_cut_is_named_by_its_file(
    postload: Postload, make_pack: MakePack, paper: QemuBinary, command: str
) -> None:
    pack = make_pack()
    whole = (pack / "bound/devices.bin").read_bytes()
    (pack / "bound/devices.bin").write_bytes(whole[:-1])
    code, out, err = postload(command, pack)
    assert (code, out) == (2, "")
    assert "bound/devices.bin" in err


def test_inspect_shows_a_stream(postload: Postload, tmp_path: Path, handmade: Handmade) -> None:
    pages, mark = handmade.phases["bound"]
    (tmp_path / "a.stream").write_bytes(handmade.stream(pages, mark))
    code, out, _ = postload("inspect", tmp_path / "a.stream", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["machine"] == "pc-i440fx-7.2"
    assert [s["idstr"] for s in document["sections"]][-1] == handmade.blk
    code, out, _ = postload("inspect", tmp_path / "a.stream", "--section", "i8259")
    assert code == 0
    assert "imr: uint8 = 34 (0x22)" in out


def test_inspect_shows_a_pack(postload: Postload, make_pack: MakePack, handmade: Handmade) -> None:
    pack = make_pack()
    code, out, err = postload("inspect", pack, "--json", "--phase", "kernel")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert (document["phases"], document["phase"]) == (["kernel", "bound", "busy"], "kernel")
    assert len(document["sections"]) == len(handmade.sections)
    # its manifest stands for the pack
    assert json.loads(postload("inspect", pack / "manifest.json", "--json")[1])["phase"] == "busy"


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ({}, 0),
        ({"ahci": Verdict.CRASH}, 1),
        ({"ahci": Verdict.CRASH, "platform": Verdict.HOST}, 1),
        ({"ahci": Verdict.HARNESS_ERROR}, 3),
        (dict.fromkeys(("ahci", "virtio-blk", "platform"), Verdict.UNSUPPORTED), 4),
    ],
)
def test_json_leaves_one_document_on_stdout(
    postload: Postload,
    make_pack: MakePack,
    verdicts: Callable[[dict[str, Verdict]], None],
    tmp_path: Path,
    told: dict[str, Verdict],
    code: int,
) -> None:
    verdicts(told)
    ended, out, err = postload("replay", make_pack(), "--json", "--quick", "--loads", 3, "--out", tmp_path / "out")
    assert ended == code
    document = json.loads(out)
    assert document["schema"] == "postload.matrix/2"
    assert document["complete"] is True
    assert {cell["key"]["device"]: cell["outcome"]["verdict"] for cell in document["cells"]} == {
        device: str(told.get(device, Verdict.OK)) for device in ("ahci", "virtio-blk", "platform")
    }
    assert "reports:" in err
    on_disk = json.loads((tmp_path / "out/matrix.json").read_text())
    assert [cell["id"] for cell in on_disk["cells"]] == [cell["id"] for cell in document["cells"]]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "cells.jsonl", "matrix.json", "matrix.html", "matrix.md", "junit.xml", "matrix.tap", "summary.md",
    }  # fmt: skip


@pytest.mark.parametrize(("told", "code"), [({}, 0), ({"ahci": Verdict.CRASH}, 1)])
def test_a_hook_that_fails_does_not_change_the_result(
    postload: Postload,
    make_pack: MakePack,
    verdicts: Callable[[dict[str, Verdict]], None],
    tmp_path: Path,
    told: dict[str, Verdict],
    code: int,
) -> None:
    verdicts(told)
    hook = ("--notify", "sh -c 'exit 7' --token secret")
    ended, _, err = postload("replay", make_pack(), "--quick", "--loads", 3, "--out", tmp_path / "out", *hook)
    assert ended == code
    assert "--notify: sh ended with 7" in err
    assert "secret" not in err


def test_a_hook_is_told_of_a_run_that_fails(
    postload: Postload,
    make_pack: MakePack,
    verdicts: Callable[[dict[str, Verdict]], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def judge(*_: object) -> Iterator[Cell]:
        raise HostError("no space")

    verdicts({})
    monkeypatch.setattr(schedules, "judge_cell", judge)
    hook = shlex.join(["sh", "-c", 'echo "$POSTLOAD_EXIT_CODE $POSTLOAD_HEADLINE" > "$0"', str(tmp_path / "told")])
    ended, _, err = postload("replay", make_pack(), "--quick", "--out", tmp_path / "out", "--notify", hook)
    assert (ended, err.splitlines()[-1]) == (3, "postload: no space")
    assert (tmp_path / "told").read_text() == "3 postload: not complete; 0 cells\n"


REPORTS = ("junit.xml", "matrix.html", "matrix.json", "matrix.md", "matrix.tap", "summary.md")


def test_report_makes_of_the_events_what_the_run_made(
    postload: Postload, make_pack: MakePack, verdicts: Callable[[dict[str, Verdict]], None], tmp_path: Path
) -> None:
    verdicts({"ahci": Verdict.CRASH})
    out = tmp_path / "out"
    ended, told, _ = postload("replay", make_pack(), "--quick", "--loads", 3, "--out", out)
    before = {name: (out / name).read_bytes() for name in REPORTS}
    for name in REPORTS:
        (out / name).unlink()
    code, again, err = postload("report", out)
    assert (code, again) == (ended, told) == (1, told)
    assert {name: (out / name).read_bytes() for name in REPORTS} == before
    assert "reports:" in err
    # one format, elsewhere
    code, printed, _ = postload("report", out / "cells.jsonl", "--format", "md,json", "--out", tmp_path / "b", "--json")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["matrix.json", "matrix.md"]
    assert (code, printed.encode()) == (1, before["matrix.json"])


def test_report_of_a_run_that_was_killed(
    postload: Postload, make_pack: MakePack, verdicts: Callable[[dict[str, Verdict]], None], tmp_path: Path
) -> None:
    verdicts({})
    out = tmp_path / "out"
    assert postload("replay", make_pack(), "--quick", "--out", out)[0] == 0
    lines = (out / "cells.jsonl").read_bytes().splitlines(keepends=True)
    judged = [number for number, line in enumerate(lines) if line.startswith(b'{"event":"judged"')]
    (out / "cells.jsonl").write_bytes(b"".join(lines[: judged[3]]) + lines[judged[3]][:-1])
    code, _, err = postload("report", out)
    assert code == 3
    cut = plural(len(lines[judged[3]]) - 1, "byte")
    assert f"the last line was not written to its end; what there is of it, {cut}, is left out" in err
    assert "3 cells were judged" in err
    document = json.loads((out / "matrix.json").read_text())
    assert (document["complete"], len(document["cells"])) == (False, 3)
    (out / "cells.jsonl").write_bytes(b"".join(lines[:2]) + b"{}\n" + b"".join(lines[2:]))
    code, _, err = postload("report", out)
    assert code == 2
    assert f"{out}/cells.jsonl:3: damaged event" in err.replace("\n", "")


def test_every_command_sees_all_cells_of_a_run_that_was_killed(
    postload: Postload, make_pack: MakePack, verdicts: Callable[[dict[str, Verdict]], None], tmp_path: Path
) -> None:
    verdicts({"ahci": Verdict.CRASH})
    out = tmp_path / "out"
    assert postload("replay", make_pack(), "--quick", "--out", out)[0] == 1
    whole = (out / "cells.jsonl").read_bytes().splitlines(keepends=True)
    written = json.loads((out / "matrix.json").read_text())
    # as it was after the first cell, which is not ahci's, and as it is after kill -9
    first = {**written, "complete": False, "cells": written["cells"][-1:]}
    (out / "matrix.json").write_text(json.dumps(first))
    (out / "cells.jsonl").write_bytes(b"".join(whole[:-1]))
    link = "https://gitlab.com/qemu-project/qemu/-/issues/1"
    add = ("known", "add", "ahci/bound/same", "--run", out, "--link", link, "--file", tmp_path / "known.yaml")
    assert postload(*add)[0] == 0
    (out / "matrix.json").unlink()
    assert len(read_matrix(out).cells) == len(written["cells"])
    # the file itself is that file, and so is the document of another run in the same folder
    (out / "matrix.json").write_text(json.dumps(first))
    assert len(read_matrix(out / "matrix.json").cells) == 1
    (out / "matrix.json").write_text(json.dumps({**first, "started": "2020-01-01T00:00:00+00:00"}))
    assert len(read_matrix(out).cells) == 1


def test_report_holds_a_run_against_the_known_issues_that_it_was_held_against(
    postload: Postload, make_pack: MakePack, verdicts: Callable[[dict[str, Verdict]], None], tmp_path: Path
) -> None:
    verdicts({"ahci": Verdict.CRASH})
    pack, out, known = make_pack(), tmp_path / "out", tmp_path / "known.yaml"
    chosen = ("replay", pack, "--quick", "--out", out, "--device", "ahci", "--phase", "bound", "--schedule", "same")
    assert postload(*chosen)[0] == 1
    link = "https://gitlab.com/qemu-project/qemu/-/issues/1"
    code, _, err = postload("known", "add", "bound/same", "--run", out, "--link", link, "--file", known)
    assert code == 0, err
    code, _, said = postload(*chosen, "--known", known)
    assert (code, link in said) == (0, True)
    before = (out / "matrix.json").read_bytes()
    assert link.encode() in before
    known.unlink()
    code, _, again = postload("report", out)
    assert code == 0
    assert again.splitlines()[-1] == said.splitlines()[-1]
    assert link in again.splitlines()[-1]
    assert (out / "matrix.json").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "named"), [(("report", "/nowhere"), "/nowhere"), (("report", ".", "--format", "pdf"), "pdf")]
)
def test_report_names_what_it_cannot_take(postload: Postload, argv: tuple[str, ...], named: str) -> None:
    code, out, err = postload(*argv)
    assert (code, out) == (2, "")
    assert named in err


def test_without_json_the_table_is_on_stdout(
    postload: Postload, make_pack: MakePack, verdicts: Callable[[dict[str, Verdict]], None]
) -> None:
    verdicts({})
    chosen = ("--device", "ahci", "--phase", "bound", "--schedule", "same")
    code, out, _ = postload("replay", make_pack(), "--quick", *chosen)
    assert code == 0
    assert "ahci" in out
    assert "virtio-blk" not in out


def test_reports_that_cannot_be_written_are_the_hosts_fault(
    postload: Postload, make_pack: MakePack, verdicts: Callable[[dict[str, Verdict]], None], tmp_path: Path
) -> None:
    verdicts({})
    (tmp_path / "file").write_text("")
    code, _, err = postload("replay", make_pack(), "--quick", "--out", tmp_path / "file")
    assert code == 3
    assert "file" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (HostError("no space"), 3, "postload: no space"),
        (MissingError("install [it]"), 3, "postload: install [it]"),
        (GuestError("no boot"), 3, "postload: no boot"),
        (
            Disturbed("QEMU is gone", (TERM,)),
            3,
            "gone; the host disturbed each of 3 tries: QEMU was ended from",
        ),
        (NothingToRun("empty"), 4, "postload: empty"),
        (KeyboardInterrupt(), 3, "postload: interrupted"),
        (RuntimeError("a defect"), 3, "mistake in postload itself"),
        (OSError(5, "Input/output error"), 3, "mistake in postload itself"),
    ],
)
def test_no_error_looks_like_a_finding(
    postload: Postload, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(inspection, "inspect_path", fail)
    ended, out, err = postload("inspect", "x")
    assert (ended, out) == (code, "")
    assert said in err


def test_doctor_says_what_is_missing(postload: Postload) -> None:
    code, out, _ = postload("doctor", "--qemu", "/bin/true", "--json")
    document = json.loads(out)
    assert (code, document["schema"], document["ready"]) == (3, "postload.doctor/1", False)
    qemu = next(check for check in document["checks"] if check["name"] == "QEMU")
    assert "/bin/true" in qemu["found"] or "true is not" in qemu["found"]
    code, out, _ = postload("doctor", "--qemu", "/bin/true")
    assert code == 3
    assert "missing" in out


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--version"], ["matrix", "--help"], ["replay", "-h"]])
def test_help_is_no_error(postload: Postload, argv: list[str]) -> None:
    code, out, err = postload(*argv)
    assert (code, err) == (0, "")
    assert "postload" in out


@pytest.mark.parametrize(
    ("command", "program"),
    [
        (("claims", "--machine", "virt"), "qemu-system-aarch64"),
        (("matrix", "--machine", "virt"), "qemu-system-aarch64"),
        (("claims",), "qemu-system-x86_64"),
    ],
)
def test_a_machine_is_asked_of_the_qemu_of_its_architecture(
    postload: Postload, own_cache: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], program: str
) -> None:
    monkeypatch.setenv("PATH", "")
    code, _, err = postload(*command)
    assert code == 3
    assert f"{program} is not installed: apt-get install " in err
    assert "--qemu" in err


def test_an_interrupt_while_an_object_is_finalized_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ``bundle`` that was told to end went on: the signal came while a task of asyncio was thrown away."""

    class Struck:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "unraisablehook", cli._interrupt_anew)
    before = signal.signal(signal.SIGTERM, cli._interrupt)
    try:
        struck = Struck()
        del struck
        with pytest.raises(KeyboardInterrupt):
            time.sleep(5.0)
    finally:
        signal.signal(signal.SIGTERM, before)
