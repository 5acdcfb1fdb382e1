# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the manual page, ``man/postload.1``, of what the commands say about themselves: ``python man/make.py``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import click

import harness
from harness.cli import cli

PAGE = Path(__file__).with_name("postload.1")


def page() -> str:
    """The whole page: the program, then each command as a section of its own."""
    context = cli.make_context("postload", [], resilient_parsing=True)
    lines = [f'.TH POSTLOAD 1 "" "postload {harness.__version__}" "User Commands"', ".SH NAME"]
    lines += [f"postload \\- {_roff(cleandoc(cli.help or '').splitlines()[0].rstrip('.'))}"]
    lines += [".SH SYNOPSIS", ".B postload", "[OPTIONS] COMMAND [ARGS]...", ".SH DESCRIPTION", *_help(cli)]
    lines += [
        ".SH OPTIONS",
        *_options(context),
        ".TP",
        "\\fB\\-h, \\-\\-help\\fR",
        "Show the help of the program or of a command.",
    ]
    lines += [".SH COMMANDS", *_commands(context)]
    return "\n".join(lines) + "\n"


def _commands(context: click.Context) -> Iterator[str]:
    group = context.command
    if not isinstance(group, click.Group):
        return
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None  # it was listed
        with command.make_context(name, [], parent=context, resilient_parsing=True) as inner:
            yield f".SS {_roff(' '.join([inner.command_path, *command.collect_usage_pieces(inner)]))}"
            yield from _help(command)
            yield from _options(inner)
            yield from _commands(inner)


def _help(command: click.Command) -> Iterator[str]:
    for number, paragraph in enumerate(re.split(r"\n\s*\n", cleandoc(command.help or ""))):
        if number:
            yield ".PP"
        # \b keeps click from joining the lines of a paragraph
        kept = paragraph.startswith("\b")
        yield from [".nf"] if kept else []
        yield from map(_roff, paragraph.removeprefix("\b").strip().splitlines())
        yield from [".fi"] if kept else []


def _options(context: click.Context) -> Iterator[str]:
    for parameter in context.command.params:
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None:
            yield from (".TP", f"\\fB{_roff(record[0])}\\fR", _roff(record[1]))


def _roff(text: str) -> str:
    """A line as roff takes it: a hyphen is typed as one, and a leading dot is no request."""
    escaped = text.strip().replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
