# SPDX-License-Identifier: GPL-2.0-or-later
"""Walls around a program, tried on real ones: what stands on this host keeps them in."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from harness.qemu import walls as module
from harness.qemu.process import Process, new_workdir
from harness.qemu.walls import Confinement, Walls, standing
from harness.report.walls import walls_remedy, walls_text, walls_warning

Run = Callable[..., tuple[int, str]]

SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", os.path.realpath("/bin/sh"), "/proc")


def need(name: str) -> None:
    if name not in standing(None).names:
        pytest.skip(f"this host has no wall {name}: {walls_text(standing(None))}")


@pytest.fixture
def run() -> Run:
    """Run a shell script behind walls; its own folder is the one that it is in."""

    def run(script: str, *, read: tuple[str, ...] = (), **asked: bool) -> tuple[int, str]:
        own = new_workdir()
        confinement = Confinement(walls=Walls(**asked), read=(*SYSTEM, *read))
        with Process(["/bin/sh", "-c", script, "sh", str(own)], workdir=own, confinement=confinement) as process:
            ended = process.wait(20.0)
            assert ended is not None
            return ended.status, process.stderr()

    return run


def test_without_walls_it_is_a_plain_process(run: Run) -> None:
    assert run("echo hello; exit 3") == (3, "hello\n")


def test_files_that_are_not_its_own_are_not_there(run: Run, tmp_path: Path) -> None:
    need("files")
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o644)
    script = f'cat {secret}; echo x > {secret}; echo y > {tmp_path}/new; echo z > "$1/own"; cat "$1/own"'
    status, said = run(script, files=True)
    assert status == 0
    assert said.count("ermission denied") == 3
    assert said.endswith("z\n")
    assert secret.read_text() == "secret"
    assert run(f"cat {secret}", files=True, read=(str(secret),)) == (0, "secret")
    assert run(f"cat {secret}") == (0, "secret")


def test_a_device_of_the_hosts_is_not_there(run: Run) -> None:
    need("files")
    assert run("echo x > /dev/null && head -c 4 /dev/zero | wc -c", files=True) == (0, "4\n")
    assert run("cat /dev/mem", files=True)[0] != 0
    assert run("echo x > /dev/shm/postload-test", files=True)[0] != 0


def test_there_is_no_network(run: Run) -> None:
    need("network")
    with socket.create_server(("127.0.0.1", 0)) as server:
        script = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2); print('in')"
        assert run(f'{sys.executable} -I -S -c "{script}"') == (0, "in\n")
        status, said = run(f'{sys.executable} -I -S -c "{script}"', network=True)
    assert status == 1
    assert "in\n" not in said


def test_a_root_is_nobody_behind_it(run: Run) -> None:
    need("user")
    if os.geteuid() != 0:
        pytest.skip("this is not root")
    assert run("id -u; id -g; id -G", user=True) == (0, "65534\n65534\n65534\n")
    # its folder is its own
    assert run('echo z > "$1/own" && cat "$1/own"', user=True, powerless=True) == (0, "z\n")


def test_no_capability_is_left(run: Run) -> None:
    need("powerless")
    told = run("grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs)' /proc/self/status", powerless=True)[1]
    sets = {line.split()[0]: int(line.split()[1], 16) for line in told.splitlines()}
    bounding = sets.pop("CapBnd:")
    assert bounding == 0 or os.geteuid() != 0
    assert sets == {"CapInh:": 0, "CapPrm:": 0, "CapEff:": 0, "CapAmb:": 0, "NoNewPrivs:": 1}


def test_the_one_that_postcopy_needs_is_left_where_landlock_confines_it(run: Run) -> None:
    need("powerless")
    need("files")
    if os.geteuid() != 0:
        pytest.skip("this is not root")
    for user in (False, True):
        told = run("grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status", files=True, powerless=True, user=user)[1]
        assert {int(line.split()[1], 16) for line in told.splitlines()} == {1 << 19}
    # not even its parent, whose user it has
    assert run(f"cat /proc/{os.getpid()}/environ", files=True, powerless=True)[0] == 1


def test_all_walls_that_this_host_has_stand_together(run: Run) -> None:
    walls = dict.fromkeys(standing(None).names, True)
    assert run('echo z > "$1/own" && cat "$1/own"', **walls) == (0, "z\n")


def test_a_wall_that_was_asked_for_and_does_not_stand_ends_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DEVICES", ["/dev/null\0"])
    status, said = run("echo ran", files=True)
    assert status != 0
    assert "ran" not in said


def test_what_is_behind_walls_dies_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import time; from pathlib import Path; from harness.qemu.process import Process; "
        "from harness.qemu.walls import Confinement, standing; "
        f"confinement = Confinement(walls=standing(None), read={SYSTEM!r}); "
        "process = Process(['/bin/sleep', '60'], confinement=confinement); "
        "print(process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        name = Path(f"/proc/{child}/comm")
        end = time.monotonic() + 20
        while name.read_text() != "sleep\n" and time.monotonic() < end:
            time.sleep(0.01)
        parent.send_signal(signal.SIGKILL)
        parent.wait(20)
    while name.exists() and Path(f"/proc/{child}/stat").read_text().split()[2] != "Z" and time.monotonic() < end:
        time.sleep(0.01)
    assert time.monotonic() < end


def test_a_deep_scratch_folder_has_fewer_walls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 60)
    walls = standing.__wrapped__(None)
    assert not walls.files
    assert not walls.network
    assert "short $TMPDIR" in walls_remedy(walls)


def test_walls_in_words() -> None:
    every = Walls(**{each.name: True for each in fields(Walls)})
    assert walls_text(every).endswith("not root, no capabilities")
    assert walls_text(Walls()) == "none stands"
    assert walls_text(Walls(sandbox=True, user=True)).endswith("not root; missing: files, network, powerless")
    assert walls_remedy(every) == ""
    assert "Landlock" in walls_remedy(Walls())
    assert walls_warning(every, root=True) is None
    assert walls_warning(Walls(user=True), root=False) is None
    warning = walls_warning(Walls(), root=True)
    assert warning is not None
    assert "this is root" in warning


def test_what_nobody_may_read_is_not_public(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir(mode=0o755)
    program = folder / "qemu"
    program.write_text("")
    program.chmod(0o755)
    public = module._is_public(str(folder))
    folder.chmod(0o700)
    assert not module._is_public(str(program))
    folder.chmod(0o755)
    assert module._is_public(str(program)) == public
