# SPDX-License-Identifier: GPL-2.0-or-later
"""One class name once; the names that a user types are those of what they name."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

from harness import names
from harness.devices.recipe import load_recipes
from harness.engines.schedule import Schedule
from harness.lanes.registry import LANES
from harness.report.writer import FORMATS
from harness.state.transforms import GuestMode
from harness.studies.run import QUESTIONS

HARNESS = Path(names.__file__).parent
#: One file of the standard library that goes into bug reports: nothing imports it, and it imports nothing.
APART = HARNESS / "triage" / "reproduce.py"


def test_no_class_name_is_used_twice() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in HARNESS.rglob("*.py"):
        if path != APART:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(str(path.relative_to(HARNESS)))
    assert len(places) > 300
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_what_checks_a_value_for_pydantic_is_a_function() -> None:
    """Python 3.13 calls an enumeration with another signature, and then pydantic refuses it at import."""
    found = [
        f"{path.relative_to(HARNESS)}:{number}"
        for path in HARNESS.rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\b(Before|After|Plain|Wrap)Validator\([A-Z]", line)
    ]
    assert found == []


def test_no_test_file_has_the_name_of_another() -> None:
    """pytest imports all of them by their bare name, and stops at the second of one name."""
    names = [path.name for path in Path(__file__).parents[1].rglob("test_*.py")]
    assert [name for name in names if names.count(name) > 1] == []


def test_the_names_are_those_of_the_registries() -> None:
    assert tuple(LANES) == (*names.MIGRATIONS, *names.SCHEDULES, *names.ORACLES, names.RESET)
    assert tuple(map(str, Schedule)) == names.SCHEDULES
    assert tuple(map(str, GuestMode)) == names.GUEST_MODES
    assert (tuple(FORMATS), tuple(QUESTIONS)) == (names.FORMATS, names.QUESTIONS)


def test_the_usual_devices_are_those_of_the_recipes() -> None:
    recipes = load_recipes(None).devices.values()
    assert tuple(sorted(device.name for device in recipes if device.default)) == names.USUAL_DEVICES


def test_a_registry_has_the_order_of_its_names() -> None:
    assert list(names.in_order("letters", ("b", "a"), {"a": 1, "b": 2})) == ["b", "a"]


@pytest.mark.parametrize("registered", [{"a": 1}, {"a": 1, "b": 2, "c": 3}])
def test_a_registry_with_another_name_is_no_registry(registered: dict[str, int]) -> None:
    with pytest.raises(ImportError, match=r"letters and their names in harness\.names differ: [bc]$"):
        names.in_order("letters", ("a", "b"), registered)
