# SPDX-License-Identifier: GPL-2.0-or-later
"""Which properties a QEMU lists for its device types and machines, with the type of each; kept by the build's hash.

What a state pack from elsewhere asks for is held against these answers (:mod:`harness.guests.foreign`).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from harness.cache import keep_answer, kept_answer
from harness.errors import QemuError
from harness.qemu.cmdline import CommandLine, Option
from harness.qemu.installed import launched
from harness.qemu.monitor import CommandRefused
from harness.qemu.vm import Vm

#: Raise it when other things are kept: answers of another number are not used.
_ANSWERS = 2
_NUMBER = re.compile(r"u?int(8|16|32|64)?(_t)?|size(32)?|busnr")
#: How QEMU writes the values of an enumeration in a description: ``Error handling policy (report/ignore/enospc)``.
_WORDS = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)+")
_NOT_ENUMS = re.compile(r"str|string|list|.*List|link<.*|child<.*|QemuUUID|.*Info(rmation)?|guest statistics|.*Array")
_LOCK = Lock()
_HELP_TIMEOUT_S = 60.0

Kind = str
NUMBER, BOOLEAN, ENUM, STRING, OTHER = "number", "boolean", "enumeration", "string", "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One property.

    :param type: as QEMU calls it
    :param kind: ``number``, ``boolean``, ``enumeration``, ``string``, or ``other``: a link, a list, a structure
    :param words: values of an enumeration, as far as QEMU lists them
    """

    type: str
    kind: Kind
    words: tuple[str, ...] = ()


#: By name.
Properties = Mapping[str, Listed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What one QEMU lists.

    :param devices: of the types that were asked for, those that it has
    :param machine: of the machine type that was asked for
    """

    devices: Mapping[str, Properties]
    machine: Properties


def listing(binary: str, machine: str, device_types: Iterable[str]) -> Listing:
    """Ask a QEMU, or what it answered before.

    :raises QemuError: it does not start
    """
    with _LOCK:
        return _listing(binary, machine, frozenset(device_types))


@cache
def _listing(binary: str, machine: str, device_types: frozenset[str]) -> Listing:
    try:
        program = launched(Path(binary))
    except OSError as error:
        raise QemuError(f"{binary}: {error.strerror}") from error
    where = f"-{program.key}" if program.key else ""
    key = f"probe/{program.sha256}{where}-listed-{_ANSWERS}.json"
    answers = kept_answer(key) or {"devices": {}, "machine": {}}
    if not device_types <= answers["devices"].keys() or machine not in answers["machine"]:
        _ask(binary, machine, device_types, answers)
        keep_answer(key, answers)
    return Listing(
        # a type may be listed and have no property
        devices={name: _read(found) for name in device_types if (found := answers["devices"][name]) is not None},
        machine=_read(answers["machine"][machine] or {}),
    )


def device_help(binary: str) -> str:
    """What ``-device help`` prints; kept by the build's hash.

    :raises QemuError: it does not print it: a module of the build does not fit, or the like
    """
    try:
        program = launched(Path(binary))
    except OSError as error:
        raise QemuError(f"{binary}: {error.strerror}") from error
    key = f"probe/{program.sha256}{f'-{program.key}' if program.key else ''}-help-{_ANSWERS}.json"
    text: str | None = kept_answer(key)
    if text is None:
        text = _print_help(binary)
        keep_answer(key, text)
    return text


@cache
def cpu_models(binary: str) -> Mapping[str, bool]:
    """Each CPU model that a QEMU has, by all of its names, to whether it is deprecated; kept by the build's hash.

    :raises QemuError: it does not start
    """
    try:
        program = launched(Path(binary))
    except OSError as error:
        raise QemuError(f"{binary}: {error.strerror}") from error
    key = f"probe/{program.sha256}{f'-{program.key}' if program.key else ''}-cpu-models-{_ANSWERS}.json"
    models: dict[str, bool] | None = kept_answer(key)
    if models is None:
        with _bare(binary) as vm:
            found = vm.qmp("query-cpu-definitions")
        models = {model["name"]: bool(model.get("deprecated")) for model in found}
        keep_answer(key, models)
    return models


def _print_help(binary: str) -> str:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            done = subprocess.run(
                [binary, "-device", "help"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                timeout=_HELP_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise QemuError(f"{binary} -device help: {error}") from error
        out.seek(0)
        err.seek(0)
        if done.returncode:
            said = err.read(400).decode(errors="replace").strip()
            raise QemuError(f"{binary} -device help: it ended with {done.returncode}: {said or 'it printed nothing'}")
        return out.read(1 << 20).decode(errors="replace")


def _ask(binary: str, machine: str, device_types: frozenset[str], answers: dict[str, Any]) -> None:
    """Add what is not known yet; a type that ends this QEMU when it is looked at is none that it lists."""
    wanted = sorted(device_types - answers["devices"].keys())
    if machine not in answers["machine"]:
        with _bare(binary) as vm:
            answers["machine"][machine] = _plain(vm.qmp, "qom-list-properties", f"{machine}-machine")
    while wanted:
        with _bare(binary) as vm:
            try:
                while wanted:
                    answers["devices"][wanted[0]] = _plain(vm.qmp, "device-list-properties", wanted[0])
                    del wanted[0]
            except QemuError:
                if vm.ended(1.0) is None:
                    raise
                answers["devices"][wanted.pop(0)] = None


def _bare(binary: str) -> Vm:
    """A QEMU without a machine.

    :raises QemuError: it does not start
    """
    options = (
        *(Option(name=name) for name in ("nodefaults", "no-user-config", "S")),
        Option(name="display", first="none"),
        Option(name="machine", first="none"),
    )
    return Vm(CommandLine(binary=binary, options=options))


def _plain(qmp: Callable[..., Any], command: str, name: str) -> dict[str, Any] | None:
    """Properties by name, None where QEMU has no such type."""
    try:
        found = qmp(command, typename=name)
    except CommandRefused:
        return None
    return {each["name"]: asdict(classified(each["type"], each.get("description", ""))) for each in found}


def _read(answers: Mapping[str, Any]) -> Properties:
    return {name: Listed(type=a["type"], kind=a["kind"], words=tuple(a["words"])) for name, a in answers.items()}


def classified(type_name: str, description: str) -> Listed:
    """A property by what ``device-list-properties`` says of it.

    Only the description has the values of an enumeration. A type of which nothing is known is ``other``.
    """
    if type_name == "bool":
        return Listed(type=type_name, kind=BOOLEAN)
    if _NUMBER.fullmatch(type_name):
        return Listed(type=type_name, kind=NUMBER)
    if type_name in ("str", "string"):
        return Listed(type=type_name, kind=STRING)
    words = _WORDS.findall(description)
    if words and not _NOT_ENUMS.fullmatch(type_name):
        return Listed(type=type_name, kind=ENUM, words=tuple(words[-1].split("/")))
    return Listed(type=type_name, kind=OTHER)
