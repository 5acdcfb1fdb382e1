# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMUs side by side, for real: what they open, what an interrupted installation leaves, what errors say."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cache import cache_root
from harness.devices.recipe import load_recipes
from harness.files import sha256_file
from harness.guests.machine import Machine, firmware_sink, small_machine
from harness.qemu.binary import QemuBinary, probe_binary
from harness.qemu.cmdline import Option
from harness.qemu.installed import entry, launched
from harness.qemu.prefix import ROOT, foreign_files
from harness.qemu.process import new_workdir
from harness.qemu.threads import describe_threads
from harness.qemu.vm import Vm
from harness.state.recordings import missing, planned_guests

VERSION = "10.0"
#: The host's settings, which any program reads; none of its software. Nothing else of the host may be opened.
SETTINGS = {"/etc/localtime", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/hosts", "/etc/host.conf", "/etc/passwd"}

Done = subprocess.CompletedProcess[str]
Postload = Callable[..., Done]


@pytest.fixture(scope="module")
def installed(installed_qemu: Callable[[str], Path], probed: Callable[[str | Path], QemuBinary]) -> QemuBinary:
    installed_qemu(VERSION)
    return probed(VERSION)


@pytest.fixture
def fresh_cache(tmp_path: Path, installed: QemuBinary) -> Path:
    """A cache with the packages of the version and nothing else: an installation needs no network."""
    folder = tmp_path / "cache"
    (folder / "debs").mkdir(parents=True)
    kept = cache_root() / "debs" / f"qemu-{VERSION}.json"
    shutil.copy(kept, folder / "debs")
    for package in json.loads(kept.read_text())["packages"]:
        name = f"{package['sha256']}.deb"
        (folder / "debs" / name).symlink_to(cache_root() / "debs" / name)
    return folder


def test_the_second_time_is_from_the_cache(postload: Postload, installed: QemuBinary) -> None:
    # a mirror that cannot be reached: nothing may be asked of it
    done = postload("qemu", "install", VERSION, env={"POSTLOAD_MIRROR": "http://127.0.0.1:9/debian"})
    assert done.returncode == 0, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{VERSION}: QEMU {installed.version} ({installed.build}), {installed.path}, ")
    assert last.endswith("already installed, nothing was done")


def test_it_is_listed(postload: Postload, installed: QemuBinary) -> None:
    listed = json.loads(postload("qemu", "list", "--json").stdout)
    found = next(each for each in listed["installed"] if each["name"] == VERSION)
    assert (found["version"], found["build"], found["sha256"]) == (installed.version, installed.build, installed.sha256)
    assert found["launcher"] == installed.path
    assert found["whole"]
    assert found["size_bytes"] > 50e6
    assert len(found["proof"]) == 5
    for_aarch64 = {"7.2-aarch64", "10.0-aarch64", "11.1-aarch64"}
    assert set(listed["installable"]) == {"5.2", "7.2", "10.0", "11.1"} | for_aarch64
    assert VERSION in postload("qemu", "list").stdout


def test_its_identity_is_the_packaged_program(installed: QemuBinary, tmp_path: Path) -> None:
    found = entry(VERSION)
    assert found is not None
    listed = json.loads((cache_root() / "debs" / f"qemu-{VERSION}.json").read_text())
    digest = next(each["sha256"] for each in listed["packages"] if each["name"] == "qemu-system-x86")
    deb = cache_root() / "debs" / f"{digest}.deb"
    subprocess.run(["dpkg-deb", "-x", deb, tmp_path], check=True, timeout=60)
    packaged = sha256_file(tmp_path / "usr/bin/qemu-system-x86_64")
    assert installed.sha256 == found.sha256 == packaged
    assert sha256_file(Path(found.program)) != packaged


def machine_with_all_devices(binary: QemuBinary, family: str) -> Machine:
    machine = binary.machine(family)
    assert machine is not None
    devices = [d for d in load_recipes().devices.values() if missing(d, binary, family, family) is None]
    assert {"ahci", "virtio-blk", "virtio-net"} <= {device.name for device in devices}
    plan = planned_guests(machine.name, family, devices).guests[0].plan
    return Machine(
        plan=plan.model_copy(update={"memory_mib": 64}),
        accel="tcg",
        extra=(
            Option(name="vga", first="std"),
            Option(name="device", first="isa-debugcon", props={"iobase": "0x402", "chardev": "firmware"}),
        ),
    )


@pytest.mark.parametrize("family", ["pc", "q35"])
def test_nothing_of_the_host_is_used(
    installed: QemuBinary, family: str, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    prefix = Path(installed.path).parent
    machine = machine_with_all_devices(installed, family)
    program, trace = Path(installed.path), tmp_path / "trace"
    if shutil.which("strace"):
        # -D: the process that was started is QEMU, and strace its grandchild
        program = tmp_path / "traced"
        program.write_text(f'#!/bin/sh\nexec strace -D -f -qq -e trace=%file -o {trace} {installed.path} "$@"\n')
        program.chmod(0o755)
    workdir = new_workdir()
    machine.make_files(workdir)
    said = workdir / "firmware.txt"
    sink = Option(name="chardev", first="file", props={"id": "firmware", "path": str(said)})
    with Vm(machine.command(str(program), workdir, sink), workdir=workdir) as vm:
        vm.qmp("cont")
        eventually(lambda: "Booting from" in said.read_text(errors="replace"), "the firmware looks for a disk")
        assert Path(f"/proc/{vm.process.pid}/comm").read_text().strip() == "qemu-system-x86"
        assert foreign_files(vm.process.pid, (prefix, workdir)) == []
        mapped = Path(f"/proc/{vm.process.pid}/maps").read_text()
        assert f"{prefix}/{ROOT}/usr/bin/qemu-system-x86_64\n" in mapped
        assert f"{prefix}/{ROOT}/usr/lib/x86_64-linux-gnu/libc" in mapped
    if not trace.exists():
        return
    opened = opened_by(trace, prefix)
    own = {path for path in opened if path.startswith(f"{prefix}/")}
    assert {"bios-256k.bin", "kvmvapic.bin", "vgabios-stdvga.bin", "efi-virtio.rom"} <= {Path(p).name for p in own}
    allowed = ("/dev/", "/proc/", "/sys/", f"{workdir}/", f"{prefix}/")
    assert {path for path in opened if path.startswith("/") and not path.startswith(allowed)} <= SETTINGS


def test_what_is_of_the_host_would_be_seen(binary: QemuBinary, installed: QemuBinary) -> None:
    workdir = new_workdir()
    machine = small_machine("none")
    with Vm(machine.command(binary.path, workdir, firmware_sink()), workdir=workdir) as vm:
        found = foreign_files(vm.process.pid, (Path(installed.path).parent, workdir))
    assert binary.path in found
    assert any("/libc." in path or "/libc-" in path for path in found)


def opened_by(trace: Path, prefix: Path) -> set[str]:
    """Files that QEMU opened or executed, from the moment on in which the process became QEMU."""
    lines = trace.read_text(errors="replace").splitlines()
    start = next(n for n, line in enumerate(lines) if f'execve("{prefix}/{ROOT}/' in line)
    found = (re.search(r'\b(?:open|openat|execve)\((?:[^"]*, )?"([^"]+)".*\) = \d+', line) for line in lines[start:])
    return {match[1] for match in found if match}


def test_gdb_shows_its_own_symbols(installed: QemuBinary) -> None:
    if shutil.which("gdb") is None:
        pytest.skip("gdb is not installed")
    workdir = new_workdir()
    machine = small_machine("none")
    with Vm(machine.command(installed.path, workdir, firmware_sink()), workdir=workdir) as vm:
        text = describe_threads(vm.process.pid)
    if "ptrace" in text:
        pytest.skip(text)
    assert re.search(r"^#\d+ .* in (main_loop_wait|qemu_main_loop|qemu_default_main|main) ", text, re.MULTILINE), text


def test_killed_in_the_middle_nothing_has_a_name_and_the_next_run_works(
    postload: Postload, fresh_cache: Path, binary: QemuBinary
) -> None:
    env = {"POSTLOAD_CACHE": str(fresh_cache), "POSTLOAD_MIRROR": "http://127.0.0.1:9/debian"}
    # somewhere within each step; the last may be short
    for sign, wait_s in (("unpacking", 0.1), ("search paths", 0.1), ("checking", 0.0)):
        words = [sys.executable, "-m", "harness", "qemu", "install", VERSION]
        with subprocess.Popen(words, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if sign in line:
                    break
            time.sleep(wait_s)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert json.loads(postload("qemu", "list", "--json", env=env).stdout)["installed"] == []
        # a version that is the host's own names the host's QEMU
        of_the_host = binary.version.startswith(f"{VERSION}.")
        assert of_the_host or postload("doctor", "--qemu", VERSION, env=env).returncode != 0
    done = postload("qemu", "install", VERSION, env=env)
    assert done.returncode == 0, done.stderr
    assert "packages from the cache, no network used" in done.stderr
    assert [path.name for path in (fresh_cache / "qemus").iterdir() if path.name.startswith(".tmp")] == []
    assert probe_binary(fresh_cache / "qemus" / prefix_name(fresh_cache) / "qemu").version.startswith(f"{VERSION}.")
    assert postload("qemu", "remove", VERSION, env=env).returncode == 0
    assert [path.name for path in (fresh_cache / "qemus").iterdir()] == ["names"]


def prefix_name(cache: Path) -> str:
    return next(path.name for path in (cache / "qemus").iterdir() if path.name.startswith(f"{VERSION}-"))


def test_a_download_that_is_killed_leaves_nothing_half_installed(
    postload: Postload, installed: QemuBinary, tmp_path: Path
) -> None:
    env = {"POSTLOAD_CACHE": str(tmp_path)}
    words = [sys.executable, "-m", "harness", "qemu", "install", VERSION]
    with subprocess.Popen(words, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next((line for line in process.stderr if line.startswith(("downloading", "postload:"))), "")
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
    if not line.startswith("downloading"):
        pytest.skip(f"the mirror cannot be reached: {line}")
    assert json.loads(postload("qemu", "list", "--json", env=env).stdout)["installed"] == []
    assert not (tmp_path / "qemus").exists()
    assert [path for path in (tmp_path / "debs").glob("*.deb") if sha256_file(path) != path.stem] == []
    assert not (tmp_path / "debs" / f"qemu-{VERSION}.json").exists()


def test_no_network_is_said_with_what_to_do(postload: Postload, tmp_path: Path) -> None:
    env = {"POSTLOAD_CACHE": str(tmp_path), "POSTLOAD_MIRROR": "http://127.0.0.1:9/debian"}
    done = postload("qemu", "install", VERSION, env=env)
    assert done.returncode == 3
    last = done.stderr.splitlines()[-1]
    for part in ("QEMU 10.0 cannot be fetched", "127.0.0.1:9", "refused", "POSTLOAD_MIRROR", "NAME=PATH"):
        assert part in last
    assert json.loads(postload("qemu", "list", "--json", env=env).stdout)["installed"] == []


def test_a_full_disk_is_said_with_what_to_do(fresh_cache: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    script = (
        f"mount -t tmpfs -o size=40m none {small} && cp -a {fresh_cache}/. {small} && "
        f"POSTLOAD_CACHE={small} exec {sys.executable} -m harness qemu install {VERSION}"
    )
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=120
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 3, done.stderr
    assert re.search(r"the disk of \S+ is full: .*POSTLOAD_CACHE", done.stderr)


def test_an_own_build_is_as_good(postload: Postload, qemu_path: Path, tmp_path: Path) -> None:
    env = {"POSTLOAD_CACHE": str(tmp_path)}
    words = ["--env", "ASAN_OPTIONS=detect_leaks=0", "--datadir", str(tmp_path)]
    done = postload("qemu", "install", f"mine={qemu_path}", *words, env=env)
    assert done.returncode == 0, done.stderr
    found = json.loads(postload("qemu", "list", "--json", env=env).stdout)["installed"][0]
    assert (found["kind"], found["source"], found["sha256"]) == ("path", str(qemu_path), sha256_file(qemu_path))
    assert launched(Path(found["launcher"])).program == qemu_path
    assert postload("qemu", "remove", "mine", env=env).returncode == 0
    assert qemu_path.exists()
    gone = postload("qemu", "remove", "mine", env=env)
    assert gone.returncode == 2
    assert "no QEMU of the name 'mine'" in gone.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["9.9"], "unknown QEMU '9.9': Debian's are 5.2, 7.2, 10.0, 11.1"),
        (["a/b=/bin/true"], "not a name"),
        (["10.0=/bin/true"], "means Debian's QEMU 10.0"),
        (["mine=/bin/true"], "/bin/true is not a QEMU"),
        (["mine=/nowhere"], "/nowhere: no such file"),
        (["mine="], "expected NAME=PATH"),
        (["10.0", "--env", "A=b"], "for an own build"),
        (["mine=/bin/true", "--full"], "not for an own build"),
        (["mine=/bin/true", "--env", "A"], "expected KEY=VALUE"),
    ],
)
def test_what_cannot_be_installed(postload: Postload, tmp_path: Path, words: list[str], said: str) -> None:
    done = postload("qemu", "install", *words, env={"POSTLOAD_CACHE": str(tmp_path)})
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
