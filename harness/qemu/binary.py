# SPDX-License-Identifier: GPL-2.0-or-later
"""Find a QEMU binary and ask it what it is: its own answers, never its version string, decide what it can do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from harness.cache import keep_answer, kept_answer
from harness.errors import MissingError, QemuError, UsageError
from harness.qemu.cmdline import CommandLine, Option
from harness.qemu.disturbance import undisturbed
from harness.qemu.hosttime import run_watched
from harness.qemu.installed import Installed, entries, entry, launched
from harness.qemu.monitor import CommandRefused
from harness.qemu.versions import load_versions
from harness.qemu.vm import Vm

#: Raise it when the probe learns to ask something new: cached answers of another number are not used.
PROBE_SCHEMA = 4
_VERSION_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProgram:
    """An emulator as a host has it: the program's name, and Debian's package that brings it."""

    name: str
    package: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """A machine type as ``query-machines`` lists it; ``alias`` is e.g. ``pc`` for ``pc-i440fx-7.2``."""

    name: str
    alias: str | None
    deprecated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuBinary:
    """What a binary says of itself.

    :param path: as given, resolved
    :param version: ``major.minor.micro``
    :param build: the packager's string, or empty
    :param target: the architecture of its guests, as ``query-target`` has it
    :param sha256: of the program file as it was packaged, so that one package on a host and installed here are one
    :param devices: of the device types that were asked for, those that it has
    :param capabilities: migration capabilities
    :param label: how cells name it: the name that the user gave to an own build, else the version
    """

    path: str
    version: str
    build: str
    target: str
    sha256: str
    machines: tuple[MachineType, ...]
    devices: frozenset[str]
    capabilities: frozenset[str]
    label: str = ""

    def machine(self, name: str) -> MachineType | None:
        """The machine type of a name or alias, None when this build has none."""
        for machine in self.machines:
            if name in (machine.name, machine.alias):
                return machine
        return None

    def identity(self) -> dict[str, str]:
        """The part that goes into reports."""
        return {"version": self.version, "build": self.build, "path": self.path, "sha256": self.sha256}


class AccelSeen(StrEnum):
    """What came of running guest code under an accelerator; the value is what is stored."""

    BOOTED = "booted"
    LATE = "late"  # it did not run within so many seconds
    ENDED = "ended"  # ``said`` is how, and the last line
    NO_DEVICE = "no-device"  # ``said`` is missing
    NOT_OPENED = "not-opened"  # ``said`` cannot be opened
    ERROR = "error"
    NOT_TRIED = "not-tried"
    NOTHING_KNOWN = "nothing-known"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccelState:
    """Whether an accelerator ran guest code just now.

    :param said: by QEMU or the system
    """

    name: str
    usable: bool
    seen: AccelSeen
    said: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        """For the text of an error: names and what was said, no sentence."""
        return f"{self.seen}: {self.said}" if self.said else str(self.seen)


def find_binary(wanted: str) -> Path:
    """A QEMU by its installed name, its path, its program's name, or a version, such as 7.2 or 7.2-aarch64, that the
    host's own QEMU has.

    :raises UsageError: it does not exist or cannot be executed
    """
    named = entry(wanted)
    if named is not None:
        if not named.whole:
            raise UsageError(f"QEMU {wanted} is installed as {named.program}, which is not there: {_again(named)}")
        return named.launcher
    found = shutil.which(wanted)
    if found:
        return Path(found).resolve()
    if Path(wanted).is_file():
        raise UsageError(f"QEMU {wanted}: the file is not executable")
    host = _host_of_version(wanted)
    if host is not None:
        return host
    raise UsageError(f"QEMU {wanted}: no such file or program{_names(wanted)}")


def _host_of_version(wanted: str) -> Path | None:
    """The host's own QEMU, where a version names it."""
    version, _, target = wanted.partition("-")
    if not re.fullmatch(r"\d+(\.\d+){1,2}", version):
        return None
    found = shutil.which(f"qemu-system-{target or 'x86_64'}")
    if found is None:
        return None
    try:
        own, _ = _version(Path(found))
    except UsageError:
        return None
    return Path(found).resolve() if f"{own}.".startswith(f"{version}.") else None


