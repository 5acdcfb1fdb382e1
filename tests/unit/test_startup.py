# SPDX-License-Identifier: GPL-2.0-or-later
"""Help and shell completion come at once: they import neither the program nor the large libraries."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from harness.cli import cli

#: Each takes a twentieth of a second and more, and neither help nor completion has any use for it.
HEAVY = ("pydantic", "rich", "jinja2", "qemu.qmp", "asyncio", "yaml", "psutil", "sqlalchemy", "alembic")
#: All of the program that they need.
LIGHT = {"cli", "commands", "errors", "names", "text"}
LIGHT_COMMANDS = {"harness.commands", "harness.commands.declared", "harness.commands.options"}

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


def check_light(modules: set[str]) -> None:
    """No more was imported than help needs."""
    assert "click" in modules
    assert modules.isdisjoint(HEAVY)
    own = [name for name in modules if name.startswith("harness.")]
    assert {name.split(".")[1] for name in own} <= LIGHT
    assert {name for name in own if name.startswith("harness.commands")} <= LIGHT_COMMANDS


def commands(group: click.Group = cli, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command, groups included."""
    for name, command in group.commands.items():
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


COMMANDS = tuple(commands())


def test_there_are_commands_and_commands_of_groups() -> None:
    assert {("matrix",), ("qemu",), ("qemu", "install")} <= set(COMMANDS)


@pytest.mark.parametrize("words", [(), *COMMANDS], ids=" ".join)
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    out, modules = run(*words, "--help")
    assert out.startswith(f"Usage: {' '.join(['postload', *words])} ")
    check_light(modules)


def test_the_version_imports_nothing_heavy() -> None:
    out, modules = run("--version")
    assert out.startswith("postload, version ")
    check_light(modules)


def test_completion_imports_nothing_heavy() -> None:
    out, modules = run(_POSTLOAD_COMPLETE="bash_complete", COMP_WORDS="postload mi", COMP_CWORD="1")
    assert out == "plain,minimise\n"
    check_light(modules)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_short_help_is_cut(words: tuple[str, ...]) -> None:
    """Each is one sentence, and fits into one line of a terminal of 80 columns."""
    group: click.Command = cli
    for name in words[:-1]:
        assert isinstance(group, click.Group)
        group = group.commands[name]
    assert isinstance(group, click.Group)
    with click.Context(group, terminal_width=80, help_option_names=["-h", "--help"]) as context:
        lines = [line.split(maxsplit=1) for line in group.get_help(context).splitlines() if line.startswith("  ")]
    (said,) = [line[1] for line in lines if line[0] == words[-1]]
    assert re.search(r"[^.]\.$", said)
    assert (group.commands[words[-1]].help or "").startswith(said)


def test_a_matrix_imports_nothing_that_unpacks_saved_states() -> None:
    script = "import sys, harness.commands.matrix; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "lzallright" not in done.stdout.split()
