# SPDX-License-Identifier: GPL-2.0-or-later
"""The script of a case is a program of its own; it must read what QEMU says as the engine does.

It shares no code with the engine, so that it runs where this program is not. Here the same logs are given to both.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from made_cells import ended, made_cell, refused

from harness.oracles import words
from harness.oracles.load import crash_line, error_line
from harness.report.bundle import shell_line
from harness.results.verdict import Verdict
from harness.triage import bundle, reproduce
from harness.triage.smallest import line_of, reason_of

SIGNATURES = Path(__file__).parents[1] / "results" / "signatures.yaml"
PACKAGE = Path(reproduce.__file__).parents[1]


def _logs() -> Iterator[tuple[str, str, str]]:
    for entry in yaml.safe_load(SIGNATURES.read_text(encoding="utf-8")):
        for machine, log in entry["logs"]:
            yield entry["verdict"], machine, log


LOGS = [(verdict, log) for verdict, _, log in _logs() if log]


@pytest.mark.parametrize(("verdict", "log"), LOGS)
def test_both_find_the_same_line(verdict: str, log: str) -> None:
    assert reproduce.crash_line(log) == crash_line(log)
    assert reproduce.error_line(log) == error_line(log)


@pytest.mark.parametrize(("verdict", "log"), LOGS)
def test_both_name_the_same_section(verdict: str, log: str) -> None:
    label = words.named_section(log)
    assert reproduce.named(log) == (label and re.sub(r"#\d+$", "", label))


@pytest.mark.parametrize("log", [log for verdict, log in LOGS if verdict == "reject"])
def test_both_hear_the_same_complaint(log: str) -> None:
    assert reproduce.complaint(log) == words.last_complaint(log)


@pytest.mark.parametrize("log", [log for verdict, log in LOGS if verdict == "crash"])
def test_both_know_the_assertion(log: str) -> None:
    found = words.failed_assertion(log)
    ours = (found.function, reproduce.bare(found.expression)) if found else ("", "")
    function, what = reproduce.assertion(log)
    assert (function, reproduce.bare(what)) == ours


def test_the_answers_have_the_same_numbers() -> None:
    ours = (bundle.REPRODUCED, bundle.NOT_REPRODUCED, bundle.UNTRIED)
    assert ours == (reproduce.REPRODUCED, reproduce.NOT_REPRODUCED, reproduce.UNTRIED)


def test_the_command_line_in_a_bundle_is_that_of_its_script() -> None:
    document = {
        "machine": "pc-q35-7.2",
        "accel": "tcg",
        "options": [
            {"name": "m", "first": "128M"},
            {"name": "kernel", "first": "{case}/kernel"},
            {"name": "append", "first": "console=ttyS0,115200 x"},
            {"name": "blockdev", "first": None, "props": {"driver": "raw", "file.filename": "{workdir}/a,b.img"}},
            {"name": "device", "first": "virtio-blk-pci", "props": {"drive": "d0", "modern": True, "queues": 2}},
        ],
    }
    line = reproduce.command_line(document, "qemu-system-x86_64", "SCRATCH", "CASE")
    assert shlex.split(shell_line(document)) == [*line, "-qmp", "stdio"]


def test_nothing_imports_the_script() -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not any("reproduce" in name for name in names), file


def test_a_case_of_a_refused_load_says_what_was_refused_and_why() -> None:
    line = "error while loading state for instance 0x0 of device 'a/net'"
    log = f"qemu-system-x86_64: VQ 0 is broken\nqemu-system-x86_64: {line}"
    cell = made_cell(verdict=Verdict.REJECT, causes=(refused(line),), log=log)
    assert line_of(cell) == line
    assert reason_of(cell) == "VQ 0 is broken"
    assert reproduce.named(line) == "a/net"
    crashed = made_cell(verdict=Verdict.CRASH, causes=(ended(),), log=log)
    assert (line_of(crashed), reason_of(crashed)) == (None, None)
