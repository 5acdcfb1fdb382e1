# SPDX-License-Identifier: GPL-2.0-or-later
"""Install QEMUs side by side: of Debian's suites into folders of the cache, or a user's own build by its path.

Nothing needs root, and nothing of the host is changed. Packages are kept by their hash, and which of them make a
version is kept beside them: a version that went from the mirror can still be installed again. A name is given last,
when the folder is whole and was shown to use nothing of the host.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from harness.cache import cache_root, publish_dir
from harness.errors import HostError, MissingError, PostloadError, QemuError, UsageError
from harness.files import sha256_file, write_atomically
from harness.qemu.binary import QemuBinary, probe_binary
from harness.qemu.cmdline import CommandLine, Option
from harness.qemu.elf import patchelf_program
from harness.qemu.installed import (
    LAUNCHER,
    Installed,
    check_name,
    discard,
    entry,
    launched,
    launcher_text,
    qemus_folder,
    register,
    write_launcher,
)
from harness.qemu.prefix import build_prefix, check_start, prove_prefix
from harness.qemu.versions import Source, is_version, load_versions
from harness.qemu.vm import Vm
from harness.tools.apt import AptRoot, Package

#: Raise it when prefixes are built in another way: folders of another number are built anew.
LAYOUT = 1
OTHERWISE = "On any system an own build can be used: 'postload qemu install NAME=PATH', or --qemu PATH."

_PLAN_SCHEMA = "postload.packages/1"
_UNREACHABLE = re.compile(r"resolv|connect|unreachable|timed out|Network is down|No route", re.IGNORECASE)
#: Of what apt says, what the sentence around it says already.
_NOISE = re.compile(
    r"the package lists of \S+ from \S+ cannot be had: |apt-get ended with status \d+: |\bE: |Failed to fetch |"
    r"; E: Some index files failed to download\..*"
)
_SPARE_BYTES = 64 << 20


class InstallReport(Protocol):
    """Told how far an installation is."""

    def step(self, text: str) -> None:
        """Something new begins."""

    def download(self, done_bytes: int, total_bytes: int) -> None:
        """So much of the packages is there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packages:
    """The packages of one version, as some source had them."""

    suite: str
    mirror: str
    packages: tuple[Package, ...]

    @property
    def main_version(self) -> str:
        """Debian's version of the emulator's package."""
        names = {emulator.package for emulator in load_versions().emulators.values()}
        return next(package.version for package in self.packages if package.name in names)

    @property
    def size_bytes(self) -> int:
        """Of all packages."""
        return sum(package.size_bytes for package in self.packages)


def install_version(
    name: str, report: InstallReport, *, full: bool = False, refresh: bool = False
) -> tuple[Installed, str]:
    """Install a version of Debian's; returns it and what of it came from the cache, in words.

    :param full: with the modules for OpenGL, SPICE and remote disks
    :param refresh: ask the mirror for newer packages even if this version is installed
    :raises UsageError: no such version
    :raises HostError: it cannot be had, or the disk is full; nothing is left half-installed
    :raises MissingError: this host lacks a tool
    """
    if name not in load_versions().versions:
        known = ", ".join(load_versions().versions)
        raise UsageError(f"unknown QEMU {name!r}: Debian's are {known}; an own build is NAME=PATH")
    there = entry(name)
    if there is not None and there.whole and there.full >= full and not refresh:
        return there, "already installed, nothing was done"
    patchelf_program()
    full = full or (there is not None and there.full)
    packages = None if refresh else _kept_packages(name, full)
    origin = "packages from the cache, no network used" if packages else "downloaded"
    if packages is None:
        packages = _fetch_version(name, full, report, refresh)
    return _install_packages(name, full, packages, report), origin


def _try_machine(binary: QemuBinary) -> None:
    """Start a machine of an own build, stopped: a build that does not find its firmware says so here, not in a matrix.

    :raises UsageError: it does not start
    """
    emulator = load_versions().emulators.get(binary.target)
    name = next((name for name in (emulator.machines if emulator else ()) if binary.machine(name)), None)
    if name is None:
        return
    options = (
        *(Option(name=name) for name in ("nodefaults", "no-user-config", "S")),
        Option(name="display", first="none"),
        Option(name="machine", first=name),
    )
    try:
        with Vm(CommandLine(binary=binary.path, options=options)) as vm:
            vm.qmp("query-status")
    except QemuError as error:
        hint = "name its firmware folder by --datadir DIR: pc-bios of the sources or share/qemu of an installation"
        raise UsageError(f"{binary.path} starts no machine {name}: {error}; {hint}") from error


