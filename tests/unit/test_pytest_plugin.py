# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugin of pytest where it is not asked for, its options, and what cells come to as tests."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import entry_points

import pytest
from made_cells import ended, made_cell

from harness.commands import declared
from harness.commands.celltests import Came, result_of
from harness.pytest_plugin import FLAGS, VALUES
from harness.results.document import Cell
from harness.results.known import Issue
from harness.results.signature import name_of
from harness.results.verdict import Verdict

pytest_plugins = ["pytester"]

#: Of a command, and not of tests: pytest has its own ways.
OTHERWISE = {"json", "shard", "store", "notify", "remote", "each-host"}


def crash(place: str = "pc-q35-7.2/ahci/bound/same") -> Cell:
    return made_cell(place, verdict=Verdict.CRASH, causes=(ended("it died"),), blamed=("ahci",))


def known(cell: Cell, **changes: object) -> Issue:
    given = {"signature": name_of(cell), "affected": ("*",), "link": "https://example.org/1", **changes}
    return Issue.model_validate(given)


def test_it_is_silent_unless_it_is_asked_for(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import sys\ndef test_own():\n    assert 'harness.commands.celltests' not in sys.modules\n")
    done = pytester.runpytest_subprocess("-p", "harness.pytest_plugin", "-v")
    done.assert_outcomes(passed=1)
    done.stdout.fnmatch_lines(["*collected 1 item*"])
    done.stdout.no_fnmatch_line("*postload::*")


def test_a_wrong_option_is_told_in_a_line(pytester: pytest.Pytester) -> None:
    done = pytester.runpytest_subprocess("-p", "harness.pytest_plugin", "--postload-loads=none")
    assert done.ret == pytest.ExitCode.INTERRUPTED
    done.stdout.fnmatch_lines(["postload: Invalid value for '--loads'*"])
    done.stdout.no_fnmatch_line("*Traceback*")
    done.stdout.no_fnmatch_line("*raise *")


def test_its_options_are_those_of_the_matrix() -> None:
    options = {parameter.opts[0].removeprefix("--"): parameter for parameter in declared.matrix.params}
    assert {*VALUES, *FLAGS} == options.keys() - OTHERWISE
    assert {name for name in FLAGS if not options[name].is_flag} == set()  # type: ignore[attr-defined]


def test_its_entry_point_has_the_name_of_the_module() -> None:
    found = [point for point in entry_points(group="pytest11") if point.value.startswith("harness")]
    assert [(point.name, point.value) for point in found] == [("harness.pytest_plugin", "harness.pytest_plugin")]


@pytest.mark.parametrize(
    ("cells", "came"),
    [
        ([], Came.SKIPPED),
        ([made_cell()], Came.PASSED),
        ([made_cell(verdict=Verdict.UNSUPPORTED)], Came.SKIPPED),
        ([made_cell(verdict=Verdict.HOST)], Came.UNDECIDED),
        ([crash()], Came.FAILED),
        ([crash(), made_cell(verdict=Verdict.HOST)], Came.FAILED),
    ],
)
def test_what_cells_come_to(cells: list[Cell], came: Came) -> None:
    assert result_of(cells, ()).came is came


def test_a_known_crash_is_told_by_its_signature() -> None:
    found = result_of([crash(), made_cell("pc-q35-7.2/ahci/bound/same+rest")], [known(crash())])
    assert (found.came, found.text) == (Came.KNOWN, "https://example.org/1")


def test_another_crash_behind_a_known_one_fails() -> None:
    other = made_cell("pc-q35-7.2/ahci/bound/same+rest", verdict=Verdict.HANG, causes=(ended("x"),), blamed=("pci",))
    found = result_of([crash(), other], [known(crash())])
    assert found.came is Came.FAILED
    assert "hang" in found.text
    assert "next: postload explain" in found.text


def test_a_known_crash_that_does_not_come_in_its_cell_is_gone() -> None:
    issue = known(crash(), seen="ahci/bound/same")
    assert result_of([made_cell()], [issue]).came is Came.GONE
    assert result_of([made_cell("pc-q35-7.2/ahci/bound/walk")], [issue]).came is Came.PASSED
    assert result_of([replace(made_cell(), seconds=1.5)], []).seconds == 1.5
