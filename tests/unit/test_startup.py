# SPDX-License-Identifier: GPL-2.0-or-later
"""The help and shell completion come at once: they import neither the program nor the large libraries."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from harness.cli import COMMANDS, cli

#: Each takes a tenth of a second and more, and neither help nor completion has any use for it.
HEAVY = ("pydantic", "rich", "jinja2", "qemu.qmp", "asyncio", "yaml", "psutil", "harness.commands", "harness.work")

_SCRIPT = """
import atexit, sys
atexit.register(lambda: print(*sys.modules, file=sys.stderr))
sys.argv = ["postload", *sys.argv[1:]]
from harness.cli import main
main()
"""


def run(*arguments: str, **environment: str) -> tuple[str, set[str]]:
    """What a command line prints, and the modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout, set(done.stderr.split())


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_help_imports_nothing_heavy(option: str) -> None:
    out, modules = run(option)
    assert "postload" in out
    assert "click" in modules
    assert not modules.intersection(HEAVY)


def test_completion_imports_nothing_heavy() -> None:
    out, modules = run(_POSTLOAD_COMPLETE="bash_complete", COMP_WORDS="postload mi", COMP_CWORD="1")
    assert out == "plain,minimise\n"
    assert not modules.intersection(HEAVY)


def test_a_command_imports_what_it_needs() -> None:
    _, modules = run("matrix", "--help")
    assert "harness.commands.matrix" in modules


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_of_commands_has_their_own_words(name: str) -> None:
    """The list stands beside the commands, so that they need not be imported; they must say the same."""
    context = cli.make_context("postload", [], resilient_parsing=True)
    command = cli.get_command(context, name)
    assert command is not None
    assert COMMANDS[name][2] == command.get_short_help_str(limit=1000)
    assert COMMANDS[name][2] in " ".join(cli.get_help(context).split())
