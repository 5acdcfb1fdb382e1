# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual page holds what the program has; ``python man/make.py`` makes it anew."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from harness.cli import cli

PAGE = Path(__file__).parents[2] / "man" / "postload.1"


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    """The text of each command by its name, without roff's escapes."""
    _, *parts = PAGE.read_text(encoding="utf-8").replace("\\-", "-").split("\n.SS ")
    return {part.split(" [")[0]: part for part in parts}


def every(context: click.Context) -> Iterator[click.Context]:
    """Each command below one, and those below it."""
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            assert command is not None
            inner = command.make_context(name, [], parent=context, resilient_parsing=True)
            yield inner
            yield from every(inner)


def test_it_holds_every_command_with_its_words_and_options(sections: dict[str, str]) -> None:
    contexts = list(every(cli.make_context("postload", [], resilient_parsing=True)))
    assert list(sections) == [context.command_path for context in contexts]
    for context in contexts:
        section = " ".join(sections[context.command_path].split())
        assert context.command.get_short_help_str(limit=1000) in section
        for option in context.command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert all(f"{name}" in section for name in option.opts), (context.command_path, option.opts)
                assert " ".join(str(option.help).split()) in section, "run python man/make.py"


def test_roff_understands_it() -> None:
    groff = shutil.which("groff")
    if groff is None:
        pytest.skip("no groff here")
    done = subprocess.run([groff, "-man", "-ww", "-z", PAGE], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
