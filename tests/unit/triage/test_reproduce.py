# SPDX-License-Identifier: GPL-2.0-or-later
"""The script of a bundle, against a program that stands in for QEMU."""

from __future__ import annotations

import ast
import gzip
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.oracles.leak import theil_sen
from harness.triage import reproduce
from harness.triage.reproduce import Case, Seen, attempts, bare, complaint, differs, moved, payload, renamed

FAKE = Path(__file__).with_name("fake_qemu.py")
TIMEOUT_S = 60.0

Run = Callable[..., subprocess.CompletedProcess[str]]


def head(machine: str) -> bytes:
    """Magic, version 3, configuration section."""
    return b"QEVM\x00\x00\x00\x03\x07" + struct.pack(">I", len(machine)) + machine.encode()


def section(idstr: str, body: bytes, number: int = 7) -> bytes:
    """A FULL section, instance 0, version 1, with its footer."""
    name = idstr.encode()
    return (
        b"\x04"
        + struct.pack(">I", number)
        + bytes([len(name)])
        + name
        + b"\0\0\0\0\0\0\0\x01"
        + body
        + b"\x7e"
        + struct.pack(">I", number)
    )


#: A subsection toy/new, version 1, with four bytes, in a section of name toy: at offset 20.
WITH_SUBSECTION = section("toy", b"\xaa\xbb\xcc" + b"\x05\x07toy/new\0\0\0\x01" + b"\x01\x02\x03\x04")
SUBSECTION = {"section": "toy", "name": "toy/new", "offset": 20, "size": 17}

DOCUMENT: dict[str, Any] = {
    "schema": "postload.case/1",
    "kind": "load",
    "expect": {"verdict": "crash", "exit": "SIGABRT", "function": "toy_load", "assertion": "!boom"},
    "machine": "toy-1",
    "family": "toy",
    "accel": "tcg",
    "options": [{"name": "m", "first": "16", "props": {}}],
    "scratch": {"disk.img": 4096},
    "guest_mode": "parked",
    "run_s": 0.0,
    "incoming": {"head": "head.bin", "body": "body.bin.gz"},
    "checkpoints": [{"devices": "c1.bin", "ram": None, "times": 1}],
    "loads": 1,
    "sections": ["toy"],
    "fields": [],
    "rate": {"failed": 1, "tried": 1},
    "leak": None,
    "control": None,
    "subsections": [{**SUBSECTION, "file": "body.bin.gz"}, {**SUBSECTION, "file": "c1.bin"}],
}


def case_folder(folder: Path, **changed: Any) -> Path:
    """A case as a bundle holds it."""
    folder.mkdir()
    (folder / "head.bin").write_bytes(head("toy-1"))
    (folder / "body.bin.gz").write_bytes(gzip.compress(WITH_SUBSECTION + b"\0\x06\0\0\0\x02{}"))
    (folder / "c1.bin").write_bytes(WITH_SUBSECTION)
    (folder / "case.json").write_text(json.dumps({**DOCUMENT, **changed}))
    return folder


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """The program that stands in for QEMU."""
    path = tmp_path / "qemu-fake"
    path.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
    path.chmod(0o755)
    return path


