# SPDX-License-Identifier: GPL-2.0-or-later
"""Packs from elsewhere on a real QEMU: what is refused, what walls keep it from, and what strace sees."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from harness.adopt.commandline import read_command_line
from harness.adopt.plan import adopt_plan, known_to
from harness.devices.backends import Backend, Chardev, Disk, Netdev
from harness.errors import PackError, PostloadError, QemuError
from harness.guests.machine import Machine, firmware_sink
from harness.guests.plan import GuestPlan, PlacedDevice
from harness.packs.export import export_pack
from harness.packs.pack import StatePack
from harness.qemu.binary import QemuBinary
from harness.qemu.cmdline import CommandLine, Option
from harness.qemu.listed import BOOLEAN, ENUM, NUMBER, listing
from harness.qemu.monitor import CommandRefused
from harness.qemu.vm import Vm, migrate_to_socket
from harness.qemu.walls import program_paths, standing
from harness.tools.apt import AptRoot, extract

Done = subprocess.CompletedProcess[str]

#: Plans that are made at random; tox -e hostile has many.
EXAMPLES = int(os.environ.get("POSTLOAD_TEST_HOSTILE", "25"))
CANARY = "postload-canary"


@pytest.fixture(scope="session")
def q35(binary: QemuBinary) -> str:
    machine = binary.machine("q35")
    assert machine is not None
    return machine.name


def plan_with(machine: str, *devices: PlacedDevice, backends: dict[str, Backend] | None = None) -> GuestPlan:
    return GuestPlan(machine=machine, family="q35", memory_mib=16, devices=devices, backends=backends or {})


def foreign(plan: GuestPlan) -> Machine:
    return Machine(plan=plan, accel="tcg", foreign=Path("brought.pack"))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_name", "properties", "said"),
    [
        ("virtio-net-pci", {"romfile": CANARY}, "romfile='postload-canary': its type is str"),
        ("virtio-net-pci", {"tx": "timer"}, "tx='timer': its type is str"),
        ("virtio-net-pci", {"netdev": "other"}, "netdev='other': its type is str"),
        ("virtio-blk-pci", {"drive": "other"}, "drive='other': its type is str"),
        ("virtio-blk-pci", {"num-queues": "many"}, "num-queues='many': its type is uint16; expected a number"),
        ("virtio-blk-pci", {"iothread": "x"}, "iothread='x': its type is link<iothread>"),
        ("virtio-blk-pci", {"werror": "explode"}, "expected one of report, ignore, enospc, stop, auto"),
        ("ipmi-bmc-sim", {"sdrfile": CANARY}, "sdrfile='postload-canary': its type is str"),
        ("ipmi-bmc-sim", {"frudatafile": CANARY}, "frudatafile='postload-canary': its type is str"),
        ("virtio-blk", {}, "type virtio-blk: expected a device type that"),
        ("AC97", {}, "AC97 would use the host's sound"),
        ("hv-syndbg", {}, "hv-syndbg stands on the host's own"),
        ("vhost-vsock-pci", {"guest-cid": 3}, "vhost-vsock-pci stands on the host's own"),
        ("e1000e", {"nothing": 1}, "nothing=1: expected a property that"),
    ],
)
def test_a_forged_device_is_refused_before_qemu_sees_it(
    binary: QemuBinary, q35: str, scratch: Path, type_name: str, properties: dict[str, Any], said: str
) -> None:
    machine = foreign(plan_with(q35, PlacedDevice(id="x", type=type_name, properties=properties)))
    with pytest.raises(PackError, match=re.escape(said)) as raised:
        machine.command(binary.path, scratch)
    assert str(raised.value).startswith("brought.pack: ")


def test_a_replay_of_a_forged_pack_ends_with_2(
    pc_pack: StatePack, postload: Callable[..., Done], scratch: Path, binary: QemuBinary
) -> None:
    plan = pc_pack.manifest.plan
    forged = PlacedDevice(id="x", type="e1000e", properties={"romfile": CANARY})
    with StatePack(pc_pack.path) as pack:
        pack.manifest = pack.manifest.model_copy(
            update={"plan": plan.model_copy(update={"devices": (*plan.devices, forged)})}
        )
        export_pack(pack, scratch / "forged.pack")
    for words in (("replay", "--quick", "--loads", 1), ("qualify", "--to", binary.path, "--loads", 1)):
        done = postload(words[0], scratch / "forged.pack", *words[1:], "--out", scratch / words[0])
        assert done.returncode == 2, done.stdout + done.stderr
        assert "device x: romfile='postload-canary': its type is str; expected" in done.stderr
        assert f"{scratch}/forged.pack: " in done.stderr


# -- what walls keep it from -------------------------------------------------------------------------------------------


@pytest.fixture
def behind_walls(binary: QemuBinary, q35: str, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vm]:
    """A QEMU that is given everything that a plan from elsewhere may have."""
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    scratch.chmod(0o755)
    machine = foreign(
        plan_with(
            q35,
            PlacedDevice(id="blk", type="virtio-blk-pci", backends={"drive": "disk"}),
            PlacedDevice(id="net", type="virtio-net-pci", backends={"netdev": "user"}),
            backends={"disk": Disk(size_bytes=1 << 20), "user": Netdev()},
        )
    )
    workdir = Path(tempfile.mkdtemp(dir=scratch))
    machine.make_files(workdir)
    with Vm(machine.command(binary.path, workdir, firmware_sink()), workdir=workdir) as vm:
        yield vm


def test_a_qemu_that_was_taken_over_gets_nowhere(behind_walls: Vm, binary: QemuBinary, scratch: Path) -> None:
    walls = standing(binary.path)
    secret = scratch / CANARY
    secret.write_bytes(bytes(1 << 16))
    secret.chmod(0o666)
    status = Path(f"/proc/{behind_walls.process.pid}/status").read_text()
    if walls.sandbox:
        assert "Seccomp:\t2" in status
        # the kernel ends it, or the command fails
        with contextlib.suppress(QemuError):
            behind_walls.qmp("migrate", uri=f"exec:touch {behind_walls.workdir}/ran")
        behind_walls.ended(2)
        assert not (behind_walls.workdir / "ran").exists()
    if walls.powerless:
        # behind Landlock the one is left that userfaultfd wants
        effective = re.search(r"CapEff:\t([0-9a-f]+)", status)
        assert effective is not None
        assert int(effective[1], 16) in ((0, 1 << 19) if walls.files else (0,))
    if walls.user:
        assert "Uid:\t0\t" not in status
    if not walls.names:
        pytest.skip("no wall stands on this host")


def test_a_file_of_the_hosts_is_not_opened(behind_walls: Vm, binary: QemuBinary, scratch: Path) -> None:
    if not standing(binary.path).files:
        pytest.skip("this host has no Landlock")
    secret = scratch / CANARY
    secret.write_bytes(bytes(1 << 16))
    secret.chmod(0o666)
    node: dict[str, Any] = {"node-name": "n", "filename": str(secret)}
    with pytest.raises(CommandRefused, match="Permission denied"):
        behind_walls.qmp("blockdev-add", driver="file", **node)
    with pytest.raises(CommandRefused, match="Permission denied"):
        behind_walls.qmp("pmemsave", val=0, size=16, filename=str(scratch / "new"))
    behind_walls.qmp("pmemsave", val=0, size=16, filename=str(behind_walls.workdir / "new"))
    assert not (scratch / "new").exists()


def test_its_state_can_be_taken_from_it(behind_walls: Vm, scratch: Path) -> None:
    size = migrate_to_socket(behind_walls, behind_walls.workdir / "own.sock", scratch / "state", timeout_s=60)
    assert size == (scratch / "state").stat().st_size
    assert (scratch / "state").read_bytes().startswith(b"QEVM\0\0\0\3")


def test_no_network_of_the_hosts_is_there(behind_walls: Vm, binary: QemuBinary) -> None:
    if not standing(binary.path).network:
        pytest.skip("this host has no network namespaces to give")
    theirs = Path(f"/proc/{behind_walls.process.pid}/ns/net").readlink()
    assert theirs != Path("/proc/self/ns/net").readlink()


# -- what strace sees --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def strace(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], dict[str, str]]:
    """How it is called, and the environment that it wants: the host's, else Debian's unpacked."""
    found = shutil.which("strace")
    if found:
        return [found], dict(os.environ)
    folder = tmp_path_factory.mktemp("strace")
    try:
        for deb in AptRoot("bookworm").download(["strace", "libunwind8"], folder / "debs"):
            extract(deb.path, folder / "root")
    except PostloadError as error:
        pytest.skip(f"strace is not to be had: {error}")
    libraries = folder / "root/usr/lib/x86_64-linux-gnu"
    # the libraries are for strace alone: a QEMU that inherited them would be seen to open them
    words = [str(folder / "root/usr/bin/strace"), "-E", "LD_LIBRARY_PATH"]
    return words, {**os.environ, "LD_LIBRARY_PATH": str(libraries)}


@pytest.fixture(scope="session")
def types(binary: QemuBinary) -> list[str]:
    """All device types that this QEMU lets a user add."""
    options = (Option(name="nodefaults"), Option(name="machine", first="none"), Option(name="display", first="none"))
    with Vm(CommandLine(binary=binary.path, options=options)) as vm:
        names = vm.qmp("qom-list-types", implements="device", abstract=False)
    return sorted(each["name"] for each in names if not each["name"].endswith("-cpu"))


#: Words that would open, run or reach something, were they taken.
EVIL = st.sampled_from(
    [
        *(CANARY, f"/tmp/{CANARY}", "/etc/passwd", f"../{CANARY}", f"a,romfile={CANARY}", f"exec:touch {CANARY}"),
        *("tcp:127.0.0.1:1", "unix:/run/dbus/system_bus_socket", "on,fd=0", "disk", "user", "line", "auto", "on"),
        *("0", "firmware"),
    ]
)
BACKENDS: dict[str, Backend] = {"disk": Disk(size_bytes=1 << 20), "user": Netdev(), "line": Chardev()}
_SEEN = re.compile(r'^\d+ +(\w+)\((?:AT_FDCWD, )?(?:"((?:[^"\\]|\\.)*)")?(.*)$')
#: What a program of a distribution reads.
_READ = ("/usr/", "/lib", "/bin/", "/etc/ld.so.", "/proc/self/", "/sys/devices/system/")
#: QEMU's own where a device brings a display server: its settings, and the names of its threads.
_OWN = re.compile(r"/etc/sasl2?/qemu\.conf|/proc/self/task/\d+/comm")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


@st.composite
def devices(draw: st.DrawFn, binary: QemuBinary, machine: str, types: list[str]) -> PlacedDevice:
    """A device of any type, its properties as its type lists them or not at all."""
    type_name = draw(st.sampled_from(types))
    listed = listing(binary.path, machine, [type_name]).devices.get(type_name, {})
    properties: dict[str, bool | int | str] = {}
    for name in draw(st.lists(st.sampled_from(sorted(listed) or ["romfile"]), max_size=3, unique=True)):
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", name):
            continue
        values: dict[str, st.SearchStrategy[Any]] = {
            NUMBER: st.integers(0, 255),
            BOOLEAN: st.booleans(),
            ENUM: st.sampled_from(listed[name].words or ("x",)) if name in listed else EVIL,
        }
        kind = listed[name].kind if name in listed else ""
        properties[name] = draw(st.one_of(values.get(kind, EVIL), *([EVIL] if draw(st.integers(0, 5)) == 0 else [])))
    wanted = [key for key in ("drive", "netdev", "chardev", "romfile", "audiodev") if key in listed]
    kinds = {"drive": "disk", "netdev": "user", "chardev": "line", "romfile": "disk", "audiodev": "line"}
    backends = {key: kinds[key] for key in wanted if draw(st.integers(0, 3)) and (key in kinds and key != "romfile")}
    if "romfile" in wanted and draw(st.integers(0, 9)) == 0:
        backends["romfile"] = "disk"
    backends = {key: name for key, name in backends.items() if key not in properties}
    return PlacedDevice(id="x", type=type_name, properties=properties, backends=backends)


def reached(log: str, own: tuple[str, ...], usual: frozenset[str] = frozenset()) -> list[str]:
    """What was opened, made, run or connected to outside of QEMU's own files.

    :param usual: paths that a QEMU without any device opens too
    """
    found = []
    for line in log.splitlines():
        seen = _SEEN.match(line)
        if seen is None:
            continue
        call, path, rest = seen[1], seen[2], seen[3]
        if call in ("execve", "execveat"):
            found += [] if path in own else [line]
        elif call in ("connect", "bind"):
            found.append(line)
        elif path is not None and path.startswith("/"):
            reads = not re.search(r"O_(WRONLY|RDWR|CREAT)", rest) and path.startswith(_READ)
            theirs = path.startswith((*own, *_DEVICES)) or path in usual or _OWN.fullmatch(path)
            found += [] if reads or theirs else [line]
        elif path and CANARY in path:
            found.append(line)
    return found


def test_what_strace_would_tell(scratch: Path) -> None:
    own = ("/opt/qemu", str(scratch))
    assert reached('1 openat(AT_FDCWD, "/usr/lib/x", O_RDONLY) = 3\n1 execve("/opt/qemu", []) = 0', own) == []
    for line in (
        '1 execve("/bin/sh", ["sh"]) = 0',
        '1 openat(AT_FDCWD, "/etc/passwd", O_RDONLY) = 3',
        '1 openat(AT_FDCWD, "/usr/lib/x", O_RDWR|O_CREAT, 0644) = 3',
        f'1 openat(AT_FDCWD, "{CANARY}", O_RDONLY) = -1 ENOENT',
        "1 connect(3, {sa_family=AF_INET, sin_port=htons(1)}, 16) = 0",
        '1 connect(3, {sa_family=AF_UNIX, sun_path="/run/x"}, 16) = 0',
    ):
        assert reached(line, own) == [line]


Traced = Callable[[CommandLine, Path], str]


@pytest.fixture
def traced(strace: tuple[list[str], dict[str, str]], scratch: Path) -> Traced:
    """Start a QEMU, have it quit, and return what strace saw."""
    calls = "execve,execveat,open,openat,openat2,creat,connect,bind,unlink,unlinkat,rename,mkdir,symlink,truncate"

    def run(command: CommandLine, workdir: Path) -> str:
        # the first wall alone is looked at: QEMU's sandbox is taken away again
        options = tuple(option for option in command.options if option.name != "sandbox")
        argv = [*CommandLine(binary=command.binary, options=options).argv(), "-monitor", "stdio"]
        log = scratch / "strace.log"
        program, environment = strace
        words = [*program, "-f", "-qq", "-s", "4096", "-e", f"trace={calls}", "-e", "signal=none", "-o", str(log)]
        subprocess.run(
            [*words, *argv], input=b"quit\n", capture_output=True, timeout=60, check=False, cwd=workdir, env=environment
        )
        return log.read_text(errors="replace")

    return run


@pytest.fixture
def usual(binary: QemuBinary, q35: str, traced: Traced, scratch: Path) -> frozenset[str]:
    """What a QEMU reaches for with no more than a machine."""
    bare = traced(foreign(plan_with(q35)).command(binary.path, scratch), scratch)
    found = frozenset(seen[2] for seen in map(_SEEN.match, bare.splitlines()) if seen and seen[2])
    assert found
    return found


def test_nothing_but_its_own_is_opened_and_nothing_is_run(
    binary: QemuBinary, q35: str, types: list[str], traced: Traced, usual: frozenset[str], scratch: Path
) -> None:
    """Without any wall: that is what the check of a plan is for."""
    ran: list[str] = []
    own = (*program_paths(binary.path), str(scratch))

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(device=devices(binary, q35, types))
    def check(device: PlacedDevice) -> None:
        backends = {name: BACKENDS[name] for name in device.backends.values()}
        machine = foreign(plan_with(q35, device, backends=backends))
        workdir = Path(tempfile.mkdtemp(dir=scratch))
        try:
            command = machine.command(binary.path, workdir)
        except PackError:
            return
        machine.make_files(workdir)
        log = traced(command, workdir)
        ran.append(device.type)
        note(f"{device.type} {device.properties} {device.backends}")
        assert reached(log, own, usual) == []

    check()
    # else the generator makes nothing that is taken, and this shows nothing
    assert len(set(ran)) >= EXAMPLES // 6


# -- a configuration of somebody's VM ----------------------------------------------------------------------------------

#: Each names something in the folder ``@``, which is there, and would open, run or reach it.
HOSTILE = """
qemu-system-x86_64 -M q35 -m 64 -nodefaults -bios @/bios -kernel @/kernel -initrd @/initrd -append x -L @/
-drive file=@/disk,format=raw,if=virtio,id=d0 -drive file=json:{"driver":"file","filename":"@/json"},if=none,id=d1
-device virtio-blk-pci,drive=d1,romfile=@/rom,serial=@/serial
-blockdev driver=file,filename=@/block,node-name=b0 -device nvme,drive=b0,serial=../../x
-drive if=pflash,file=@/flash -hda @/hda -cdrom @/cd
-netdev tap,id=n0,script=@/script,downscript=@/down,helper=@/helper -device virtio-net-pci,netdev=n0
-netdev user,id=n1,smb=@/,hostfwd=tcp::1-:1,tftp=@/ -device e1000,netdev=n1 -nic tap,script=@/script
-chardev file,id=c0,path=@/log -chardev pipe,id=c1,path=@/pipe -chardev socket,id=c2,path=@/sock,server=on
-device isa-serial,chardev=c0 -device isa-serial,chardev=c1 -serial pipe:@/pipe -parallel file:@/log
-device virtio-serial -device virtserialport,chardev=c2,name=x
-object memory-backend-file,id=m0,mem-path=@/mem,size=64M,share=on -object rng-random,id=r0,filename=@/random
-device virtio-rng-pci,rng=r0 -object secret,id=s0,file=@/secret -object input-linux,id=i0,evdev=@/event
-fsdev local,id=f0,path=@/,security_model=none -device virtio-9p-pci,fsdev=f0,mount_tag=x
-virtfs local,path=@/,mount_tag=y
-fw_cfg name=opt/x,file=@/fw -smbios file=@/smbios -acpitable file=@/acpi -option-rom @/rom -dtb @/dtb
-monitor unix:@/sock -qmp unix:@/sock -vnc unix:@/sock -incoming exec:@/script -plugin @/plugin.so -gdb unix:@/sock
-trace events=@/trace -D @/log -pidfile @/pid -chroot @/ -writeconfig @/config -sandbox off -mem-path @/mem
-device ipmi-bmc-sim,id=bmc,sdrfile=@/sdr -device usb-mtp,rootdir=@/ -device loader,file=@/loader,addr=0
-device vfio-pci,sysfsdev=@/ -global virtio-net-pci.romfile=@/rom -global driver=nvme,property=serial,value=@/x
"""


def test_no_file_of_a_hostile_command_line_is_opened(
    binary: QemuBinary,
    strace: tuple[list[str], dict[str, str]],
    traced: Traced,
    usual: frozenset[str],
    scratch: Path,
) -> None:
    victim = scratch / "victim"
    victim.mkdir()
    for name in re.findall(r"@/([\w.]+)", HOSTILE):
        (victim / name).write_bytes(b"#!/bin/sh\n")
    vm = scratch / "hostile.sh"
    vm.write_text(HOSTILE.replace("@", str(victim)).replace("\n", " "))
    program, environment = strace
    log = scratch / "adopt.log"
    words = [*program, "-f", "-qq", "-s", "4096", "-e", "trace=%file,%process,%network", "-o", str(log)]
    done = subprocess.run(
        [*words, sys.executable, "-m", "harness", "adopt", "--command-line", str(vm), "--qemu", binary.path, "--json"],
        capture_output=True, text=True, timeout=120, check=False, env=environment, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(vm) in log.read_text(errors="replace")
    assert str(victim) not in log.read_text(errors="replace").replace(f"{scratch}/adopt.log", "")

    configuration = read_command_line(vm.read_text(), str(vm))
    known = known_to(binary, configuration)
    plan = adopt_plan(configuration, known).plan.model_copy(update={"memory_mib": 16})
    assert {"virtio-blk-pci", "nvme", "virtio-net-pci", "virtio-9p-pci", "virtserialport"} <= set(plan.types())
    machine = Machine(plan=plan, accel="tcg", foreign=vm)
    workdir = scratch / "work"
    workdir.mkdir()
    command = machine.command(binary.path, workdir, firmware_sink())
    assert str(victim) not in repr(command)
    machine.make_files(workdir)
    own = (*program_paths(binary.path), str(workdir))
    seen = traced(command, workdir)
    assert str(workdir) in seen  # the scratch disks: QEMU did start with all of it
    assert reached(seen, own, usual) == []
