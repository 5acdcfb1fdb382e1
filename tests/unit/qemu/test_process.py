# SPDX-License-Identifier: GPL-2.0-or-later
"""Child processes: how they ended, what they said, and that none of them outlives the harness."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from harness.errors import Stopped
from harness.qemu.process import Exit, Process, new_workdir, scratch_folder, sweep_workdirs
from harness.qemu.scope import ProcessScope

GENEROUS_S = 30.0


def sh(script: str, **more: object) -> Process:
    return Process(["/bin/sh", "-c", script], **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("script", "status", "signal_name", "crashed"),
    [
        ("exit 0", 0, None, False),
        ("exit 3", 3, None, False),
        ("kill -ABRT $$", -6, "SIGABRT", True),
        ("kill -SEGV $$", -11, "SIGSEGV", True),
        ("kill -BUS $$", -7, "SIGBUS", True),
        ("kill -KILL $$", -9, "SIGKILL", False),
        ("kill -TERM $$", -15, "SIGTERM", False),
    ],
)
def test_how_it_ended(script: str, status: int, signal_name: str | None, crashed: bool) -> None:
    with sh(f"ulimit -c 0; {script}") as process:
        ended = process.wait(GENEROUS_S)
    assert ended == Exit(status=status, signal=signal_name)
    assert ended.crashed is crashed
    assert str(ended) == (signal_name or f"exit status {status}")
    # killed after its end it keeps the way it ended
    assert process.kill() == ended == process.poll()


def test_a_signal_without_a_name_is_numbered() -> None:
    with sh("ulimit -c 0; kill -40 $$") as process:
        ended = process.wait(GENEROUS_S)
    assert ended is not None
    assert not ended.crashed
    assert "40" in str(ended) or "SIGRTMIN" in str(ended)


def test_it_runs_until_it_is_killed() -> None:
    with sh("exec sleep 1000") as process:
        assert process.poll() is None
        assert process.wait(0.01) is None
        folder = process.workdir
        assert folder.is_dir()
    assert process.poll() == Exit(status=-9, signal="SIGKILL")
    assert not folder.exists()
    assert not Path(f"/proc/{process.pid}").exists()


def test_what_it_printed_is_kept_even_when_it_is_no_text() -> None:
    with sh(r"echo out; echo err >&2; printf '\377\n'") as process:
        process.wait(GENEROUS_S)
        assert process.stderr() == "out\nerr\n\ufffd\n"
    assert process.stderr() == ""


def test_only_the_end_of_much_output_is_read() -> None:
    with sh("head -c 600000 /dev/zero | tr '\\0' x; echo end") as process:
        process.wait(GENEROUS_S)
        text = process.stderr()
    assert len(text) == 256 * 1024
    assert text.endswith("xend\n")


def test_a_passed_socket_keeps_its_number() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # not by the shell, whose redirections know single digits only
        program = f"import os; os.write({theirs.fileno()}, b'hello')"
        with Process([sys.executable, "-c", program], passed=[theirs]) as process:
            ended = process.wait(GENEROUS_S)
        assert ended == Exit(status=0)
        ours.settimeout(GENEROUS_S)
        assert ours.recv(100) == b"hello"


def test_it_is_in_a_process_group_of_its_own() -> None:
    with sh("exec sleep 1000") as process:
        assert os.getpgid(process.pid) == process.pid != os.getpgid(0)


def test_a_program_that_is_not_there_ends_with_the_shells_status() -> None:
    with Process(["/nowhere/qemu"]) as process:
        ended = process.wait(GENEROUS_S)
        assert ended is not None
        assert ended.status == 127
        assert "/nowhere/qemu" in process.stderr()


def test_closing_a_scope_ends_its_children_and_nobody_elses() -> None:
    mine, other = ProcessScope(), ProcessScope()
    with (
        sh("exec sleep 1000", scope=mine) as one,
        sh("exec sleep 1000", scope=mine) as two,
        sh("exec sleep 1000", scope=other) as theirs,
        sh("exec sleep 1000") as nobodys,
    ):
        mine.close()
        assert [p.wait(GENEROUS_S) for p in (one, two)] == [Exit(status=-9, signal="SIGKILL")] * 2
        assert (theirs.poll(), nobodys.poll()) == (None, None)
        assert (mine.stopped, other.stopped) == (True, False)


def test_a_closed_scope_starts_nothing(tmp_path: Path) -> None:
    scope = ProcessScope()
    scope.close()
    (tmp_path / "work").mkdir()
    with pytest.raises(Stopped):
        sh(f"sleep 0.5; touch {tmp_path / 'ran'}; exec sleep 1000", scope=scope, workdir=tmp_path / "work")
    time.sleep(0.7)
    assert list(tmp_path.iterdir()) == []


def test_a_scope_ends_with_the_one_that_it_stands_in() -> None:
    whole = ProcessScope()
    part = ProcessScope(whole)
    with sh("exec sleep 1000", scope=part) as process:
        whole.stop()
        assert (part.stopped, process.poll()) == (True, None)
        with pytest.raises(Stopped):
            part.check()
        whole.close()
        assert process.wait(GENEROUS_S) == Exit(status=-9, signal="SIGKILL")
    with pytest.raises(Stopped):
        sh("exec sleep 1000", scope=ProcessScope(whole))


def test_what_was_reaped_is_forgotten() -> None:
    scope = ProcessScope()
    for _ in range(3):
        with sh("exit 0", scope=scope) as process:
            assert process.wait(GENEROUS_S) == Exit(status=0)
    assert scope.processes == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_child_outlives_the_harness(how: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # in a folder of its own: any run beside this one sweeps the common one too
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    program = (
        "import time; from harness.qemu.process import Process; "
        "p = Process(['/bin/sh', '-c', 'exec sleep 1000']); print(p.pid, p.workdir, flush=True); time.sleep(1000)"
    )
    harness = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert harness.stdout is not None
    pid, _, folder = harness.stdout.readline().strip().partition(" ")
    harness.send_signal(how)
    harness.wait(GENEROUS_S)
    harness.stdout.close()
    end = time.monotonic() + GENEROUS_S
    while _runs(int(pid)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _runs(int(pid))
    assert Path(folder).is_dir()
    assert sweep_workdirs() == 1
    assert not Path(folder).exists()


def _runs(pid: int) -> bool:
    """Whether it is there and no zombie that nobody reaps."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_folders_of_the_living_are_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = new_workdir()
    for name in ("postload-run-999999999-x", "postload-run-nobody", "other-999999999-x"):
        (tmp_path / name).mkdir()
    assert sweep_workdirs() == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["other-999999999-x", "postload-run-nobody", mine.name])


def test_a_scratch_folder_goes_with_its_block_or_with_the_next_run() -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder() as folder:
        raise KeyboardInterrupt
    assert not folder.exists()
    code = "import os\nfrom harness.qemu.process import scratch_folder\n"
    code += "with scratch_folder() as folder: print(folder, flush=True); os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    left = Path(killed.stdout.strip())
    assert left.is_dir()
    sweep_workdirs()
    assert not left.exists()
