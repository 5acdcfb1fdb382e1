# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU of another release in a folder of its own: made runnable, and proved to use nothing of the host.

::

    10.0-3f2a.../            the prefix; its paths are baked in, so it is built for this very place
        qemu                 the launcher: what a command line names
        launcher.json        who the launched program is (:mod:`harness.qemu.installed`)
        root/usr/...         the unpacked packages; the program is a patched copy
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness.errors import HostError, QemuError
from harness.files import sha256_file
from harness.qemu.cmdline import CommandLine, Option
from harness.qemu.elf import hide_host, hide_host_from_loader, host_paths, interpreter, is_elf, patchelf, search_path
from harness.qemu.installed import LAUNCHER, launcher_text, write_launcher
from harness.qemu.unpack import unpack
from harness.qemu.versions import Emulator, Versions, number_of
from harness.qemu.vm import Vm
from harness.tools.program import run_tool

LIST_TIMEOUT_S = 30.0
ROOT = "root"
_START_TIMEOUT_S = 30.0
_LINE = re.compile(r"^\s*(\S+) => (.+?)(?: \(0x[0-9a-f]+\))?$")


def build_prefix(
    temp: Path,
    final: Path,
    debs: Sequence[Path],
    what: Versions,
    emulator: Emulator,
    step: Callable[[str], None],
    needed: str = "",
) -> None:
    """Fill the empty folder ``temp`` with a prefix that will lie at ``final``.

    :param step: told what is being done
    :raises HostError: a package is damaged or lacks what the QEMU needs, or the disk is full
    :raises MissingError: a tool is missing
    """
    root = temp / ROOT
    step(f"unpacking {len(debs)} packages")
    for deb in debs:
        unpack(deb, root, keep=what.keep, leave=what.leave, needed=needed)
    program = root / emulator.program
    if not is_elf(program):
        raise HostError(f"the packages hold no {emulator.program}")
    packaged = sha256_file(program)
    step("setting search paths")
    _patch(root, final / ROOT, what, program)
    folders = [final / ROOT / name for name in what.firmware_folders if (root / name).is_dir()]
    text = launcher_text(
        final / ROOT / emulator.program, folders, modules=final / ROOT / what.modules, clean=True, env={}
    )
    write_launcher(temp, text, program=final / ROOT / emulator.program, sha256=packaged, key=final.name)


def prove_prefix(folder: Path, what: Versions, emulator: Emulator) -> list[str]:
    """Show that a prefix uses nothing of the host; returns what was looked at, in words.

    :raises HostError: it does: the message names the file
    :raises QemuError: it does not start
    """
    root = folder / ROOT
    program = root / emulator.program
    done = [
        _prove_libraries(root, program, what),
        _prove_strings(root),
        _prove_firmware(root, folder / LAUNCHER, emulator),
    ]
    return [*done, *(_prove_running(folder, machine, emulator.vga) for machine in emulator.machines)]


def foreign_files(pid: int, allowed: Sequence[Path]) -> list[str]:
    """Files that a process has mapped or open outside of some folders, ``/dev``, ``/proc`` and ``/sys``."""
    inside = (*(f"{path}/" for path in allowed), "/dev/", "/proc/", "/sys/", "/memfd:", "/SYSV")
    found = set()
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        found.add(line.split(maxsplit=5)[5] if line.count("/") else "")
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(link.readlink()))
    return sorted(name for name in found if name.startswith("/") and not name.startswith(inside))


def _patch(root: Path, final: Path, what: Versions, program: Path) -> None:
    loader = _loader(root, program)
    hide_host_from_loader(loader)
    elves = _program_files(root)
    asking = {path: search_path(path) for path in elves if path != loader}
    folders = _library_folders(root, asking, what)
    rpath = [str(final / folder) for folder in folders]
    for path in elves:
        hide_host(path)
    # The program's search path serves all that it loads, except what has one of its own.
    for path, asked in asking.items():
        if asked and path != program:
            patchelf(path, rpath=rpath)
    patchelf(program, rpath=rpath, loader=str(final / loader.relative_to(root)))


def _program_files(root: Path) -> list[Path]:
    """Programs and libraries; firmware may be ELF too, of any machine, and lies in ``share``."""
    share = root / "usr" / "share"
    return [path for path in sorted(root.rglob("*")) if not path.is_relative_to(share) and is_elf(path)]


def _loader(root: Path, program: Path) -> Path:
    """The prefix's own ``ld.so``, for the one that the packaged program asks for."""
    asked = interpreter(program)
    if asked is None:
        raise HostError(f"{program.name} names no ld.so")
    name = asked.lstrip("/")
    loader = (root / (name if name.startswith("usr/") else f"usr/{name}")).resolve()
    if not loader.is_relative_to(root.resolve()) or not is_elf(loader):
        raise HostError(f"the packages hold no {asked}")
    return root / loader.relative_to(root.resolve())


