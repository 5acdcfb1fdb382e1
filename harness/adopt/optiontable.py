# SPDX-License-Identifier: GPL-2.0-or-later
"""Which options QEMU has, and in which form one takes an argument: read from ``options.yaml`` beside this file."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from harness.adopt.configuration import Value
from harness.adopt.place import TextPlace, quoted
from harness.adopt.values import read_character, read_cpu, read_global, read_options
from harness.yamlfile import load_model

OPTIONS_FILE = Path(__file__).with_name("options.yaml")


class Form(StrEnum):
    """What an option takes; ``options.yaml`` says what each word means."""

    NOTHING = "nothing"
    TEXT = "text"
    FLAT = "flat"
    NESTED = "nested"
    FEATURES = "features"
    CHARACTER = "character"
    GLOBAL = "global"
    SET = "set"
    READCONFIG = "readconfig"


class Repeat(StrEnum):
    """What becomes of an option that is given more than once."""

    EACH = "each"
    LAST = "last"
    MERGE = "merge"


class KnownOption(BaseModel):
    """A row of the table."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    takes: Form
    first: str = ""
    repeat: Repeat = Repeat.EACH
    lists: tuple[str, ...] = ()
    group: str = ""
    means: str = ""

    @property
    def repeats(self) -> Repeat:
        """As ``repeat``; a second option that takes nothing says nothing new."""
        return Repeat.LAST if self.takes is Form.NOTHING else self.repeat

    def read(self, argument: str, place: TextPlace) -> dict[str, Value]:
        """Keys and values of an argument.

        :raises UsageError: it is not of the form that the option takes
        """
        match self.takes:
            case Form.FEATURES:
                return read_cpu(argument, place)
            case Form.CHARACTER:
                return read_character(argument, place)
            case Form.GLOBAL:
                return read_global(argument, place)
            case Form.FLAT | Form.NESTED:
                nested = self.takes is Form.NESTED
                return read_options(argument, place, first=self.first, lists=self.lists, nested=nested)
        return {} if self.takes is Form.NOTHING else {"value": argument}


class _OptionTable(BaseModel):
    model_config = ConfigDict(extra="forbid")
    options: dict[str, KnownOption]


@lru_cache(maxsize=1)
def known_options() -> Mapping[str, KnownOption]:
    """All options by name, without their dash.

    :raises ConfigError: the file was damaged
    """
    return load_model(OPTIONS_FILE, _OptionTable).options


def known_option(name: str, place: TextPlace) -> KnownOption:
    """The row of an option.

    :raises UsageError: QEMU has no such option, from 5.2 to 11.1 and as far before as anybody remembers
    """
    known = known_options().get(name)
    if known is not None:
        return known
    near = difflib.get_close_matches(name[:64], known_options(), n=1)
    if near:
        raise place.error(f"QEMU has no option {quoted(f'-{name}')}; did you mean -{near[0]}?")
    raise place.error(f"QEMU has no option {quoted(f'-{name}')}")


def takes_argument(word: str) -> bool:
    """Whether a word is an option that takes an argument: ``-m``, ``--m``."""
    known = known_options().get(word[2 if word.startswith("--") else 1 :]) if word.startswith("-") else None
    return known is not None and known.takes is not Form.NOTHING


def option_of_group(group: str) -> str | None:
    """The option whose values a group of ``-readconfig`` and ``-set`` holds, None where there is none."""
    named = {known.group: name for name, known in known_options().items() if known.group}
    return named.get(group, group if group in known_options() else None)
