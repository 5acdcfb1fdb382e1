# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts of this host, and what it lacks."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from harness.arch import ARCHITECTURES, Architecture
from harness.arch.accel import prove_accel
from harness.cache import cache_root
from harness.engines.probe import probe_colo
from harness.errors import PostloadError
from harness.qemu.binary import AccelState, QemuBinary, find_binary, host_binary, probe_binary
from harness.qemu.walls import standing
from harness.report.facts import accel_text
from harness.report.walls import walls_remedy, walls_text

_NEEDED_FREE_BYTES = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCheck:
    """One thing that a run wants of the host.

    :param needed: without it nothing runs; else it only limits
    :param remedy: what to type or to do, empty when all is well
    """

    name: str
    ok: bool
    needed: bool
    found: str
    remedy: str = ""


def host_facts(accels: dict[str, AccelState]) -> dict[str, Any]:
    """What goes into reports: name, system, kernel, CPU, memory, accelerators."""
    return {
        "name": platform.node(),
        "system": _os_release(),
        "kernel": platform.release(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "accel": {
            name: {"usable": a.usable, "seen": str(a.seen), "said": a.said, "seconds": round(a.seconds, 3)}
            for name, a in accels.items()
        },
        "python": platform.python_version(),
    }


def check_host(qemu: str | None) -> list[HostCheck]:
    """Everything that ``postload doctor`` shows, the needed things first."""
    own = [_qemu_check(qemu), *_binary_checks(qemu)]
    checks = [*own, *_tool_checks(), *_other_checks(), _cache_check(), _memory_check()]
    return sorted(checks, key=lambda check: not check.needed)


def _other_checks() -> list[HostCheck]:
    """What guests of further architectures want: never needed, as those of the first do without."""
    return [_other_check(architecture) for architecture in ARCHITECTURES[1:]]


def _other_check(architecture: Architecture) -> HostCheck:
    machines = ",".join(dict.fromkeys(architecture.families.values()))
    name = f"{architecture.name} guests"
    program = architecture.program
    path = shutil.which(program.name)
    if path is None:
        remedy = f"only for --machine {machines}: apt-get install --no-install-recommends {program.package}"
        return HostCheck(name=name, ok=False, needed=False, found=f"no {program.name}", remedy=remedy)
    try:
        binary = probe_binary(Path(path).resolve())
        dialect = probe_colo(binary).dialect.name
    except PostloadError as error:
        return HostCheck(name=name, ok=False, needed=False, found=str(error), remedy=f"only for --machine {machines}")
    return HostCheck(
        name=name, ok=True, needed=False, found=f"{binary.version} {path}, dialect {dialect}, --machine {machines}"
    )


def _qemu_check(qemu: str | None) -> HostCheck:
    try:
        binary = probe_binary(find_binary(qemu) if qemu else host_binary(ARCHITECTURES[0].program))
    except PostloadError as error:
        package = ARCHITECTURES[0].program.package
        remedy = f"apt-get install --no-install-recommends {package} ipxe-qemu, or give a path with --qemu"
        return HostCheck(name="QEMU", ok=False, needed=True, found=str(error), remedy=remedy)
    return HostCheck(name="QEMU", ok=True, needed=True, found=f"{binary.version} ({binary.build}) {binary.path}")


def _binary_checks(qemu: str | None) -> list[HostCheck]:
    try:
        binary = probe_binary(find_binary(qemu) if qemu else host_binary(ARCHITECTURES[0].program))
    except PostloadError:
        return []
    accels = [
        HostCheck(
            name=f"accelerator {name}",
            ok=state.usable,
            needed=name == "tcg",
            found=accel_text(state),
            remedy="" if state.usable or name != "kvm" else "not needed: TCG is used",
        )
        for name in ("tcg", "kvm")
        for state in [prove_accel(binary, name)]
    ]
    return [_colo_check(binary), *accels, _walls_check(binary)]


def _walls_check(binary: QemuBinary) -> HostCheck:
    """What stands around this QEMU when it loads a pack from elsewhere."""
    walls = standing(binary.path)
    remedy = walls_remedy(walls)
    return HostCheck(
        name="walls around packs from elsewhere", ok=not remedy, needed=False, found=walls_text(walls), remedy=remedy
    )


def _colo_check(binary: QemuBinary) -> HostCheck:
    try:
        ability = probe_colo(binary)
    except PostloadError as error:
        remedy = "a QEMU built with --enable-replication, as Debian's is"
        return HostCheck(name="COLO secondary", ok=False, needed=True, found=str(error), remedy=remedy)
    resets = {True: "resets before each load", False: "loads without a reset", None: "reset not known"}
    found = f"dialect {ability.dialect.name}, {resets[ability.resets_before_load]}"
    return HostCheck(name="COLO secondary", ok=True, needed=True, found=found)


def _tool_checks() -> list[HostCheck]:
    tools = (
        ("setpriv", "util-linux", True),
        ("apt-get", "apt: on another distribution name a kernel and a busybox in the guest's YAML", False),
        ("dpkg-deb", "dpkg", False),
        ("gdb", "gdb: for backtraces", False),
        ("swtpm", "swtpm: for devices that are a TPM", False),
        ("qemu-storage-daemon", "qemu-utils (Debian 12: qemu-system-common): for disks over vhost-user", False),
    )
    return [
        HostCheck(
            name=name,
            ok=shutil.which(name) is not None,
            needed=needed,
            found=shutil.which(name) or "not installed",
            remedy="" if shutil.which(name) else f"Debian package {package}",
        )
        for name, package, needed in tools
    ]


def _cache_check() -> HostCheck:
    root = cache_root()
    try:
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
    except OSError as error:
        return HostCheck(name="cache", ok=False, needed=True, found=f"{root}: {error}", remedy="set POSTLOAD_CACHE")
    enough = free >= _NEEDED_FREE_BYTES
    remedy = "" if enough else "free some space, or set POSTLOAD_CACHE to a folder with 2 GiB"
    return HostCheck(
        name="cache", ok=enough, needed=True, found=f"{root}, {free / (1 << 30):.1f} GiB free", remedy=remedy
    )


def _memory_check() -> HostCheck:
    available = psutil.virtual_memory().available
    enough = available >= _NEEDED_FREE_BYTES
    remedy = "" if enough else "2 GiB are comfortable; use --jobs 1"
    return HostCheck(
        name="memory", ok=enough, needed=False, found=f"{available / (1 << 30):.1f} GiB free", remedy=remedy
    )


def _os_release() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
