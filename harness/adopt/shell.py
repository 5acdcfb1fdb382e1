# SPDX-License-Identifier: GPL-2.0-or-later
"""Words of a command as a shell would make them, without a shell: nothing is executed, and no file is looked for.

Of the language only what changes words is read, as POSIX has it: quotes, backslashes, comments, redirections, and
variables and arrays that the same text sets. Any other variable, and ``$(command)``, stays as it is written. Two things
are read that no shell would: a line that begins with an option goes on with the command before it, backslash or not,
and JSON without quotes around it is one word up to its last brace.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harness.adopt.place import TextPlace, quoted
from harness.errors import UsageError

MAX_COMMAND = 2 << 20
MAX_WORDS = 20_000
MAX_VALUE = 64 << 10
MAX_FAILURES = 100

_PLAIN = re.compile(r"[^\s\\'\"$`;&|<>()]+")
_SINGLE = re.compile(r"'([^']*)'")
_IN_DOUBLE = re.compile(r"[^\"\\$`]+")
#: Between words; a line goes on behind a backslash, and in the shells of Windows behind a caret or a backtick.
#: Spaces of any kind are some, since a command line that was copied from a page has others.
_BLANK = re.compile(r"(?:[\\^`][^\S\n]*\n|[^\S\n])+")
_BLANK_OF_ARRAY = re.compile(r"(?:\s|\\\n|#[^\n]*)+")
#: A newline behind which a line begins with an option, comments between them or not.
_NEXT_OPTION = re.compile(r"(?:[ \t]*(?:#[^\n]*)?\n)+[ \t]*(?=--?[A-Za-z])")
_REDIRECTION = re.compile(r"[<>]+[&|]?[ \t]*(?:'[^']*'|\"[^\"]*\"|[^\s'\"<>|&;()])*")
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?P<how>:?-|\[[@*]\])?(?P<default>[^}\n]*)\}|(?P<name>\w+|[@*]))")
_UNKNOWN = re.compile(
    r"\$\{[^}\n]*\}|\$\(\((?:[^()\n]|\([^()\n]*\))*\)\)|\$\((?:[^()\n]|\([^()\n]*\))*\)|\$|`[^`\n]*`|`"
)
#: Conditions and loops are not followed: each assignment of a text counts.
_ASSIGNMENT = re.compile(
    r"(?:^|;|&&|\|\||\b(?:then|else|do)[ \t])[ \t]*"
    r"(?:(?:export|local|readonly|declare|typeset)(?:[ \t]+-\w+)*[ \t]+)?(\w+)(\+?)=",
    re.M,
)
_SPACE = re.compile(r"[ \t\n]+")
_JSON_BEGIN = re.compile(r"\{\s*\"")
_JSON = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Word:
    """One argument.

    :param line: that it begins on, counted from 1
    """

    text: str
    line: int


#: What a text sets before it starts QEMU; an array has several words.
Variables = dict[str, Sequence[Word]]


def read_words(
    text: str, begin: int, source: str, variables: Variables, *, unfinished: Callable[[str], bool] = lambda word: False
) -> list[Word]:
    """The words of the command that begins at a place in a text, up to where it ends.

    :param unfinished: whether a word wants another one behind it: where a mail was wrapped there, the next line has it
    :raises UsageError: a quote that is not closed, an array that is not known, or more than anybody would write
    """
    return list(_Command(text, begin, source, variables).words(unfinished))


def read_variables(text: str, source: str) -> Variables:
    """What the assignments of a text set, the last one of each name; what cannot be taken apart is left out.

    More of it than anybody writes before the start of a guest is not read.
    """
    variables: Variables = {}
    begin, line, left = 0, 1, MAX_COMMAND
    for match in _ASSIGNMENT.finditer(text):
        if match.end() <= begin or left < 0:
            continue  # within the value of the one before
        line += text.count("\n", begin, match.end())
        begin = match.end()
        command = _Command(text[begin : begin + MAX_VALUE], 0, source, variables, line)
        try:
            words = command.assigned()
        except UsageError:
            left -= MAX_VALUE
            continue
        left -= command.size + command.position
        name, adds = match.groups()
        variables[name] = _appended(variables.get(name, ()), words, text[begin] == "(") if adds else words
    return variables


def _appended(old: Sequence[Word], new: Sequence[Word], array: bool) -> Sequence[Word]:
    if array or not old or not new:
        return (*old, *new)
    return (*old[:-1], Word(old[-1].text + new[0].text, old[-1].line))


class JsonEnds:
    """Finds where JSON within a text ends; a text that only looks like it many times is not tried for ever."""

    def __init__(self) -> None:
        self._failures = 0

    def find(self, text: str, begin: int) -> int:
        """Where JSON that begins at a place ends, 0 where there is none."""
        if self._failures >= MAX_FAILURES or not _JSON_BEGIN.match(text, begin):
            return 0
        try:
            return int(_JSON.raw_decode(text, begin)[1])
        except (ValueError, RecursionError):
            self._failures += 1
            return 0


class _Command:
    """One pass over a command.

    ``_pieces`` is the word in the making, None between words and empty where an expansion came to nothing; ``_split``
    are words that stand before it, since an expansion may make several.
    """

    def __init__(self, text: str, begin: int, source: str, variables: Variables, line: int = 1) -> None:
        self.position = begin
        self._text = text
        self._source = source
        self._variables = variables
        self._pieces: list[str] | None = None
        self._split: list[Word] = []
        self._json_ends = JsonEnds()
        self._open = 0
        self._line = 1
        self._counted = (0, line)
        self.size = 0

    def words(self, unfinished: Callable[[str], bool]) -> Iterator[Word]:
        """All of the command."""
        count, last = 0, ""
        while words := self.next_words() or self._on_the_next_line(unfinished(last)):
            count, last = count + len(words), words[-1].text
            if count > MAX_WORDS:
                raise self._error(f"more than {MAX_WORDS} arguments")
            yield from words

    def _on_the_next_line(self, wanted: bool) -> list[Word]:
        if not wanted or self._here() != "\n":
            return []
        self.position += 1
        return self.next_words()

    def assigned(self) -> list[Word]:
        """The value behind an equals sign: one word, or the words of an array."""
        if self._here() == "(":
            return list(self._array())
        if self._ends() or self._here().isspace():
            return [Word("", self._line_here())]
        words = self.next_words()
        return [Word(" ".join(word.text for word in words), self._line_here())]

    def _array(self) -> Iterator[Word]:
        """What stands between the parentheses that begin here."""
        self.position += 1
        while True:
            self._skip(_BLANK_OF_ARRAY)
            if self._here() == ")":
                self.position += 1
                return
            words = self.next_words(in_array=True)
            if not words and self._here() != ")":
                raise self._error("an array that is not closed")
            yield from words

    def next_words(self, *, in_array: bool = False) -> list[Word]:
        """The next word, or those that an expansion makes of it; none where the command ends."""
        while True:
            self._pieces, self._split = None, []
            begin = self.position
            while not self._at_end(in_array):
                self._piece()
            self._break()
            # an empty array makes no word, and the command goes on behind it
            if self._split or self.position == begin or self._ends():
                return self._split

    def _here(self) -> str:
        return self._text[self.position : self.position + 1]

    def _ends(self) -> bool:
        """Whether the command ends here; a parenthesis that a word opened belongs to it."""
        here = self._here()
        return not here or here in "\n;&|" or (here == ")" and not self._open)

    def _at_end(self, in_array: bool) -> bool:
        """Whether a word ends here, or the command; what stands before a word is passed over."""
        while True:
            if self._pieces is None and not self._split:
                self._skip(_BLANK)
                if not in_array and self._skip(_NEXT_OPTION):
                    continue
                if self._here() == "#":
                    return True
            if self._here() not in ("<", ">"):
                return self._ends() or self._here().isspace()
            if self._pieces is not None and not "".join(self._pieces).isdecimal():
                return True
            self._pieces = None
            self._skip(_REDIRECTION)

    def _piece(self) -> None:
        """One piece of a word: plain text, a quote, an escape, an expansion."""
        if self._pieces is None:
            self._pieces, self._line = [], self._line_here()
            if end := self._json_ends.find(self._text, self.position):
                return self._add(self._text[self.position : end], end)
        here = self._here()
        if here == "\\":
            escaped = self._text[self.position + 1 : self.position + 2]
            return self._add(escaped, self.position + 2) if escaped != "\n" else self._pass(2)
        if here == "'":
            return self._single()
        if here == '"':
            return self._double()
        if here in "$`":
            return self._expansion(in_quotes=False)
        self._open += {"(": 1, ")": -1}.get(here, 0)
        return self._matching(_PLAIN)

    def _pass(self, characters: int) -> None:
        self.position += characters

    def _single(self) -> None:
        match = _SINGLE.match(self._text, self.position)
        if match is None:
            raise self._error("a single quote that is not closed")
        self._add(match.group(1), match.end())

    def _double(self) -> None:
        begin = self.position
        self.position += 1
        if self._here() == '"':
            self._add("", self.position)
        while (here := self._here()) != '"':
            if not here:
                self.position = begin
                raise self._error("a double quote that is not closed")
            self._within_double(here)
        self.position += 1

    def _within_double(self, here: str) -> None:
        if here == "\\":
            escaped = self._text[self.position + 1 : self.position + 2]
            kept = {"\n": "", '"': '"', "\\": "\\", "$": "$", "`": "`"}.get(escaped, f"\\{escaped}")
            self._add(kept, self.position + 2)
        elif here in "$`":
            self._expansion(in_quotes=True)
        else:
            self._matching(_IN_DOUBLE)

    def _expansion(self, *, in_quotes: bool) -> None:
        match = _VARIABLE.match(self._text, self.position)
        if match is None:
            return self._matching(_UNKNOWN)
        name, how = match.group("braced") or match.group("name"), match.group("how") or ""
        if name in ("@", "*") or how.startswith("["):
            return self._array_value(name, match, in_quotes)
        value = self._value(name, how, match.group("default") or "")
        if value is None:
            return self._add(match.group(), match.end())
        return self._add(value, match.end()) if in_quotes else self._unquoted(value, match.end())

    def _value(self, name: str, how: str, default: str) -> str | None:
        """What a variable stands for, None where that is not known."""
        if default and not how:
            return None  # ${name%.*} and its like
        words = self._variables.get(name)
        value = None if words is None else words[0].text if words else ""
        return default if (how == ":-" and not value) or (how == "-" and value is None) else value

    def _array_value(self, name: str, match: re.Match[str], in_quotes: bool) -> None:
        """``"${args[@]}"``: its words. Those of the script itself (``"$@"``) are not known, and none are taken."""
        words = () if name in ("@", "*") else self._variables.get(name)
        if words is None:
            raise self._error(f"what {quoted(match.group())} stands for is not known: write the options out")
        self.position = match.end()
        for number, word in enumerate(words):
            if number:
                self._break()
            if in_quotes:
                self._line = word.line
                self._add(word.text, match.end())
            else:
                self._unquoted(word.text, match.end())

    def _unquoted(self, value: str, end: int) -> None:
        """A value outside of quotes falls apart at white space, and an empty one is no word."""
        self.position = end
        for number, part in enumerate(_SPACE.split(value)):
            if number:
                self._break()
            if part:
                self._add(part, end)

    def _break(self) -> None:
        """A word ends within an expansion."""
        if self._pieces:
            self._split.append(Word("".join(self._pieces), self._line))
        self._pieces = []

    def _matching(self, pattern: re.Pattern[str]) -> None:
        match = pattern.match(self._text, self.position)
        end = match.end() if match else self.position + 1
        self._add(self._text[self.position : end], end)

    def _add(self, piece: str, end: int) -> None:
        self._count(len(piece))
        if self._pieces is None:
            self._pieces = []
        self._pieces.append(piece)
        self.position = end

    def _count(self, size: int) -> None:
        self.size += size
        if self.size > MAX_COMMAND:
            raise self._error(f"a command line longer than {MAX_COMMAND >> 20} MiB")

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        match = pattern.match(self._text, self.position)
        if match is None or match.end() == self.position:
            return False
        self.position = match.end()
        return True

    def _line_here(self) -> int:
        at, line = self._counted
        if self.position > at:
            line += self._text.count("\n", at, self.position)
            self._counted = self.position, line
        return line

    def _error(self, message: str) -> UsageError:
        return TextPlace(self._source, self._line_here()).error(message)