def _library_folders(root: Path, asking: dict[Path, list[str]], what: Versions) -> list[str]:
    """Folders with libraries, relative to the root: the usual one, then private ones that a library asks for."""
    folders = [what.libraries]
    for path, asked in asking.items():
        for text in asked:
            origin = "/" + str(path.parent.relative_to(root))
            absolute = posixpath.normpath(re.sub(r"\$\{?ORIGIN\}?", origin, text))
            folder = absolute.lstrip("/")
            if absolute.startswith("/") and (root / folder).is_dir() and folder not in folders:
                folders.append(folder)
    return folders


def _prove_libraries(root: Path, program: Path, what: Versions) -> str:
    loader = Path(interpreter(program) or "")
    if not loader.is_relative_to(root):
        raise HostError(f"{program} asks for {loader}, which is not its own")
    modules = sorted((root / what.modules).glob("*.so"))
    # A module has no search path: QEMU's own serves it when QEMU loads it.
    rpath = ":".join(search_path(program))
    count = 0
    for path in (program, *modules):
        words: list[str | Path] = [
            loader,
            "--inhibit-cache",
            *(["--library-path", rpath] if path != program else []),
            "--list",
            path,
        ]
        out = run_tool(words, timeout_s=LIST_TIMEOUT_S, env={"LD_LIBRARY_PATH": "", "LD_PRELOAD": ""}).decode()
        for name, found in _listed(out):
            count += 1
            if not found.startswith(f"{root}/"):
                raise HostError(f"{path.name} would use {name} => {found}, which is not its own")
    return f"{count} libraries of the program and its {len(modules)} modules are its own"


def _listed(out: str) -> Iterator[tuple[str, str]]:
    for line in out.splitlines():
        match = _LINE.match(line)
        if match:
            yield match[1], match[2]


def _prove_strings(root: Path) -> str:
    elves = _program_files(root)
    for path in elves:
        left = host_paths(path, root)
        if left:
            raise HostError(f"{path} names the host's {left[0]!r}")
    outside = [path for path in root.rglob("*") if path.is_symlink() and not path.resolve().is_relative_to(root)]
    if outside:
        raise HostError(f"{outside[0]} points to {outside[0].resolve()}, which is not its own")
    return f"{len(elves)} program files name no software folder of the host, and no link leads there"


def _prove_firmware(root: Path, launcher: Path, emulator: Emulator) -> str:
    out = run_tool([launcher, "-L", "help"], timeout_s=LIST_TIMEOUT_S).decode()
    folders = [Path(line) for line in out.splitlines() if line.startswith("/")]
    outside = [folder for folder in folders if folder.exists() and not folder.is_relative_to(root)]
    if outside:
        raise HostError(f"QEMU would look for firmware in the host's {outside[0]}")
    for name in emulator.firmware:
        found = next((folder / name for folder in folders if (folder / name).exists()), None)
        if found is None or not found.resolve().is_relative_to(root):
            raise HostError(f"the packages hold no firmware {name} (found: {found})")
    return f"firmware is looked for in {len(folders)} folders, none of them the host's"


def _prove_running(folder: Path, machine: str, vga: str) -> str:
    """Start a machine with disks and a network, and look at what it has mapped and open."""
    ahci = [] if machine == "q35" else [Option(name="device", first="ich9-ahci", props={"id": "ahci"})]
    command = CommandLine(
        binary=str(folder / LAUNCHER),
        options=(
            *(Option(name=name) for name in ("nodefaults", "no-user-config", "S")),
            Option(name="display", first="none"),
            Option(name="machine", first=machine),
            Option(name="accel", first="tcg"),
            Option(name="m", first="32"),
            Option(name="vga", first=vga),
            Option(name="blockdev", first="null-co", props={"node-name": "d0", "read-zeroes": True}),
            Option(name="blockdev", first="null-co", props={"node-name": "d1", "read-zeroes": True}),
            *ahci,
            Option(name="device", first="ide-hd", props={"drive": "d0", "bus": "ide.0" if not ahci else "ahci.0"}),
            Option(name="device", first="virtio-blk-pci", props={"drive": "d1"}),
            Option(name="netdev", first="user", props={"id": "n0"}),
            Option(name="device", first="virtio-net-pci", props={"netdev": "n0"}),
        ),
    )
    with Vm(command) as vm:
        vm.qmp("query-status", timeout_s=_START_TIMEOUT_S)
        foreign = foreign_files(vm.process.pid, (folder, vm.workdir))
    if foreign:
        raise HostError(f"with machine {machine} QEMU uses the host's {foreign[0]}")
    return f"machine {machine} runs with its own files alone"


def check_start(launcher: Path, name: str, version: str) -> None:
    """The program says that it is what it was installed as.

    :raises QemuError: it does not
    """
    if not version.startswith(f"{number_of(name)}."):
        raise QemuError(f"{launcher} was installed as {name} and says that it is {version}")
