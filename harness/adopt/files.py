# SPDX-License-Identifier: GPL-2.0-or-later
"""VMs as they are named on a command line: files, processes, folders of hundreds. What a file is, its content says."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.adopt.commandline import of_process, read_command_line
from harness.adopt.configuration import Configuration
from harness.adopt.domain import read_domain
from harness.errors import UsageError

#: A domain of libvirt's has some 10 KiB, and a log of it that of many starts.
_LARGEST_BYTES = 8 << 20
_DOMAIN = re.compile(r"\s*(?:<\?xml\b|<!--|<domain(?:status|snapshot|backup)?\b|<\w)")
#: A program that is a QEMU, or options alone.
_COMMAND = re.compile(
    r"(?:^|[\s/'\"=])(?:qemu-system-\w+|qemu-kvm|kvm)(?:['\"]?\s|\0|$)|^\s*-{1,2}[A-Za-z]", re.MULTILINE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundVm:
    """One VM that was named.

    :param name: of the VM, else of its file
    :param source: file or process
    :param configuration: None where it cannot be read; then ``error`` says why, with file and line
    """

    name: str
    source: str
    configuration: Configuration | None = None
    error: str = ""


def domain_file(path: Path) -> Configuration:
    """The VM of a libvirt domain in a file.

    :raises UsageError: it cannot be read, or is none; with file and line
    """
    return read_domain(text_of(path), str(path))


def command_line_file(path: Path) -> Configuration:
    """The VM of a command line in a file: a script, a log of libvirt's, what ``ps`` printed.

    :raises UsageError: it cannot be read, or is none; with file and line
    """
    return read_command_line(text_of(path), str(path), read=_beside(path))


def text_of(path: Path) -> str:
    """The text of a file that should have a VM in it.

    :raises UsageError: it cannot be read, is no text, or larger than any such file
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise UsageError(f"{path}: {path.stat().st_size} bytes; expected a libvirt domain or a command line")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: no text; expected a libvirt domain or a command line of QEMU") from error


def _beside(path: Path) -> Callable[[str], str]:
    """Files of ``-readconfig`` beside the one that names them, by their last name: nothing else is opened."""

    def read(name: str) -> str:
        return text_of(path.parent / Path(name).name)

    return read


def found_in(
    domains: Sequence[Path], command_lines: Sequence[Path], pids: Sequence[int], folders: Sequence[Path]
) -> tuple[list[FoundVm], list[str]]:
    """All VMs that were named, in that order, and the files of the folders that are none.

    One of a folder that cannot be read is told of as such; one that was named by itself is an error.

    :raises UsageError: a file, process or folder that was named is none
    """
    named = [
        *(_named(str(path), path.stem, domain_file(path)) for path in domains),
        *(_named(str(path), path.stem, command_line_file(path)) for path in command_lines),
        *(_named(f"process {pid}", f"pid-{pid}", of_process(pid)) for pid in pids),
    ]
    skipped: list[str] = []
    for folder in folders:
        named += _in_folder(folder, skipped)
    return list(_by_their_own_names(named)), skipped


def _named(source: str, name: str, configuration: Configuration) -> FoundVm:
    return FoundVm(name=configuration.name or name, source=source, configuration=configuration)


def _in_folder(folder: Path, skipped: list[str]) -> Iterator[FoundVm]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: no folder; expected one of libvirt domains and command lines")
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
        try:
            text = text_of(path)
        except UsageError:
            skipped.append(str(path))
            continue
        read = _reader(path, text)
        if read is None:
            skipped.append(str(path))
            continue
        try:
            yield _named(str(path), path.stem, read())
        except UsageError as error:
            yield FoundVm(name=path.stem, source=str(path), error=str(error))


def _reader(path: Path, text: str) -> Callable[[], Configuration] | None:
    """What reads a text; None for one that is neither."""
    if _DOMAIN.match(text):
        return (lambda: read_domain(text, str(path))) if "<domain" in text else None
    if _COMMAND.search(text[: 1 << 16]):
        return lambda: read_command_line(text, str(path), read=_beside(path))
    return None


def _by_their_own_names(found: Sequence[FoundVm]) -> Iterator[FoundVm]:
    """Two VMs of one name are ``web`` and ``web~2``."""
    seen: dict[str, int] = {}
    for vm in found:
        seen[vm.name] = seen.get(vm.name, 0) + 1
        number = seen[vm.name]
        yield vm if number == 1 else replace(vm, name=f"{vm.name}~{number}")
