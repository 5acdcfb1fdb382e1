# SPDX-License-Identifier: GPL-2.0-or-later
"""The pages about the code name what is there."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
#: The last column of the table.
NAMES = [
    name for row in re.findall(r"^\|.*\| ([^|]*) \|$", GLOSSARY, re.MULTILINE) for name in re.findall("`(.+?)`", row)
]


def test_the_packages_of_the_picture_are_those_that_the_linter_holds() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    # bottom first, without what is not there yet and without what is no package
    held = [layer for layer in reversed(layers) if (ROOT / "harness" / layer).is_dir()]
    assert re.findall(r"^\| `(\w+)/`", PAGE, re.MULTILINE) == held


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([\w/]+\.(?:py|yaml))\b", PAGE))))
def test_each_file_of_the_picture_is_there(name: str) -> None:
    assert any((folder / name).is_file() for folder in (ROOT, ROOT / "harness")), name


@pytest.mark.parametrize("name", NAMES)
def test_each_word_of_the_glossary_is_in_the_code(name: str) -> None:
    module, _, attribute = f"harness.{name}".rpartition(".")
    try:
        import_module(f"harness.{name}")
    except ModuleNotFoundError:
        assert hasattr(import_module(module), attribute)


def test_the_glossary_names_code() -> None:
    assert len(NAMES) > 20
