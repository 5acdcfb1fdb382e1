# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of somebody's QEMU to a configuration. Nothing of it is run, and no file that it names is opened.

In what is read: a libvirt log (``/var/log/libvirt/qemu/NAME.log``), a line of ``ps``, a script, ``/proc/PID/cmdline``,
or the options alone. :mod:`harness.adopt.words` makes words of it, :mod:`harness.adopt.values` keys and values of each
option, :mod:`harness.adopt.aliases` writes short options out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.adopt.aliases import expanded
from harness.adopt.configfile import read_config_file
from harness.adopt.configuration import Configuration, SaidOption, Value
from harness.adopt.optiontable import Form, Repeat, known_option, known_options, option_of_group
from harness.adopt.place import TextPlace, quoted
from harness.adopt.shell import Word
from harness.adopt.words import Start, read_start
from harness.errors import UsageError
from harness.text import one_line

#: Gives the text of a file that a command line names: its path.
Read = Callable[[str], str]

_SET = re.compile(r"([^.]{1,63})\.([^.]{1,63})\.([^=]{1,63})=(.*)", re.S)


def read_command_line(text: str, source: str, *, read: Read | None = None) -> Configuration:
    """What a QEMU was started with.

    :param source: named in errors
    :param read: gives the text of a file of ``-readconfig``; without it such an option is an error
    :raises UsageError: there is no command line, or an option is not one that QEMU takes; with source and line
    """
    start = read_start(text, source)
    options = put_together(expanded(_said(start, source, read), source))
    return Configuration(name=_name(options), options=tuple(options), source=source, binary=start.binary)


def of_process(pid: int, *, proc: Path = Path("/proc"), read: Read | None = None) -> Configuration:
    """What a running QEMU was started with.

    :raises UsageError: there is no such process, it belongs to somebody else, or it is no QEMU
    """
    path = proc / str(pid) / "cmdline"
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise UsageError(f"process {pid}: {path} cannot be read: {error.strerror}") from error
    if not text:
        raise UsageError(f"process {pid} has no command line: it has ended, or is the kernel's own")
    program = text.split("\0")[0].rpartition("/")[2]
    if not re.search("qemu|kvm", program):
        raise UsageError(f"process {pid} is no QEMU: it runs {quoted(program)}")
    return read_command_line(text if "\0" in text else f"{text}\0", f"process {pid}", read=read)


def _name(options: Sequence[SaidOption]) -> str:
    return next((str(option.values.get("guest", "")) for option in options if option.name == "name"), "")


def _said(start: Start, source: str, read: Read | None) -> list[SaidOption]:
    """The options as they stand; files of ``-readconfig`` in their place, ``-set`` where it belongs."""
    said: list[SaidOption] = []
    for name, argument, place in _arguments(start.words, source):
        known = known_option(name, place)
        if known.takes is Form.READCONFIG:
            said += _from_file(argument, place, read)
        elif known.takes is Form.SET:
            _set(said, argument, place)
        else:
            said.append(SaidOption(name=known.means or name, values=known.read(argument, place), line=place.line))
    return said


def _arguments(words: Sequence[Word], source: str) -> Iterator[tuple[str, str, TextPlace]]:
    """Name and argument of each option; a word that is neither is QEMU's first disk."""
    rest = iter(words)
    for word in rest:
        place = TextPlace(source, word.line)
        if "\0" in word.text:
            raise place.error(f"a zero byte in {quoted(word.text)}")
        if not word.text.startswith("-"):
            if not word.text:
                continue
            if word.text.startswith(("$", "`")):
                raise place.error(f"what {quoted(word.text)} stands for is not known: write the options out")
            yield "hda", word.text, place
            continue
        name = word.text[2 if word.text.startswith("--") else 1 :]
        argument: Word | None = Word("", word.line)
        if known_option(name, place).takes is not Form.NOTHING:
            argument = next(rest, None)
        if argument is None:
            raise place.error(f"option -{name} needs an argument")
        yield name, argument.text, TextPlace(source, argument.line)


def _from_file(path: str, place: TextPlace, read: Read | None) -> list[SaidOption]:
    if read is None:
        raise place.error(f"-readconfig {quoted(path)}: the file is not at hand: write its options out")
    try:
        text = read(path)
    except (OSError, ValueError, UsageError) as error:
        raise place.error(f"-readconfig {quoted(path)}: it cannot be read: {one_line(str(error))}") from error
    return [replace(option, line=place.line) for option in read_config_file(text, path)]


def _set(said: list[SaidOption], argument: str, place: TextPlace) -> None:
    """``-set device.net0.mac=...`` changes an option that came before."""
    match = _SET.fullmatch(argument)
    if match is None:
        raise place.error(f"expected -set GROUP.ID.KEY=VALUE, found {quoted(argument)}")
    group, name, key, value = match.groups()
    for place_in_list, option in enumerate(said):
        if option.name == option_of_group(group) and option.values.get("id") == name:
            said[place_in_list] = replace(option, values={**option.values, key: value})
            return
    raise place.error(f"-set {quoted(argument)}: no {quoted(group)} with the id {quoted(name)} comes before it")


def put_together(options: Sequence[SaidOption]) -> list[SaidOption]:
    """Options that count once: the last one, or the keys of all of them; where the first one stood."""
    together: list[SaidOption] = []
    seen: dict[str, int] = {}
    for option in (plain for each in options for plain in _plain(each)):
        repeat = known_options()[option.name].repeats
        if option.name not in seen or repeat is Repeat.EACH:
            seen.setdefault(option.name, len(together))
            together.append(option)
            continue
        place = seen[option.name]
        earlier: dict[str, Value] = dict(together[place].values) if repeat is Repeat.MERGE else {}
        together[place] = replace(option, values=earlier | dict(option.values))
    return together


#: Keys of a machine that are options of their own as well: ``-machine smp.cpus=2`` is ``-smp 2``.
_OF_MACHINE = {"smp": "smp", "memory": "m", "boot": "boot"}


def _plain(option: SaidOption) -> Iterator[SaidOption]:
    """Keys of a machine in one spelling: QEMU takes ``kernel_irqchip`` for ``kernel-irqchip``."""
    if option.name != "machine":
        yield option
        return
    values = {key.replace("_", "-"): value for key, value in option.values.items()}
    for key, name in _OF_MACHINE.items():
        below = values.get(key)
        if isinstance(below, Mapping):
            del values[key]
            yield SaidOption(name=name, values=below, line=option.line)
    yield replace(option, values=values)
