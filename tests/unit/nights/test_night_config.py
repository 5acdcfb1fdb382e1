# SPDX-License-Identifier: GPL-2.0-or-later
"""``nightly.yaml``: the example of the page, what is made of it, and each mistake with its line."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest

from harness.cli import cli
from harness.errors import ConfigError
from harness.nights.config import NightConfig, OwnBuild, holding, load_config, past

PAGE = Path(__file__).parents[3] / "docs" / "nightly.md"
CELL = "head/pc-q35-7.2/ahci/bound/same"


def written(folder: Path, text: str) -> Path:
    path = folder / "nightly.yaml"
    path.write_text(text)
    return path


def test_the_example_of_the_page_has_every_key(tmp_path: Path) -> None:
    (example,) = re.findall(r"^```yaml\n(# nightly\.yaml\n.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    config = load_config(written(tmp_path, example))
    keys = {key for key in NightConfig.model_fields if re.search(rf"^#? ?{key}:", example, re.MULTILINE)}
    assert keys == set(NightConfig.model_fields)
    assert config.budget_minutes == 240
    assert [each.name if isinstance(each, OwnBuild) else each for each in config.qemus] == [
        "7.2",
        "11.1",
        "head",
        "asan",
    ]
    assert config.quarantine[0].until > date(2026, 1, 1)


def test_paths_are_those_of_its_folder(tmp_path: Path) -> None:
    text = "qemus: [11.1, ./q, {name: head, tree: build}]\nknown: k.yaml\nstore: postgresql://u@h/d\n"
    config = load_config(written(tmp_path, text))
    assert config.qemus == ("11.1", str(tmp_path / "q"), OwnBuild(name="head", tree=tmp_path / "build"))
    assert (config.out, config.known, config.store) == (
        tmp_path / "nights", tmp_path / "k.yaml", "postgresql://u@h/d",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("", "{base}/history.db"), ("postgresql://u@h/d", "postgresql://u@h/d"), ("here.db", "{base}/here.db")],
)
def test_a_night_writes_the_history_that_the_other_commands_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, wanted: str
) -> None:
    monkeypatch.setenv("POSTLOAD_STORE", given)
    monkeypatch.chdir(tmp_path)  # where a newcomer is
    night = load_config(written(tmp_path, "qemus: [11.1]")).store
    assert night == wanted.format(base=tmp_path)
    read = cli.commands["history"].make_context("history", []).params["store"]
    assert (read if "://" in read else str(tmp_path / read)) == night


def test_what_is_asked_is_named_apart_from_where_it_is_kept(tmp_path: Path) -> None:
    def asked(text: str) -> str:
        return load_config(written(tmp_path, text)).asked

    first = asked("qemus: [11.1]")
    assert asked("qemus: [11.1]\nbudget_minutes: 3\nstore: x.db\nknown: k.yaml\nremote: true") == first
    assert asked("qemus: [11.1]\nloads: 3") != first
    assert asked("qemus: [7.2]") != first


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("machines: [pc]\n", 1, "key 'qemus' is missing"),
        ("qemus: []\n", 1, "expected at least one"),
        ("qemus: [7.2]\nbudget_minuts: 3\n", 2, "unknown key 'budget_minuts'; did you mean 'budget_minutes'?"),
        ("qemus: [7.2]\nbudget_minutes: 0\n", 2, "greater than 0"),
        ("qemus: [7.2]\nbudget_minutes: soon\n", 2, "found 'soon'"),
        ("qemus:\n- {name: head}\n", 2, "expected path (of a program) or tree"),
        ("qemus:\n- {name: head, path: a, tree: b}\n", 2, "expected path (of a program) or tree"),
        ("qemus:\n- {name: he/ad, path: a}\n", 2, "is no name for a QEMU"),
        ("machines: [pc]\nqemus: [a, {name: a, path: b}]\n", 2, "two QEMUs have the name 'a'"),
        ("qemus: [7.2]\nphases: [bund]\n", 2, "unknown phase 'bund'"),
        ("qemus: [7.2]\nmigrations: [plian]\n", 2, "unknown migration 'plian'"),
        ("qemus: [7.2]\nnotify: ''\n", 2, "expected a URL such as https://HOST/PATH, or a command line"),
        ("qemus: [7.2]\nnotify: mail 'a\n", 2, "No closing quotation"),
        ("qemus: [7.2]\nschedules: [sam]\n", 2, "'same'"),
        ("qemus: [7.2]\nquarantine:\n- {cell: a/b/c/d, link: x:y}\n", 3, "key 'until' is missing"),
        ("qemus: [7.2]\nquarantine:\n- {cell: a/b/c/d, until: 2026-01-01}\n", 3, "key 'link' is missing"),
        ("qemus: [7.2]\nquarantine:\n- cell: ahci\n  link: x:y\n  until: 2026-01-01\n", 3, "cell"),
        ("qemus: [7.2]\nquarantine:\n- cell: a/b/c/d\n  link: x:y\n  until: never\n", 5, "until"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, line: int, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(written(tmp_path, text))
    assert error.value.line == line
    assert said in str(error.value)
    assert error.value.exit_code == 2


def test_a_quarantine_ends_on_its_day(tmp_path: Path) -> None:
    text = "qemus: [7.2]\nquarantine:\n- {cell: '7.2/*/ahci/*', link: x:y, until: 2026-02-03}\n"
    entries = load_config(written(tmp_path, text)).quarantine
    last, behind = date(2026, 2, 3), date(2026, 2, 4)
    assert holding(entries, "7.2.22/pc-q35-7.2/ahci/bound/same", last) == entries[0]
    assert holding(entries, "7.2.22/pc-q35-7.2/e1000e/bound/same", last) is None
    assert holding(entries, "7.2.22/pc-q35-7.2/ahci/bound/same", behind) is None
    assert (past(entries, last), past(entries, behind)) == ((), entries)
