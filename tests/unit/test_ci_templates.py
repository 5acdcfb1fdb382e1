# SPDX-License-Identifier: GPL-2.0-or-later
"""The templates in docs/ci: they are what their system takes, and their command lines are what the program takes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.cli import cli
from harness.commands.notify import check_notify
from harness.work.shards import Shard

FOLDER = Path(__file__).parents[2] / "docs" / "ci"
SCHEMAS = {"gitlab.yml": "vendor.gitlab-ci", "github.yml": "vendor.github-workflows"}
#: What the systems put in place of these.
FILLED = {
    r"\$\{\{ matrix\.part \}\}|\$CI_NODE_INDEX|\$PART": "2",
    r"\$CI_NODE_TOTAL": "4",
    r"\$DEVICES": "all",
    r"%[hS]": "/home/me",
    r"shard-\*": "shard-1 shard-2",
}


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from texts(each)
    elif isinstance(value, str):
        yield value


def lines_of(path: Path) -> Iterator[str]:
    """Each line that a shell or systemd is given."""
    text = path.read_text()
    if path.suffix == ".yml":
        yield from (line for found in texts(yaml.safe_load(text)) for line in found.splitlines())
    else:
        found = re.findall(r"sh '([^']+)'|^ExecStart=/usr/bin/env (.*)$", text, re.MULTILINE)
        yield from (shell or start for shell, start in found)


def commands() -> Iterator[tuple[str, list[str]]]:
    """The words behind ``postload`` in each template."""
    for path in sorted(FOLDER.iterdir()):
        for line in lines_of(path):
            for pattern, value in FILLED.items():
                line = re.sub(pattern, value, line)
            match = re.match(r"(?:python3 -m harness\.bootstrap|postload) (.*?)(?: \|\| test \$\? -eq 1)?$", line)
            if match:
                yield path.name, shlex.split(match[1])


COMMANDS = list(commands())


def test_each_template_has_its_commands() -> None:
    names = [(name, words[0]) for name, words in COMMANDS]
    both = [(name, command) for name in ("Jenkinsfile", "github.yml", "gitlab.yml") for command in ("matrix", "merge")]
    assert names == [*both, ("postload.service", "nightly")]


@pytest.mark.parametrize(("name", "words"), COMMANDS)
def test_the_command_lines_are_taken(name: str, words: list[str]) -> None:
    command = cli.commands[words[0]]
    with command.make_context(words[0], words[1:]) as context:
        if context.params.get("shard"):
            assert Shard.parse(context.params["shard"]) == Shard(number=2, of=4)
        check_notify(context.params.get("notify"))


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_template_fits_the_schema_of_its_system(name: str) -> None:
    program = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[name], str(FOLDER / name)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("name", ["postload.service", "postload.timer"])
def test_systemd_takes_its_units(name: str, tmp_path: Path) -> None:
    for unit in FOLDER.glob("postload.*"):
        shutil.copy(unit, tmp_path)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / name],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_shell_lines_of_the_jenkinsfile_are_closed() -> None:
    """There is no reader of Groovy here: brackets and quotes at least are in pairs."""
    text = re.sub(r"//.*|'[^'\n]*'|\"[^\"\n]*\"", "", (FOLDER / "Jenkinsfile").read_text())
    depth = 0
    for character in text:
        depth += (character in "{(") - (character in "})")
        assert depth >= 0
    assert depth == 0
    assert not set(text) & {"'", '"'}