def install_own(
    name: str,
    path: Path,
    *,
    datadirs: Sequence[Path] = (),
    module_dir: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Installed:
    """Give the user's own build a name.

    :param datadirs: its firmware folders (``-L``), in order
    :param module_dir: where it finds its modules
    :param env: variables to start it with, such as ``ASAN_OPTIONS``
    :raises UsageError: the name is not allowed, the path is no QEMU, a folder does not exist, or it starts no machine,
        for want of its firmware for example
    """
    check_name(name, reserved=list(load_versions().versions))
    program = _own_program(path)
    folders = [_own_folder(folder) for folder in datadirs]
    modules = _own_folder(module_dir) if module_dir is not None else None
    text = launcher_text(program, folders, modules=modules, clean=False, env=env or {})
    key = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def build(temp: Path) -> None:
        write_launcher(temp, text, program=program, sha256=None, key=key)

    folder = publish_dir(f"qemus/{key}", build)
    try:
        binary = probe_binary(folder / LAUNCHER)
        _try_machine(binary)
    except PostloadError as error:
        before = entry(name)
        if before is None or before.folder != str(folder):
            discard(folder)
        raise type(error)(str(error).replace(str(folder / LAUNCHER), str(path))) from error
    own = Installed(
        name=name,
        kind="path",
        source=str(path),
        program=str(program),
        folder=str(folder),
        datadirs=tuple(map(str, folders)),
        module_dir=str(modules or ""),
        env=dict(env or {}),
        version=binary.version,
        build=binary.build,
        sha256=binary.sha256,
        installed=_now(),
    )
    register(own)
    return own


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _own_program(path: Path) -> Path:
    program = path.expanduser().absolute()
    if not program.is_file():
        raise UsageError(f"{path}: no such file")
    if not os.access(program, os.X_OK):
        raise UsageError(f"{path}: the file is not executable")
    return program


def _own_folder(path: Path) -> Path:
    folder = path.expanduser().absolute()
    if not folder.is_dir():
        raise UsageError(f"{path}: no such folder")
    return folder


def _install_packages(name: str, full: bool, packages: Packages, report: InstallReport) -> Installed:
    what = load_versions()
    emulator = what.emulator(name)
    hashes = sorted(package.sha256 for package in packages.packages)
    text = json.dumps([LAYOUT, str(qemus_folder()), hashes])
    key = f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    final = qemus_folder() / key
    if not final.is_dir():
        _need_space(sum(package.installed_bytes for package in packages.packages))
    debs = [_deb(package) for package in packages.packages]
    publish_dir(f"qemus/{key}", lambda temp: build_prefix(temp, final, debs, what, emulator, report.step, OTHERWISE))
    report.step("checking that it uses nothing of the host")
    try:
        proof = prove_prefix(final, what, emulator)
        binary = probe_binary(final / LAUNCHER)
        check_start(final / LAUNCHER, name, binary.version)
    except PostloadError:
        before = entry(name)
        if before is None or before.folder != str(final):
            discard(final)
        raise
    installed = Installed(
        name=name,
        kind="suite",
        source=packages.suite,
        mirror=packages.mirror,
        package=packages.main_version,
        program=str(launched(final / LAUNCHER).program),
        folder=str(final),
        size_bytes=_size(final),
        download_bytes=packages.size_bytes,
        packages=len(packages.packages),
        full=full,
        proof=tuple(proof),
        version=binary.version,
        build=binary.build,
        sha256=binary.sha256,
        installed=_now(),
    )
    register(installed)
    return installed


def _fetch_version(name: str, full: bool, report: InstallReport, refresh: bool) -> Packages:
    """The packages of a version from the first source that has it."""
    why: list[str] = []
    unreachable: set[str] = set()
    for source in load_versions().versions[name].sources:
        mirror = source.apt_mirror().main
        if mirror in unreachable:
            continue
        try:
            return _fetch_source(name, full, source, report, refresh)
        except MissingError:
            raise
        except HostError as error:
            if _full_disk(error):
                raise _say_full(error) from error
            why.append(f"{source}: {_NOISE.sub('', str(error))}")
            if _UNREACHABLE.search(str(error)):
                unreachable.add(mirror)
    raise HostError(
        f"QEMU {name} cannot be fetched, and nothing was installed: {'; '.join(why)}. Look at the network and at "
        f"apt's proxies, or name another mirror in $POSTLOAD_MIRROR. {OTHERWISE}"
    )


def _fetch_source(name: str, full: bool, source: Source, report: InstallReport, refresh: bool) -> Packages:
    report.step(f"asking {source} for QEMU {name}")
    root = AptRoot(source.suite, load_versions().arch, source.apt_mirror(), OTHERWISE)
    try:
        root.update(force=refresh)
        return _fetch_from(root, name, full, source, report)
    except MissingError:
        raise
    except HostError as error:
        if refresh or _full_disk(error) or _UNREACHABLE.search(str(error)):
            raise
        # Lists of some hours ago name packages that the mirror has replaced since.
        root.update(force=True)
        return _fetch_from(root, name, full, source, report)


def _fetch_from(root: AptRoot, name: str, full: bool, source: Source, report: InstallReport) -> Packages:
    version = load_versions().versions[name]
    wanted = [*version.packages, *(version.full if full else ())]
    plan = root.plan(wanted)
    found = Packages(suite=source.suite, mirror=root.mirror.main, packages=tuple(plan))
    if not is_version(name, found.main_version):
        raise HostError(f"{version.packages[0]} is {found.main_version} there")
    missing = [package for package in plan if not _have(package)]
    download_bytes = sum(package.size_bytes for package in missing)
    _need_space(download_bytes + sum(package.installed_bytes for package in plan))
    done = found.size_bytes - download_bytes
    report.step(f"downloading {len(missing)} packages, {download_bytes / 1e6:.0f} MB")

    def progress(count: int) -> None:
        nonlocal done
        done += count
        report.download(done, found.size_bytes)

    report.download(done, found.size_bytes)
    root.fetch(missing, _debs(), progress)
    _keep_packages(name, full, found)
    return found


def _debs() -> Path:
    return cache_root() / "debs"


def _deb(package: Package) -> Path:
    return _debs() / f"{package.sha256}.deb"


def _have(package: Package) -> bool:
    """Whether a package is kept; one that is damaged is thrown away."""
    path = _deb(package)
    if not path.is_file():
        return False
    if sha256_file(path) == package.sha256:
        return True
    path.unlink(missing_ok=True)
    return False


def _packages_file(name: str, full: bool) -> Path:
    return _debs() / f"qemu-{name}{'-full' if full else ''}.json"


def _keep_packages(name: str, full: bool, found: Packages) -> None:
    document = {"schema": _PLAN_SCHEMA, **asdict(found)}
    write_atomically(_packages_file(name, full), json.dumps(document, indent=1).encode())


def _kept_packages(name: str, full: bool) -> Packages | None:
    """What was fetched before, when each of it is still there."""
    try:
        document = json.loads(_packages_file(name, full).read_text())
        if document["schema"] != _PLAN_SCHEMA:
            return None
        packages = tuple(Package(**each) for each in document["packages"])
        found = Packages(suite=document["suite"], mirror=document["mirror"], packages=packages)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if all(_have(package) for package in packages) else None


def _need_space(needed_bytes: int) -> None:
    """Say before the work that a disk is too small for it.

    :raises HostError: it is
    """
    folder = next(path for path in (cache_root(), *cache_root().parents) if path.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + _SPARE_BYTES:
        raise HostError(
            f"the disk of {folder} is full: {free >> 20} MiB are free and {needed_bytes + _SPARE_BYTES >> 20} MiB are "
            "needed; free some space there, or name another folder in $POSTLOAD_CACHE"
        ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _full_disk(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left" in str(error):
            return True
        error = error.__cause__
    return False


def _say_full(error: HostError) -> HostError:
    """apt's words for a full disk do not say what to do."""
    if "is full" in str(error):
        return error
    free = "free some space there, or name another folder in $POSTLOAD_CACHE"
    return HostError(f"the disk of {cache_root()} is full: {free} ({error})")


def _size(folder: Path) -> int:
    """Bytes on the disk."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))