def host_binary(program: HostProgram) -> Path:
    """The QEMU to use where none was named: ``$POSTLOAD_QEMU``, else the host's own.

    :raises UsageError: the one of the environment does not exist or cannot be executed
    :raises MissingError: none is installed
    """
    wanted = os.environ.get("POSTLOAD_QEMU")
    if wanted:
        return find_binary(wanted)
    found = shutil.which(program.name)
    if found is None:
        raise MissingError(
            f"{program.name} is not installed: apt-get install {program.package}, or name a QEMU by --qemu "
            "(postload qemu list shows those that are installed or can be)"
        )
    return Path(found).resolve()


def _again(named: Installed) -> str:
    own = f"{named.name}=PATH" if named.kind == "path" else named.name
    return f"postload qemu install {own}"


def _names(wanted: str) -> str:
    """What to say of a name that nothing has; a path speaks for itself."""
    if "/" in wanted:
        return ""
    there = ", ".join(each.name for each in entries()) or "none"
    what = wanted if wanted in load_versions().versions else f"{wanted}=PATH"
    return f", and no QEMU is installed by this name (installed: {there}); postload qemu install {what}"


def probe_binary(path: Path, device_types: Iterable[str] = ()) -> QemuBinary:
    """Ask a binary for its version, machines, capabilities and some device types; answers are kept by its hash.

    Device types are asked for one by one: listing them all loads every module of the build, and one that does
    not fit ends QEMU.

    :param device_types: the types whose presence the caller wants to know
    :raises UsageError: it is not a QEMU system emulator
    :raises QemuError: it is one, and does not start
    """
    version, build = _version(path)
    program = launched(path)
    digest = program.sha256
    # Of one program, a build with its own modules can have other devices than the host's.
    where = f"-{program.key}" if program.key else ""
    key = f"probe/{digest}{where}-{PROBE_SCHEMA}.json"
    wanted = set(device_types)
    answers = kept_answer(key) or {"devices": {}}
    if "machines" not in answers or not wanted <= set(answers["devices"]):
        answers = undisturbed(partial(_ask, path, wanted | set(answers["devices"])))
        keep_answer(key, answers)
    return QemuBinary(
        path=str(path),
        version=version,
        build=build,
        target=answers["target"],
        sha256=digest,
        machines=tuple(MachineType(**entry) for entry in answers["machines"]),
        devices=frozenset(name for name, there in answers["devices"].items() if there),
        capabilities=frozenset(answers["capabilities"]),
    )


def _version(path: Path) -> tuple[str, str]:
    try:
        text, complaint = _say_version(path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{path} is not a QEMU system emulator: --version: {error}") from error
    match = re.match(r"QEMU emulator version (\d+\.\d+\.\d+)\S*(?: \((.*)\))?", text)
    if match is None:
        said = text.strip().splitlines()[:1] or complaint.strip().splitlines()[:1]
        raise UsageError(
            f"{path} is not a QEMU system emulator: --version printed {said[0] if said else 'nothing'!r}, "
            "expected 'QEMU emulator version ...'"
        )
    return match[1], match[2] or ""


def _say_version(path: Path) -> tuple[str, str]:
    """What ``--version`` prints to stdout and stderr, in files: a grandchild may keep a pipe open for ever."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        argv = [str(path), "--version"]
        run_watched(argv, timeout_s=_VERSION_TIMEOUT_S, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        out.seek(0)
        err.seek(0)
        return out.read(4096).decode(errors="replace"), err.read(200).decode(errors="replace")


def _has(vm: Vm, device_type: str) -> bool:
    try:
        vm.qmp("device-list-properties", typename=device_type)
    except CommandRefused:
        return False
    return True


def _ask(path: Path, device_types: set[str]) -> dict[str, Any]:
    options = (
        *(Option(name=name) for name in ("nodefaults", "no-user-config", "S")),
        Option(name="display", first="none"),
        Option(name="machine", first="none"),
    )
    try:
        with Vm(CommandLine(binary=str(path), options=options)) as vm:
            machines = [
                asdict(MachineType(name=m["name"], alias=m.get("alias"), deprecated=m.get("deprecated", False)))
                for m in vm.qmp("query-machines")
            ]
            devices = {name: _has(vm, name) for name in sorted(device_types)}
            capabilities = vm.qmp("query-migrate-capabilities")
            target = vm.qmp("query-target")["arch"]
    except QemuError as error:
        raise QemuError(f"{path} cannot be probed: {error}") from error
    return {
        "target": target,
        "machines": machines,
        "devices": devices,
        "capabilities": sorted(c["capability"] for c in capabilities),
    }
