# SPDX-License-Identifier: GPL-2.0-or-later
"""The document of ``postload claims``: its schema, and how it looks in terminals, markdown and HTML."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from threading import Event
from typing import Any

import jsonschema
import pytest
from made_claims import FINDINGS, claims_doc, load_case, loads_of
from rich.console import Console

from harness.errors import HarnessError, UsageError
from harness.report.claims import COLUMNS, QUESTIONS, table_rows, told
from harness.report.schemas import shipped
from harness.report.studies import claims_html, claims_json, claims_markdown, print_claims, write_claims
from harness.studies.findings import StudyFinding
from harness.studies.model import ClaimsDoc, Lab, MachineFailure, Question, claims_schema


def check(document: object) -> None:
    validator = jsonschema.Draft202012Validator(claims_schema())
    validator.check_schema(claims_schema())
    validator.validate(document)


def test_a_document_fits_its_schema_and_is_read_back_as_it_was() -> None:
    document = json.loads(claims_json(claims_doc()))
    check(document)
    assert ClaimsDoc.from_json(document) == claims_doc()


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(schema="postload.claims/2"),
        lambda d: d.pop("complete"),
        lambda d: d["qemu"].pop("sha256"),
        lambda d: d["questions"][0].update(number="one"),
        lambda d: d["questions"][0]["machines"][0]["found"].update(question=5),
        lambda d: d["questions"][0]["machines"][0]["found"]["cases"][0].update(verdict="sad"),
        lambda d: d["questions"][0]["machines"][0]["found"]["cases"][0].update(causes=[{"kind": "odd"}]),
        lambda d: d["questions"][1]["machines"][0]["found"]["figures"].pop("lost"),
        lambda d: d["questions"][1]["machines"][0]["found"]["cases"][0].update(half="a bit"),
        lambda d: d["questions"][2]["machines"][0]["found"]["cases"][0]["exact"].update(how="well"),
        lambda d: d["questions"][3]["machines"][0]["found"]["cases"][0].update(mean_ms="long"),
    ],
)
def test_schema_and_reader_refuse(damage: Callable[[Any], object]) -> None:
    document = json.loads(claims_json(claims_doc()))
    damage(document)
    with pytest.raises(jsonschema.ValidationError):
        check(document)
    with pytest.raises(UsageError, match="not a document of postload claims"):
        ClaimsDoc.from_json(document)


def test_the_shipped_schema_is_the_one_that_the_models_give() -> None:
    """``python -m harness.report.schemas`` writes it anew."""
    assert shipped("claims-1.schema.json") == claims_schema()


@pytest.mark.parametrize("found", FINDINGS, ids=lambda found: str(found.question))
def test_each_row_has_a_value_for_each_column(found: StudyFinding) -> None:
    assert {len(row) for row in table_rows(found)} == {len(COLUMNS[found.question])}
    assert QUESTIONS[found.question].endswith("?")


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_terminal_fits(width: int) -> None:
    out = io.StringIO()
    print_claims(claims_doc(), Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= min(width, 100)
    assert "<script>" in out.getvalue()
    assert "not answered: q35: no pair" in out.getvalue()
    assert "QEMU 7.2.22 (/usr/bin/q), 6.5 s in all" in out.getvalue()


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_balanced_and_holds_no_foreign_tag() -> None:
    parser = _Tags()
    parser.feed(claims_html(claims_doc()))
    parser.close()
    assert parser.open == []
    assert set(parser.tags) == {"section", "h2", "h3", "p", "strong", "table", "thead", "tbody", "tr", "th", "td"}


def test_markdown_keeps_its_tables() -> None:
    text = claims_markdown(claims_doc())
    tables = [[line for line in part.splitlines() if line.startswith("|")] for part in text.split("## ")[1:]]
    # a head, a rule and the rows, each with a bar before, between and behind its columns
    assert [len(rows) for rows in tables] == [4, 7, 4, 3]
    for rows, entry in zip(tables, told(claims_doc()), strict=True):
        assert all(row.replace("\\|", "").count("|") == len(entry.columns) + 1 for row in rows)
    assert "<script>" not in text.replace("\\<", "")


def test_files(tmp_path: Path) -> None:
    paths = write_claims(claims_doc(), tmp_path / "out")
    assert [path.name for path in paths] == ["claims.json", "claims.md"]
    assert json.loads(paths[0].read_text()) == json.loads(claims_json(claims_doc()))
    assert len(list((tmp_path / "out").iterdir())) == 2


class _FakeLab:
    def __init__(self, family: str) -> None:
        self.family = family
        self.scope = Event()


def test_a_machine_that_cannot_say_does_not_silence_the_other() -> None:
    def ask(lab: Lab) -> StudyFinding:
        if lab.family == "q35":
            raise HarnessError("no pair")
        return loads_of(load_case())

    labs: Any = [_FakeLab("pc"), _FakeLab("q35")]
    answer = Question(number=1, ask=ask).answer(labs)
    assert [(one.machine, one.found) for one in answer.machines] == [("pc", loads_of(load_case()))]
    assert answer.failed == (MachineFailure(machine="q35", said="no pair"),)
    (entry,) = told(claims_doc(questions=(answer,)))
    assert entry.answer.startswith("pc: All 10 loads")
    assert (entry.failed, entry.columns[0], entry.rows[0][0]) == ("q35: no pair", "machine", "pc")


def test_nobody_to_ask_is_said() -> None:
    answer = Question(number=1, ask=lambda _: FINDINGS[0]).answer([])
    (entry,) = told(claims_doc(questions=(answer,)))
    assert (entry.failed, entry.columns[0]) == ("no machine to ask", "whole state")
