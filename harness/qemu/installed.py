# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMUs that have a name: one small file each, and a launcher that starts the program as it has to be started.

A launcher is a shell script that replaces itself by QEMU, so that the process id and ``/proc/PID/comm`` are QEMU's.
Beside it lies ``launcher.json``, which says which program it starts: by that, not by the script, a QEMU is known.
Names are files in ``qemus/names`` of the cache.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.cache import cache_root, disk_errors
from harness.errors import HostError, UsageError
from harness.files import sha256_file, sweep, temp_dir, write_atomically

SCHEMA = "postload.qemu/1"
LAUNCHER = "qemu"
LAUNCHER_FACTS = "launcher.json"
_LAUNCHER_SCHEMA = "postload.launcher/1"
NAME_RULE = "letters, digits and . _ + -, beginning with a letter or digit, at most 40"
_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._+-]{0,39}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: What would bring the host's libraries into a foreign program.
_LOADER_VARIABLES = ("LD_AUDIT", "LD_LIBRARY_PATH", "LD_PRELOAD", "GCONV_PATH", "SASL_PATH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """A named QEMU.

    :param kind: ``suite`` (from Debian, in a folder of the cache) or ``path`` (the user's own build)
    :param source: the suite, or the path as it was given
    :param mirror: where the packages came from, empty for a path
    :param package: Debian's version of the package, empty for a path
    :param program: the file that is executed at the end
    :param sha256: of the program as packaged; of an own build, as it was when it got its name
    :param folder: holds the launcher
    :param size_bytes: on disk, without the packages
    :param download_bytes: of the packages
    :param proof: what was checked when it was installed, in words
    """

    name: str
    kind: str
    version: str
    build: str
    source: str
    program: str
    sha256: str
    folder: str
    mirror: str = ""
    package: str = ""
    size_bytes: int = 0
    download_bytes: int = 0
    packages: int = 0
    full: bool = False
    installed: str = ""
    datadirs: tuple[str, ...] = ()
    module_dir: str = ""
    env: dict[str, str] = field(default_factory=dict)
    proof: tuple[str, ...] = ()

    @property
    def launcher(self) -> Path:
        """What a command line names."""
        return Path(self.folder) / LAUNCHER

    @property
    def whole(self) -> bool:
        """Launcher and program are there."""
        return self.launcher.is_file() and os.access(self.program, os.X_OK)

    def to_json(self) -> dict[str, Any]:
        """As it is kept, and as ``postload qemu list --json`` prints it."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, document: object) -> Installed:
        """The reverse of :meth:`to_json`; keys of later versions are left out.

        :raises ValueError: it is of another schema, or lacks a key
        """
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise ValueError(f"not of schema {SCHEMA!r}")
        known = {each.name for each in fields(cls)}
        given: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in document.items() if key in known
        }
        try:
            return cls(**given)
        except TypeError as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """What a path starts.

    :param program: the program file
    :param sha256: of the program as it was built, before it was patched to find its libraries
    :param key: tells two environments of one program apart (firmware, modules, variables); empty for a plain program
    """

    program: Path
    sha256: str
    key: str


def qemus_folder() -> Path:
    """The folder of everything here; it may not exist."""
    return cache_root() / "qemus"


def check_name(name: str, reserved: Sequence[str] = ()) -> None:
    """Refuse what is no name for an own build.

    :raises UsageError: says what is allowed
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"not a name for a QEMU: {name!r}; expected {NAME_RULE}")
    if name in reserved:
        raise UsageError(f"the name {name} means Debian's QEMU {name}; take another one, such as {name}-own")
    if name.startswith("qemu-system-") or name in ("names", LAUNCHER):
        raise UsageError(f"the name {name} is the name of a program; take another one")


def entries() -> list[Installed]:
    """All named QEMUs, versions as numbers and before other names; files that are damaged are left out."""
    found = [_read(path) for path in (qemus_folder() / "names").glob("*.json")]
    return sorted((each for each in found if each is not None), key=lambda each: _order(each.name))


def _order(name: str) -> tuple[bool, tuple[int, ...], str]:
    numbers = tuple(int(part) for part in name.split(".")) if re.fullmatch(r"\d+(\.\d+)*", name) else ()
    return not numbers, numbers, name


def entry(name: str) -> Installed | None:
    """The QEMU of a name, or None."""
    return _read(_name_file(name)) if _NAME.fullmatch(name) else None


def register(installed: Installed) -> None:
    """Give a QEMU its name; what had the name before loses it, and its folder when nothing else uses it.

    :raises HostError: the cache cannot be written
    """
    before = entry(installed.name)
    text = json.dumps(installed.to_json(), indent=1)
    write_atomically(_name_file(installed.name), text.encode())
    if before is not None and before.folder != installed.folder:
        _drop_folder(before)


def remove(name: str) -> Installed:
    """Take a name away, and the folder of the cache when no other name uses it; never a user's own files.

    :raises UsageError: there is no such name
    """
    found = entry(name)
    if found is None:
        there = ", ".join(each.name for each in entries()) or "none"
        raise UsageError(f"no QEMU of the name {name!r} is installed; installed: {there}")
    _name_file(name).unlink(missing_ok=True)
    _drop_folder(found)
    return found


def launched(path: Path) -> Launched:
    """Which program a path starts: itself, unless it is a launcher.

    :raises UsageError: the program of a launcher is gone
    """
    facts = path.with_name(LAUNCHER_FACTS)
    if path.name != LAUNCHER or not facts.is_file():
        return Launched(program=path, sha256=sha256_file(path), key="")
    try:
        document = json.loads(facts.read_text())
        if document["schema"] != _LAUNCHER_SCHEMA:
            raise ValueError(f"schema {document['schema']!r}")
        program, key, digest = Path(document["program"]), str(document["key"]), document["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise HostError(f"{facts} is damaged: {error}; install this QEMU again") from error
    if not program.is_file():
        raise UsageError(f"{path} starts {program}, which is not there any more")
    return Launched(program=program, sha256=digest or sha256_file(program), key=key)


def used_before(path: Path) -> bool:
    """Whether this user has named this very program, or installed it: what a document names is run only then.

    A launcher outside of the cache says of itself what it starts, and is not believed.
    """
    there = path.resolve()
    if there.is_relative_to(qemus_folder().resolve()):
        return True
    try:
        digest = sha256_file(there)
    except OSError:
        return False
    return any((cache_root() / "probe").glob(f"{digest}-*.json"))


def launcher_text(
    program: Path,
    datadirs: Sequence[Path],
    *,
    modules: Path | None,
    clean: bool,
    env: Mapping[str, str],
) -> str:
    """The script: environment, then QEMU in the place of the shell.

    :param datadirs: folders of firmware (``-L``), searched in this order
    :param modules: where QEMU looks for its modules first
    :param clean: forget what would load the host's libraries
    :param env: variables for the program
    :raises UsageError: not the name of a variable
    """
    for key in env:
        if not _VARIABLE.fullmatch(key):
            raise UsageError(f"not the name of a variable: {key!r}")
    lines = ["#!/bin/sh"]
    if clean:
        lines.append(f"unset {' '.join(_LOADER_VARIABLES)}")
    if modules is not None:
        env = {"QEMU_MODULE_DIR": str(modules), **env}
    lines += [f"export {key}={shlex.quote(value)}" for key, value in env.items()]
    words = [str(program), *(word for folder in datadirs for word in ("-L", str(folder)))]
    lines.append(f'exec {" ".join(map(shlex.quote, words))} "$@"')
    return "\n".join(lines) + "\n"


def write_launcher(folder: Path, text: str, *, program: Path, sha256: str | None, key: str) -> None:
    """Put a launcher into a folder; ``sha256`` None means that the program may change and is hashed when asked."""
    launcher = folder / LAUNCHER
    launcher.write_text(text)
    launcher.chmod(0o755)
    document = {"schema": _LAUNCHER_SCHEMA, "program": str(program), "sha256": sha256, "key": key}
    (folder / LAUNCHER_FACTS).write_text(json.dumps(document) + "\n")


def discard(folder: Path) -> None:
    """Remove a folder of the cache at one stroke: half a folder would be taken for a whole one."""
    parent = qemus_folder()
    if folder.parent != parent or not folder.is_dir():
        return
    with disk_errors(parent):
        sweep(parent)
        with temp_dir(parent) as temp:
            folder.rename(temp / folder.name)


def _drop_folder(gone: Installed) -> None:
    folder = Path(gone.folder)
    used = any(each.folder == gone.folder or Path(each.program).is_relative_to(folder) for each in entries())
    if not used:
        discard(folder)


def _name_file(name: str) -> Path:
    return qemus_folder() / "names" / f"{name}.json"


def _read(path: Path) -> Installed | None:
    try:
        return Installed.from_json(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None