@pytest.fixture
def run(tmp_path: Path, fake: Path) -> Run:
    """Runs the script as it stands in a bundle: copied, isolated, its scratch folders in a folder of the test."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()

    def start(behaviour: str, *options: str, **changed: Any) -> subprocess.CompletedProcess[str]:
        folder = case_folder(tmp_path / f"case-{time.monotonic_ns()}", **changed)
        script = folder / "reproduce.py"
        script.write_bytes(Path(reproduce.__file__).read_bytes())
        argv = [sys.executable, "-I", str(script), str(fake), *options, "--", "-fake", behaviour]
        env = {"PATH": os.environ["PATH"], "TMPDIR": str(scratch), "FAKE_COUNT": str(tmp_path / "count")}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, env=env, check=False)
        assert not list(scratch.iterdir()), "a scratch folder was left"
        return done

    return start


def test_it_imports_nothing_but_the_standard_library() -> None:
    tree = ast.parse(Path(reproduce.__file__).read_text(), feature_version=(3, 8))
    names = {alias.name.partition(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    names |= {(n.module or "").partition(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names


def test_the_same_assertion_is_reproduced(run: Run) -> None:
    done = run("crash")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("reproduced: QEMU 9.8.7, machine toy-1: checkpoint 1: SIGABRT: ../hw/toy.c:10: ")


@pytest.mark.parametrize(("behaviour", "start"), [("ok", "not reproduced: "), ("new", "not reproduced: ")])
def test_a_build_in_either_dialect_that_loads_does_not_have_it(run: Run, behaviour: str, start: str) -> None:
    done = run(behaviour)
    assert (done.returncode, done.stdout.startswith(start)) == (1, True), done.stdout + done.stderr
    assert "after 1 checkpoint" in done.stdout


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        ("other-crash", "another reason than '!boom'"),
        ("segv", "another reason than '!boom'"),
        ("refuse", "reject instead of crash"),
        ("shutdown", "guest-fault instead of crash"),
    ],
)
def test_another_failure_is_told_and_is_not_it(run: Run, behaviour: str, why: str) -> None:
    done = run(behaviour)
    assert done.returncode == 1
    assert done.stdout.startswith("not reproduced, but failed differently: ")
    assert why in done.stdout


def test_a_hang_ends_at_the_deadline(run: Run) -> None:
    assert run("hang", "--timeout", "1", expect=HANG).returncode == 0
    assert "hang instead of crash" in run("hang", "--timeout", "1").stdout


HANG = {"verdict": "hang", "exit": None, "function": None, "assertion": None}


@pytest.mark.parametrize("behaviour", ["stopped", "all-stopped"])
def test_time_in_which_qemu_or_the_script_could_not_run_is_no_hang(run: Run, behaviour: str) -> None:
    done = run(behaviour, "--timeout", "1", expect=HANG)
    assert (done.returncode, "not reproduced: " in done.stdout) == (1, True), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("behaviour", "verdict", "why"),
    [
        ("stopped-and-hangs", "hang", "the host, or this program, stood still for "),
        ("told-to-end", "guest-fault", "QEMU was ended from outside by terminating on signal 15 from pid 1 (init)"),
        ("killed", "crash", "QEMU was ended from outside by SIGKILL"),
    ],
)
def test_what_the_host_does_in_each_try_is_125(run: Run, behaviour: str, verdict: str, why: str) -> None:
    done = run(behaviour, "-v", "--timeout", "1", expect={**HANG, "verdict": verdict})
    assert done.returncode == 125, done.stdout + done.stderr
    assert done.stdout.startswith("could not be tried: ")
    assert why in done.stdout
    assert done.stderr.count("; trying again") == 2


def test_a_refused_section_is_known_by_its_name(run: Run) -> None:
    text = "load 1: error while loading state for instance 0x0 of device '0000:00:02.0/{}'"
    expect = {"verdict": "reject", "exit": None, "function": None, "assertion": None, "line": text.format("toy")}
    assert run("refuse", expect=expect).returncode == 0
    done = run("refuse", expect={**expect, "line": text.format("brick")})
    assert done.returncode == 1
    assert "another device than 0000:00:02.0/brick" in done.stdout


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [("no-start", "out of toys"), ("no-colo", "built without COLO"), ("no-machine", "unsupported machine type")],
)
def test_what_cannot_be_tried_is_125(run: Run, behaviour: str, why: str) -> None:
    options = ["--machine", "toy-1"] if behaviour == "no-machine" else []
    done = run(behaviour, *options)
    assert done.returncode == 125
    assert done.stdout.startswith("could not be tried: ")
    assert why in done.stdout


def test_a_program_that_is_not_there_or_is_no_qemu(tmp_path: Path) -> None:
    folder = case_folder(tmp_path / "case")
    for program in ("/nonexistent/qemu", "/bin/true"):
        argv = [sys.executable, "-I", reproduce.__file__, program, "--case", str(folder)]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 125, done.stdout + done.stderr


def test_another_machine_type_takes_the_state_without_what_it_does_not_know(run: Run, fake: Path) -> None:
    # the family's newest where the recorded one is missing, and its name in the head of the stream
    done = run("no-machine")
    assert (done.returncode, "machine toy-2" in done.stdout) == (1, True), done.stdout + done.stderr
    # the machine type that it falls back to refuses section toy with subsection toy/new in it
    text = fake.read_text().replace('fake == "no-machine"', 'fake in ("no-machine", "old")')
    fake.write_text(text)
    done = run("old")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(the state without subsection toy/new)" in done.stdout


def test_the_recorded_machine_type_is_not_tampered_with(run: Run) -> None:
    done = run("old")
    assert done.returncode == 125
    assert "device 'toy'" in done.stdout


def test_a_flaky_case_is_tried_often_enough(run: Run) -> None:
    done = run("flaky", rate={"failed": 1, "tried": 4})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "(attempt 4 of 17)" in done.stdout
    done = run("flaky", "--attempts", "2", rate={"failed": 1, "tried": 4})
    assert (done.returncode, "in 2 attempts" in done.stdout) == (1, True)


def test_state_that_drifts_is_read_back(run: Run) -> None:
    changed = {
        "kind": "drift",
        "expect": {"verdict": "drift", "exit": None, "function": None, "assertion": None},
        "checkpoints": [{"devices": "c1.bin", "ram": None, "times": 5}],
        "fields": [{"section": "toy", "path": "count", "offset": 0, "bit": None, "value": 1, "healthy": None}],
    }
    done = run("moves", **changed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "after 5 checkpoints: count of toy goes from 02 to 03" in done.stdout
    done = run("ok", **changed)
    assert (done.returncode, "not reproduced: " in done.stdout) == (1, True), done.stdout + done.stderr


def test_a_build_that_resets_is_found_out(run: Run) -> None:
    assert "resets the machine before each checkpoint's load" in run("moves").stdout
    assert "resets" not in run("ok").stdout


def test_invert_turns_the_codes_round_and_leaves_125(run: Run) -> None:
    assert [run(b, "--invert").returncode for b in ("crash", "ok", "no-colo")] == [1, 0, 125]


def test_wrong_use_is_2(tmp_path: Path) -> None:
    for argv in ([], ["qemu", "--case", str(tmp_path)]):
        done = subprocess.run(
            [sys.executable, "-I", reproduce.__file__, *argv], capture_output=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 2


def test_qemu_dies_with_a_script_that_is_killed(tmp_path: Path, fake: Path) -> None:
    folder = case_folder(tmp_path / "case")
    argv = [sys.executable, "-I", reproduce.__file__, str(fake), "--case", str(folder), "--", "-fake", "hang"]
    pids = tmp_path / "pids"
    note = (
        f"    Path({f'{pids}.new'!r}).write_text(str(os.getpid()))\n    Path({f'{pids}.new'!r}).rename({str(pids)!r})\n"
    )
    fake.write_text(fake.read_text().replace("def main() -> None:\n", f"def main() -> None:\n{note}"))
    with subprocess.Popen(argv, env={**os.environ, "TMPDIR": str(tmp_path)}) as script:
        _until(pids.exists)
        script.send_signal(signal.SIGKILL)
    _until(lambda: not Path(f"/proc/{pids.read_text()}").exists())


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_head_for_another_machine_keeps_what_follows_the_name() -> None:
    assert renamed(head("toy-1") + b"\x05rest", "toy-10") == head("toy-10") + b"\x05rest"
    assert renamed(b"QEVM", "toy-10") == b"QEVM"


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("!subregion->container", "! subregion->container", True),
        ("assertion failed: (a == b)", "a == b", True),
        ("assertion failed (s->len == 4): (3 == 4)", "s->len == 4", True),
        ("size <= 512", "size <= 1024", True),
        ("!subregion->container", "!subregion->owner", False),
        ("a == b", "a != b", False),
    ],
)
def test_expressions_are_compared_without_what_differs_between_versions(ours: str, theirs: str, same: bool) -> None:
    assert (bare(ours) == bare(theirs)) is same


def _case(tmp_path: Path, **changed: Any) -> Case:
    return Case(case_folder(tmp_path / "case", **changed))


@pytest.mark.parametrize(
    ("log", "same"),
    [
        ("q: hw/x.c:1: toy_load: Assertion `!boom' failed.", True),
        ("**\nERROR:../hw/x.c:99:toy_load: assertion failed: (!boom)\nBail out! ...", True),
        ("q: hw/x.c:1: toy_other: Assertion `!boom' failed.", False),
        ("q: hw/x.c:1: toy_load: Assertion `boom' failed.", False),
        ("", False),
    ],
)
def test_crashes_are_told_apart_by_function_and_expression(tmp_path: Path, log: str, same: bool) -> None:
    assert (differs(_case(tmp_path), Seen("crash", "", log, "SIGABRT")) is None) is same


def test_a_crash_without_a_word_is_told_by_its_signal(tmp_path: Path) -> None:
    case = _case(tmp_path, expect={"verdict": "crash", "exit": "SIGSEGV", "function": "f", "assertion": "SIGSEGV"})
    assert differs(case, Seen("crash", "", "", "SIGSEGV")) is None
    assert differs(case, Seen("crash", "", "", "SIGBUS")) == "SIGBUS instead of SIGSEGV"
    assert differs(case, Seen("crash", "", "q: a.c:1: f: Assertion `x' failed.", "SIGABRT")) is not None


@pytest.mark.parametrize(("failed", "tried", "wanted"), [(3, 3, 1), (1, 2, 7), (1, 4, 17), (1, 1000, 50), (0, 0, 1)])
def test_attempts_follow_from_the_rate(tmp_path: Path, failed: int, tried: int, wanted: int) -> None:
    assert attempts(_case(tmp_path, rate={"failed": failed, "tried": tried})) == wanted


def test_a_field_that_moved_is_read_out_of_a_saved_state() -> None:
    first = b"QEVM\0\0\0\x03" + section("other", b"\x04\x03toy", 3) + section("toy", b"\x01\x02\x03") + b"\0"
    last = b"QEVM\0\0\0\x03" + section("other", b"\x04\x03toy", 3) + section("toy", b"\x01\x07\x03") + b"\0"
    assert payload(first, "toy") == b"\x01\x02\x03"
    assert payload(first, "brick") is None
    field = {"section": "toy", "path": "count", "offset": 1, "size": 1}
    assert moved(field, first, last) == "count of toy goes from 02 to 07"
    assert moved({**field, "offset": 2}, first, last) is None


GAVE_UP = "qemu: error while loading state for instance 0x0 of device 'toy'"
RING = "VQ 0 vring.num 1024 exceeds allocated max 256"


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (f"qemu: {RING}\nqemu: Failed to load toy:ring\n{GAVE_UP}\nqemu: load of migration failed", RING),
        (f"qemu: {RING}\nqemu: load of migration failed: Invalid argument: {GAVE_UP}: Failed to load element", RING),
        (f"qemu: warning: old machine\nqemu: {RING}\nqemu: loadvm failed during postcopy: -22: x", RING),
        (f"{GAVE_UP}\nqemu: load of migration failed: Invalid argument", ""),
        (f"{GAVE_UP}\nqemu: something else that is a consequence", ""),
    ],
)
def test_what_qemu_says_is_wrong(log: str, said: str) -> None:
    assert complaint(log) == said


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (f"qemu: VQ 3 vring.num 512 exceeds allocated max 128\n{GAVE_UP}", None),
        (f"qemu: virtqueue 0: vring.num 0x400 exceeds the max 0x100\n{GAVE_UP}", None),
        (GAVE_UP, None),
        (f"qemu: Features 0x10130006e54 unsupported. Allowed features: 0x79004e54\n{GAVE_UP}", "instead of"),
        (f"qemu: {RING}\n{GAVE_UP.replace('toy', 'brick')}", "another device"),
    ],
)
def test_one_device_may_be_refused_for_two_reasons(tmp_path: Path, log: str, why: str | None) -> None:
    expect = {"verdict": "reject", "line": f"load 1: {GAVE_UP[6:]}", "reason": RING}
    case = Case(case_folder(tmp_path / "case", expect=expect))
    told = differs(case, Seen("reject", "x", log))
    assert told is None if why is None else (told is not None and why in told)


@pytest.mark.parametrize(("behaviour", "code"), [("refuse-start", 0), ("ok", 1)])
def test_a_migration_that_fails_needs_no_checkpoint(run: Run, behaviour: str, code: int) -> None:
    expect = {"verdict": "reject", "exit": None, "function": None, "assertion": None, "line": GAVE_UP[6:]}
    done = run(behaviour, expect=expect, loads=0, checkpoints=[])
    assert done.returncode == code, done.stdout + done.stderr
    assert ("in the incoming stream: " if code == 0 else "after the incoming stream") in done.stdout


def test_the_line_says_what_was_wrong(run: Run) -> None:
    expect = {"verdict": "reject", "exit": None, "function": None, "assertion": None, "line": GAVE_UP[6:]}
    done = run("refuse-start", expect=expect, loads=0, checkpoints=[])
    assert f"({RING})" in done.stdout


def chunk(size: int, *, before_used: bool) -> bytes:
    """Of a glibc heap: 8 bytes of no matter, then the size with the flag."""
    return struct.pack("<QQ", 0, size | before_used) + bytes(size - 16)


def test_bytes_in_use_of_a_heap() -> None:
    heap = chunk(32, before_used=True) + chunk(64, before_used=True) + chunk(96, before_used=False)
    # 32 is in use, 64 is free since the third says so, 96 is the top
    assert reproduce.used_bytes(heap) == 32
    assert reproduce.used_bytes(bytes(4096)) is None
    assert reproduce.used_bytes(heap[:-8]) is None


def test_the_slope_and_its_interval_are_the_oracles() -> None:
    points = [(float(x), float(x * x)) for x in range(8)]
    ours = theil_sen(points)
    assert reproduce.slope(points) == (ours.estimate, ours.low, ours.high)
    assert reproduce.slope([(x, 3 * x) for x in range(8)]) == (3, 3, 3)
