# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody's text, such as a log of libvirt's, to the words that one QEMU was started with.

Of several starts in one text the last one counts, since a log grows at its end. A line of ``ps`` has lost its quotes:
a word there that is no option belongs to the value before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from harness.adopt.optiontable import takes_argument
from harness.adopt.place import TextPlace
from harness.adopt.shell import MAX_COMMAND, MAX_WORDS, JsonEnds, Variables, Word, read_variables, read_words

MAX_TEXT = 16 << 20

_SYSTEM = r"\.?qemu-system-[A-Za-z0-9_]+(?:[-.][A-Za-z0-9_.-]*)?"
_FOLDER = r"[^\s\"'=;,{}&|()]*[/\\]"
_SHORT = r"qemu-kvm[A-Za-z0-9_.-]*|kvm(?:-spice)?|qemu(?:\.real)?"
#: An emulator as a word of its own, with or without its folder, in quotes or not.
_EMULATOR = (
    rf"(?:(?<![^\s;&|({{])|(?<=ExecStart=))[\"']?(?P<path>(?P<folder>{_FOLDER})?"
    rf"(?:{_SYSTEM}|(?P<short>{_SHORT})))[\"']?(?=\s|\\\n|$)"
)
#: A variable that is set to an emulator: ``QEMU=qemu-system-x86_64``.
_VARIABLE = re.compile(
    rf"^[ \t]*(?:export[ \t]+)?(\w{{1,64}})=[\"']?((?:{_FOLDER})?(?:{_SYSTEM}|{_SHORT}))[\"']?[ \t]*$", re.M
)
#: A whole command, as a variable may hold it.
_WHOLE = re.compile(rf"\s*(?:{_FOLDER})?(?:{_SYSTEM}|{_SHORT})\s+-")
#: What stands behind an emulator: an option or a variable, or another word on the same line.
_BEHIND = re.compile(r"(?:[ \t]|\\[ \t]*\n)*(?:\n[ \t]*(?=-))?(?:(?P<option>-|[\"']?\$)|(?P<word>[\w./\"'{]))?")
#: Programs that start another one, and may have numbers before it.
_WRAPPERS = frozenset({
    "chrt", "env", "exec", "ionice", "nice", "nohup", "numactl", "prlimit", "setsid", "strace", "sudo", "systemd-run",
    "taskset", "time", "timeout",
})  # fmt: skip
#: Of one line no more places are looked at than these.
_MOST_OF_LINE = 8
_CLOCK = re.compile(r"\d\d:\d\d:\d\d")
_PIECE = re.compile(r"\s*(\S+)")
_OPTION = re.compile(r"--?[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Start:
    """What one QEMU was started with; ``binary`` is empty when the text has options only."""

    binary: str
    words: tuple[Word, ...]


def read_start(text: str, source: str) -> Start:
    """The words of the last start of QEMU in a text.

    :param text: a log, a script, a line of ``ps``, ``/proc/PID/cmdline``, or options alone
    :raises UsageError: there is none, or it cannot be taken apart; with file and line
    """
    if len(text) > MAX_TEXT:
        raise TextPlace(source).error(f"longer than {MAX_TEXT >> 20} MiB: give the part with the command line")
    if "\0" in text:
        return _separated(text)
    text = text.replace("\r\n", "\n")
    found = _last_start(text)
    if found is not None:
        return _started(text, source, found)
    return _in_variable(text, source) or _options_alone(text, source)


def _separated(text: str) -> Start:
    """As the kernel shows a process: each argument ends with a zero byte."""
    arguments = text.removesuffix("\n").removesuffix("\0").split("\0")
    return Start(arguments[0], tuple(Word(argument, 1) for argument in arguments[1:]))


def _last_start(text: str) -> re.Match[str] | None:
    """The last line that starts an emulator; one with an option behind it is meant before one without."""
    best: tuple[int, re.Match[str]] | None = None
    for line in _emulators_by_line(text):
        # of one line the first is it: what comes behind is a value
        rank, match = max(((_rank(text, match), match) for match in line), key=lambda ranked: ranked[0])
        if rank and (best is None or rank >= best[0]):
            best = rank, match
    return best[1] if best else None


def _emulators_by_line(text: str) -> Iterator[list[re.Match[str]]]:
    """What may be starts, of each line the first few."""
    line: list[re.Match[str]] = []
    line_end = -1
    for match in _emulators(text):
        if match.start() < line_end:
            if len(line) < _MOST_OF_LINE:
                line.append(match)
            continue
        if line:
            yield line
        line, line_end = [match], _line_end(text, match.start())
    if line:
        yield line


def _emulators(text: str) -> Iterator[re.Match[str]]:
    names = {re.escape(match.group(1)) for match in _VARIABLE.finditer(text)}
    either = "|".join(names)
    variable = rf"(?<![^\s;&|(])[\"']?\$(?P<variable>\{{(?:{either})\}}|(?:{either}))[\"']?(?=\s|$)"
    return re.finditer(rf"{_EMULATOR}|{variable}" if names else _EMULATOR, text)


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _before(text: str, position: int) -> str:
    """The line up to a place."""
    return text[text.rfind("\n", 0, position) + 1 : position]


def _rank(text: str, match: re.Match[str]) -> int:
    """0: no start; 1: an emulator alone; 2: with a word behind it; 3: with an option behind it."""
    before = _before(text, match.start()).split()
    behind = _BEHIND.match(text, match.end())
    rank = {"option": 3, "word": 2}.get((behind and behind.lastgroup) or "", 1)
    if before and _OPTION.match(before[0]):
        return 0  # the value of an option that begins the line
    if not match.group("short") or match.group("folder"):
        return rank
    # words that are not the emulator's alone: -accel kvm, "apt install qemu"
    return 0 if rank < 3 or (before and _OPTION.match(before[-1])) else rank


def _started(text: str, source: str, match: re.Match[str]) -> Start:
    if _is_ps(_before(text, match.start())):
        return _of_ps(text, source, match.start())
    expands = "$" in text[match.end() : match.end() + MAX_COMMAND]
    variables: Variables = read_variables(text[: match.start()], source) if expands else {}
    words = read_words(text, match.end(), source, variables, unfinished=takes_argument)
    return Start(_binary(text, match), tuple(words))


def _binary(text: str, match: re.Match[str]) -> str:
    if match.group("path"):
        return match.group("path")
    named = {found.group(1): found.group(2) for found in _VARIABLE.finditer(text[: match.start()])}
    return named.get(match.group("variable").strip("{}"), "")


def _in_variable(text: str, source: str) -> Start | None:
    """A command in a variable, which a script runs at its end: ``CMD="qemu-system-x86_64 -m 1G"``."""
    starts = (words[0] for words in read_variables(text, source).values() if words)
    for value in reversed([word for word in starts if _WHOLE.match(word.text)]):
        first, *words = read_words(value.text, 0, source, {})
        return Start(first.text, tuple(Word(word.text, value.line) for word in words))
    return None


def _options_alone(text: str, source: str) -> Start:
    begin = len(text) - len(text.lstrip())
    if not _OPTION.match(text, begin):
        raise TextPlace(source).error("no start of QEMU found: expected qemu-system-x86_64, say, with its options")
    return Start("", tuple(read_words(text, begin, source, {}, unfinished=takes_argument)))


def _is_ps(before: str) -> bool:
    """Whether a line begins as ``ps`` and ``pgrep -a`` begin it: with a process id, or a user and a process id."""
    words = before.split()
    if not words or words[0].rpartition("/")[2] in _WRAPPERS:
        return False
    if len(words) > 2 and _CLOCK.fullmatch(words[2]):
        return False  # a line of the system's log: Jan 05 10:00:00
    return words[0].isdecimal() or (len(words) > 1 and words[1].isdecimal() and "=" not in words[0])


def _of_ps(text: str, source: str, begin: int) -> Start:
    line = text.count("\n", 0, begin) + 1
    pieces = list(_raw_pieces(text[begin : _line_end(text, begin)]))
    if len(pieces) > MAX_WORDS:
        raise TextPlace(source, line).error(f"more than {MAX_WORDS} arguments")
    return Start(pieces[0], tuple(Word(each, line) for each in _joined(pieces[1:])))


def _raw_pieces(line: str) -> Iterator[str]:
    """Words between white space, and JSON whole."""
    position, ends = 0, JsonEnds()
    while match := _PIECE.match(line, position):
        position = ends.find(line, match.start(1)) or match.end()
        yield line[match.start(1) : position]


def _joined(words: list[str]) -> Iterator[str]:
    """An option, and all up to the next one as its value."""
    value: list[str] = []
    for word in words:
        if not _OPTION.match(word):
            value.append(word)
            continue
        if value:
            yield " ".join(value)
        value = []
        yield word
    if value:
        yield " ".join(value)
