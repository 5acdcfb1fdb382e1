# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages become a guest that boots, loads its drivers and finds its devices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from harness.errors import HostError
from harness.guests.build import Guest, build_guest
from harness.guests.recipe import load_recipe

PROMPT = "postload# "
DEAD_MIRROR = "http://127.0.0.1:9/debian"


@pytest.fixture(scope="module")
def guest() -> Guest:
    return build_guest(load_recipe())


def arguments(guest: Guest, machine: str, disk: Path) -> list[str]:
    disk.touch()
    with disk.open("r+b") as file:
        file.truncate(8 << 20)
    words = f"-M {machine} -accel tcg -smp 1 -m {guest.memory_mib} -nodefaults -no-user-config -display none"
    words += " -serial stdio -no-reboot -device ich9-ahci,id=ahci,addr=5 -device ide-hd,bus=ahci.0,drive=a"
    words += " -device virtio-blk-pci,drive=b -netdev user,id=n -device virtio-net-pci,netdev=n,romfile="
    drives = [f"if=none,id={name},format=raw,read-only=off,file.locking=off,file={disk}" for name in "ab"]
    boot = ["-kernel", str(guest.kernel), "-initrd", str(guest.initramfs), "-append", guest.cmdline]
    return [*words.split(), "-drive", drives[0], "-drive", drives[1], *boot]


class Shell:
    def __init__(self, argv: list[str]) -> None:
        command = ["--pdeathsig", "KILL", "qemu-system-x86_64", *argv]
        self.spawn = pexpect.spawn("setpriv", command, timeout=60, encoding="latin-1")
        self.spawn.expect_exact("POSTLOAD READY")
        self.spawn.expect_exact(PROMPT)

    def run(self, line: str) -> str:
        self.spawn.sendline(line)
        self.spawn.expect_exact(PROMPT)
        return str(self.spawn.before).replace("\r", "")


@pytest.fixture(params=["pc", "q35"])
def shell(guest: Guest, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(arguments(guest, request.param, tmp_path / "disk"))
    yield shell
    shell.spawn.close(force=True)


def test_a_booted_guest_loads_drivers_and_finds_devices(shell: Shell) -> None:
    # The console of sendline's own terminal echoes; the guest's must not.
    shell.spawn.setecho(False)
    assert shell.run("cat /proc/modules; ls -d /dev/sd* /dev/vd* 2> /dev/null") == "", "a driver before 'load'"
    assert shell.run("load ahci sd_mod virtio_pci virtio_blk virtio_net; echo rc=$?") == "rc=0\n"
    wait = "bind_wait /dev/sda 20 && bind_wait /dev/vda 20 && bind_wait '/sys/class/net/e*0' 20; echo rc=$?"
    assert shell.run(wait) == "rc=0\n"
    assert shell.run("cd /sys/class/net; echo *; cd /") == "eth0 lo\n"
    read = shell.run("for d in sda vda; do dd if=/dev/$d of=/dev/null bs=4k count=8 iflag=direct 2>&1; done")
    assert read.count("8+0 records in") == 2
    assert shell.run("load ahci virtio_net; echo rc=$?") == "rc=0\n", "a second load is not harmless"
    assert "not all of the drivers nope are in this guest" in shell.run("load nope")
    assert shell.run("bind_wait /dev/nope 1 2> /dev/null; echo rc=$?") == "rc=1\n"


def test_the_shell_is_silent_about_jobs_and_counts_beats(shell: Shell) -> None:
    shell.spawn.setecho(False)
    assert shell.run("hostname") == "guest\n"
    assert shell.run("beat_start") == ""
    assert shell.run("(true) & sleep 0.3") == ""
    first = int(shell.run("beat"))
    assert shell.run("bind_wait /dev/nope 1 2> /dev/null") == ""
    assert int(shell.run("beat")) > first
    assert shell.run("beat_stop; sleep 0.3; beat > /tmp/one; sleep 0.3; beat | cmp - /tmp/one; echo rc=$?") == "rc=0\n"


def test_kernel_log_stays_off_the_console(shell: Shell) -> None:
    shell.spawn.setecho(False)
    assert shell.run("echo '<3>loud' > /dev/kmsg; sleep 0.2") == ""
    assert shell.run("dmesg | grep -c loud") == "1\n"


def test_the_identity_says_what_the_guest_is_made_of(guest: Guest) -> None:
    assert guest.pvh
    assert guest.kernel.read_bytes()[:4] == b"\x7fELF"
    assert re.fullmatch(r"[0-9a-f]{64}", guest.identity["kernel"]["sha256"])
    packages = guest.identity["packages"]
    assert "busybox-static" in packages
    assert any(re.fullmatch(r"linux-image-\d.*-amd64", name) for name in packages)
    assert guest.identity["drivers"]["ahci"][-1] == "ahci"


def test_the_second_build_needs_no_network(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTLOAD_MIRROR", DEAD_MIRROR)
    monkeypatch.setenv("PATH", "/nonexistent")
    assert build_guest(load_recipe()) == guest


def test_offline_with_an_empty_cache_names_package_and_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTLOAD_CACHE", str(tmp_path))
    monkeypatch.setenv("POSTLOAD_MIRROR", DEAD_MIRROR)
    with pytest.raises(HostError, match="linux-image-amd64") as caught:
        build_guest(load_recipe())
    assert DEAD_MIRROR in str(caught.value)
    assert not list(tmp_path.rglob("guest.json"))
